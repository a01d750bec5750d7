"""Figures of a device that is known -> the numbers that were put in, and plans that tell the measured seconds."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from launcher.plan.cost.calibration import calibrated_rates, calibration_of, check_numbers, device_name
from launcher.plan.cost.constants import CPU, PUBLISHED
from launcher.plan.cost.figures import figures_from
from launcher.plan.cost.kernels import Device
from launcher.plan.cost.rates import catalogue_rates, cpu_device
from launcher.plan.gpus import GPUS
from launcher.units import GIB
from tests.figures import Known, as_told, figures_of

CPU_SIZES = ((512, 2048, 768), (512, 768, 2048), (2048, 768, 512))
GPU_SIZES = ((8192, 8192, 8192), (4096, 22016, 4096), (4096, 4096, 11008))


@pytest.fixture
def cores() -> Known:
    """A CPU rank that is nowhere as the catalogue thinks."""
    gpu = replace(cpu_device(cores=1, memory_bytes=4 * GIB), tflops_16bit=0.2, fp32_ratio=0.45, memory_gbs=28.0, pcie_gbs=0.6)
    software = {"flash2": 0.5, "backward_attention": 0.9, "elements": 3.0, "loss_bytes": 90.0, "launch_cpu": 4e-4}
    return Known(gpu=gpu, constants=replace(CPU, **software), world=2, link_gbs=0.6, latency_s=2e-4, adam_s=0.7e-9)


@pytest.fixture
def h100() -> Known:
    """One of eight that reach 6/7 of the arithmetic, half of the memory and two thirds of the links of the catalogue's."""
    gpu = replace(GPUS["h100-80gb"], tflops_16bit=850.0, fp32_ratio=0.06, memory_gbs=1675.0, pcie_gbs=40.0)
    constants = replace(PUBLISHED, flash2=0.7, backward_attention=0.9)
    return Known(gpu=gpu, constants=constants, world=8, link_gbs=300 * PUBLISHED.nvlink_share, adam_s=2e-10)


def test_a_cpu_rank_is_found_as_it_is(cores, cpu):
    found = calibration_of(figures_of(cores, precision="fp32", sizes=CPU_SIZES), cpu, measured="then")
    assert found.gpu == pytest.approx({"tflops_16bit": 0.2, "fp32_ratio": 0.45, "memory_gbs": 28.0}, rel=1e-3)
    assert found.links == pytest.approx({"pcie_gbs": 0.6, "nic_gbs": 0.6}, rel=1e-3)
    told = {"flash2", "backward_attention", "elements", "loss_bytes", "launch_cpu"}
    assert {name: found.constants[name] for name in told} == pytest.approx(
        {name: getattr(cores.constants, name) for name in told}, rel=5e-3
    )
    assert found.constants["collective_s"] == pytest.approx(2e-4, rel=1e-2)


def test_a_calibrated_cpu_tells_the_seconds_that_were_measured(cores, cpu):
    figures = figures_of(cores, precision="fp32", sizes=CPU_SIZES)
    rates = calibrated_rates(calibration_of(figures, cpu, measured="then"), cpu, catalogue_rates(cpu))
    for one in figures.products:
        device = Device(gpu=rates.gpu, arithmetic=one.precision, constants=rates.constants)
        assert device.product(one.rows, one.columns, one.inner) == pytest.approx(one.seconds, rel=1e-2)
    adam = rates.constants.optimizer_bytes * figures.adam.parameters / (0.7 * rates.gpu.memory_gbs * 1e9)
    assert adam == pytest.approx(figures.adam.seconds, rel=1e-2)
    assert rates.links.inside(rates.constants) == pytest.approx(0.6e9, rel=1e-2)


def test_fewer_cpu_ranks_than_were_measured_have_more_cores_each(cores, cpu):
    found = calibration_of(figures_of(cores, precision="fp32", sizes=CPU_SIZES), cpu, measured="then")
    alone = replace(cpu, slots=1)
    both, one = (calibrated_rates(found, machine, catalogue_rates(machine)).gpu for machine in (cpu, alone))
    assert one.tflops_16bit == pytest.approx(2 * both.tflops_16bit)
    assert one.memory_gbs == pytest.approx(2 * both.memory_gbs)


def test_a_gpu_is_found_as_it_is_and_its_software_is_left_as_published(h100, gpus):
    found = calibration_of(figures_of(h100, precision="bf16", sizes=GPU_SIZES), gpus, measured="then")
    assert found.gpu == pytest.approx({"tflops_16bit": 850.0, "fp32_ratio": 0.06, "memory_gbs": 1675.0}, rel=5e-3)
    assert found.links == pytest.approx({"nvlink_gbs": 300.0, "pcie_gbs": 40.0}, rel=5e-3)
    assert set(found.constants) == {"flash2", "backward_attention", "host_gbs"}
    assert found.constants["flash2"] == pytest.approx(0.7, rel=5e-3)
    # eight ranks move 28 bytes for each parameter in 0.2 ns each
    assert found.constants["host_gbs"] == pytest.approx(8 * PUBLISHED.optimizer_bytes / 0.2, rel=1e-3)


