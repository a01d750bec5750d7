"""(job, machine, shape) -> every combination that cannot work or has no effect, as findings. One table of small rules.

DERIVE, pure. `validate` and `plan` both read it, so that they cannot disagree. Memory and disk are not judged here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from launcher.plan.asked import answer_tokens, batch_of, batch_path, global_of, parallel_of, rollout_of, world_of
from launcher.plan.batch import nearest_micro, nearest_multiples
from launcher.plan.plan import Machine
from launcher.plan.shape import ModelShape, block_linears
from launcher.spec.job import JobSpec
from launcher.spec.places import FieldPath, Finding
from launcher.spec.stages import Ppo, Stage

NF4_WIDTH_STEP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a rule judges."""

    job: JobSpec
    machine: Machine
    shape: ModelShape

    @property
    def cpu(self) -> bool:
        return self.machine.device == "cpu"


Rule = Callable[[Case], Iterator[Finding]]
StageRule = Callable[[Case, int, Stage], Iterator[Finding]]


def find_illegal(case: Case) -> list[Finding]:
    """Every problem, in the order of the table: the job's first, then stage by stage."""
    findings = [finding for rule in JOB_RULES for finding in rule(case)]
    for index, stage in enumerate(case.job.stages):
        findings += [finding for rule in STAGE_RULES for finding in rule(case, index, stage)]
    return list(dict.fromkeys(findings))  # a batch written once for the job fails once, not once for each stage


def _finding(code: str, path: FieldPath, what: str, hint: str) -> Finding:
    return Finding(code=code, path=path, what=what, hint=hint)


def degrees_are_built(case: Case) -> Iterator[Finding]:
    for name, degree in parallel_of(case.job).degrees:
        if degree > 1:
            hint = f"leave parallel.{name} at 1: all ranks are data parallel, and ZeRO 3 splits what does not fit"
            yield _finding("E201", ("parallel", name), f"{degree}: {name} parallelism is not built yet", hint)


def nvme_is_not_built(case: Case) -> Iterator[Finding]:
    for name in ("optimizer", "parameters"):
        if getattr(parallel_of(case.job), name) == "nvme":
            path = ("parallel", "offload", name)
            yield _finding("E202", path, "nvme: offload to NVMe is not built yet", "use cpu")


def offload_has_an_effect(case: Case) -> Iterator[Finding]:
    """DeepSpeed 0.19.8 ignores `offload_param` below ZeRO 3; `offload_optimizer` at ZeRO 0 only swaps the optimizer's class."""
    asked = parallel_of(case.job)
    for name, lowest, effect in (
        ("optimizer", 1, "DeepSpeed would change the optimizer and offload nothing"),
        ("parameters", 3, "DeepSpeed would ignore it without a word"),
    ):
        path = ("parallel", "offload", name)
        if getattr(asked, name) != "cpu":
            continue
        if case.cpu:
            what = "cpu: the ranks are CPU processes, everything is in host memory already"
            yield _finding("E203", path, what, f"use {name}: none")
        elif asked.zero is not None and asked.zero < lowest:
            what = f"cpu with parallel.zero {asked.zero}: {effect}"
            yield _finding("E203", path, what, f"use zero: {lowest}{'' if lowest == 3 else ' or higher'}, or {name}: none")


def precision_works(case: Case) -> Iterator[Finding]:
    asked = case.job.precision
    best = "fp32" if case.cpu else "bf16" if case.machine.bf16 else "fp16"
    device = "a CPU" if case.cpu else case.machine.gpu or "this GPU"
    if (asked == "fp16" and (case.cpu or not case.machine.fp16)) or (asked == "bf16" and not case.machine.bf16):
        yield _finding("E205", ("precision",), f"{asked} cannot be trained on {device}", f"use {best}, or leave it out")
    elif asked in ("bf16", "fp16") and parallel_of(case.job).zero == 0:
        wrong = "runs Adam one step ahead" if asked == "bf16" else "divides the gradients by the loss scale"
        what = f"{asked} with parallel.zero 0: DeepSpeed {wrong}, and the loss curve does not show it"
        yield _finding("E205", ("parallel", "zero"), what, "use zero: 1, which computes the same and is right")


def widths_can_be_packed(case: Case) -> Iterator[Finding]:
    """bitsandbytes repacks 4-bit weights on a CPU at the first evaluation and fails there on other widths."""
    if case.job.model.quantize is None or not case.cpu:
        return
    widths = sorted({size for linear in block_linears(case.shape) for size in (linear.inputs, linear.outputs)})
    odd = [width for width in widths if width % NF4_WIDTH_STEP]
    if odd:
        near = ", ".join(f"{width} -> {nearest_multiples(width, NF4_WIDTH_STEP)[0]}" for width in odd)
        what = f"nf4 on a CPU needs layer widths that are multiples of {NF4_WIDTH_STEP}, got {', '.join(map(str, odd))}"
        hint = f"change model.new ({near}), or leave quantize out" if case.job.model.new else "leave quantize out, or use a GPU"
        yield _finding("E206", ("model", "quantize"), what, hint)


