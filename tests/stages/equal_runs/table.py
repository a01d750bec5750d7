"""The cases: what is trained, under which layout. Data. FEW runs with every test run, ALL by `make test-matrix`.

Every case trains 4 steps of 8 rows, whatever its layout: micro-batch x accumulation x dp = 8. Gradients are clipped at a norm
that some steps reach and others do not, or Adam would hide a gradient of the wrong scale.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from tests.stages.equal_runs.models import MODELS

GLOBAL_SEQS = 8
NUM_STEPS = 4
RATES = {"adamw": 2e-3, "sgd": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training run. `model`: a name in models.py."""

    kind: str = "sft"
    model: str = "llama"
    dp: int = 1
    tp: int = 1
    pp: int = 1
    sp: int = 1
    zero: int = 1
    precision: str = "fp32"
    accum: int = 1
    checkpointing: str = "none"
    clip: float = 1.0
    packed: bool = False
    adapter: bool = False
    offload: str = "none"  # what rests on the host: "optimizer", or "all"
    optimizer: str = "adamw"  # sgd put in by the test: it shows a wrong scale in the losses

    @property
    def name(self) -> str:
        """What is not as usual: `dpo gpt2 tp2 pp2 zero1 accum2`."""
        usual = asdict(case(kind=self.kind, optimizer=self.optimizer)) | {"optimizer": "adamw"}
        parts = [self.kind, self.model]
        for field, value in asdict(self).items():
            if field == "zero" or (field not in ("kind", "model") and value != usual[field]):
                parts.append(_text(field, value))
        return " ".join(parts)

    @property
    def ranks(self) -> int:
        return self.dp * self.tp * self.pp * self.sp

    @property
    def family(self) -> str:
        return MODELS[self.model].family

    @property
    def lr(self) -> float:
        return RATES[self.optimizer]

    @property
    def rows(self) -> str:
        """Folder of the rows, beside the models."""
        return "sft_packed" if self.packed else self.kind

    def plain(self) -> Case:
        """The one-process, fp32 training that this case must equal: all cases with the same one share its run."""
        kept = {name: getattr(self, name) for name in ("kind", "model", "clip", "packed", "adapter", "optimizer")}
        return Case(**kept)


def _text(field: str, value: object) -> str:
    """`tp2`, `bf16`, `packed`, `checkpointing full`."""
    if value is True or field in ("precision", "optimizer"):
        return field if value is True else str(value)
    return f"{field} {value}" if isinstance(value, str) else f"{field}{value}"


# Between the smallest and the largest gradient norm of the plain run on `llama` (a test says so).
CLIPS = {
    "adamw": {"pretrain": 1.1, "sft": 1.518, "reward": 0.8, "dpo": 0.66},
    "sgd": {"pretrain": 1.1, "sft": 1.48, "reward": 0.8, "dpo": 0.66},
}


def case(**fields: object) -> Case:
    made = Case(**fields)
    return made if "clip" in fields else replace(made, clip=CLIPS[made.optimizer][made.kind])


KINDS = ("pretrain", "sft", "reward", "dpo")
PIPES = ({"pp": 2, "accum": 2}, {"pp": 2, "dp": 2, "accum": 2}, {"tp": 2, "pp": 2, "accum": 4})
BIG = {"tp": 2, "pp": 2, "dp": 2, "accum": 2}
LAYOUTS = (
    {"zero": 0},
    {"zero": 1, "accum": 8},
    *({"dp": 2, "zero": zero} for zero in (0, 1, 2, 3)),
    *({"tp": 2, "zero": zero} for zero in (0, 1, 2, 3)),
    *({"tp": 2, "dp": 2, "zero": zero} for zero in (1, 2, 3)),
    *({"sp": 2, "zero": zero} for zero in (0, 1, 2, 3)),
    *({"sp": 2, "dp": 2, "zero": zero} for zero in (1, 3)),
    *PIPES,
    {"pp": 4, "accum": 4},
    BIG,
)
FOUR = ({"tp": 2}, {"pp": 2, "accum": 2}, {"tp": 2, "pp": 2, "accum": 4}, {"sp": 2})
SHORT = (*FOUR, BIG, {"dp": 2, "zero": 3}, {"tp": 2, "zero": 3}, {"sp": 2, "zero": 3})
SGD_LAYOUTS = ({"tp": 2, "dp": 2}, {"pp": 2, "accum": 2}, {"pp": 2, "dp": 2, "accum": 2}, {"sp": 2, "zero": 3})
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "gpt2", "gpt_neox", "opt")

