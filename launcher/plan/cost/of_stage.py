"""(load, layout) -> Work, and the seconds that only our stages have: offload, host checkpoints, ppo's rollout. DERIVE, pure.

Offload moves gradients down and parameters up over PCIe, and Adam runs at the speed of the host's memory, shared by its ranks
(DeepSpeed ZeRO-Offload, arXiv:2101.06840). A ppo iteration samples token by token, where each token reads the weights and the
cache once; scores the answers with four models; and trains actor and critic (arXiv:2203.02155).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from launcher.plan.activations import SAMPLED_MICRO_BATCHES, hidden_bytes, pass_tokens
from launcher.plan.cost.constants import Constants
from launcher.plan.cost.kernels import Block, Device, block_seconds, head_seconds
from launcher.plan.cost.links import Links
from launcher.plan.cost.stack import Stack
from launcher.plan.cost.step import StepTime, kernels_of, step_time
from launcher.plan.cost.work import Arithmetic, Work
from launcher.plan.gpus import Gpu
from launcher.plan.layout import BYTES, Layout, sums_in_fp32
from launcher.plan.load import Load
from launcher.plan.parameters import quantized_weights
from launcher.plan.share import Share, pipeline_split, shares_of
from launcher.plan.states import NF4_BYTES, off_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Everything that time is worked out from, apart from the work."""

    gpu: Gpu
    links: Links
    stack: Stack
    constants: Constants
    host_ranks: int  # ranks that share a host's memory and disks


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A ppo iteration: prompts over all ranks, and the optimizer steps it gives."""

    prompts: int
    steps: int


def work_of(load: Load, layout: Layout) -> Work:
    """One optimizer step of a replica. ppo: its training part, for the actor."""
    return Work(
        shape=load.shape,
        row_tokens=load.row_tokens,
        tokens=pass_tokens(load, layout),
        micro_batches=layout.grad_accum,
        dp=layout.dp,
        tp=layout.tp,
        pp=layout.pp,
        sp=layout.sp,
        zero=layout.zero,
        arithmetic="tf32" if layout.precision == "fp32" and load.tf32 and layout.cuda else layout.precision,
        attention="eager" if load.eager else "flash2",
        trained="adapter" if load.adapter else "all",
        adapter_rank=load.adapter.rank if load.adapter else 0,
        packed="nf4" if load.quantized else None,
        recomputes="none" if layout.checkpointing == "none" else "all",
        loss=load.kind != "reward",
        gradient_bytes=4 if layout.sp > 1 else BYTES[layout.precision],  # DeepSpeed sends sequence ranks' gradients in fp32
        gather_bytes=1.0 if layout.quantized_weights else _gathered_bytes(load, layout),
        scatter_bytes=0.5 if layout.quantized_gradients else BYTES[layout.precision],
        near_ranks=layout.hpz,
        split=pipeline_split(load.shape, load.kind, layout.pp) if layout.pp > 1 else None,
    )


def _gathered_bytes(load: Load, layout: Layout) -> float:
    """Of one weight as ZeRO 3 gathers it: a 4-bit base stays packed."""
    size = BYTES[layout.precision]
    packed = quantized_weights(load.shape) / load.num_params if load.quantized else 0.0
    return NF4_BYTES * packed + size * (1 - packed)


@dataclass(slots=True)
class Clock:
    """Times the layouts of one load; what they share is worked out once."""

    load: Load
    speeds: Speeds
    rollout: Rollout | None = None
    scale: float = 1.0  # measured / predicted steps of finished runs
    _kernels: dict[tuple[object, ...], tuple[Block, float]] = field(default_factory=dict)
    _devices: dict[str, Device] = field(default_factory=dict)  # by arithmetic

    def time(self, layout: Layout, *, host_ranks: int | None = None) -> StepTime:
        """Seconds of one optimizer step, by part; ppo's share of sampling and scoring belongs to it. A scale is of every part.

        `host_ranks`: ranks that share a host, where they are not those of the speeds.
        """
        speeds, work = self.speeds, work_of(self.load, layout)
        if host_ranks is not None and host_ranks != speeds.host_ranks:
            speeds = replace(speeds, host_ranks=host_ranks)
        time = self._step(work)
        # what Adam takes on the device; the engine's own work around it stays, wherever Adam runs
        adam = off_device(layout) * (time.parts["optimizer"] - speeds.constants.step_s)
        offload = _offload_seconds(self.load, layout, work, speeds, device_adam_s=adam)
        parts = {**time.parts, "optimizer": time.parts["optimizer"] - adam}
        step = time.step_s - adam + offload
        if offload:
            parts["offload"] = offload
        if self.rollout is not None:
            critic = self._step(replace(work, loss=False)).step_s
            phases = _rollout_seconds(self.load, layout, work, speeds, self.rollout, self._device(layout.precision))
            parts = {**parts, "critic": critic, **phases}
            step += critic + sum(phases.values())
        if self.scale != 1.0:
            parts = {name: self.scale * seconds for name, seconds in parts.items()}
        return StepTime(step_s=self.scale * step, parts=parts, sent=time.sent)

    def _step(self, work: Work) -> StepTime:
        speeds = self.speeds
        key = (work.tokens, work.tp, work.sp, work.pp > 1, work.zero, work.recomputes, work.loss, work.arithmetic)
        if key not in self._kernels:
            self._kernels[key] = kernels_of(work, self._device(work.arithmetic), stack=speeds.stack)
        return step_time(
            work,
            speeds.gpu,
            speeds.links,
            stack=speeds.stack,
            constants=speeds.constants,
            kernels=self._kernels[key],
        )

    def _device(self, arithmetic: Arithmetic) -> Device:
        if arithmetic not in self._devices:
            self._devices[arithmetic] = Device(gpu=self.speeds.gpu, arithmetic=arithmetic, constants=self.speeds.constants)
        return self._devices[arithmetic]


def _offload_seconds(load: Load, layout: Layout, work: Work, speeds: Speeds, *, device_adam_s: float) -> float:
    """What a step waits for because something rests in host memory or on disk. Adam is no faster there than on the device."""
    if (layout.offload_optimizer, layout.offload_parameters) == ("none", "none") and layout.checkpointing != "offload":
        return 0.0
    constants, pcie = speeds.constants, speeds.links.pcie_gbs * 1e9 * speeds.constants.pcie_share
    share = max(one.num_adapter if load.adapter else one.num_params for one in _shares(load, layout))
    owned, size = share / layout.shards, BYTES[layout.precision]
    seconds = 0.0
    if layout.offload_optimizer != "none":
        away, sums = off_device(layout), sums_in_fp32(layout)
        times = layout.grad_accum if layout.zero == 3 or (layout.zero == 2 and not sums) else 1
        moved = ((4 if sums else size) * times + size) * owned
        adam = constants.optimizer_bytes * owned * speeds.host_ranks / (constants.host_gbs * 1e9)
        seconds += away * moved / pcie + max(away * adam, device_adam_s)
    if layout.offload_optimizer == "nvme":
        seconds += 2 * 16 * owned * speeds.host_ranks / (constants.nvme_gbs * 1e9)
    if layout.offload_parameters != "none":
        held = size * max(one.num_params for one in _shares(load, layout)) / layout.shards
        seconds += work.micro_batches * 2 * held / pcie
    if layout.offload_parameters == "nvme":
        # each pass reads them, and recomputing once more; a step writes what is trained
        reads = work.micro_batches * (2 if layout.checkpointing == "none" else 3)
        seconds += (reads * held + size * owned) * speeds.host_ranks / (constants.nvme_gbs * 1e9)
    if layout.checkpointing == "offload":
        kept = max(one.layers for one in _shares(load, layout)) * hidden_bytes(load, layout)
        seconds += work.micro_batches * 2 * kept / pcie
    return seconds


def _shares(load: Load, layout: Layout) -> tuple[Share, ...]:
    return shares_of(load.shape, load.kind, load.adapter, tp=layout.tp, pp=layout.pp)


def _rollout_seconds(
    load: Load, layout: Layout, work: Work, speeds: Speeds, rollout: Rollout, device: Device
) -> dict[str, float]:
    """Seconds of sampling and scoring that fall on one optimizer step."""
    rows = rollout.prompts / layout.dp
    together = min(rows, SAMPLED_MICRO_BATCHES * layout.micro_batch)
    shape, size = load.shape, BYTES[layout.precision]
    prompt = load.row_tokens - load.answer_tokens
    # one token of all rows: the weights and half of the final cache pass through the device, unless the host is slower
    cache = 2 * shape.kv_heads * shape.head_dim * size * together * (prompt + load.answer_tokens / 2)
    one = replace(work, tokens=together, zero=min(work.zero, 2), recomputes="none", row_tokens=max(1, round(together)))
    block = block_seconds(one, device, speeds.stack).forward
    weights = size * load.num_params / shape.layers / device.memory_bytes_s
    token = shape.layers * max(weights + cache / device.memory_bytes_s, block.launch_s)
    whole = replace(one, tokens=together * prompt, row_tokens=prompt)
    prefill = shape.layers * block_seconds(whole, device, speeds.stack).forward.total_s
    sampling = rows / together * (prefill + load.answer_tokens * token)
    scored = replace(work, recomputes="none")
    forward = shape.layers * block_seconds(scored, device, speeds.stack).forward.total_s + head_seconds(scored, device) / 3
    scoring = 4 * rows / layout.micro_batch * forward
    return {"sampling": sampling / rollout.steps, "scoring": scoring / rollout.steps}
