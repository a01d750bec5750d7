"""What a rank holds while it trains, counted as storage of tensors; and one table of cases for the run and for its plan.

    counts = run_ranks(train_and_count, run, "sft", world=2)    # Held of each rank, from the stage's own code
    case = Case(model="llama", zero=2, precision="bf16")
    run, load, layout = make_case(world, case, shape), case.load(shape), case.layout()

A storage counts once, however many tensors look into it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.dsconfig.render import ds_config
from launcher.plan.layout import Layout
from launcher.plan.load import Load
from launcher.plan.plan import Memory, StagePlan
from launcher.plan.shape import ModelShape, shape_of_new
from launcher.rundir.folder import RunDir, write_json
from launcher.rundir.order import read_order, write_order
from launcher.spec.job import JobSpec
from launcher.spec.model import Lora, NewModel
from launcher.spec.new_model import new_model_config
from tests.stages.runs import END, PAD, make_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes of one rank in its last step."""

    wrapper: str  # DeepSpeed's class around the optimizer
    parameters: int  # between two steps
    whole_gradients: int  # before ranks exchange them; 0 where DeepSpeed does that during the backward pass
    own_gradients: int  # when the step begins
    grads_in_16_bit: int  # of own_gradients: those that BF16_Optimizer keeps beside its sums
    optimizer: int  # master weights and moments
    buckets: int  # when the step begins
    offload_buffer: int  # on the device, of an optimizer whose states are on the host
    host: int  # what would be on the host if the device were a GPU, when the step begins
    other: int  # tensors that are none of these, when the step begins

    @property
    def gradients(self) -> int:
        return max(self.whole_gradients, self.own_gradients - self.grads_in_16_bit)


def train_and_count(run: RunDir, kind: str) -> Held:
    """Train the stage in this forked rank, as `python -m launcher.stages train` does, and count in its last step."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    from launcher.stages.__main__ import train

    seen: dict[str, Any] = {"whole": 0}
    step, reduce_all = DeepSpeedEngine._take_model_step, DeepSpeedZeroOptimizer.reduce_gradients

    def counted_reduce(self, *args, **kwargs):
        seen["whole"] = _bytes(_grads(weight for group in self.bit16_groups for weight in group))
        return reduce_all(self, *args, **kwargs)

    def counted_step(engine, *args, **kwargs):
        _settle()
        seen["begin"] = _count(engine)
        told = step(engine, *args, **kwargs)
        _settle()
        seen["end"] = _count(engine)
        return told

    DeepSpeedZeroOptimizer.reduce_gradients, DeepSpeedEngine._take_model_step = counted_reduce, counted_step
    gc.freeze()  # what the parent has imported is none of this rank's
    code = train(run, kind)
    assert code == 0, run.stage(kind).rank_log(int(os.environ["RANK"])).read_text()[-4000:]
    begin, end = seen["begin"], seen["end"]
    return Held(
        wrapper=begin["wrapper"],
        parameters=end["parameters"],
        whole_gradients=seen["whole"],
        own_gradients=begin["gradients"],
        grads_in_16_bit=begin["grads_in_16_bit"],
        optimizer=0 if end["host"] else end["optimizer"],
        buckets=begin["buckets"],
        offload_buffer=begin["offload_buffer"],
        host=end["host"] and end["host"] + end["optimizer"],
        other=begin["other"],
    )


def _settle() -> None:
    """Collective. gloo's two threads of each group hold on to what they sent last until they have something else to do."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _world

    for group in list(_world.pg_map):  # in the order in which all ranks made them
        for _ in range(3):
            dist.barrier(group=group)
    gc.collect()


