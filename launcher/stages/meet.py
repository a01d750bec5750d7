"""Ranks that only meet: they exchange something inside each host and between the hosts, and rank 0 writes how fast.

Started by `launcher doctor` as the ranks of a stage are. Every rank runs the same measures in the same order; how much is sent
is decided by what all of them have seen, so that a slow link costs seconds and a fast one is still measured.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist

from launcher.rundir.folder import StageDir, write_json
from launcher.train.ranks import Ranks, gather, join

FIRST_BYTES = {"cpu": 2**18, "cuda": 2**22}
MOST_BYTES = {"cpu": 2**24, "cuda": 2**28}
WANTED_S = 0.1  # of one exchange, long enough for the clock
TIMES = 3


def run(stage_dir: StageDir, device: str, slots: int) -> int:
    """The number of ranks that met."""
    ranks = join(device, tf32=False)
    names = gather(socket.gethostname())
    hosts = ranks.world // slots
    groups = [dist.new_group(list(range(host * slots, (host + 1) * slots))) for host in range(hosts)]  # by every rank
    mine = groups[ranks.rank // slots]
    whole = _seconds(ranks, device, lambda box: dist.all_reduce(box))
    inside = _seconds(ranks, device, lambda box: dist.all_reduce(box, group=mine)) if slots > 1 else None
    between = _seconds(ranks, device, lambda box: _pass_on(box, ranks, slots)) if hosts > 1 else None
    if ranks.first:
        reduced = 2 * (ranks.world - 1) / ranks.world
        told = {
            "world": ranks.world,
            "names": names[::slots],
            "all_gbs": _gbs(whole, reduced)[0] if ranks.world > 1 else None,
            "inside_gbs": _slowest(_gbs(inside, 2 * (slots - 1) / slots), slots),
            # what a host's ranks have sent arrives at the next host's
            "sent_gbs": _next(_slowest(_gbs(between, slots), slots)),
        }
        write_json(stage_dir.result, told)
    return ranks.world


def _pass_on(box: torch.Tensor, ranks: Ranks, slots: int) -> None:
    """Every rank sends to its like on the next host, all at once."""
    heard = torch.empty_like(box)
    to, by = (ranks.rank + slots) % ranks.world, (ranks.rank - slots) % ranks.world
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, box, to), dist.P2POp(dist.irecv, heard, by)]):
        work.wait()


def _seconds(ranks: Ranks, device: str, exchange: Callable[[torch.Tensor], None]) -> tuple[int, list[float]]:
    """(Bytes, median seconds of each rank), for as many bytes as take the slowest rank WANTED_S."""
    size = FIRST_BYTES[device]
    _timed(ranks, size, exchange)  # the first one makes the connections
    slowest_s = max(gather(_timed(ranks, size, exchange)))
    size = int(min(MOST_BYTES[device], max(size, size * WANTED_S / slowest_s)))
    return size, gather(median(_timed(ranks, size, exchange) for _ in range(TIMES)))


def _timed(ranks: Ranks, size: int, exchange: Callable[[torch.Tensor], None]) -> float:
    box = torch.zeros(size // 4, dtype=torch.float32, device=ranks.device)
    dist.barrier()
    began_s = time.perf_counter()
    exchange(box)
    if ranks.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began_s


def _gbs(measured: tuple[int, list[float]] | None, times: float) -> list[float]:
    """1e9 bytes a second that pass each rank; `times`: how often each byte does."""
    return [] if measured is None else [measured[0] * times / max(seconds, 1e-9) / 1e9 for seconds in measured[1]]


def _slowest(of_ranks: list[float], slots: int) -> list[float]:
    """One figure a host."""
    return [min(of_ranks[begin : begin + slots]) for begin in range(0, len(of_ranks), slots)]


def _next(received: list[float]) -> list[float]:
    return received[1:] + received[:1]
