"""Keys and names of a DeepSpeed config that the version does not know, has removed, or has renamed. Pure rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launcher.dsconfig.finding import Config, Finding, section, text_of
from launcher.dsconfig.jsontext import KeyPath
from launcher.dsconfig.keys import Schema, Section
from launcher.spec.wording import listed, nearest, shown

# What a reader loses when the key is misspelt: the size of the trap.
_LOST = {
    "zero_optimization": "it trains at ZeRO 0: every GPU holds all optimizer states",
    "gradient_clipping": "gradients are clipped at the default 1.0, not at this value",
    "gradient_accumulation_steps": "accumulation is 1, or what the other batch sizes leave",
    "train_batch_size": "the global batch is what the other batch sizes give",
    "train_micro_batch_size_per_gpu": "the micro-batch is what the other batch sizes give",
    "bf16": "it trains in the model's own precision",
    "bfloat16": "it trains in the model's own precision",
    "fp16": "it trains in the model's own precision, without a loss scale",
    "optimizer": "no optimizer is made from the config",
    "scheduler": "the learning rate stays constant",
    "offload_optimizer": "optimizer states stay on the GPU",
    "zero_allow_untested_optimizer": "ZeRO stops on an optimizer that is not on its list",
    "activation_checkpointing": "nothing is checkpointed by these settings",
}
# Keys that people write and DeepSpeed never reads, with what does it.
_FOREIGN = {
    "sequence_parallel_size": "the world counts as fewer ranks and all of them train plain data parallel;"
    " sequence parallelism is set through the mpu of the Ulysses wrapper",
    "fp8": "there is no FP8 in this version: it trains in the other precision",
    "fp32_allreduce": "gradients are reduced in the training precision; use communication_data_type: fp32",
    "load_universal_checkpoint": "universal checkpoints are not loaded; use checkpoint.load_universal",
    "max_grad_norm": "gradients are clipped at the default 1.0; use gradient_clipping",
    "learning_rate": "the rate is the optimizer's default; use optimizer.params.lr",
}


def unknown_keys(config: Config, schema: Schema) -> Iterator[Finding]:
    """Every key that its section does not have."""
    for path, known in schema.sections.items():
        for key in section(config, *path.split(".")) if path else config:
            full: KeyPath = (*path.split("."), key) if path else (key,)
            if key not in known.keys and text_of(full) not in schema.removed:
                yield _unknown(full, known)


def _unknown(path: KeyPath, known: Section) -> Finding:
    key = str(path[-1])
    near = nearest(key, _canonical(known))
    if key in _FOREIGN and len(path) == 1:
        return Finding(code="E303", path=path, what=f"DeepSpeed ignores it: {_FOREIGN[key].split(';')[0]}", hint=_hint(key))
    hint = f"did you mean {near}?" if near else f"remove it; known here: {', '.join(sorted(_canonical(known))[:12])} …"
    if not known.silent:
        return Finding(code="E304", path=path, what="DeepSpeed does not know it and stops", hint=hint)
    lost = f": {_LOST[near]}" if near in _LOST else ""
    return Finding(code="E303", path=path, what=f"DeepSpeed does not know it and says nothing{lost}", hint=hint)


def _hint(key: str) -> str:
    return _FOREIGN[key].partition("; ")[2] or "remove it"


def _canonical(known: Section) -> list[str]:
    """Names without the short forms that also stand there with their stage3_ prefix: the long ones are the documented ones."""
    return [key for key in known.keys if f"stage3_{key}" not in known.keys]


def sections_are_objects(config: Config, schema: Schema) -> Iterator[Finding]:
    """A section that is a number or a list: DeepSpeed dies in it with a Python error."""
    for path in filter(None, schema.sections):
        *parents, key = path.split(".")
        value = section(config, *parents).get(key)
        if value is None or isinstance(value, Mapping) or (path == "zero_optimization" and isinstance(value, bool)):
            continue
        what = f"{shown(value)} is no object: DeepSpeed stops with a Python error"
        yield Finding(code="E305", path=(*parents, key), what=what, hint=f'write "{key}": {{…}}')


def removed_features(config: Config, schema: Schema) -> Iterator[Finding]:
    for path, instead in schema.removed.items():
        *parents, key = path.split(".")
        if key in section(config, *parents):
            what = f"removed in DeepSpeed {schema.version}, which stops on it even when it is switched off"
            yield Finding(code="E306", path=(*parents, key), what=what, hint=instead)


def deprecated_keys(config: Config, schema: Schema) -> Iterator[Finding]:
    for path, new_name in schema.deprecated.items():
        *parents, key = path.split(".")
        if key in section(config, *parents):
            yield Finding(code="E351", path=(*parents, key), what="deprecated, still understood", hint=f"write {new_name}")
    if isinstance(config.get("zero_optimization"), bool):
        what = "true and false are the old form: true means stage 1"
        yield Finding(code="E351", path=("zero_optimization",), what=what, hint='write {"stage": 1}')


def optimizer_is_known(config: Config, schema: Schema) -> Iterator[Finding]:
    """DeepSpeed's own names in any case, torch's in theirs. A misspelt one stops only after the model is loaded."""
    kind = section(config, "optimizer").get("type")
    path = ("optimizer", "type")
    if "optimizer" in config and not isinstance(kind, str):
        what = "no type: DeepSpeed makes no optimizer and fails at the first backward"
        yield Finding(code="E311", path=("optimizer",), what=what, hint='write "type": "AdamW"')
    elif isinstance(kind, str) and kind.lower() not in schema.optimizers and kind not in schema.torch_optimizers:
        names = (*schema.torch_optimizers, "Adagrad", "Adam", "AdamW", "Lamb", "Lion", "Muon")
        near = nearest(kind, names)
        hint = f"did you mean {near}?" if near else f"use {listed(sorted(names))}"
        yield Finding(code="E311", path=path, what=f"{shown(kind)} is no optimizer of DeepSpeed or torch.optim", hint=hint)
    elif (
        isinstance(kind, str)
        and kind.lower() == "adam"
        and section(config, "optimizer", "params").get("adam_w_mode") is not False
    ):
        what = "Adam computes AdamW here: weight decay is decoupled"
        yield Finding(code="E354", path=path, what=what, hint='write "AdamW", or "adam_w_mode": false in params')


def scheduler_is_known(config: Config, schema: Schema) -> Iterator[Finding]:
    kind = section(config, "scheduler").get("type")
    path = ("scheduler", "type")
    if "scheduler" in config and not isinstance(kind, str):
        what = "no type: DeepSpeed makes no scheduler, the learning rate stays constant"
        yield Finding(code="E311", path=("scheduler",), what=what, hint='write "type": "WarmupCosineLR"')
    elif isinstance(kind, str) and kind not in schema.schedulers and kind not in schema.torch_schedulers:
        near = nearest(kind, (*schema.schedulers, *schema.torch_schedulers))
        hint = f"did you mean {near}?" if near else f"use {listed(schema.schedulers)}"
        yield Finding(code="E311", path=path, what=f"{shown(kind)} is no scheduler of DeepSpeed or torch", hint=hint)
    elif isinstance(kind, str) and kind.startswith("Warmup"):
        what = "one step late: the first two steps both use the smallest rate"
        yield Finding(
            code="E354", path=path, what=what, hint="shift it before comparing with a scheduler of torch or transformers"
        )


def clipping_is_not_a_parameter(config: Config, schema: Schema) -> Iterator[Finding]:
    if "max_grad_norm" in section(config, "optimizer", "params"):
        what = "DeepSpeed stops: clipping is no setting of the optimizer"
        yield Finding(code="E304", path=("optimizer", "params", "max_grad_norm"), what=what, hint="use gradient_clipping")


KEY_RULES = (
    unknown_keys,
    sections_are_objects,
    removed_features,
    deprecated_keys,
    optimizer_is_known,
    scheduler_is_known,
    clipping_is_not_a_parameter,
)