def _count(engine: Any) -> dict[str, Any]:
    optimizer, weights = engine.optimizer, list(engine.module.parameters())
    adam = getattr(optimizer, "optimizer", optimizer)
    told = {
        "parameters": _storages(_of_weights(weights)),
        "optimizer": _storages(_of_adam(adam)),
        "host": _storages(_on_host(optimizer)),
        "offload_buffer": _storages([getattr(optimizer, "temp_grad_buffer_for_gpu_offload", None)]),
        "gradients": _storages(_of_gradients(optimizer, weights)),
        "buckets": _storages(_of_buckets(optimizer)),
    }
    counted: set[int] = set()
    sizes: dict[str, Any] = {"wrapper": type(optimizer).__name__}
    for name, storages in told.items():  # at ZeRO 0 Adam steps the parameters themselves
        sizes[name] = sum(size for address, size in storages.items() if address not in counted)
        counted |= storages.keys()
    sizes["grads_in_16_bit"] = _bytes(weight.grad for weight in weights) if hasattr(optimizer, "bf16_groups") else 0
    everything = _storages(_all_tensors())
    sizes["other"] = sum(size for address, size in everything.items() if address not in counted)
    return sizes


def _of_weights(weights: list) -> Iterator[Any]:
    """ZeRO 3: the shard, and the whole weight where it stays gathered."""
    for weight in weights:
        if not hasattr(weight, "ds_tensor"):
            yield weight
        else:
            yield weight.ds_tensor
            if weight.ds_persist:
                yield weight


def _of_adam(adam: Any) -> Iterator[Any]:
    """Its state is kept under the tensors that it steps: master weights, where there are any."""
    for master, state in adam.state.items():
        yield master
        yield from (value for value in state.values() if getattr(value, "ndim", 0))


def _of_gradients(optimizer: Any, weights: list) -> Iterator[Any]:
    """Where each of DeepSpeed's wrappers keeps what it will step on."""
    yield from _grads(weights)
    yield from getattr(optimizer, "fp32_groups_gradients_flat", ())  # BF16_Optimizer
    yield getattr(optimizer, "grad_partitions_flat_buffer", None)  # ZeRO 3
    if type(optimizer).__name__ == "DeepSpeedZeroOptimizer":
        for kept in optimizer.averaged_gradients.values():
            yield from kept or ()


def _grads(weights: Iterable[Any]) -> Iterator[Any]:
    """Of each weight; `grad_accum` is its sum in fp32."""
    for weight in weights:
        yield weight.grad
        yield getattr(weight, "grad_accum", None)


def _on_host(optimizer: Any) -> Iterator[Any]:
    """Beside the states, what DeepSpeed makes with `device=self.device`, which is the host under offload."""
    if getattr(optimizer, "cpu_offload", False):  # ZeRO 1 and 2
        yield from (master.grad for master in optimizer.single_partition_of_fp32_groups)
        yield from optimizer.param_buffer_of_bit16_for_cpu_offload_groups
        yield from optimizer.accumulated_grads_in_cpu.values()
        yield optimizer.temp_grad_buffer_for_cpu_offload
    if getattr(optimizer, "offload_optimizer", False):  # ZeRO 3
        yield from (master.grad for master in optimizer.fp32_partitioned_groups_flat)
        yield optimizer.grad_partitions_flat_buffer


def _of_buckets(optimizer: Any) -> Iterator[Any]:
    for bucket in getattr(optimizer, "ipg_buckets", {}).values():
        yield from bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]


def _all_tensors() -> Iterator[Any]:
    import torch

    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
            yield thing
            yield thing.grad if thing.is_leaf else None


