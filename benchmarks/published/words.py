"""A cell of words -> what it says, however it is written: yes or no, what is recomputed, ZeRO's stage, what is offloaded."""

from __future__ import annotations

import re
from collections.abc import Mapping

Cells = Mapping[str, str]
_NO = re.compile(r"(0+(\.0*)?|no|n|not|none|false|f|off|-|n/?a|formula|computed|predicted|estimated)\b|-$|$", re.IGNORECASE)
_STAGE = re.compile(r"(?:zero|stage|\bz)[\s_:-]*([0-3])", re.IGNORECASE)


def denied(cell: str) -> bool:
    """`0`, `False`, `n`; an empty cell says nothing, and is not denied."""
    return bool(cell) and bool(_NO.match(cell))


def affirmed(cell: str) -> bool:
    return bool(cell) and not denied(cell)


def recomputes(cell: str) -> str:
    """Work.recomputes. What a recipe decides, and a row does not tell, is taken for nothing."""
    text = cell.lower()
    if denied(text) or "recipe" in text or not text:
        return "none"
    if re.search(r"selective\W*(op|\d|mlp|layer)|per.op|op.sac|every.other", text):
        return "operations"
    if re.search(r"selective|core.?att|attention.only", text):
        return "attention"
    return "all" if re.search(r"full|true|yes|\by\b|on\b|1|uniform|block|all|check|recomp|\bac\b|act", text) else "none"


def zero_stage(row: Cells) -> int | None:
    """As `zero_stage` or `framework` says it, in ZeRO's or FSDP's words; None where neither does."""
    text = row["zero_stage"].lower()
    if found := re.match(r"\s*(?:zero|stage|z)?[\s_:-]*(?:zero|stage)?[\s_:-]*([0-3])(?![\d.]*[1-9])", text):
        return int(found[1])
    if re.search(r"shard_grad_op|grad.op", text):
        return 2
    if re.search(r"full.?shard|hybrid|hsdp|fsdp|zero\+\+|hpz", text):
        return 3
    if re.search(r"dist|os\+?$", text):
        return 1
    if text and (denied(text) or "ddp" in text or "no_shard" in text):
        return 0
    found = _STAGE.search(text) or _STAGE.search(row["framework"])
    return int(found[1]) if found else None


def offloaded(row: Cells) -> frozenset[str]:
    """`optimizer`, `parameters` and `activations`, those of them that rest on the host."""
    text = row["offload"].lower()
    if not text or denied(text) or "paged" in text:
        return frozenset()
    found = {name for name, words in _PLACES.items() if re.search(words, text)}
    if not found and re.search(r"full|all|yes|true|cpu|nvme|\b1\b|offload", text):
        found = {"optimizer", "parameters"} if re.search(r"full|all|zero.?3", text) else {"optimizer"}
    return frozenset(found)


_PLACES = {
    "optimizer": r"opt|adam|os\b",
    "parameters": r"param|weight|infinity",
    "activations": r"activ|\bact\b|checkpoint",
}
