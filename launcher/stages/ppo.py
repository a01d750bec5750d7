"""RLHF by PPO: the policy answers prompts, the reward model scores, the policy moves towards better scores near the reference.

Four models on DeepSpeed engines (train/ppo_engines.py), one iteration at a time (train/ppo_steps.py), formulas in
train/ppo_losses.py. One rank: `python -m launcher.stages train RUN ppo`; many: the rendered deepspeed command. The figures do
not depend on the number of ranks, the ZeRO stage or the accumulation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from transformers import PreTrainedTokenizerBase

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir, StageDir, read_json
from launcher.rundir.inputs import stage_inputs
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.stages import Ppo
from launcher.train.artifacts import hand_on
from launcher.train.checkpoints import Resume, find_resume, seal, work_folder
from launcher.train.leaving import Left, say_listening
from launcher.train.mesh import Mesh, make_mesh
from launcher.train.metrics import Metrics
from launcher.train.models import load_tokenizer
from launcher.train.optimizer import set_rate
from launcher.train.ppo_engines import load_engines, make_models, refuse_other_tokenizer, save_engines, trained_actor
from launcher.train.ppo_losses import adapted_kl_coef, rate_share
from launcher.train.ppo_models import Models
from launcher.train.ppo_steps import Sizes, collect, evaluate, learn
from launcher.train.ranks import Ranks, meet
from launcher.train.result import write_result
from launcher.train.rows import Rows, global_batch, load_rows, row_numbers

NUM_SAMPLES = 3
SAMPLE_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that a resumed run needs besides the engines; saved with them as `extra`.

    Random streams need nothing: they follow from seed and iteration.
    """

    iteration: int  # iterations done
    kl_coef: float
    before: dict[str, float]  # held-out figures of the policy that the stage started from
    answers: list[list[int]]  # its first held-out answers


def run(run: RunDir, job: JobSpec, stage: Ppo, order: StageOrder) -> None:
    """Train the actor; stages/<stage>/artifact is a language model, with an adapter also artifact/adapter."""
    started = time.time()
    ranks = meet(order)
    rows, tokenizer = load_rows(run, order, stage), load_tokenizer(run, order)
    refuse_other_tokenizer(run, order, tokenizer)
    sizes, stage_dir = sizes_of(stage, order, ranks), run.stage(order.stage)
    iterations = num_iterations(stage, sizes, len(rows.train))
    inputs = stage_inputs(run, read_json(run.job_json), order)
    resume = find_resume(stage_dir, order, ranks, inputs=inputs)
    mesh, models = make_mesh(order, ranks), make_models(run, job, stage, order, ranks, tokenizer)
    notes = [*resume.notices, *_notes(models, job, resume)]
    resumed_at = resume.step if resume.folder else None
    metrics = Metrics(stage_dir, rank=ranks.rank, tensorboard=job.tensorboard, resume_step=resumed_at)
    _say(ranks, _arithmetic(order, stage, sizes, iterations), *notes)

    held_out = rows.held_out["prompt_ids"][:]
    state = _start(models, mesh, resume, metrics, held_out, job, stage, sizes)
    if ranks.first and order.checkpoint_every:
        say_listening(stage_dir)
    for iteration in range(state.iteration, iterations):
        share = rate_share(iteration, iterations, warmup=stage.warmup, schedule=stage.schedule)
        set_rate(models.actor, stage.lr * share)
        set_rate(models.critic, stage.critic_lr * share)
        places = {"start": iteration * sizes.rollout, "stop": (iteration + 1) * sizes.rollout}
        prompts = rows.train[row_numbers(len(rows.train), seed=job.seed, **places)]["prompt_ids"]
        at = {"stage": stage, "sizes": sizes, "seed": job.seed, "iteration": iteration}
        experience = collect(models, prompts, kl_coef=state.kl_coef, **at)
        _refuse_explosion(experience.figures, stage, order, iteration)
        learned = learn(models, experience, **at)
        figures = experience.figures | learned.figures
        figures |= {"kl_coef": state.kl_coef, "learning_rate": stage.lr * share}
        _refuse_nan(figures, stage, order, iteration)
        state = replace(state, iteration=iteration + 1, kl_coef=_next_kl_coef(state, stage, figures["kl"]))
        if state.iteration % stage.log_every == 0 or state.iteration in (1, iterations):
            metrics.log(state.iteration, figures)
            _say(ranks, f"iteration {state.iteration} of {iterations}: {_text(figures)}")
        due = state.iteration < iterations and order.checkpoint_every and state.iteration % order.checkpoint_every == 0
        leave = learned.leave and order.checkpoint_every
        if due or leave:
            _save(models, mesh, state, stage_dir, order, ranks, inputs=inputs, keep=stage.keep)
        if leave:
            metrics.close()
            _say(ranks, f"asked to leave: saved iteration {state.iteration}")
            raise Left(step=state.iteration, world=order.world)

    after, answers = evaluate(models, held_out, stage=stage, sizes=sizes, seed=job.seed)
    metrics.log(iterations, {f"held_out/{name}": value for name, value in after.items()})
    metrics.close()
    _say(ranks, f"held out before: {_text(state.before)}; after: {_text(after)}")
    hand_on(run, order, ranks, trained_actor(models, mesh))
    samples = _samples(tokenizer, rows, sizes, state.answers, answers)
    write_result(
        run,
        order,
        ranks,
        before=state.before,
        after=after,
        steps=iterations,
        started=started,
        notes=notes,
        samples=samples,
    )


