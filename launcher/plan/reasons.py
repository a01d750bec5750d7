"""(stage, what was chosen) -> why each number is what it is, in the order a reader asks. DERIVE, text only."""

from __future__ import annotations

from launcher.plan.asked import answer_tokens, batch_of, global_of, rollout_of, updates_of
from launcher.plan.batch import micro_choices, nearest_multiples
from launcher.plan.candidate import ROOM, Objective, degrees_text
from launcher.plan.comparison import comparison_reasons
from launcher.plan.cost.rates import Scale
from launcher.plan.ladder import ENOUGH_TOKENS, SAFE, Fit, Ground
from launcher.plan.layout import sums_in_fp32
from launcher.plan.legality.rule import Case, Spot
from launcher.plan.load import Load
from launcher.plan.plan import Precision, Reason
from launcher.plan.search import Found
from launcher.plan.share import pipeline_split
from launcher.plan.spacing import Spacing
from launcher.spec.data import DEFAULT_MAX_TOKENS
from launcher.spec.stages import Ppo, Stage
from launcher.units import bytes_text, count_text

_WORD: dict[Objective, str] = {"speed": "fastest", "cost": "cheapest", "memory": "smallest"}  # in codes too
_BEST: dict[Objective, str] = {
    "speed": "fastest plan that fits",
    "cost": "cheapest plan that fits",
    "memory": "smallest plan that is quick enough",
}
_NOTHING: dict[Objective, str] = {
    "speed": "nothing faster fits",
    "cost": "nothing cheaper fits",
    "memory": "nothing smaller is quick enough",
}


def reasons_of(spot: Spot, load: Load, found: Found, spacing: Spacing) -> tuple[Reason, ...]:
    """One reason for each number of the stage's plan, then how it compares."""
    case, stage, fit = spot.case, spot.stage, found.chosen.fit
    reasons = [
        *_measured(spot),
        *_objective(found),
        _world(case, fit.ground),
        *_degrees(spot, load, found),
        _zero(spot, found),
        *_offload(spot, found),
        _precision(case, fit.ground),
        _checkpointing(spot, found),
        _batch(case, stage, load, found),
        *_sums(fit),
        _max_tokens(case, stage),
        *_iterations(case, stage),
        _checkpoints(stage, spacing),
        *_adapter(case, load),
    ]
    if (fit.memory.p_fit or 0) < SAFE:
        text = f"fits with probability {fit.memory.p_fit:.2f} only: nothing that is allowed needs less"
        reasons.append(Reason(code="memory.tight", text=text))
    return (*reasons, *comparison_reasons(found, machine=case.machine))


def disturbed(share: float) -> list[Reason]:
    """Nothing where the speeds were measured on a machine without other work."""
    text = f"speeds were measured while other programs took {share:.0%} of the cores: measure again with `launcher calibrate`"
    return [Reason(code="calibration.disturbed", text=text)] if share else []


def scaled(scale: Scale, precision: Precision) -> list[Reason]:
    """By what finished runs of this device and precision were off, drawn to 1 where they are few."""
    parts = ((scale.runs, "step times", scale.time), (scale.memory_runs, "memory", scale.memory))
    told = [f"{name} x {factor:.2f} ({runs} stages)" for runs, name, factor in parts if runs]
    text = f"{' and '.join(told)}, as finished runs in {precision} measured"
    return [Reason(code="calibration.runs", text=text)] if told else []


def _measured(spot: Spot) -> list[Reason]:
    """Nothing for a family that a table has."""
    shape = spot.shape
    if shape.blueprint is None:
        return []
    norm, mlp = "LayerNorm" if shape.layer_norm else "RMSNorm", "a gated MLP" if shape.gated else "an MLP of two matrices"
    text = (
        f"{shape.family} is measured, not known: transformers {shape.blueprint.transformers} built it without weights; its"
        f" parameters are exact, so is what its blocks keep on a CPU; GPU memory and time are those of {norm} and {mlp}"
    )
    return [Reason(code="family.measured", text=text)]


