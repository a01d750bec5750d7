"""The GPU catalogue, and planning for GPUs that are somewhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from launcher.errors import LauncherError
from launcher.plan.away import away_machine, named_gpu, refuse_other_machine
from launcher.plan.cost.constants import PUBLISHED
from launcher.plan.cost.of_stage import Clock
from launcher.plan.cost.rates import catalogue_rates
from launcher.plan.gpus import GPUS, gpu_named
from launcher.plan.ladder import UNPINNED, Ground, Rung, layout_of
from launcher.plan.load import Load
from launcher.spec.gpu import GpuGeneration, GpuSpec
from launcher.spec.job import ClusterSpec
from launcher.units import GIB


@pytest.mark.parametrize("name", ["h100-80gb", "H100-80GB", "h100_80gb", " h100 80gb "])
def test_a_gpu_is_found_however_it_is_written(name):
    assert gpu_named(name) is GPUS["h100-80gb"]


def test_a_short_name_is_taken_where_it_fits_one_entry_only():
    assert gpu_named("h200").name == "h200-141gb"
    assert gpu_named("a100") is None


def test_usable_memory_is_below_the_label():
    for name, gpu in GPUS.items():
        label_gib = float(name.rsplit("-", 1)[1].removesuffix("gb"))
        assert 0.88 * label_gib < gpu.usable_gib <= label_gib


def test_a_machine_elsewhere_has_the_gpus_that_are_named():
    machine = away_machine("H100-80GB", slots=8)
    assert (machine.device, machine.slots, machine.gpu, machine.devices) == ("cuda", 8, "h100-80gb", tuple(range(8)))
    assert machine.memory_bytes == int(79.2 * GIB)
    assert machine.disk_free_bytes is None


def test_a_gpu_that_nobody_knows_is_refused_with_the_nearest_name():
    with pytest.raises(LauncherError) as caught:
        away_machine("h100-80", slots=8)
    assert caught.value.text() == (
        "cluster.gpu [E216] h100-80 is not in the catalogue of GPUs\n  hint: did you mean h100-80gb?"
    )


def test_a_gpu_without_a_number_of_them_is_refused():
    with pytest.raises(LauncherError) as caught:
        away_machine("h100-80gb", slots=None)
    assert "add `slots: 8` beside it" in caught.value.text()


def named(**fields):
    return ClusterSpec.model_validate(fields)


def test_a_run_on_another_gpu_than_the_one_named_is_refused(cpu, gpus):
    refuse_other_machine(named(), cpu)
    refuse_other_machine(named(gpu="H100-80GB"), gpus)
    with pytest.raises(LauncherError, match="this machine has no GPU that can be used"):
        refuse_other_machine(named(gpu="h100-80gb"), cpu)
    with pytest.raises(LauncherError, match="this machine has a100-80gb"):
        refuse_other_machine(named(gpu="h100-80gb"), replace(gpus, gpu="a100-80gb"))


def test_a_run_on_more_hosts_than_this_one_is_refused(gpus):
    refuse_other_machine(named(nodes=1), gpus)
    with pytest.raises(LauncherError, match="2 hosts are named: backend local starts ranks on this machine only"):
        refuse_other_machine(named(nodes=2, gpu="h100-80gb", slots=8), gpus)


def test_hosts_elsewhere_multiply_the_ranks():
    machine = away_machine("h100-80gb", slots=8, nodes=64)
    assert (machine.nodes, machine.world) == (64, 512)


def test_a_gpu_that_is_in_no_catalogue_is_planned_for_by_its_numbers():
    numbers = GpuSpec.model_validate({"name": "next", "memory_gib": 300, "tflops": 4000, "memory_gbs": 12_000})
    machine = away_machine(numbers, slots=4)
    assert (machine.gpu, machine.memory_bytes, machine.bf16) == ("next", 300 * GIB, True)
    rates = catalogue_rates(machine, gpu=named_gpu(numbers))
    assert rates.gpu is not None
    assert rates.gpu.tflops_16bit == 4000
    assert catalogue_rates(machine).gpu is None  # without its numbers no time is told


NUMBERS = {"memory_gib": 80, "tflops": 312, "memory_gbs": 2039}


def test_a_gpu_of_a_named_generation_is_as_fast_as_the_catalogues():
    told = NUMBERS | {"generation": "ampere", "nvlink_gbs": 300, "nvlink_gpus": 8, "nic_gbs": 25, "memory_gib": 79.2}
    gpu, known = named_gpu(GpuSpec.model_validate(told)), GPUS["a100-80gb"]
    assert replace(gpu, name=known.name, usd_per_hour=known.usd_per_hour) == known


def step_s(generation, precision, shape):
    numbers = GpuSpec.model_validate(NUMBERS | {"generation": generation})
    machine = away_machine(numbers, slots=1)
    load = Load(shape=shape, kind="sft", adapter=None, quantized=False, eager=False, row_tokens=1024, answer_tokens=0)
    ground = Ground(machine=machine, dp=1, precision=precision, global_batch=8)
    layout = layout_of(ground, Rung(zero=1, checkpointing="none"), 8, UNPINNED)
    return Clock(load, catalogue_rates(machine, gpu=named_gpu(numbers)).speeds(machine)).time(layout).step_s


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_gpu_of_no_named_generation_is_taken_for_a_slow_one(llama, precision):
    unknown = step_s(None, precision, llama)
    assert {one for one in get_args(GpuGeneration) if step_s(one, precision, llama) > unknown} <= {"turing", "cdna3"}


def test_every_generation_has_its_numbers():
    for generation in get_args(GpuGeneration):
        gpu = named_gpu(GpuSpec.model_validate(NUMBERS | {"generation": generation}))
        assert gpu.bf16 is (generation not in ("volta", "turing"))
        assert 0 < PUBLISHED.matrix(generation) < 1
        assert 0 < gpu.fp32_ratio <= gpu.tf32_ratio


def test_what_the_machine_tells_of_its_links_goes_before_the_catalogue(gpus):
    told = catalogue_rates(replace(gpus, nvlink=False, pcie_gbs=15.75, network_gbs=25)).links
    assert (told.nvlink_gbs, told.nvlink_gpus, told.pcie_gbs, told.nic_gbs) == (0, 1, 15.75, 25 / 8)
    assert catalogue_rates(gpus).links.nvlink_gbs == 450
