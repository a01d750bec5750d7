"""Checkup -> text for a terminal, and the object of `doctor --json`. Render, pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from launcher.hosts.checks.checkup import Checkup
from launcher.hosts.checks.meeting import HostSpeed
from launcher.hosts.checks.symptom import Symptom
from launcher.hosts.machine.facts import HERE, HostFacts
from launcher.hosts.machine.gpus import GpuFact
from launcher.report.table import aligned
from launcher.units import bytes_text

NOT_MET = "E436"
HEAD = (
    "host",
    "state",
    "Python",
    "torch",
    "DeepSpeed",
    "GPUs",
    "memory free",
    "disk free",
    "clock",
    "address",
    "inside",
    "sends",
)


def checkup_text(checkup: Checkup) -> str:
    """One row a host, then everything that was found with its remedy, what stops a run before what does not."""
    hosts = f"{len(checkup.hosts)} hosts" if checkup.hosts != (HERE,) else HERE
    stopping = [one for one in checkup.symptoms if one.stops]
    warning = [one for one in checkup.symptoms if not one.stops]
    parts = [
        f"{hosts}: {'ready' if checkup.ready else 'not ready'}",
        aligned([HEAD, *(_cells(checkup, host) for host in checkup.hosts)]),
    ]
    parts += ["\n".join(one.problem.text() for one in stopping)] if stopping else []
    parts += ["warnings, which do not stop a run:\n" + "\n".join(one.problem.text() for one in warning)] if warning else []
    return "\n\n".join([*parts, _meeting_text(checkup)])


def checkup_dict(checkup: Checkup) -> dict[str, object]:
    meeting = checkup.meeting
    return {
        "schema": 1,
        "ready": checkup.ready,
        "hosts": [_host_dict(checkup, host) for host in checkup.hosts],
        "other_problems": [one.as_dict() for one in checkup.symptoms if one.host not in checkup.hosts],
        "rendezvous": meeting.as_dict() if meeting else None,
    }


def _state(checkup: Checkup, host: str) -> str:
    if host not in checkup.found.facts:
        return "not reached"
    symptoms = checkup.of(host)
    if any(one.stops for one in symptoms):
        return "not ready"
    return "warnings" if symptoms else "ready"


def _cells(checkup: Checkup, host: str) -> tuple[str, ...]:
    facts, speed = checkup.found.facts.get(host), _speed(checkup, host)
    state = _state(checkup, host)
    if facts is None:
        return (host, state, *[""] * (len(HEAD) - 2))
    clock, door = checkup.found.clocks.get(host), checkup.found.doors.get(host)
    return (
        host,
        state,
        facts.python,
        facts.version("torch") or "none",
        facts.version("deepspeed") or "none",
        _gpus(facts),
        bytes_text(facts.free_memory_bytes),
        bytes_text(facts.disk_free_bytes),
        f"{clock.ahead_s:+.2f} s" if clock else "",
        " ".join(word for word in (door.address, door.interface) if word) if door else "",
        _gbs(speed.inside_gbs if speed else None),
        _gbs(speed.sent_gbs if speed else None),
    )


def _gpus(facts: HostFacts) -> str:
    names = Counter(gpu.name for gpu in facts.gpus)
    return ", ".join(f"{times} x {name}" for name, times in names.items()) + (
        f", driver {facts.driver}" if facts.driver else ""
    )


def _gbs(speed: float | None) -> str:
    return "" if speed is None else f"{speed:.3g} GB/s"


def _speed(checkup: Checkup, host: str) -> HostSpeed | None:
    return next((one for one in checkup.meeting.hosts if one.host == host), None) if checkup.meeting else None


def _meeting_text(checkup: Checkup) -> str:
    meeting = checkup.meeting
    if meeting is None:
        if any(one.problem.code == NOT_MET for one in checkup.symptoms):
            return "the ranks did not meet"
        return "the ranks were not asked to meet" if checkup.ready else "the ranks were not asked to meet: mend this first"
    together = f", an all-reduce of all passes {_gbs(meeting.all_gbs)}" if meeting.all_gbs else ""
    return f"{meeting.world} ranks met{together}"


def _host_dict(checkup: Checkup, host: str) -> dict[str, object]:
    found, speed = checkup.found, _speed(checkup, host)
    facts, clock, door = found.facts.get(host), found.clocks.get(host), found.doors.get(host)
    told: dict[str, object] = {"host": host, "state": _state(checkup, host), "problems": _problems(checkup.of(host))}
    told["facts"] = _facts_dict(facts) if facts else None
    told["clock"] = {"ahead_s": round(clock.ahead_s, 4), "within_s": round(clock.within_s, 4)} if clock else None
    told["address"], told["interface"] = (door.address, door.interface) if door else (None, None)
    told["inside_gbs"], told["sent_gbs"] = (speed.inside_gbs, speed.sent_gbs) if speed else (None, None)
    return told


def _problems(symptoms: Sequence[Symptom]) -> list[dict[str, object]]:
    return [one.as_dict() for one in symptoms]


def _facts_dict(facts: HostFacts) -> dict[str, object]:
    return {
        "name": facts.name,
        "user": facts.user,
        "python": facts.python,
        "executable": facts.executable,
        "system": facts.system,
        "packages": facts.packages,
        "cores": facts.cores,
        "memory_bytes": facts.memory_bytes,
        "free_memory_bytes": facts.free_memory_bytes,
        "shm_bytes": facts.shm_bytes,
        "shm_free_bytes": facts.shm_free_bytes,
        "disk_free_bytes": facts.disk_free_bytes,
        "inodes_free": facts.inodes_free,
        "open_files": facts.open_files,
        "locked_bytes": facts.locked_bytes,
        "driver": facts.driver,
        "gpus": [_gpu_dict(facts, one) for one in facts.gpus],
    }


def _gpu_dict(facts: HostFacts, gpu: GpuFact) -> dict[str, object]:
    """What the driver does not tell is null."""
    told: dict[str, object] = {
        "number": gpu.number,
        "name": gpu.name,
        "bytes": gpu.total_bytes,
        "free_bytes": gpu.free_bytes,
    }
    health = next((one for one in facts.health if one.number == gpu.number), None)
    told["ecc_errors"], told["failing"] = (health.ecc_errors, health.failing) if health else (None, None)
    return {**told, "pids": list(health.pids) if health else None}
