"""Ranks that only meet: they exchange something inside each host and between the hosts, and rank 0 writes how fast.

Started by `launcher doctor` as the ranks of a stage are. Every rank runs the same measures in the same order; how much is sent
is decided by what all of them have seen, so that a slow link costs seconds and a fast one is still measured.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from launcher.rundir.folder import StageDir, write_json
from launcher.train.ranks import Ranks, gather, join

FIRST_BYTES = {"cpu": 2**18, "cuda": 2**22}
MOST_BYTES = {"cpu": 2**24, "cuda": 2**28}
WANTED_S = 0.1  # of one exchange, long enough for the clock
TIMES = 5


def run(stage_dir: StageDir, device: str, slots: int) -> int:
    """The number of ranks that met."""
    ranks = join(device, tf32=False)
    names = gather(socket.gethostname())
    hosts = ranks.world // slots
    groups = [dist.new_group(list(range(host * slots, (host + 1) * slots))) for host in range(hosts)]  # by every rank
    mine = groups[ranks.rank // slots]
    whole = _seconds(ranks, device, lambda box: dist.all_reduce(box))
    inside = _seconds(ranks, device, lambda box: dist.all_reduce(box, group=mine)) if slots > 1 else None
    between = [_sent(ranks, device, slots, phase) for phase in range(_phases(hosts))]
    if ranks.first:
        reduced = 2 * (ranks.world - 1) / ranks.world
        told = {
            "world": ranks.world,
            "names": names[::slots],
            "all_gbs": _gbs(whole, reduced)[0] if ranks.world > 1 else None,
            "inside_gbs": _slowest(_gbs(inside, 2 * (slots - 1) / slots), slots),
            "sent_gbs": [between[_phase(host, hosts)][(host + 1) % hosts] for host in range(hosts)] if hosts > 1 else [],
        }
        write_json(stage_dir.result, told)
    return ranks.world


def _phases(hosts: int) -> int:
    return 0 if hosts == 1 else 2 + hosts % 2


def _phase(host: int, hosts: int) -> int:
    """When a host sends to the next one: nobody sends and receives at once, or a slow host would slow the one before it too."""
    return 2 if hosts % 2 and host == hosts - 1 else host % 2


def _sent(ranks: Ranks, device: str, slots: int, phase: int) -> list[float]:
    """1e9 bytes a second at which each host hears the one before it, true of those that hear somebody in this phase."""
    hosts = ranks.world // slots
    mine = ranks.rank // slots

    def pass_on(box: torch.Tensor) -> None:
        if _phase(mine, hosts) == phase:
            dist.send(box, (ranks.rank + slots) % ranks.world)
        if _phase((mine - 1) % hosts, hosts) == phase:
            dist.recv(box, (ranks.rank - slots) % ranks.world)

    return _slowest(_gbs(_seconds(ranks, device, pass_on), slots), slots)


def _seconds(ranks: Ranks, device: str, exchange: Callable[[torch.Tensor], None]) -> tuple[int, list[float]]:
    """(Bytes, seconds of each rank), for as many bytes as take the slowest rank WANTED_S.

    The fastest of some times: other work on a host makes one slower, and nothing makes a link faster than it is.
    """
    size = FIRST_BYTES[device]
    _timed(ranks, size, exchange)  # the first one makes the connections
    slowest_s = max(gather(_timed(ranks, size, exchange)))
    size = int(min(MOST_BYTES[device], max(size, size * WANTED_S / slowest_s)))
    return size, gather(min(_timed(ranks, size, exchange) for _ in range(TIMES)))


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
