"""A folder that rank 0 has written -> the same folder on every disk that the ranks see. DO, collective.

For the few that other ranks read while the stage still runs. What else lies on one disk alone launcher/hosts carries on later.
"""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.train.ranks import Ranks, gather, patient_group, tends, wait_for_first

CHUNK_BYTES = 64 * 2**20


def spread(folder: Path, ranks: Ranks) -> None:
    """Nothing happens where all ranks see one disk. Collective."""
    tenders = [rank for rank, tending in enumerate(gather(tends())) if tending]
    if len(tenders) == 1:
        return
    patient = patient_group()
    group = dist.new_group(tenders, backend="gloo", timeout=timedelta(days=1))
    if ranks.rank in tenders:
        _pass_on(folder, group, sends=ranks.first)
    wait_for_first(None, patient)


def _pass_on(folder: Path, group: dist.ProcessGroup, *, sends: bool) -> None:
    """From rank 0 to the others that tend a disk. Times of files are kept, so that they are known to be the same."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()] if sends else []
    files = [(name, stat.st_size, stat.st_mtime_ns) for name in names for stat in [(folder / name).stat()]]
    box = [files]
    dist.broadcast_object_list(box, src=0, group=group, device=torch.device("cpu"))
    if not sends:
        shutil.rmtree(folder, ignore_errors=True)
    for name, size, mtime_ns in box[0]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb" if sends else "wb") as file:
            for start in range(0, size, CHUNK_BYTES):
                length = min(CHUNK_BYTES, size - start)
                chunk = torch.frombuffer(bytearray(file.read(length) if sends else length), dtype=torch.uint8)
                dist.broadcast(chunk, src=0, group=group)
                if not sends:
                    file.write(chunk.numpy())
        if not sends:
            os.utime(path, ns=(mtime_ns, mtime_ns))
