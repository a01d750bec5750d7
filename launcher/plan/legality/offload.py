"""Rules about ZeRO 3's settings and offload: what DeepSpeed 0.19.8 ignores, refuses or gets wrong."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.plan.asked import is_quantized, precision_of
from launcher.plan.layout import BYTES
from launcher.plan.legality.nearest import divisors_of
from launcher.plan.legality.rule import Refusal, Rule, Spot
from launcher.plan.tensors import split_of
from launcher.spec.stages import Ppo
from launcher.units import bytes_text


def _in_memory(spot: Spot) -> str:
    """Where parameters can rest instead of on NVMe."""
    return "parameters: none" if spot.case.cpu or spot.asked.pipeline > 1 else "parameters: cpu"


def parameters_on_nvme_have_zero_3(spot: Spot) -> Iterator[Refusal]:
    asked, zero, path = spot.asked, spot.asked.settled_zero, spot.parallel("offload", "parameters")
    if asked.parameters != "nvme" or zero in (None, 3):
        return
    if asked.pipeline > 1:
        what = f"nvme with pipeline {asked.pipeline}: a pipeline runs at ZeRO 1, where DeepSpeed ignores it"
        yield Refusal(path=path, what=what, hint=f"use {_in_memory(spot)}")
    else:
        what = f"nvme with parallel.zero {zero}: DeepSpeed would ignore it without a word"
        yield Refusal(path=path, what=what, hint=f"use zero: 3, or {_in_memory(spot)}")


def parameters_on_nvme_are_bf16(spot: Spot) -> Iterator[Refusal]:
    precision = precision_of(spot.job, spot.stage, spot.case.machine)
    if spot.asked.parameters == "nvme" and precision != "bf16":
        what = f"nvme in {precision}: only bf16 was seen to come back from a disk as it was"
        hint = f"use precision: bf16, or {_in_memory(spot)}" if spot.case.machine.bf16 else f"use {_in_memory(spot)}"
        yield Refusal(path=spot.parallel("offload", "parameters"), what=what, hint=hint)


def parameters_on_nvme_are_of_one_engine(spot: Spot) -> Iterator[Refusal]:
    if spot.asked.parameters == "nvme" and isinstance(spot.stage, Ppo):
        what = f"nvme in stage {spot.stage.stage_name}: each of ppo's engines empties the folder of those before it"
        yield Refusal(path=spot.parallel("offload", "parameters"), what=what, hint=f"use {_in_memory(spot)} in this stage")


def parameters_on_nvme_are_unpacked(spot: Spot) -> Iterator[Refusal]:
    if spot.asked.parameters == "nvme" and is_quantized(spot.job, spot.stage.kind):
        what = f"nvme with a 4-bit base in stage {spot.stage.stage_name}: its packed bytes do not fit buffers of bf16"
        yield Refusal(
            path=spot.parallel("offload", "parameters"), what=what, hint=f"use {_in_memory(spot)}, or leave quantize out"
        )


def parameters_on_nvme_have_one_partition(spot: Spot) -> Iterator[Refusal]:
    if spot.asked.parameters == "nvme" and spot.asked.hpz is not None:
        what = f"{spot.asked.hpz} with parameters on nvme: DeepSpeed has no place for the second partition"
        yield Refusal(path=spot.parallel("hpz"), what=what, hint=f"remove it, or use {_in_memory(spot)}")


def parameters_on_nvme_are_large(spot: Spot) -> Iterator[Refusal]:
    asked, dp = spot.asked, spot.dp
    if asked.parameters != "nvme" or dp is None or asked.pipeline > 1 or isinstance(spot.stage, Ppo):
        return
    ranks = dp * asked.sequence
    split = split_of(spot.shape, spot.stage.kind, spot.job.model.adapter, stage=0, tp=asked.tensor, pp=1, ranks=ranks)
    if not split.swapped:
        largest = bytes_text(BYTES["bf16"] * split.largest_shard)
        what = (
            f"nvme has no effect: each of {ranks} ranks has {largest} of the largest tensor, and below 1 MiB it stays in memory"
        )
        yield Refusal(path=spot.parallel("offload", "parameters"), what=what, hint=f"use {_in_memory(spot)}")


def nvme_needs_zero_3(spot: Spot) -> Iterator[Refusal]:
    zero, path = spot.asked.settled_zero, spot.parallel("offload", "optimizer")
    if spot.asked.optimizer != "nvme" or zero == 3:
        return
    instead = "none" if spot.case.cpu else "cpu"
    if spot.asked.pipeline > 1:
        what = f"nvme with pipeline {spot.asked.pipeline}: a pipeline runs at ZeRO 1, where nothing is swapped"
        yield Refusal(path=path, what=what, hint=f"use optimizer: {instead}")
    else:
        what = f"nvme with parallel.zero {zero}: DeepSpeed would keep it in host memory without a word"
        yield Refusal(path=path, what=what, hint=f"use zero: 3, or optimizer: {instead}")


def nvme_has_a_path(spot: Spot) -> Iterator[Refusal]:
    path, given = spot.parallel("offload", "nvme_path"), spot.asked.nvme_path
    on_nvme = "nvme" in (spot.asked.optimizer, spot.asked.parameters)
    if on_nvme and given is None:
        what = "is missing: nvme does not say which disk"
        yield Refusal(path=path, what=what, hint="add `nvme_path: /local_nvme`, a folder on a fast local disk of every node")
    elif on_nvme and given and not given.startswith("/"):
        what = f"{given} is relative, but every rank reads it"
        yield Refusal(path=path, what=what, hint=f"write it from the root: /{given.removeprefix('./')}")
    elif given is not None and not on_nvme:
        yield Refusal(path=path, what="has no effect: nothing is offloaded to nvme", hint="remove it, or use optimizer: nvme")


_OFFLOADS = (
    ("optimizer", 1, "DeepSpeed would change the optimizer and offload nothing"),
    ("parameters", 3, "DeepSpeed would ignore it without a word"),
)


def offload_has_an_effect(spot: Spot) -> Iterator[Refusal]:
    """DeepSpeed 0.19.8 ignores `offload_param` below ZeRO 3; `offload_optimizer` at ZeRO 0 only swaps the optimizer's class."""
    zero = spot.asked.settled_zero
    for name, lowest, effect in _OFFLOADS:
        path = spot.parallel("offload", name)
        if getattr(spot.asked, name) != "cpu":
            continue
        if spot.case.cpu:
            what = "cpu: the ranks are CPU processes, everything is in host memory already"
            yield Refusal(path=path, what=what, hint=f"use {name}: none")
        elif name == "parameters" and spot.asked.pipeline > 1:
            what = f"cpu with pipeline {spot.asked.pipeline}: a pipeline runs at ZeRO 1, and {effect}"
            yield Refusal(path=path, what=what, hint="use parameters: none, or zero: 3 with pipeline: 1")
        elif zero is not None and zero < lowest:
            what = f"cpu with parallel.zero {zero}: {effect}"
            stage = "zero: 3" if lowest == 3 else f"zero: {lowest} or higher"
            yield Refusal(path=path, what=what, hint=f"use {stage}, or {name}: none")


