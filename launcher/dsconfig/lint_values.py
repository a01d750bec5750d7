"""Values and combinations of a DeepSpeed config: what contradicts itself, is ignored, or computes something else. Pure rules.

Each silent case was run with DeepSpeed 0.19.8; tests/stages/traps/test_config.py shows some of them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launcher.dsconfig.finding import Config, Finding, number, section
from launcher.dsconfig.jsontext import KeyPath
from launcher.dsconfig.keys import Schema
from launcher.spec.wording import shown

TRAIN, MICRO, ACCUM = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"

# What transformers' Trainer replaces when it finds "auto"; DeepSpeed alone does not.
_FILLED_BY_TRANSFORMERS = {
    (TRAIN,),
    (MICRO,),
    (ACCUM,),
    ("gradient_clipping",),
    ("fp16", "enabled"),
    ("bf16", "enabled"),
    ("zero_optimization", "reduce_bucket_size"),
    ("zero_optimization", "stage3_prefetch_bucket_size"),
    ("zero_optimization", "stage3_param_persistence_threshold"),
    *(("optimizer", "params", name) for name in ("lr", "betas", "eps", "weight_decay")),
    *(("scheduler", "params", name) for name in ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps")),
}
# DeepSpeed's own "auto": it means something there.
_OWN_AUTO = {("pipeline", "stages"), ("data_types", "keep_in_fp32_modules"), ("autotuning", "arg_mappings")}
_AUTO_SECTIONS = ("expert_parallel", "autotuning")


def batch_sizes_agree(config: Config, schema: Schema) -> Iterator[Finding]:
    sizes = {name: config[name] for name in (TRAIN, MICRO, ACCUM) if name in config and config[name] != "auto"}
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield Finding(
                code="E305", path=(name,), what=f"{shown(value)} is no whole number of at least 1", hint="use 1 or more"
            )
            return
    if TRAIN not in config and MICRO not in config:
        what = f"neither {TRAIN} nor {MICRO} is given: DeepSpeed stops"
        yield Finding(code="E307", path=(ACCUM,) if ACCUM in config else (), what=what, hint=f"give {MICRO} and {ACCUM}")
    elif TRAIN in sizes and (MICRO in sizes or ACCUM in sizes):
        yield from _train_is_a_multiple(sizes)


def _train_is_a_multiple(sizes: Mapping[str, object]) -> Iterator[Finding]:
    counts = {name: value for name, value in sizes.items() if isinstance(value, int)}
    unit = counts.get(MICRO, 1) * counts.get(ACCUM, 1)
    if counts[TRAIN] % unit:
        parts = " x ".join(f"{name} {counts[name]}" for name in (MICRO, ACCUM) if name in counts)
        what = f"{counts[TRAIN]} is not {parts} x ranks for any number of ranks"
        near = -(-counts[TRAIN] // unit) * unit
        yield Finding(code="E307", path=(TRAIN,), what=what, hint=f"use {near}, or leave {TRAIN} out: two sizes give the third")


def clipping_is_positive(config: Config, schema: Schema) -> Iterator[Finding]:
    clip = config.get("gradient_clipping")
    if clip is None or clip == "auto":
        return
    value = number(clip)
    if value is None:
        what = f"{shown(clip)} is no number: DeepSpeed fails at the first step"
        yield Finding(code="E305", path=("gradient_clipping",), what=what, hint="write 1.0, or 0 for none")
    elif not value >= 0:
        what = f"{clip} means no clipping at all, without a word"
        yield Finding(code="E312", path=("gradient_clipping",), what=what, hint=f"use {abs(value) or 1.0:g}, or 0 for none")


def nothing_is_auto(config: Config, schema: Schema) -> Iterator[Finding]:
    for path in _autos(config, ()):
        if path in _OWN_AUTO or path[0] in _AUTO_SECTIONS or "zenflow" in path:
            continue
        if path in _FILLED_BY_TRANSFORMERS:
            what = '"auto" is filled in by transformers\' Trainer only; DeepSpeed alone stops on it or takes its default'
            yield Finding(code="E352", path=path, what=what, hint="write the value out")
        else:
            what = '"auto" is understood by nobody here: DeepSpeed takes its default in a section and stops elsewhere'
            yield Finding(code="E310", path=path, what=what, hint="write the value out")


def _autos(value: object, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _autos(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _autos(inner, (*path, index))
    elif value == "auto":
        yield path


def stage_of(config: Config) -> int | None:
    """The ZeRO stage that DeepSpeed reads; None where it is no stage. `"2"` counts as 2, as there."""
    zero = config.get("zero_optimization")
    if isinstance(zero, bool):
        return int(zero)
    stage = section(config, "zero_optimization").get("stage", 0)
    if stage == "auto":
        return 0
    if isinstance(stage, str) and stage in ("0", "1", "2", "3"):
        return int(stage)
    return stage if isinstance(stage, int) and not isinstance(stage, bool) and 0 <= stage <= 3 else None


def zero_stage_exists(config: Config, schema: Schema) -> Iterator[Finding]:
    if stage_of(config) is None:
        stage = section(config, "zero_optimization").get("stage")
        path = ("zero_optimization", "stage")
        yield Finding(code="E305", path=path, what=f"{shown(stage)} is no ZeRO stage", hint="use 0, 1, 2 or 3")


def precision_is_right_at_zero_0(config: Config, schema: Schema) -> Iterator[Finding]:
    half = {name for name in ("bf16", "bfloat16", "fp16") if section(config, name).get("enabled") is True}
    if "fp16" in half and len(half) > 1:
        yield Finding(
            code="E313", path=("fp16",), what="fp16 and bf16 are both enabled: DeepSpeed stops", hint="keep one of the two"
        )
        return
    if stage_of(config) != 0:
        return
    for name in sorted(half):
        if name == "fp16":
            what = "fp16 at ZeRO 0 divides the gradients by the loss scale: it hardly learns, and no overflow is ever seen"
        else:
            what = (
                "bf16 at ZeRO 0 runs Adam one step ahead: the first update is 0.75 x lr (right only under pipeline parallelism)"
            )
        yield Finding(code="E308", path=(name,), what=what, hint='use "zero_optimization": {"stage": 1}')


def offload_has_an_effect(config: Config, schema: Schema) -> Iterator[Finding]:
    stage, zero = stage_of(config), ("zero_optimization",)
    parameters, optimizer = section(config, *zero, "offload_param"), section(config, *zero, "offload_optimizer")
    if stage is None:
        return
    if _offloads(parameters) and stage < 3:
        what = f"ignored at ZeRO {stage}: the parameters stay on the GPU"
        yield Finding(code="E309", path=(*zero, "offload_param"), what=what, hint="use stage 3, or remove it")
    if _offloads(optimizer) and stage == 0:
        what = "offloads nothing at ZeRO 0, but another optimizer class is used"
        yield Finding(code="E309", path=(*zero, "offload_optimizer"), what=what, hint="use stage 1 or higher, or remove it")
    if optimizer.get("device") == "nvme" and stage in (1, 2):
        what = f"nvme at ZeRO {stage} is plain CPU offload; nvme_path is never used"
        yield Finding(code="E309", path=(*zero, "offload_optimizer", "device"), what=what, hint="use stage 3, or device cpu")
    if optimizer.get("super_offload") is True and stage != 3:
        path = (*zero, "offload_optimizer", "super_offload")
        yield Finding(code="E309", path=path, what=f"ignored at ZeRO {stage}", hint="use stage 3, or remove it")
    for name, offload in (("offload_param", parameters), ("offload_optimizer", optimizer)):
        if offload.get("device") == "nvme" and stage == 3 and not offload.get("nvme_path"):
            what = "nvme without nvme_path: DeepSpeed stops with a Python error"
            yield Finding(code="E305", path=(*zero, name), what=what, hint='add "nvme_path"')


def _offloads(offload: Config) -> bool:
    return offload.get("device", "none") not in ("none", None)


def zero_settings_have_an_effect(config: Config, schema: Schema) -> Iterator[Finding]:
    stage, zero = stage_of(config), section(config, "zero_optimization")
    if stage is None:
        return
    if (number(zero.get("zero_hpz_partition_size")) or 1) > 1 and stage != 3:
        path = ("zero_optimization", "zero_hpz_partition_size")
        yield Finding(code="E309", path=path, what=f"ignored at ZeRO {stage}", hint="use stage 3, or remove it")
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if zero.get(name) is True and stage != 3:
            what = f"ignored at ZeRO {stage}: nothing is quantized"
            yield Finding(code="E309", path=("zero_optimization", name), what=what, hint="use stage 3, or remove it")
    gathers = {"stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"}
    gathers |= {"gather_16bit_weights_on_model_save"}
    if stage == 3 and not any(zero.get(name) is True for name in gathers):
        what = "without stage3_gather_16bit_weights_on_model_save the Trainer saves no model.safetensors"
        hint = "set it to true, or gather the weights in your own code"
        yield Finding(code="E354", path=("zero_optimization",), what=what, hint=hint)


def sections_act_elsewhere(config: Config, schema: Schema) -> Iterator[Finding]:
    if section(config, "pipeline"):
        what = "ignored unless the model is a deepspeed PipelineModule; `stages` is ignored even then"
        yield Finding(code="E353", path=("pipeline",), what=what, hint="remove it for other models")
    if section(config, "activation_checkpointing"):
        what = "acts only on code that calls deepspeed.checkpointing; models of transformers do not"
        yield Finding(
            code="E353", path=("activation_checkpointing",), what=what, hint="use the Trainer's gradient_checkpointing"
        )
    if section(config, "compile").get("deepcompile") is True:
        yield Finding(
            code="E353",
            path=("compile", "deepcompile"),
            what="no effect until the code calls engine.compile()",
            hint="call it, or remove it",
        )


VALUE_RULES = (
    batch_sizes_agree,
    clipping_is_positive,
    nothing_is_auto,
    zero_stage_exists,
    precision_is_right_at_zero_0,
    offload_has_an_effect,
    zero_settings_have_an_effect,
    sections_act_elsewhere,
)