def sizes_of(stage: Ppo, order: StageOrder, ranks: Ranks) -> Sizes:
    """How the rollout is split; the plan has checked that it is a multiple of the global batch."""
    lanes = global_batch(order)
    rollout = stage.rollout or 2 * lanes
    assert rollout % lanes == 0, (rollout, lanes)
    return Sizes(rank=ranks.rank, world=ranks.world, micro=order.micro_batch, accum=order.grad_accum, slots=rollout // lanes)


def num_iterations(stage: Ppo, sizes: Sizes, num_prompts: int) -> int:
    """As given, or enough rollouts for the epochs (1 where neither is given), rounded up."""
    return stage.steps or max(1, math.ceil((stage.epochs or 1.0) * num_prompts / sizes.rollout))


def _start(
    models: Models,
    mesh: Mesh,
    resume: Resume,
    metrics: Metrics,
    held_out: Sequence[Sequence[int]],
    job: JobSpec,
    stage: Ppo,
    sizes: Sizes,
) -> State:
    """The state of the checkpoint, its engines loaded; or a new one, with the policy measured before it moves."""
    if resume.folder:
        return State(**load_engines(models, resume.folder, mesh))
    before, answers = evaluate(models, held_out, stage=stage, sizes=sizes, seed=job.seed)
    metrics.log(0, {f"held_out/{name}": value for name, value in before.items()})
    return State(iteration=0, kl_coef=stage.kl_coef, before=before, answers=answers[:NUM_SAMPLES])


def _save(
    models: Models, mesh: Mesh, state: State, stage_dir: StageDir, order: StageOrder, ranks: Ranks, *, inputs: str, keep: int
) -> None:
    written = work_folder(stage_dir) / f"step{state.iteration}"
    save_engines(models, written, mesh, step=state.iteration, extra=asdict(state))
    seal(stage_dir, written, order, ranks, step=state.iteration, inputs=inputs, keep=keep)


def _next_kl_coef(state: State, stage: Ppo, kl: float) -> float:
    return state.kl_coef if stage.kl_target is None else adapted_kl_coef(state.kl_coef, kl=kl, target=stage.kl_target)


def _refuse_explosion(figures: Mapping[str, float], stage: Ppo, order: StageOrder, iteration: int) -> None:
    """The policy has left the reference: the reward model has never seen such answers, so its scores mean nothing."""
    if figures["kl"] > stage.kl_stop:
        raise LauncherError(
            Problem(
                code="E564",
                where=f"stage {order.stage}, iteration {iteration + 1}",
                what=f"KL to the reference is {figures['kl']:.1f} nats per answer, kl_stop is {stage.kl_stop:g}"
                f" (score {figures['score']:.3f}, length {figures['length']:.1f} tokens)",
                hint=f"raise kl_coef ({stage.kl_coef:g}), give kl_target, or lower lr ({stage.lr:g})",
            )
        )


def _refuse_nan(figures: Mapping[str, float], stage: Ppo, order: StageOrder, iteration: int) -> None:
    # In fp16 DeepSpeed tells an infinite norm of a step that it skips to lower the loss scale; at the lowest it stops.
    norms = ("grad_norm", "critic_grad_norm") if order.precision == "fp16" else ()
    wrong = [f"{name} {value}" for name, value in figures.items() if not math.isfinite(value) and name not in norms]
    if wrong:
        raise LauncherError(
            Problem(
                code="E554",
                where=f"stage {order.stage}, iteration {iteration + 1}",
                what=", ".join(wrong),
                hint=f"lower lr ({stage.lr:g}) and critic_lr ({stage.critic_lr:g}), or raise warmup ({stage.warmup:g})",
            )
        )


def _notes(models: Models, job: JobSpec, resume: Resume) -> list[str]:
    notes = []
    if resume.folder:
        notes.append(f"resumed from iteration {resume.step}")
    if models.silenced:
        notes.append(f"{len(models.silenced)} dropouts are set to 0: PPO compares probabilities of one and the same network")
    if job.model.adapter is not None:
        notes.append("actor and critic are trained by adapters; the reference is the actor with its adapter off")
    return notes


def _arithmetic(order: StageOrder, stage: Ppo, sizes: Sizes, iterations: int) -> str:
    return (
        f"{order.stage}: {iterations} iterations of {sizes.rollout} prompts, {stage.ppo_epochs} passes of {sizes.slots} steps"
        f" of {sizes.lanes} = {sizes.micro} per rank x {sizes.accum} accumulated x {sizes.world} ranks; ZeRO {order.zero},"
        f" {order.precision}, {order.device}"
    )


def _samples(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, sizes: Sizes, before: list[list[int]], after: list[list[int]]
) -> list[dict[str, str]]:
    """The first held-out prompts of rank 0 with the answers that were drawn before and after. From the result's writer only."""

    def text(tokens: Sequence[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True).strip()[:SAMPLE_CHARACTERS]

    prompts = [rows.held_out[row]["prompt_ids"] for row in range(0, len(rows.held_out), sizes.world)]
    triples = zip(prompts[:NUM_SAMPLES], before[:NUM_SAMPLES], after[:NUM_SAMPLES], strict=False)
    return [{"prompt": text(p), "before": text(b), "after": text(a)} for p, b, a in triples]


def _text(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _say(ranks: Ranks, *lines: str) -> None:
    if ranks.first:
        print(*lines, sep="\n", flush=True)  # noqa: T201  the rank's log