def checkpoints_move_somewhere(spot: Spot) -> Iterator[Refusal]:
    if spot.asked.checkpointing != "offload":
        return
    path, instead = spot.parallel("checkpointing"), "use checkpointing: full"
    if spot.case.cpu:
        what = "offload: the ranks are CPU processes, everything is in host memory already"
        yield Refusal(path=path, what=what, hint=instead)
    elif isinstance(spot.stage, Ppo):
        what = f"offload in stage {spot.stage.stage_name}: ppo keeps its checkpoints on the GPU"
        yield Refusal(path=path, what=what, hint=f"{instead} in this stage, which has short rows")


def settings_of_zero_3_have_it(spot: Spot) -> Iterator[Refusal]:
    asked, zero = spot.asked, spot.asked.settled_zero
    for name in asked.only_at_zero_3:
        if zero == 3 or name == "offload.optimizer":
            continue
        why = f"pipeline {asked.pipeline} runs at ZeRO 1" if asked.pipeline > 1 else f"parallel.zero is {zero}"
        hint = "remove it, or use zero: 3" + (" with pipeline: 1" if asked.pipeline > 1 else "")
        yield Refusal(path=spot.parallel(*name.split(".")), what=f"has no effect: {why}, and only ZeRO 3 reads it", hint=hint)


