"""What only our stages have: offload, checkpoints on the host, ppo's phases, calibration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.plan.cost.constants import PUBLISHED
from launcher.plan.cost.of_stage import Clock, Rollout, Speeds, work_of
from launcher.plan.cost.rates import Scale
from launcher.plan.cost.stack import OURS
from launcher.spec.model import Lora
from tests.unit.plan.cost.ideal import PCIE_GBS


def test_an_offloaded_optimizer_sends_gradients_down_and_parameters_up_and_steps_on_the_host(load, layout, gpu, links):
    """ZeRO 2 sends its fp32 sums once, in fp16 the gradients of each micro-batch; eight ranks share the host's memory."""
    speeds = Speeds(gpu=gpu, links=links, stack=OURS, constants=replace(PUBLISHED, pcie_share=1.0), host_ranks=8)
    owned = load.num_params / 8
    adam = PUBLISHED.optimizer_bytes * owned * 8 / (PUBLISHED.host_gbs * 1e9)
    for precision, moved in (("bf16", 4 + 2), ("fp16", 2 * 4 + 2)):
        asked = replace(layout, zero=2, offload_optimizer="cpu", grad_accum=4, precision=precision)
        offloaded = Clock(load, speeds).time(asked)
        assert offloaded.parts["offload"] == pytest.approx(moved * owned / (PCIE_GBS * 1e9) + adam)
    assert offloaded.parts["optimizer"] == pytest.approx(PUBLISHED.step_s)
    assert sum(offloaded.parts.values()) == pytest.approx(offloaded.step_s)


def test_half_of_an_optimizer_on_the_host_takes_half_of_both(load, layout, speeds):
    whole, half = (
        Clock(load, speeds).time(replace(layout, offload_optimizer="cpu", ratio=ratio)).parts for ratio in (1.0, 0.5)
    )
    kept = Clock(load, speeds).time(layout).parts
    assert half["offload"] == pytest.approx(whole["offload"] / 2)
    floor = speeds.constants.step_s
    assert half["optimizer"] - floor == pytest.approx((kept["optimizer"] - floor) / 2)


@pytest.mark.parametrize("host_gbs", [1.0, 47.0, 1e6])
@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_a_step_is_never_faster_for_an_offload(load, layout, speeds, host_gbs, zero, ratio):
    """However small the model and however fast the host."""
    clock = Clock(load, replace(speeds, constants=replace(speeds.constants, host_gbs=host_gbs)))
    here = replace(layout, zero=zero)
    plain = clock.time(here).step_s
    for change in ({"offload_optimizer": "cpu", "ratio": ratio}, {"offload_parameters": "cpu"}, {"checkpointing": "offload"}):
        away = here if "checkpointing" not in change else replace(here, checkpointing="full")
        assert clock.time(replace(away, **change)).step_s >= (plain if away is here else clock.time(away).step_s)


@pytest.mark.parametrize(
    "change",
    [
        {"offload_optimizer": "cpu"},
        {"offload_optimizer": "nvme"},
        {"offload_parameters": "cpu"},
        {"offload_parameters": "nvme"},
        {"checkpointing": "offload"},
    ],
)
def test_whatever_rests_on_the_host_or_a_disk_takes_longer(load, layout, speeds, change):
    plain, away = (Clock(load, speeds).time(one) for one in (layout, replace(layout, **change)))
    assert away.step_s > plain.step_s
    assert away.parts["offload"] > 0
    assert "offload" not in plain.parts


def test_a_disk_is_slower_than_the_hosts_memory(load, layout, speeds):
    for what in ("offload_optimizer", "offload_parameters"):
        memory, disk = (Clock(load, speeds).time(replace(layout, **{what: place})).step_s for place in ("cpu", "nvme"))
        assert disk > memory


def test_the_phases_of_ppo_are_positive_and_grow_with_answers_and_prompts(load, layout, speeds):
    def phases(answer=128, prompts=512):
        ppo = replace(load, kind="ppo", row_tokens=512 + answer, answer_tokens=answer)
        parts = Clock(ppo, speeds, rollout=Rollout(prompts=prompts, steps=2)).time(layout).parts
        return {name: parts[name] for name in ("sampling", "scoring", "critic", "compute")}

    few, long, many = phases(), phases(answer=256), phases(prompts=1024)
    assert min(few.values()) > 0
    assert all(long[name] > few[name] for name in few)
    assert many["sampling"] > few["sampling"]
    assert many["scoring"] == pytest.approx(2 * few["scoring"])
    assert many["compute"] == few["compute"]


def test_parts_of_a_ppo_step_add_up_with_an_adapter_and_a_calibration_too(load, layout, speeds):
    ppo = replace(load, kind="ppo", adapter=Lora(rank=8), row_tokens=640, answer_tokens=128)
    for scale in (0.8, 1.0, 1.3):
        time = Clock(ppo, speeds, rollout=Rollout(prompts=512, steps=2), scale=scale).time(layout)
        assert sum(time.parts.values()) == pytest.approx(time.step_s)


@pytest.mark.parametrize("scale", [0.8, 1.3])
def test_a_calibration_scales_the_whole_step_and_every_part_of_it(load, layout, speeds, scale):
    """A part of its own would be negative where runs are faster than predicted, and the others more than all of it."""
    plain, scaled = (Clock(load, speeds, scale=one).time(layout) for one in (1.0, scale))
    assert scaled.step_s == pytest.approx(scale * plain.step_s)
    assert scaled.parts == pytest.approx({name: scale * seconds for name, seconds in plain.parts.items()})


def test_a_scale_of_few_runs_is_drawn_to_1():
    """n runs weigh n / (n + 2)."""
    assert Scale(time=1.44, runs=2).shrunk().time == pytest.approx(1.2)
    assert Scale(time=1.44, runs=0).shrunk().time == 1.0
    assert Scale(time=1.44, runs=998).shrunk().time == pytest.approx(1.44, rel=1e-3)


def test_a_clock_that_keeps_kernels_tells_the_same_time_as_a_new_one(load, layout, speeds):
    clock = Clock(load, speeds)
    layouts = [replace(layout, micro_batch=micro, zero=zero) for micro in (1, 2) for zero in (1, 3)]
    layouts += [replace(layout, dp=2, tp=4), replace(layout, dp=2, pp=4, zero=1), replace(layout, dp=2, sp=4)]
    assert [clock.time(one) for one in layouts] == [Clock(load, speeds).time(one) for one in layouts]


def test_gradients_are_sent_as_the_weights_are_but_sequence_ranks_send_fp32(load, layout):
    """fp32 sums are cast before they are sent (communication_data_type), unless ranks share sequences."""
    assert work_of(load, replace(layout, zero=1)).gradient_bytes == 2
    assert work_of(load, replace(layout, zero=1, precision="fp32")).gradient_bytes == 4
    assert work_of(load, replace(layout, zero=1, dp=4, sp=2)).gradient_bytes == 4


def test_tf32_is_asked_for_and_holds_on_gpus_only(load, layout):
    fp32 = replace(layout, precision="fp32", zero=1)
    assert work_of(load, fp32).arithmetic == "fp32"
    assert work_of(replace(load, tf32=True), fp32).arithmetic == "tf32"
    assert work_of(replace(load, tf32=True), replace(fp32, cuda=False)).arithmetic == "fp32"
    assert work_of(replace(load, tf32=True), layout).arithmetic == layout.precision
