"""A model's name -> its sizes, for rows that name it and leave them blank; else what a decoder of its size usually has.

From the config.json of each on huggingface.co and the papers' tables (GPT: arXiv:2005.14165 and arXiv:2104.04473). Blank cells
are filled where the row's own sizes agree; what was filled in is said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from published.table import Row, number, whole

USUAL_SEQ = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`sizes`: billions of parameters, layers, hidden, heads, kv heads, ffn and, where it differs, vocab."""

    name: str
    vocab: int
    sizes: tuple[tuple[float, ...], ...]
    gated: bool = True
    tied: bool = False
    seq: int = USUAL_SEQ


_LLAMA = (
    (1.1, 22, 2048, 32, 4, 5632),
    (3.4, 26, 3200, 32, 32, 8640),
    (6.74, 32, 4096, 32, 32, 11008),
    (13.0, 40, 5120, 40, 40, 13824),
    (32.5, 60, 6656, 52, 52, 17920),
    (65.2, 80, 8192, 64, 64, 22016),
)
_GPT = (
    (0.125, 12, 768, 12, 12, 3072),
    (0.35, 24, 1024, 16, 16, 4096),
    (0.76, 24, 1536, 16, 16, 6144),
    (1.3, 24, 2048, 16, 16, 8192),
    (1.7, 24, 2304, 24, 24, 9216),
    (2.7, 32, 2560, 32, 32, 10240),
    (3.6, 30, 3072, 32, 32, 12288),
    (6.7, 32, 4096, 32, 32, 16384),
    (7.5, 36, 4096, 32, 32, 16384),
    (8.3, 72, 3072, 32, 32, 12288),
    (13.0, 40, 5120, 40, 40, 20480),
    (17.0, 78, 4256, 28, 28, 17024),
    (18.4, 40, 6144, 48, 48, 24576),
    (22.0, 48, 6144, 64, 64, 24576),
    (39.1, 48, 8192, 64, 64, 32768),
    (76.1, 60, 10240, 80, 80, 40960),
    (145.6, 80, 12288, 96, 96, 49152),
    (175.0, 96, 12288, 96, 96, 49152),
    (310.1, 96, 16384, 128, 128, 65536),
    (530.0, 105, 20480, 128, 128, 81920),
    (1008.0, 128, 25600, 160, 160, 102400),
)
_GPT_2 = (
    (0.124, 12, 768, 12, 12, 3072),
    (0.355, 24, 1024, 16, 16, 4096),
    (0.774, 36, 1280, 20, 20, 5120),
    (1.56, 48, 1600, 25, 25, 6400),
)
_OPT = (
    *_GPT[:2],
    (1.3, 24, 2048, 32, 32, 8192),
    (2.7, 32, 2560, 32, 32, 10240),
    (6.7, 32, 4096, 32, 32, 16384),
    (13.0, 40, 5120, 40, 40, 20480),
    (30.0, 48, 7168, 56, 56, 28672),
    (66.0, 64, 9216, 72, 72, 36864),
    (175.0, 96, 12288, 96, 96, 49152),
)
_FAMILIES: tuple[tuple[str, Family], ...] = (
    (
        r"llama[\s_-]*3\.2",
        Family(
            name="Llama-3.2",
            vocab=128256,
            tied=True,
            seq=8192,
            sizes=((1.24, 16, 2048, 32, 8, 8192), (3.21, 28, 3072, 24, 8, 8192)),
        ),
    ),
    (
        r"llama[\s_-]*3",
        Family(
            name="Llama-3",
            vocab=128256,
            seq=8192,
            sizes=((8.03, 32, 4096, 32, 8, 14336), (70.6, 80, 8192, 64, 8, 28672), (405.9, 126, 16384, 128, 8, 53248)),
        ),
    ),
    (
        r"llama[\s_-]*2|codellama",
        Family(
            name="Llama-2",
            vocab=32000,
            seq=4096,
            sizes=(*_LLAMA[:4], (34.0, 48, 8192, 64, 8, 22016), (69.0, 80, 8192, 64, 8, 28672)),
        ),
    ),
    (r"llama|alpaca|vicuna|open.?lm", Family(name="LLaMA", vocab=32000, sizes=_LLAMA)),
    (
        r"mistral|zephyr",
        Family(
            name="Mistral",
            vocab=32000,
            seq=4096,
            sizes=(
                (7.24, 32, 4096, 32, 8, 14336),
                (12.2, 40, 5120, 32, 8, 14336, 131072),
                (23.6, 40, 5120, 32, 8, 32768, 131072),
                (122.6, 88, 12288, 96, 8, 28672, 32768),
            ),
        ),
    ),
    (
        r"qwen[\s_-]*3",
        Family(
            name="Qwen3",
            vocab=151936,
            seq=4096,
            sizes=(
                (0.6, 28, 1024, 16, 8, 3072),
                (1.72, 28, 2048, 16, 8, 6144),
                (4.02, 36, 2560, 32, 8, 9728),
                (8.19, 36, 4096, 32, 8, 12288),
                (14.8, 40, 5120, 40, 8, 17408),
                (32.8, 64, 5120, 64, 8, 25600),
            ),
        ),
    ),
    (
        r"qwen[\s_-]*[12]\.5|qwen[\s_-]*2",
        Family(
            name="Qwen2.5",
            vocab=151936,
            seq=4096,
            sizes=(
                (0.49, 24, 896, 14, 2, 4864),
                (1.54, 28, 1536, 12, 2, 8960),
                (3.09, 36, 2048, 16, 2, 11008),
                (7.62, 28, 3584, 28, 4, 18944, 152064),
                (14.8, 48, 5120, 40, 8, 13824, 152064),
                (32.8, 64, 5120, 40, 8, 27648, 152064),
                (72.7, 80, 8192, 64, 8, 29568, 152064),
            ),
        ),
    ),
    (
        r"qwen",
        Family(
            name="Qwen",
            vocab=151936,
            sizes=(
                (1.84, 24, 2048, 16, 16, 5504),
                (7.72, 32, 4096, 32, 32, 11008),
                (14.2, 40, 5120, 40, 40, 13696),
                (72.3, 80, 8192, 64, 64, 24576),
            ),
        ),
    ),
    (
        r"gemma[\s_-]*[23]",
        Family(
            name="Gemma-2",
            vocab=256000,
            tied=True,
            seq=4096,
            sizes=((2.61, 26, 2304, 8, 4, 9216), (9.24, 42, 3584, 16, 8, 14336), (27.2, 46, 4608, 32, 16, 36864)),
        ),
    ),
    (
        r"gemma",
        Family(name="Gemma", vocab=256000, tied=True, sizes=((2.51, 18, 2048, 8, 1, 16384), (8.54, 28, 3072, 16, 16, 24576))),
    ),
    (
        r"phi[\s_-]*[34]",
        Family(name="Phi-3", vocab=32064, sizes=((3.82, 32, 3072, 32, 32, 8192), (14.0, 40, 5120, 40, 10, 17920))),
    ),
    (
        r"\bphi",
        Family(name="Phi", vocab=51200, gated=False, sizes=((1.42, 24, 2048, 32, 32, 8192), (2.78, 32, 2560, 32, 32, 10240))),
    ),
    (r"tiny.?llama", Family(name="TinyLlama", vocab=32000, sizes=_LLAMA[:1])),
    (
        r"\byi\b|\byi[\s_-]",
        Family(name="Yi", vocab=64000, seq=4096, sizes=((6.06, 32, 4096, 32, 4, 11008), (34.4, 60, 7168, 56, 8, 20480))),
    ),
    (
        r"baichuan",
        Family(name="Baichuan", vocab=125696, sizes=((7.5, 32, 4096, 32, 32, 11008), (13.9, 40, 5120, 40, 40, 13696))),
    ),
    (
        r"intern.?lm",
        Family(name="InternLM", vocab=92544, sizes=((7.74, 32, 4096, 32, 8, 14336), (19.9, 48, 6144, 48, 8, 16384))),
    ),
    (r"chatglm|\bglm", Family(name="ChatGLM", vocab=65024, sizes=((6.24, 28, 4096, 32, 2, 13696),))),
    (
        r"falcon",
        Family(
            name="Falcon",
            vocab=65024,
            gated=False,
            tied=True,
            sizes=((7.22, 32, 4544, 71, 1, 18176), (41.8, 60, 8192, 128, 8, 32768), (180.0, 80, 14848, 232, 8, 59392)),
        ),
    ),
    (
        r"bloom",
        Family(
            name="BLOOM",
            vocab=250880,
            gated=False,
            tied=True,
            sizes=(
                (0.56, 24, 1024, 16, 16, 4096),
                (1.07, 24, 1536, 16, 16, 6144),
                (1.72, 24, 2048, 16, 16, 8192),
                (3.0, 30, 2560, 32, 32, 10240),
                (7.07, 30, 4096, 32, 32, 16384),
                (176.2, 70, 14336, 112, 112, 57344),
            ),
        ),
    ),
    (
        r"mpt",
        Family(
            name="MPT",
            vocab=50368,
            gated=False,
            tied=True,
            sizes=(
                (0.125, 12, 768, 12, 12, 3072),
                (0.35, 24, 1024, 16, 16, 4096),
                (0.76, 24, 1536, 12, 12, 6144),
                (1.3, 24, 2048, 16, 16, 8192),
                (2.65, 32, 2560, 20, 20, 10240),
                (6.65, 32, 4096, 32, 32, 16384),
                (13.0, 40, 5120, 40, 40, 20480),
                (30.0, 48, 7168, 56, 56, 28672),
                (65.0, 64, 9216, 72, 72, 36864),
            ),
        ),
    ),
    (
        r"pythia",
        Family(
            name="Pythia",
            vocab=50304,
            gated=False,
            sizes=(
                (0.07, 6, 512, 8, 8, 2048),
                (0.162, 12, 768, 12, 12, 3072),
                (0.405, 24, 1024, 16, 16, 4096),
                (1.01, 16, 2048, 8, 8, 8192),
                (1.41, 24, 2048, 16, 16, 8192),
                (2.78, 32, 2560, 32, 32, 10240),
                (6.86, 32, 4096, 32, 32, 16384),
                (11.8, 36, 5120, 40, 40, 20480),
            ),
        ),
    ),
    (r"neo-?x", Family(name="GPT-NeoX", vocab=50432, gated=False, sizes=((20.6, 44, 6144, 64, 64, 24576),))),
    (r"gpt-?j", Family(name="GPT-J", vocab=50400, gated=False, sizes=((6.05, 28, 4096, 16, 16, 16384),))),
    (
        r"gpt-?neo",
        Family(name="GPT-Neo", vocab=50257, gated=False, tied=True, sizes=(_GPT[0], _GPT[3], (2.7, 32, 2560, 20, 20, 10240))),
    ),
    (r"\bopt\b|opt[\s_-]", Family(name="OPT", vocab=50272, gated=False, tied=True, sizes=_OPT)),
    (r"gpt-?2", Family(name="GPT-2", vocab=50257, gated=False, tied=True, seq=1024, sizes=(*_GPT_2, *_GPT[5:]))),
    (r"gpt|megatron|mt-?nlg|turing", Family(name="GPT", vocab=51200, gated=False, tied=True, sizes=_GPT)),
)
_NEAR = 1.18  # of two counts of one model: with and without embeddings, rounded