def _objective(found: Found) -> list[Reason]:
    """Nothing where the plan is chosen by speed, as it is unless a job asks otherwise, or where no speed is known."""
    told = {
        "cost": f"objective cost: the fewest GPU hours, {found.chosen.gpu_seconds:.3g} GPU seconds a step",
        "memory": f"objective memory: the lowest peak of the plans that take at most {ROOM - 1:.0%} longer than the fastest",
    }
    if found.chosen.time is None or found.objective not in told:
        return []
    return [Reason(code=f"objective.{found.objective}", text=told[found.objective])]


def _world(case: Case, ground: Ground) -> Reason:
    asked = case.job.cluster.slots
    devices = "CPU processes" if case.cpu else f"{case.machine.gpu or 'GPU'} ranks"
    hosts = f" on {case.machine.nodes} hosts" if case.machine.nodes > 1 else ""
    shared = ", all data parallel" if ground.dp == ground.world else ""
    if ground.world < case.world:
        text = f"{ground.world} {devices} of {case.world}: the fewest GPU hours{shared}"
        return Reason(code="world.cheapest", text=text)
    source = "as cluster.slots asks" if asked else "all this machine offers"
    return Reason(code="world.asked" if asked else "world.machine", text=f"{ground.world} {devices}{hosts}, {source}{shared}")


def _degrees(spot: Spot, load: Load, found: Found) -> list[Reason]:
    """Nothing under plain data parallelism."""
    ground, layout = found.chosen.fit.ground, found.chosen.layout
    replica = ground.tp * ground.pp * ground.sp
    if replica == 1:
        return []
    named = degrees_text(ground)
    replicas = f"{ground.dp} {'replicas' if ground.dp > 1 else 'replica'} of {replica} ranks"
    if spot.asked.searches:
        code, text = f"degrees.{_WORD[found.objective]}", f"{named} is in the {_BEST[found.objective]}: {replicas}"
        reasons = [Reason(code=code, text=text), *_uneven(spot, ground)]
    else:
        reasons = [Reason(code="degrees.asked", text=f"{named} as parallel asks: {replicas}")]
    if ground.sp > 1:
        text = f"each rank of a replica holds 1/{ground.sp} of every row; ZeRO splits over all {ground.shards} ranks"
        reasons.append(Reason(code="sequence.shared", text=text))
    if ground.pp > 1:
        reasons += [_split(spot, load, ground.pp), _bubble(ground.pp, layout.grad_accum)]
    return reasons


def _uneven(spot: Spot, ground: Ground) -> list[Reason]:
    """Nothing where as many replicas as ranks could share the rows."""
    rows, micro = ground.global_batch, batch_of(spot.job, spot.stage).micro_seqs or 1
    unit = micro * ground.world
    if rows % unit == 0:
        return []
    near = " or ".join(map(str, nearest_multiples(rows, unit)))
    text = f"{rows} {_rows_text(spot.stage.kind)} are no multiple of {unit}, so no rank can be a replica by itself: {near} are"
    return [Reason(code="degrees.rows", text=text)]


def _split(spot: Spot, load: Load, pp: int) -> Reason:
    split = pipeline_split(load.shape, load.kind, pp)
    blocks = f"blocks {' + '.join(map(str, split))}"
    if spot.asked.balance == "time":
        text = f"{blocks} by parameters for this plan; the ranks measure and cut by time before training"
        return Reason(code="pipeline.measured", text=text)
    return Reason(code="pipeline.split", text=f"{blocks}: equal in parameters, with the embedding first and the head last")


def _bubble(pp: int, accum: int) -> Reason:
    idle = (pp - 1) / (accum + pp - 1)
    text = f"{accum} micro-batches through {pp} stages idle ({pp} - 1) / ({accum} + {pp} - 1) = {idle:.0%} of the time"
    few = "" if accum >= pp else ": more micro-batches than stages would need a larger batch.global"
    return Reason(code="pipeline.bubble", text=f"{text}{few}")


