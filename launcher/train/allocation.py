"""While weights are read: freed memory goes back to the system at once. Linux with glibc; elsewhere nothing happens. DO."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_MMAP_THRESHOLD = -3  # mallopt's number: blocks from this size on are mapped one by one, and unmapped when freed
SMALL_BYTES, USUAL_BYTES = 2**18, 2**25  # glibc's own threshold grows to 32 MiB with use


@contextmanager
def no_holes() -> Iterator[None]:
    """Inside, a whole weight that is read, split and freed leaves no hole between the shards that stay.

    Without it a rank that loads 1 B parameters under ZeRO-3 holds 1.6 times its shard (benchmarks/loading.py).
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    adjust = getattr(libc, "mallopt", None)
    if adjust is None:
        yield
        return
    adjust(M_MMAP_THRESHOLD, SMALL_BYTES)
    try:
        yield
    finally:
        adjust(M_MMAP_THRESHOLD, USUAL_BYTES)