def _storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Address → bytes."""
    storages = (tensor.untyped_storage() for tensor in tensors if tensor is not None)
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(_storages(tensors).values())


# --- cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    new: NewModel
    vocab: int

    @property
    def shape(self) -> ModelShape:
        return shape_of_new(self.new, self.vocab)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A stage and its layout. Adapters and rewards train on the world's own rows, others on blocks."""

    model: str
    kind: str = "pretrain"
    dp: int = 1
    tp: int = 1
    pp: int = 1
    sp: int = 1
    zero: int = 0
    precision: str = "fp32"
    accum: int = 1
    micro: int = 2
    tokens: int = 16  # longest row
    checkpointing: str = "none"
    offload: str = "none"  # of the optimizer
    adapter: dict | None = field(default=None, hash=False)
    rows: str | None = None  # folder of the world; None: the kind's

    @property
    def ranks(self) -> int:
        return self.dp * self.tp * self.pp * self.sp

    @property
    def lora(self) -> Lora | None:
        return Lora(**self.adapter) if self.adapter else None

    def load(self, shape: ModelShape) -> Load:
        return Load(
            shape=shape,
            kind=self.kind,
            adapter=self.lora,
            quantized=False,
            eager=False,
            row_tokens=self.tokens,
            answer_tokens=0,
        )

    def layout(self, *, cuda: bool = False) -> Layout:
        return Layout(
            dp=self.dp,
            tp=self.tp,
            pp=self.pp,
            sp=self.sp,
            zero=self.zero,
            precision=self.precision,
            checkpointing=self.checkpointing,
            offload_optimizer=self.offload,
            offload_parameters="none",
            micro_batch=self.micro,
            grad_accum=self.accum,
            cuda=cuda,
        )

    def text(self) -> str:
        degrees = [f"{name}{getattr(self, name)}" for name in ("dp", "tp", "pp", "sp") if getattr(self, name) > 1]
        words = [self.model, *degrees, f"zero{self.zero}", self.precision]
        words += [f"accum{self.accum}"] if self.accum > 1 else []
        words += [self.kind] if self.kind != "pretrain" else []
        words += ["full"] if self.checkpointing == "full" else []
        words += ["offloaded"] if self.offload != "none" else []
        words += ["lora"] if self.adapter else []
        return " ".join(words + (["dropout"] if self.adapter and "dropout" in self.adapter else []))


def write_models(folder: Path, models: dict[str, Model]) -> None:
    """As prepare draws them. Runs in a forked rank."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, model in models.items():
        config = new_model_config(model.new, model.vocab) | {"eos_token_id": END, "pad_token_id": PAD}
        torch.manual_seed(0)
        fields = {key: value for key, value in config.items() if key != "dtype"}
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=torch.float32).save_pretrained(folder / name)


def make_case(world: Path, case: Case, shape: ModelShape, *, steps: int = 2) -> RunDir:
    """A run folder whose DeepSpeed config is rendered for this model, not for the world's."""
    run = make_run(
        world,
        kind=case.kind,
        ranks=case.ranks,
        tp=case.tp,
        pp=case.pp,
        sp=case.sp,
        zero=case.zero,
        micro=case.micro,
        accum=case.accum,
        precision=case.precision,
        checkpointing=case.checkpointing,
        data=case.rows,
        start=world / "models" / case.model,
        stage={"steps": steps, "eval_rows": 2},
        model={"adapter": case.adapter} if case.adapter else {},
    )
    job = JobSpec.model_validate_json(run.job_json.read_text())
    write_json(run.ds_config(case.kind), ds_config(job, _stage_plan(case, shape)))
    order = run.order(case.kind)
    write_order(order, replace(read_order(order), max_tokens=case.tokens))
    return run


def _stage_plan(case: Case, shape: ModelShape) -> StagePlan:
    load, layout = case.load(shape), case.layout()
    memory = Memory(peak_bytes=0, limit_bytes=0, p_fit=None, parts={}, host_peak_bytes=None, disk_bytes=None)
    return StagePlan(
        name=case.kind,
        kind=case.kind,
        world=case.ranks,
        **{name: getattr(layout, name) for name in ("dp", "tp", "pp", "sp", "zero", "precision", "checkpointing")},
        offload_optimizer=case.offload,
        offload_parameters="none",
        micro_batch=case.micro,
        grad_accum=case.accum,
        global_batch=case.micro * case.accum * case.dp,
        max_tokens=case.tokens,
        checkpoint_every=0,
        num_params=load.num_params,
        num_trainable=load.num_trainable,
        hidden=shape.hidden,
        largest_shard=load.num_params,
        memory=memory,
    )