def ratio_is_of_something(spot: Spot) -> Iterator[Refusal]:
    if spot.asked.ratio is not None and spot.asked.optimizer != "cpu":
        what = f"has no effect with offload.optimizer {spot.asked.optimizer or 'none'}: it divides one that is on cpu"
        hint = "remove it" if spot.case.cpu else "use optimizer: cpu, or remove it"
        yield Refusal(path=spot.parallel("offload", "ratio"), what=what, hint=hint)


def secondary_partition_is_smaller(spot: Spot) -> Iterator[Refusal]:
    """DeepSpeed makes it of neighbouring ranks (utils/groups.py:949), whatever they hold."""
    hpz, dp, path = spot.asked.hpz, spot.dp, spot.parallel("hpz")
    if hpz is None or dp is None or spot.asked.settled_zero != 3:
        return
    if spot.asked.replica > 1:
        what = f"{hpz} with a degree above 1: neighbouring ranks hold parts of different weights"
        yield Refusal(path=path, what=what, hint="leave the degrees at 1, or remove it")
    elif hpz >= dp or dp % hpz:
        near = [size for size in divisors_of(dp) if 1 < size < dp]
        reason = "is no smaller than the whole group, which is the first partition" if hpz >= dp else "does not divide it"
        hint = f"use {min(near, key=lambda size: (abs(size - hpz), size))}, or remove it" if near else "remove it"
        yield Refusal(path=path, what=f"{hpz} of {dp} data-parallel ranks: {reason}", hint=hint)


