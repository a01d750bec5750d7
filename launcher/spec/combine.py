"""JobSpec -> fields that contradict each other, need each other, or have no effect beside each other. ASK, pure.

A field without effect is an error, never silence. A default never counts as said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePath

from launcher.spec import cloud, kubernetes
from launcher.spec.cluster import findings as cluster_findings
from launcher.spec.data import PYTHON_DOCS, DataSource, DataSpec, Shape
from launcher.spec.job import JobSpec
from launcher.spec.model import NewModel, NewTokenizer
from launcher.spec.places import FieldPath, Finding
from launcher.spec.stages import Kind, Ppo, Sft, Stage
from launcher.spec.wording import listed

# Shapes whose rows can serve a stage. ppo uses the prompt and drops the answer.
SHAPES_OF_KIND: dict[Kind, tuple[Shape, ...]] = {
    "pretrain": ("text",),
    "sft": ("messages", "prompt_completion", "instruction", "text"),
    "reward": ("preference",),
    "dpo": ("preference",),
    "ppo": ("prompts", "prompt_completion", "instruction", "messages", "preference"),
}

_CLASSIC_HEADS = ("gpt2", "gpt_neox", "opt")


def one_model(job: JobSpec) -> Iterator[Finding]:
    model = job.model
    if model.source and model.new:
        what = "source and new are both given"
        hint = "keep `source` to start from a trained model, or `new` to draw one"
        yield Finding(code="E109", path=("model", "new"), what=what, hint=hint, also=(("model", "source"),))
    if not model.source and not model.new:
        hint = "add `source: …` (a Hugging Face id or folder), or `new: {family: llama, layers: 2, hidden: 64, heads: 4}`"
        also = (("model", "source"), ("model", "new"))
        yield Finding(code="E107", path=("model",), what="names no model", hint=hint, also=also)


def tokenizer_fits(job: JobSpec) -> Iterator[Finding]:
    model, path = job.model, ("model", "tokenizer")
    if model.new and model.tokenizer is None:
        what = "is missing: a new model brings none"
        yield Finding(code="E107", path=path, what=what, hint="add `tokenizer: {train: {vocab: 2048}}`, a hub id or a folder")
    if model.source and not model.new and isinstance(model.tokenizer, NewTokenizer):
        what = "a tokenizer trained here does not fit the embeddings of model.source"
        hint = "remove it: the source brings its own"
        yield Finding(code="E109", path=path, what=what, hint=hint, also=(("model", "source"),))


def revision_has_effect(job: JobSpec) -> Iterator[Finding]:
    if job.model.revision is None:
        return
    reason = "a new model has none" if job.model.new else "a local folder has none" if _is_local(job.model.source) else None
    if reason:
        yield Finding(code="E115", path=("model", "revision"), what=f"has no effect: {reason}", hint="remove it")


def adapter_fits(job: JobSpec) -> Iterator[Finding]:
    model = job.model
    kinds = [stage.kind for stage in job.stages]
    if model.adapter and "pretrain" in kinds:
        what = "pretrain trains all weights, an adapter cannot hold what it learns"
        hint = "split the job in two: pretrain in the first, model.source: its artifact in the second; or remove adapter"
        also = tuple(("stages", index) for index, kind in enumerate(kinds) if kind == "pretrain")
        yield Finding(code="E109", path=("model", "adapter"), what=what, hint=hint, also=also)
    if model.quantize and not model.adapter:
        what = f"{model.quantize} weights cannot be trained, only an adapter on them"
        hint = "add `adapter: {kind: lora}`, or remove quantize"
        yield Finding(code="E109", path=("model", "quantize"), what=what, hint=hint, also=(("model", "adapter"),))
    if model.quantize and set(kinds) == {"ppo"}:
        what = f"has no effect: {model.quantize} holds for sft, reward and dpo; ppo trains its adapter on unquantized weights"
        yield Finding(code="E115", path=("model", "quantize"), what=what, hint="remove it")


def heads_divide(job: JobSpec) -> Iterator[Finding]:
    new = job.model.new
    if new is None:
        return
    path: FieldPath = ("model", "new", "heads")
    hidden: FieldPath = ("model", "new", "hidden")
    if new.hidden % new.heads:
        near = _nearest_divisor(new.hidden, new.heads)
        what = f"{new.heads} does not divide hidden {new.hidden:,}"
        hint = f"use heads: {near}, or hidden: {_nearest_multiple(new.hidden, new.heads):,}"
        yield Finding(code="E117", path=path, what=what, hint=hint, also=(hidden,))
        return
    yield from _rotary_fits(new, path, hidden)
    yield from _kv_heads_fit(new)


def _rotary_fits(new: NewModel, path: FieldPath, hidden: FieldPath) -> Iterator[Finding]:
    """Rotary positions turn pairs of numbers: of the whole head, of half of it in Phi.

    GPT-2 and OPT have none, GPT-NeoX turns a part of each head that it rounds itself.
    """
    width, step = new.hidden // new.heads, 4 if new.family == "phi" else 2
    if width % step and new.family not in _CLASSIC_HEADS:
        rule = "not even" if step == 2 else "no multiple of 4"
        what = f"each head of {new.family} is {width} wide (hidden {new.hidden:,} / {new.heads}), which is {rule}"
        hint = f"use hidden: {_nearest_multiple(new.hidden, new.heads * step):,}"
        yield Finding(code="E117", path=path, what=what, hint=hint, also=(hidden,))


def _kv_heads_fit(new: NewModel) -> Iterator[Finding]:
    path: FieldPath = ("model", "new", "kv_heads")
    if new.kv_heads is None:
        return
    if new.family in _CLASSIC_HEADS:
        what = f"has no effect: {new.family} gives every head its own keys and values"
        yield Finding(code="E115", path=path, what=what, hint="remove it")
    elif new.heads % new.kv_heads:
        what = f"{new.kv_heads} does not divide heads {new.heads}"
        hint = f"use {_nearest_divisor(new.heads, new.kv_heads)}"
        yield Finding(code="E117", path=path, what=what, hint=hint, also=(("model", "new", "heads"),))


def one_length(job: JobSpec, stage: Stage, at: FieldPath) -> Iterator[Finding]:
    if stage.steps is not None and stage.epochs is not None:
        what = "steps and epochs are both given"
        yield Finding(code="E109", path=(*at, "epochs"), what=what, hint="keep one of the two", also=((*at, "steps"),))


def shape_serves(job: JobSpec, stage: Stage, at: FieldPath) -> Iterator[Finding]:
    shape, usable = stage.data.shape, SHAPES_OF_KIND[stage.kind]
    path = (*at, "data", "shape")
    if shape is None or stage.data.source == PYTHON_DOCS:
        return
    if shape not in usable:
        what = f"rows of shape {shape} cannot serve a stage of kind {stage.kind}"
        yield Finding(code="E109", path=path, what=what, hint=f"use {listed(usable)}", also=((*at, "kind"),))
    elif shape == "text" and isinstance(stage, Sft) and stage.loss_on == "answers":
        what = "rows of shape text do not tell answers from questions, but loss_on is answers"
        hint = "add `loss_on: all`, or use data with prompts and completions"
        yield Finding(code="E109", path=path, what=what, hint=hint, also=((*at, "loss_on"),))


def source_takes_options(job: JobSpec, stage: Stage, at: FieldPath) -> Iterator[Finding]:
    """python-docs is one fixed corpus; a plain file has neither splits nor configurations."""
    data = stage.data
    names: tuple[str, ...]
    if data.source == PYTHON_DOCS:
        names = ("split", "config", "shape", "columns", "bad_rows", "held_out")
        reason = "python-docs brings its own rows, splits and columns"
    elif _is_data_file(data.source):
        names, reason = ("split", "config"), "a file has neither splits nor configurations"
    else:
        return
    for name in names:
        if getattr(data, name) != DataSpec.model_fields[name].get_default(call_default_factory=True):
            path, also = (*at, "data", name), ((*at, "data", "source"),)
            yield Finding(code="E115", path=path, what=f"has no effect: {reason}", hint="remove it", also=also)


def held_out_is_of_the_same_kind(job: JobSpec, stage: Stage, at: FieldPath) -> Iterator[Finding]:
    """python-docs is no second file: it brings its own held-out rows and serves nobody else's."""
    held_out = stage.data.held_out
    if isinstance(held_out, DataSource) and held_out.source == PYTHON_DOCS and stage.data.source != PYTHON_DOCS:
        path, also = (*at, "data", "held_out", "source"), ((*at, "data", "source"),)
        what = "python-docs cannot be the held-out part of other data"
        yield Finding(
            code="E109", path=path, what=what, hint="name a file or dataset of the same columns, or a fraction", also=also
        )


