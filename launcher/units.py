"""Bytes, counts and seconds: parsed from and printed as text. Pure."""

from __future__ import annotations

GIB = 1024**3
MIB = 1024**2


def bytes_text(num_bytes: float) -> str:
    """`12.3 GiB`, `512 MiB`, `17 KiB`, `12 B`: three significant digits are enough to compare."""
    for size, name in ((1024**4, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (1024, "KiB")):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.1f} {name}"
    return f"{num_bytes:.0f} B"


def count_text(number: float) -> str:
    """`6.74 B`, `231.7 K`: parameters and tokens."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= size:
            return f"{number / size:.2f} {name}"
    return f"{number:.0f}"


def short_seconds_text(seconds: float) -> str:
    """`1.24 s`, `73 ms`, `3 min 20 s`: of one step."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else seconds_text(seconds)


def seconds_text(seconds: float) -> str:
    """`43 s`, `4 min 10 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
