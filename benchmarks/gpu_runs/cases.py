"""Cases: what is measured, the most telling first; and what the plan says of one before it runs. A table and its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from published.ours import Own

from launcher.plan.cost.of_stage import Clock
from launcher.plan.cost.rates import catalogue_rates
from launcher.plan.known_shapes import KNOWN_CONFIGS
from launcher.plan.layout import Layout
from launcher.plan.load import Load
from launcher.plan.memory import memory_of
from launcher.plan.plan import Checkpointing, Machine, Memory, Place, Precision
from launcher.plan.shape import Config, shape_from_config
from launcher.spec.model import Lora
from launcher.units import bytes_text

MEASURED = "measured.json"  # what the child leaves in its run folder
PARENT = "GPU_RUNS_PARENT"  # in its environment: the process without which nobody is left to end it
HOPELESS = 0.02  # p_fit below which a case is not tried; near the limit it is, because running out of memory tells as much
QWEN_3B: Config = {
    **KNOWN_CONFIGS["Qwen/Qwen2.5-1.5B"],
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11_008,
    "max_position_embeddings": 32_768,
}
TINY: Config = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, Config] = {**KNOWN_CONFIGS, "Qwen/Qwen2.5-3B": QWEN_3B, "tiny": TINY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One stage on one rank. `lora` is the rank of an adapter; 0 trains all weights."""

    model: str
    seq: int
    micro: int
    accum: int = 1
    zero: int = 1
    checkpointing: Checkpointing = "none"
    lora: int = 0
    offload_optimizer: Place = "none"
    offload_parameters: Place = "none"
    precision: Precision = "bf16"
    limit_s: float = 150.0  # after which it is ended

    @property
    def name(self) -> str:
        """`qwen2.5-1.5b-s4096-b4x1-z1-full`; part of its rows' ids."""
        words = [self.model.rpartition("/")[2].lower(), f"s{self.seq}", f"b{self.micro}x{self.accum}", f"z{self.zero}"]
        words += {"none": [], "full": ["full"], "offload": ["full@cpu"]}[self.checkpointing]
        words += [f"lora{self.lora}"] if self.lora else []
        words += ["opt@cpu"] if self.offload_optimizer == "cpu" else []
        words += ["param@cpu"] if self.offload_parameters == "cpu" else []
        return "-".join(words)

    @property
    def kind(self) -> str:
        """Pretraining knows no adapter."""
        return "sft" if self.lora else "pretrain"

    def own(self, *, cuda: bool) -> Own:
        load = Load(
            shape=shape_from_config(CONFIGS[self.model], file=self.model),
            kind=self.kind,
            adapter=Lora(rank=self.lora) if self.lora else None,
            quantized=False,
            eager=False,
            row_tokens=self.seq,
            answer_tokens=0,
        )
        layout = Layout(
            dp=1,
            zero=self.zero,
            precision=self.precision,
            checkpointing=self.checkpointing,
            offload_optimizer=self.offload_optimizer,
            offload_parameters=self.offload_parameters,
            micro_batch=self.micro,
            grad_accum=self.accum,
            cuda=cuda,
        )
        return Own(load=load, layout=layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the plan says of a case. `step_s` is None where the device's speed is not known."""

    memory: Memory
    step_s: float | None
    hopeless: str  # why it is not tried; empty where it is

    def text(self) -> str:
        step = f"{self.step_s:.3f} s a step" if self.step_s else "step unknown"
        return f"plan: {bytes_text(self.memory.peak_bytes)}, fits with {self.memory.p_fit:.3f}, {step}"


def tell(case: Case, machine: Machine) -> Told:
    own = case.own(cuda=machine.device == "cuda")
    memory = memory_of(own.load, own.layout, limit_bytes=machine.memory_bytes)
    speeds = catalogue_rates(machine).speeds(machine)
    step_s = Clock(own.load, speeds).time(own.layout).step_s if speeds else None
    host = memory.host_peak_bytes or 0
    hopeless = ""
    if (memory.p_fit or 0) < HOPELESS:
        hopeless = f"{bytes_text(memory.peak_bytes)} of {bytes_text(memory.limit_bytes)} on the device"
    elif machine.device == "cuda" and host > machine.host_memory_bytes:
        hopeless = f"{bytes_text(host)} of {bytes_text(machine.host_memory_bytes)} on the host"
    return Told(memory=memory, step_s=step_s, hopeless=hopeless)


# Small models first where they tell as much, so that ten minutes cover each kind of term: recomputed and kept activations, the
# logits' tile, states by ZeRO stage, fp32 sums, adapters, long rows, offload. Then sizes near the limit of 80 and 141 GB.
_05B, _15B, _3B, _7B = (f"Qwen/Qwen2.5-{size}B" for size in ("0.5", "1.5", "3", "7"))
_1B, _32_3B, _8B = "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.1-8B"
CASES: tuple[Case, ...] = (
    Case(model=_15B, seq=4096, micro=4, checkpointing="full"),
    Case(model=_05B, seq=1024, micro=8),
    Case(model=_8B, seq=4096, micro=2, checkpointing="full", lora=16),
    Case(model=_15B, seq=2048, micro=2),
    Case(model=_15B, seq=4096, micro=4, checkpointing="full", zero=3),
    Case(model=_15B, seq=4096, micro=1, accum=4, zero=2, checkpointing="full"),
    Case(model=_1B, seq=16_384, micro=1, checkpointing="full"),
    Case(model=_7B, seq=2048, micro=2, lora=16),
    Case(model=_3B, seq=4096, micro=1, checkpointing="full", zero=2),
    Case(model=_15B, seq=4096, micro=2, checkpointing="full", offload_optimizer="cpu"),
    Case(model=_05B, seq=1024, micro=1, accum=8),
    Case(model=_1B, seq=4096, micro=2),
    Case(model=_8B, seq=4096, micro=1, lora=16, zero=3, checkpointing="full"),
    Case(model=_32_3B, seq=2048, micro=2, checkpointing="full"),
    Case(model=_15B, seq=16_384, micro=1, checkpointing="offload"),
    Case(model=_05B, seq=4096, micro=4),
    Case(model=_8B, seq=4096, micro=1, lora=16),
    Case(model=_15B, seq=4096, micro=4, zero=2),
    Case(model=_7B, seq=16_384, micro=1, checkpointing="full", lora=16),
    Case(model=_3B, seq=4096, micro=2, zero=3, checkpointing="full", offload_optimizer="cpu", offload_parameters="cpu"),
    Case(model=_05B, seq=1024, micro=32, checkpointing="full"),
    Case(model=_32_3B, seq=4096, micro=2),
    Case(model=_1B, seq=1024, micro=4, accum=4),
    Case(model=_7B, seq=1024, micro=1, checkpointing="full", offload_optimizer="cpu", limit_s=240),
    Case(model=_05B, seq=16_384, micro=2),
    Case(model=_7B, seq=4096, micro=3, lora=64),
    Case(model=_3B, seq=8192, micro=2, checkpointing="full", zero=3),
    Case(model=_7B, seq=1024, micro=1, checkpointing="full"),
)
CPU_CASES: tuple[Case, ...] = (
    Case(model="tiny", seq=128, micro=2, precision="fp32", limit_s=90),
    Case(model="tiny", seq=128, micro=2, accum=2, zero=2, checkpointing="full", precision="fp32", limit_s=90),
    Case(model="tiny", seq=256, micro=1, lora=4, precision="fp32", limit_s=90),
)