def kernel_runs_here(case: Case) -> Iterator[Finding]:
    if case.job.model.attention != "flash_attention_2":
        return
    reason = None
    if case.cpu:
        reason = "needs a CUDA device, the ranks are CPU processes"
    elif not case.machine.bf16:
        reason = f"needs a GPU of Ampere or newer, {case.machine.gpu or 'this one'} is older"
    elif case.job.precision == "fp32":
        reason = "computes in 16 bit only, precision is fp32"
    if reason:
        yield _finding("E209", ("model", "attention"), f"flash_attention_2 {reason}", "use sdpa, or leave it out")


def adapter_finds_its_targets(case: Case) -> Iterator[Finding]:
    adapter = case.job.model.adapter
    if adapter is None or adapter.targets == "all-linear":
        return
    names = list(dict.fromkeys(linear.name for linear in block_linears(case.shape)))
    for target in adapter.targets:
        if target.rsplit(".", 1)[-1] not in names:
            what = f"{target} is no matrix of a {case.shape.family} block"
            yield _finding("E214", ("model", "adapter", "targets"), what, f"use all-linear, or some of {', '.join(names)}")


def rows_fit_the_positions(case: Case, index: int, stage: Stage) -> Iterator[Finding]:
    positions, asked = case.shape.positions, stage.data.max_tokens
    if asked and asked > positions:
        path = ("stages", index, "data", "max_tokens")
        yield _finding("E207", path, f"{asked} is more than the model's {positions} positions", f"use at most {positions}")


def answers_fit_the_positions(case: Case, index: int, stage: Stage) -> Iterator[Finding]:
    positions, answer, prompt = case.shape.positions, answer_tokens(stage), stage.data.max_tokens
    if not isinstance(stage, Ppo) or (prompt and prompt > positions):
        return
    path: FieldPath = ("stages", index, "max_new_tokens")
    if prompt and prompt + answer > positions:
        what = f"prompt {prompt} + answer {answer} = {prompt + answer} tokens is more than the model's {positions} positions"
        room = f"max_new_tokens {positions - prompt} or data.max_tokens {positions - answer}"
        yield _finding("E208", path, what, f"use {room}" if positions > max(prompt, answer) else "lower both")
    elif answer >= positions:
        what = f"{answer} leaves no room for a prompt in the model's {positions} positions"
        yield _finding("E208", path, what, f"use {max(1, positions // 2)}")


def batch_divides(case: Case, index: int, stage: Stage) -> Iterator[Finding]:
    """global = micro x accumulation x dp, for a whole accumulation."""
    total, micro, dp = global_of(case.job, stage), batch_of(case.job, stage).micro_seqs, world_of(case.job, case.machine)
    unit = (micro or 1) * dp
    if total % unit == 0:
        return
    near = [f"{number} (nearest)" if not rank else str(number) for rank, number in enumerate(nearest_multiples(total, unit))]
    hint = f"use {' or '.join(near)}"
    if micro is None:
        what = f"{total} is not a multiple of data-parallel = {dp}"
    else:
        what = f"{total} is not a multiple of micro x data-parallel = {micro} x {dp} = {unit}"
        if total % dp == 0:
            hint += f", or micro {nearest_micro(micro, rows=total // dp)}, or leave batch.micro out and let the plan choose"
    yield _finding("E204", batch_path(case.job, index, "global"), what, hint)


def rollout_divides(case: Case, index: int, stage: Stage) -> Iterator[Finding]:
    rollout, total = rollout_of(case.job, stage), global_of(case.job, stage)
    if isinstance(stage, Ppo) and rollout % total:
        what = f"{rollout} is not a multiple of batch.global = {total}"
        hint = f"use {' or '.join(map(str, nearest_multiples(rollout, total)))}, or leave it out"
        yield _finding("E204", ("stages", index, "rollout"), what, hint)


JOB_RULES: tuple[Rule, ...] = (
    degrees_are_built,
    nvme_is_not_built,
    offload_has_an_effect,
    precision_works,
    widths_can_be_packed,
    kernel_runs_here,
    adapter_finds_its_targets,
)
STAGE_RULES: tuple[StageRule, ...] = (rows_fit_the_positions, answers_fit_the_positions, batch_divides, rollout_divides)