def _zero(spot: Spot, found: Found) -> Reason:
    fit = found.chosen.fit
    ground, zero = fit.ground, fit.layout.zero
    need = f"{bytes_text(fit.memory.peak_bytes)} of {bytes_text(fit.memory.limit_bytes)}"
    if spot.asked.zero is not None:
        return Reason(code="zero.asked", text=f"ZeRO-{zero} as parallel.zero asks: {need}")
    if ground.pp > 1:
        return Reason(code="zero.pipeline_needs_1", text=f"ZeRO-1 is the only one that is right under a pipeline: {need}")
    if spot.asked.only_at_zero_3:
        text = f"ZeRO-3 because only it reads {' and '.join(spot.asked.only_at_zero_3)}: {need}"
        return Reason(code="zero.setting_needs_3", text=text)
    if zero == 1 and ground.precision != "fp32":
        text = (
            f"ZeRO-1 is the smallest that is right in {ground.precision}: DeepSpeed trains wrongly in 16 bit at ZeRO 0; {need}"
        )
        return Reason(code="zero.16_bit_needs_1", text=text)
    if zero == 1 and ground.shards > 1:
        text = f"ZeRO-1 sends the same bytes as ZeRO-0, keeps the optimizer once, and reports the gradient norm; {need}"
        return Reason(code="zero.1_costs_nothing", text=text)
    if found.chosen.time is None:
        return Reason(code="zero.smallest_that_fits", text=f"ZeRO-{zero} is the cheapest that fits: {need}")
    return Reason(code=f"zero.{_WORD[found.objective]}", text=f"ZeRO-{zero} is in the {_BEST[found.objective]}: {need}")


def _offload(spot: Spot, found: Found) -> list[Reason]:
    rung, asked = found.chosen.fit.rung, spot.asked.optimizer is not None
    places = {"optimizer": rung.offload_optimizer, "parameters": rung.offload_parameters}
    offloaded = [f"{name} on {'the CPU' if place == 'cpu' else 'NVMe'}" for name, place in places.items() if place != "none"]
    if not offloaded:
        return []
    why = "as parallel.offload asks" if asked else f"{_NOTHING[found.objective]}; each step waits for the host's memory"
    return [Reason(code="offload.asked" if asked else "offload.needed", text=f"{' and '.join(offloaded)}: {why}")]


def _precision(case: Case, ground: Ground) -> Reason:
    precision = ground.precision
    if case.job.precision:
        return Reason(code="precision.asked", text=f"{precision} as asked")
    if case.cpu:
        return Reason(code="precision.cpu", text="fp32: 16 bit is no faster on a CPU and rounds")
    if precision == "fp32":
        return Reason(code="precision.zero_0", text="fp32: parallel.zero 0 is wrong in 16 bit")
    why = "this GPU has it and it needs no loss scale" if precision == "bf16" else "this GPU has no bf16; the loss is scaled"
    return Reason(code=f"precision.{precision}", text=f"{precision}: {why}")


def _checkpointing(spot: Spot, found: Found) -> Reason:
    kept = found.chosen.layout.checkpointing
    if spot.asked.checkpointing:
        return Reason(code="checkpointing.asked", text=f"activation checkpointing {kept} as asked")
    if kept == "none":
        return Reason(code="checkpointing.not_needed", text="activations fit without recomputing them")
    text = f"activations are recomputed, a third more compute: {_NOTHING[found.objective]}"
    if kept == "offload":
        text = "activations are recomputed from what rests in host memory: nothing else fits as safely"
        return Reason(code="checkpointing.last", text=text)
    return Reason(code="checkpointing.saves_memory", text=text)