FEW = (
    # every kind of layout
    case(dp=2, zero=0),
    case(dp=2, zero=1, accum=2),
    case(kind="pretrain", dp=2, zero=2),
    case(kind="reward", dp=2, zero=3),
    case(tp=2, zero=0),
    case(kind="dpo", tp=2),
    case(tp=2, dp=2, zero=2, accum=2),
    case(tp=2, zero=3),
    case(pp=2, accum=4),
    case(kind="reward", pp=2, dp=2, accum=2),
    case(kind="dpo", tp=2, pp=2, accum=2),
    case(sp=2, zero=2),
    case(kind="dpo", sp=2, zero=3),
    case(model="llama tied", **BIG),
    # what a layout may get wrong
    case(model="llama tied", tp=2),
    case(model="llama tied", pp=2, accum=2),
    case(tp=2, precision="bf16"),
    case(dp=2, precision="bf16", accum=2),
    case(pp=2, precision="bf16", accum=2),
    case(model="gpt2", pp=2, precision="bf16", accum=2),
    case(sp=2, zero=3, precision="bf16"),
    case(tp=2, pp=2, accum=2, checkpointing="full"),
    case(sp=2, zero=3, checkpointing="full"),
    case(packed=True, tp=2),
    case(packed=True, pp=2, accum=2),
    case(adapter=True, tp=2),
    case(adapter=True, pp=2, accum=2),
    case(adapter=True, dp=2, zero=3),
    case(offload="optimizer", dp=2),
    case(offload="all", dp=2, zero=3),
    case(optimizer="sgd", tp=2, dp=2),
    case(optimizer="sgd", pp=2, accum=2),
    case(optimizer="sgd", sp=2, zero=3),
    # families with something of their own
    case(model="qwen3", tp=2),
    case(model="gpt2", tp=2, pp=2, accum=2),
    case(model="phi3", tp=2),
    case(model="mistral window", pp=2, accum=2),
    case(model="opt", pp=2, accum=2),
)

DP2 = ({"dp": 2, "zero": 2}, {"dp": 2, "zero": 3})
_MATRIX = (
    *(case(kind=kind, **layout) for kind in KINDS for layout in LAYOUTS),
    *(case(model=model, **layout) for model in FAMILIES for layout in FOUR),
    *(case(kind="reward", model=model, tp=2, pp=2, accum=2) for model in FAMILIES),
    *(case(kind="dpo", model=model, **layout) for model in ("qwen3", "gpt2", "gpt_neox", "opt") for layout in FOUR),
    *(case(model="mistral window", **layout) for layout in FOUR if "sp" not in layout),
    *(case(model="gpt2", tp=4), case(model="gpt2", sp=4, zero=3), case(sp=4, zero=2), case(model="gpt2", pp=4, accum=4)),
    # tied and not
    *(case(model=model, **layout) for model in ("llama tied", "gpt2 untied") for layout in (*FOUR, BIG, {"tp": 2, "zero": 3})),
    # always clipped
    *(case(clip=0.5, model="llama tied", optimizer="sgd", **layout) for layout in (*SHORT, {"dp": 2, "zero": 0})),
    # bf16 needs masters, which ZeRO 0 has not
    *(case(precision="bf16", **layout) for layout in (*SHORT, {"dp": 2, "zero": 2})),
    *(case(precision="bf16", kind=kind, **layout) for kind in ("reward", "dpo") for layout in FOUR),
    # and adds micro-batches up in fp32: at ZeRO 1 by an optimizer of its own
    *(case(precision="bf16", accum=2, **layout) for layout in (*DP2, {"tp": 2}, {"sp": 2}, {"sp": 2, "zero": 2})),
    *(case(precision="bf16", accum=2, optimizer="sgd", **layout) for layout in ({"dp": 2}, {"tp": 2, "dp": 2})),
    case(precision="bf16", accum=2, adapter=True, dp=2),
    *(case(precision="bf16", accum=8, optimizer="sgd", **layout) for layout in ({"pp": 2}, {"tp": 2, "pp": 2})),
    *(case(model=family, precision="bf16", **layout) for family in FAMILIES[1:] for layout in FOUR),
    # checkpointing, packing, adapters, SGD, offload
    *(case(checkpointing="full", **layout) for layout in SHORT),
    *(case(checkpointing="full", model=model, tp=2, pp=2, accum=2) for model in ("gpt2", "gpt_neox", "gemma", "opt")),
    *(case(packed=True, **layout) for layout in SHORT if "sp" not in layout),
    *(case(packed=True, model=model, tp=2, pp=2, accum=2) for model in ("gpt2", "phi3", "mistral", "gemma")),
    *(case(adapter=True, kind=kind, **layout) for kind in ("sft", "reward", "dpo") for layout in (*FOUR, {"dp": 2, "zero": 3})),
    *(case(adapter=True, model=model, **layout) for model in ("gpt2", "phi3", "qwen3", "gpt_neox") for layout in FOUR),
    *(
        case(adapter=True, model="opt", pp=2, accum=2),
        case(adapter=True, tp=2, zero=3),
        case(adapter=True, sp=2, zero=3),
        case(adapter=True, packed=True, tp=2),
    ),
    *(
        case(optimizer="sgd", kind=kind, **layout)
        for kind in KINDS
        for layout in ({"tp": 2, "dp": 2}, *PIPES[:2], {"sp": 2, "zero": 3})
    ),
    *(case(offload="optimizer", **layout) for layout in (*FOUR, {"dp": 2, "zero": 3})),
    *(case(offload="all", **layout) for layout in ({"tp": 2, "zero": 3}, {"sp": 2, "zero": 3})),
)
ALL = tuple(dict.fromkeys((*FEW, *_MATRIX)))