def quantized_communication_works(spot: Spot) -> Iterator[Refusal]:
    asked, nodes = spot.asked, -(-spot.case.world // spot.case.machine.slots)
    for name in ("quantized_weights", "quantized_gradients"):
        path = spot.parallel(name)
        if not getattr(asked, name) or asked.settled_zero != 3:
            continue
        if spot.case.cpu:
            yield Refusal(path=path, what="DeepSpeed has no quantizer for CPU processes", hint="remove it")
        elif name == "quantized_gradients" and nodes == 1:
            what = "has no effect: DeepSpeed quantizes gradients between nodes only, and this is one"
            yield Refusal(path=path, what=what, hint="remove it")


OFFLOAD_RULES: tuple[Rule, ...] = (
    Rule(
        code="E202",
        refuses="parameters on NVMe below ZeRO 3",
        because="DeepSpeed ignores it without a word",
        instead="ZeRO 3, or parameters in memory",
        find=parameters_on_nvme_have_zero_3,
        proof=("tests/stages/traps/test_config.py::test_a_setting_that_this_zero_stage_does_not_have_is_taken",),
    ),
    Rule(
        code="E202",
        refuses="parameters on NVMe in fp32 or fp16",
        because="on a device without fp16 they pass buffers of bf16 (runtime/zero/partition_parameters.py:409), which rounds"
        " fp32 or stops; on a GPU neither was run",
        instead="bf16, or parameters in memory",
        find=parameters_on_nvme_are_bf16,
        proof=("tests/stages/traps/test_weights.py::test_parameters_on_a_disk_are_rounded_to_bf16_on_a_cpu",),
    ),
    Rule(
        code="E202",
        refuses="parameters on NVMe in ppo",
        because="each engine empties the folder when it begins (runtime/swap_tensor/partitioned_param_swapper.py:88), and"
        " ppo has several in one process",
        instead="parameters in memory",
        find=parameters_on_nvme_are_of_one_engine,
        proof=("tests/stages/test_refusals.py::test_a_second_engine_empties_the_folder_of_the_first_ones_parameters",),
    ),
    Rule(
        code="E202",
        refuses="parameters on NVMe with a 4-bit base",
        because="packed bytes pass buffers of bf16",
        instead="parameters in memory, or an unquantized base",
        find=parameters_on_nvme_are_unpacked,
        proof=("tests/stages/test_refusals.py::test_packed_weights_do_not_come_back_from_a_disk",),
    ),
    Rule(
        code="E202",
        refuses="hpz beside parameters on NVMe",
        because='DeepSpeed asks torch for memory of a device "nvme" (runtime/zero/partition_parameters.py:1915)',
        instead="one of the two",
        find=parameters_on_nvme_have_one_partition,
        proof=("tests/stages/test_refusals.py::test_a_secondary_partition_of_parameters_on_a_disk_has_no_place",),
    ),
    Rule(
        code="E202",
        refuses="parameters on NVMe where no tensor's part is of 1 MiB",
        because="DeepSpeed leaves smaller parts in host memory (runtime/swap_tensor/utils.py: MIN_AIO_BYTES)",
        instead="parameters in memory, or fewer ranks",
        find=parameters_on_nvme_are_large,
        proof=("tests/stages/test_refusals.py::test_small_parameters_never_go_to_the_disk",),
    ),
    Rule(
        code="E202",
        refuses="the optimizer on NVMe below ZeRO 3",
        because="there it is plain offload to the CPU, without a word",
        instead="ZeRO 3, or optimizer: cpu",
        find=nvme_needs_zero_3,
        proof=("tests/stages/test_refusals.py::test_nvme_below_zero_3_is_taken_and_writes_nothing_to_the_disk",),
    ),
    Rule(
        code="E202",
        refuses="NVMe without a path, a relative one, or a path without NVMe",
        because="DeepSpeed stops with a TypeError (runtime/zero/stage3.py:840); a relative path is another one for each rank",
        instead="an absolute nvme_path",
        find=nvme_has_a_path,
        proof=("tests/stages/test_refusals.py::test_nvme_without_a_path_ends_in_a_type_error",),
    ),
    Rule(
        code="E203",
        refuses="offload to the CPU where nothing moves: CPU ranks, parameters below ZeRO 3, the optimizer at ZeRO 0",
        because="DeepSpeed ignores it, or only changes the class of the optimizer",
        instead="the ZeRO stage that is named, or no offload",
        find=offload_has_an_effect,
        proof=(
            "tests/stages/test_refusals.py::test_offload_of_the_optimizer_at_zero_0_is_taken_and_offloads_nothing",
            "tests/stages/traps/test_config.py::test_a_setting_that_this_zero_stage_does_not_have_is_taken",
        ),
    ),
    Rule(
        code="E203",
        refuses="offloaded checkpoints on CPU ranks and in ppo",
        because="they are in host memory already; ppo's two engines keep theirs on the GPU",
        instead="checkpointing: full",
        find=checkpoints_move_somewhere,
        proof=("ours: train/building.py",),
    ),
    Rule(
        code="E221",
        refuses="hpz, quantized_weights, quantized_gradients or a ratio below ZeRO 3",
        because="DeepSpeed ignores the first three without a word and refuses the ratio (runtime/zero/config.py)",
        instead="ZeRO 3",
        find=settings_of_zero_3_have_it,
        proof=(
            "tests/stages/traps/test_config.py::test_a_setting_that_this_zero_stage_does_not_have_is_taken",
            "tests/stages/test_refusals.py::test_a_ratio_below_zero_3_is_refused_and_one_without_the_cpu_is_taken_for_nothing",
        ),
    ),
    Rule(
        code="E221",
        refuses="a ratio without the optimizer on the CPU",
        because="it says which share of it is there",
        instead="optimizer: cpu",
        find=ratio_is_of_something,
        proof=(
            "tests/stages/test_refusals.py::test_a_ratio_below_zero_3_is_refused_and_one_without_the_cpu_is_taken_for_nothing",
        ),
    ),
    Rule(
        code="E221",
        refuses="hpz that does not divide the data-parallel ranks, is not smaller, or stands beside another degree",
        because="the second partition is made of neighbouring ranks (utils/groups.py:949); one of all ranks changes nothing",
        instead="the nearest divisor",
        find=secondary_partition_is_smaller,
        proof=(
            "tests/stages/test_refusals.py::test_a_secondary_partition_of_all_ranks_or_of_too_many_is_taken_and_changes_nothing",
        ),
    ),
    Rule(
        code="E221",
        refuses="quantized_weights or quantized_gradients on a CPU, quantized_gradients on one node",
        because="the quantizer has no CPU version (ops/op_builder/cpu/no_impl.py:21); gradients are quantized between nodes"
        " only (runtime/zero/stage3.py:1926)",
        instead="none of them",
        find=quantized_communication_works,
        proof=(
            "tests/stages/test_refusals.py::test_quantized_weights_have_no_kernel_on_a_cpu",
            "tests/stages/test_refusals.py::test_quantized_gradients_change_nothing_on_one_node",
        ),
    ),
)