def slower(value):
    """A figure, or several, with all their seconds four times as long."""
    if isinstance(value, tuple):
        return tuple(map(slower, value))
    return replace(value, **{name: 4 * seconds for name, seconds in asdict(value).items() if name.endswith(("seconds", "_s"))})


@pytest.mark.parametrize("name", ["products", "attention", "blocks", "loss", "memory", "host_copies", "collectives", "adam"])
def test_no_figure_is_measured_for_nothing(h100, gpus, cores, cpu, name):
    for known, machine, precision, sizes in ((cores, cpu, "fp32", CPU_SIZES), (h100, gpus, "bf16", GPU_SIZES)):
        figures = figures_of(known, precision=precision, sizes=sizes)
        if value := getattr(figures, name):
            changed = replace(figures, **{name: slower(value)})
            assert calibration_of(changed, machine, measured="then") != calibration_of(figures, machine, measured="then")
        else:
            assert (name, precision) in {("blocks", "bf16"), ("loss", "bf16"), ("host_copies", "fp32")}


def test_mfu_still_counts_from_the_vendors_peak(h100, gpus):
    found = calibration_of(figures_of(h100, precision="bf16", sizes=GPU_SIZES), gpus, measured="then")
    rates = calibrated_rates(found, gpus, catalogue_rates(gpus))
    assert rates.peak_flops == 989e12
    assert rates.gpu.tflops_16bit == pytest.approx(850, rel=5e-3)


def test_gpus_without_nvlink_are_joined_by_pcie(h100, gpus):
    machine = replace(gpus, gpu="l4-24gb")
    known = replace(h100, gpu=GPUS["l4-24gb"], link_gbs=12.0)
    found = calibration_of(figures_of(known, precision="bf16", sizes=GPU_SIZES), machine, measured="then")
    assert found.links == pytest.approx({"pcie_gbs": 12 / PUBLISHED.pcie_share}, rel=5e-3)


def test_one_rank_alone_measures_no_links_but_the_one_to_its_host(h100, gpus):
    figures = figures_of(replace(h100, world=1), precision="bf16", sizes=GPU_SIZES)
    found = calibration_of(figures, replace(gpus, slots=1), measured="then").links
    assert found == pytest.approx({"pcie_gbs": 40.0}, rel=5e-3)


def test_a_gpu_that_nobody_knows_can_be_planned_for_once_it_is_measured(h100, gpus):
    machine = replace(gpus, gpu="NVIDIA Strange 9000 (rev. 2)")
    assert catalogue_rates(machine).gpu is None
    found = calibration_of(figures_of(h100, precision="bf16", sizes=GPU_SIZES), machine, measured="then")
    assert found.device == "nvidia-strange-9000-rev.-2"
    gpu = calibrated_rates(found, machine, catalogue_rates(machine)).gpu
    assert gpu.multiprocessors == h100.gpu.multiprocessors
    device = Device(gpu=gpu, arithmetic="bf16", constants=PUBLISHED)
    real = Device(gpu=h100.gpu, arithmetic="bf16", constants=PUBLISHED)
    assert device.product(8192, 8192, 8192) == pytest.approx(real.product(8192, 8192, 8192), rel=1e-2)


def test_a_device_has_a_name_that_a_file_can_have(cpu, gpus):
    assert device_name(replace(cpu, cores=64)) == "cpu-64"
    assert device_name(gpus) == "h100-80gb"
    assert device_name(replace(gpus, gpu="../../etc/passwd")) == "etc-passwd"


def test_noise_never_gives_a_number_below_0(cores, cpu):
    """A block that is faster than its products, a large collective that is faster than a small one."""
    figures = figures_of(cores, precision="fp32", sizes=CPU_SIZES)
    blocks = (replace(figures.blocks[0], seconds=1e-3), figures.blocks[1])
    collectives = tuple(replace(one, seconds=1e-3 if one.bytes > 2**20 else 2e-3) for one in figures.collectives)
    attention = replace(figures.attention, backward_s=0.0)
    noisy = replace(figures, blocks=blocks, collectives=collectives, attention=attention)
    check_numbers(calibration_of(noisy, cpu, measured="2026-11-28T10:00:00Z"))


@pytest.mark.parametrize("change", [{"gpu": {"tflops": 1.0}}, {"links": {"pcie_gbs": 0}}, {"constants": {"flash2": True}}])
def test_a_number_with_another_name_or_none_at_all_is_refused(cores, cpu, change):
    found = calibration_of(figures_of(cores, precision="fp32", sizes=CPU_SIZES), cpu, measured="then")
    with pytest.raises(ValueError, match=next(iter(change))):
        check_numbers(replace(found, **change))


def test_figures_are_read_as_the_ranks_write_them(cores):
    figures = figures_of(cores, precision="fp32", sizes=CPU_SIZES)
    assert figures_from(as_told(figures)) == figures


@pytest.mark.parametrize("change", [{"adam": None}, {"products": {}}, {"loss": {"tokens": 1}}, {"more": 1}])
def test_figures_of_another_kind_are_refused(cores, change):
    told = as_told(figures_of(cores, precision="fp32", sizes=CPU_SIZES))
    with pytest.raises(ValueError, match="not what the ranks write"):
        figures_from(told | change)