def kl_control_works(job: JobSpec, stage: Stage, at: FieldPath) -> Iterator[Finding]:
    if not isinstance(stage, Ppo) or stage.kl_target is None:
        return
    path = (*at, "kl_target")
    if stage.kl_coef == 0:
        what = "has no effect: kl_coef is adapted by factors, and 0 stays 0"
        hint = "use kl_coef: 0.05, or remove kl_target"
        yield Finding(code="E115", path=path, what=what, hint=hint, also=((*at, "kl_coef"),))
    if stage.kl_target >= stage.kl_stop:
        what = f"{stage.kl_target:g} is not below kl_stop {stage.kl_stop:g}, at which the stage fails"
        yield Finding(code="E109", path=path, what=what, hint=f"use {stage.kl_stop / 10:g}", also=((*at, "kl_stop"),))


def cluster_holds(job: JobSpec) -> Iterator[Finding]:
    yield from cluster_findings(job.cluster)
    if job.cluster.backend == "kubernetes":
        yield from kubernetes.name_findings(job.name, nodes=job.cluster.nodes or 1)
    if job.cluster.backend == "dstack":
        yield from cloud.name_findings(job.name)


FIELD_RULES: tuple[Callable[[JobSpec], Iterator[Finding]], ...] = (
    one_model,
    tokenizer_fits,
    revision_has_effect,
    adapter_fits,
    heads_divide,
    cluster_holds,
)
STAGE_FIELD_RULES: tuple[Callable[[JobSpec, Stage, FieldPath], Iterator[Finding]], ...] = (
    one_length,
    shape_serves,
    source_takes_options,
    held_out_is_of_the_same_kind,
    kl_control_works,
)


def _is_local(text: str | None) -> bool:
    return text is not None and PurePath(text).is_absolute()  # load made every local path absolute


def _is_data_file(text: str) -> bool:
    return _is_local(text) and PurePath(text).suffix != ""


def _nearest_divisor(number: int, near: int) -> int:
    divisors = (divisor for divisor in range(1, number + 1) if number % divisor == 0)
    return min(divisors, key=lambda divisor: (abs(divisor - near), divisor))


def _nearest_multiple(number: int, step: int) -> int:
    return max(step, round(number / step) * step)
