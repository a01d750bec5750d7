"""A CSV file of measurements -> rows of cells, and a cell -> its number. Files come from anywhere: nothing is taken on trust.

A column that is not there reads as an empty cell. A cell that holds no number, or none that can be, has none.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

Row = dict[str, str]
NEEDED = ("metric", "value")
LARGEST = 1e15  # of a number that is measured or counted here
COLUMNS = (
    *("id", "source", "model", "params_B", "layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "seq", "GPU", "gpu_mem_GB"),
    *("n_gpus", "dp", "tp", "pp", "sp", "zero_stage", "offload", "recompute", "micro_batch", "global_batch", "grad_accum"),
    *("precision", "metric", "value", "method", "cp", "vpp", "ep", "gated_mlp", "tied_emb", "attn", "framework", "optimizer"),
    *("interconnect", "mem_kind", "measured", "complete", "notes"),
)
_NUMBER = re.compile(
    r"[\s~≈<>=]*(\d+(?:[,_]\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)(e[+-]?\d+)?(?:\s?([km])(?![a-z]))?", re.IGNORECASE
)
DECIMAL = ("vocab", "value", "params_B")  # of whose numbers `k` is a thousand; of lengths, widths and counts it is 1024


class NotATable(ValueError):
    """The file cannot be read as rows of measurements; the text says why."""


def read_rows(path: Path) -> list[Row]:
    """Every row with every known column. NotATable where the file is none."""
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise NotATable(f"{path}: {error.strerror}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="", strict=True)
    names = [(name or "").strip() for name in reader.fieldnames or ()]
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise NotATable(f"{path}: no column {' and '.join(missing)} in its first line")
    reader.fieldnames = names
    try:
        return [_whole_row(row, number) for number, row in enumerate(reader, 1)]
    except csv.Error as error:
        raise NotATable(f"{path}: line {reader.line_num}: {error}") from None


def _whole_row(row: Row, number: int) -> Row:
    cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
    return cells | {"id": cells["id"] or f"row {number}", "source": cells["source"] or "(no source)"}


def number(row: Row, name: str, default: float | None = None) -> float | None:
    """The number that a cell begins with: `1,024`, `~12.5 GB`, `8 (per GPU)`, `4k`. Nothing below zero is a size or a
    measurement.
    """
    found = _NUMBER.match(row.get(name, ""))
    if not found:
        return default
    value = float(re.sub("[,_]", "", found[1]) + (found[2] or ""))
    if found[3]:
        value *= (1000 if name in DECIMAL else 1024) ** (1 if found[3].lower() == "k" else 2)
    return value if value <= LARGEST else default


def whole(row: Row, name: str, default: int = 1) -> int:
    """A count; what is missing or zero has the default."""
    return int(number(row, name) or 0) or default