def _batch(case: Case, stage: Stage, load: Load, found: Found) -> Reason:
    ground, layout = found.chosen.fit.ground, found.chosen.layout
    micro, accum = layout.micro_batch, layout.grad_accum
    text = f"{micro} x {accum} x {ground.dp} = {ground.global_batch} {_rows_text(load.kind)} a step"
    if batch_of(case.job, stage).micro_seqs:
        return Reason(code="batch.asked", text=f"{text}, micro as asked")
    if accum == 1:
        holder = "rank" if ground.dp == ground.world else "replica"
        return Reason(code="batch.one_pass", text=f"{text}: all rows of a {holder} fit in one pass")
    tokens = micro * load.sequences_per_row * load.row_tokens // ground.sp
    larger = min((size for size in micro_choices(ground.rows, dp=1) if size > micro), default=micro)
    if ground.pp > 1 and ground.rows // larger < ground.pp <= accum:
        return Reason(code="batch.fills_the_pipeline", text=f"{text}: the largest micro-batch that keeps all stages busy")
    if larger * load.sequences_per_row * load.row_tokens > ENOUGH_TOKENS[case.machine.device] * ground.sp:
        return Reason(code="batch.busy_enough", text=f"{text}: {count_text(tokens)} tokens in a pass keep the device busy")
    return Reason(code=f"batch.{_WORD[found.objective]}", text=f"{text}: the micro-batch of the {_BEST[found.objective]}")


def _sums(fit: Fit) -> list[Reason]:
    if not sums_in_fp32(fit.layout):
        return []
    text = f"gradients of {fit.layout.grad_accum} micro-batches are added up in fp32: in bf16 every sum would be rounded"
    return [Reason(code="gradients.fp32_sums", text=text)]


def _rows_text(kind: str) -> str:
    return {"reward": "pairs", "dpo": "pairs", "ppo": "answers", "pretrain": "blocks"}.get(kind, "rows")


def _max_tokens(case: Case, stage: Stage) -> Reason:
    asked, answer, positions = stage.data.max_tokens, answer_tokens(stage), case.shape.positions
    behind = f" and {answer} of the answer" if answer else ""
    if asked:
        return Reason(
            code="max_tokens.asked", text=f"{asked} tokens a row{behind} as asked; the model has {positions} positions"
        )
    if positions - answer <= DEFAULT_MAX_TOKENS:
        return Reason(
            code="max_tokens.positions", text=f"all {positions} positions of the model{behind and ', less' + behind[4:]}"
        )
    return Reason(code="max_tokens.default", text=f"{DEFAULT_MAX_TOKENS} tokens a row{behind}, the default")


def _iterations(case: Case, stage: Stage) -> list[Reason]:
    """ppo: the optimizer steps of one of the stage's steps."""
    if not isinstance(stage, Ppo):
        return []
    answers, rows = rollout_of(case.job, stage), global_of(case.job, stage)
    text = f"a step of the stage samples {answers} answers: {answers} / {rows} x {stage.ppo_epochs} epochs"
    return [Reason(code="steps.of_an_iteration", text=f"{text} = {updates_of(case.job, stage)} optimizer steps")]


def _checkpoints(stage: Stage, spacing: Spacing) -> Reason:
    every = "every step" if spacing.steps == 1 else f"every {spacing.steps} steps"
    code = "checkpoints.asked" if stage.checkpoint_every else "checkpoints.default"
    return Reason(code=code, text=f"a checkpoint {every}, {stage.keep} kept: {spacing.why}")


def _adapter(case: Case, load: Load) -> list[Reason]:
    """What an adapter and a 4-bit base mean for this stage, where a reader could take it for something else."""
    if case.job.model.adapter is None:
        return []
    text = f"LoRA trains {count_text(load.num_adapter)} of {count_text(load.num_params)} parameters"
    found = [Reason(code="adapter.lora", text=text)]
    if load.quantized:
        found.append(
            Reason(code="quantize.nf4", text="the frozen base is held in 4 bits (nf4), the merged model is written unquantized")
        )
    elif case.job.model.quantize:
        text = f"{load.kind} trains its adapter on the unquantized merged model: nf4 holds for sft, reward and dpo"
        found.append(Reason(code="quantize.not_in_ppo", text=text))
    return found