def completed(row: Row) -> tuple[Row, str]:
    """The row with its blank sizes filled in, and in words what was; as it is where nothing can be."""
    blank = [name for name in ("layers", "hidden", "heads", "seq") if not whole(row, name, 0)]
    family = next((family for pattern, family in _FAMILIES if re.search(pattern, row["model"].lower())), None)
    size = billions(row)
    known = _known(row, family, size) if family else None
    if known and family:
        filled = _filled(row, family, known)
        return filled, f"sizes of {family.name} {known[0]:g}B" if blank else ""
    if not blank or not (size or {"heads", "seq"} >= set(blank)):
        return row, ""
    return _guessed(row, size or 1.0), f"{', '.join(blank)} of a usual decoder"


def billions(row: Row) -> float | None:
    """Of parameters: as the name says, as people mean it; else the column."""
    name = re.sub(r"(\d)b(\d)", r"\1.\2b", row["model"].lower())  # bloom-7b1
    if said := re.search(r"(\d+(?:\.\d+)?)\s*-?(m|b|t|bn|billion|million|trillion)\b", name):
        return float(said[1]) * {"m": 1e-3, "b": 1.0, "t": 1e3}[said[2][0]]
    return number(row, "params_B") or None


def _known(row: Row, family: Family, size: float | None) -> tuple[float, ...] | None:
    """The entry whose sizes are the row's where it has them, and whose number of parameters is the nearest."""
    given = [(place, whole(row, name)) for place, name in enumerate(("layers", "hidden", "heads"), 1) if whole(row, name, 0)]
    entries = [entry for entry in family.sizes if all(entry[place] == told for place, told in given)]
    if size is None:
        return entries[0] if len(entries) == 1 and (given or len(family.sizes) == 1) else None
    entry = min(entries, key=lambda entry: max(entry[0] / size, size / entry[0]), default=None)
    return entry if entry and 1 / _NEAR < entry[0] / size < _NEAR else None


def _filled(row: Row, family: Family, known: tuple[float, ...]) -> Row:
    _, layers, hidden, heads, kv_heads, ffn, *vocab = known
    told = {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "ffn": ffn}
    told |= {"vocab": vocab[0] if vocab else family.vocab, "seq": family.seq}
    told |= {"gated_mlp": int(family.gated), "tied_emb": int(family.tied)}
    words = ("gated_mlp", "tied_emb")
    blank = {name for name in told if not (row[name] if name in words else whole(row, name, 0))}
    return row | {name: f"{value:g}" for name, value in told.items() if name in blank}


def _guessed(row: Row, size: float) -> Row:
    """12 L h^2 parameters with h = 128 L, as the usual decoders have."""
    hidden = whole(row, "hidden", 128 * max(1, round((size * 1e9 * 128 / 12) ** (1 / 3) / 128)))
    layers = whole(row, "layers", max(1, round(size * 1e9 / 12 / hidden**2)))
    told = {"layers": layers, "hidden": hidden, "heads": max(1, hidden // 128), "seq": USUAL_SEQ}
    return row | {name: str(value) for name, value in told.items() if not whole(row, name, 0)}
