"""(facts of one host, what a run needs) -> its symptoms. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence

from launcher.errors import Problem
from launcher.hosts.checks.needs import Needs
from launcher.hosts.checks.symptom import Symptom, symptom
from launcher.hosts.machine.facts import HERE, GpuHealth, HostFacts
from launcher.hosts.machine.gpus import GpuFact
from launcher.units import GIB, MIB, bytes_text

# What the ranks import.
RANK_PACKAGES = ("torch", "deepspeed", "transformers", "trl", "peft", "datasets", "accelerate", "safetensors", "tokenizers")
LITTLE_DISK_BYTES = GIB
FEWEST_INODES, FEW_INODES = 200, 10_000  # a checkpoint is some files a rank
FILES_OF_A_RANK, FILES_A_PEER = 512, 8  # a rank's own, and its connections to each other rank, in every group that both are in
SMALL_SHM_BYTES, SMALLEST_SHM_BYTES = GIB, 64 * MIB  # NCCL between the GPUs of a host; 64 MiB is what docker gives


def host_symptoms(facts: HostFacts, needs: Needs, *, running: Collection[str] = ()) -> list[Symptom]:
    """Everything that one host alone tells. `running`: tokens of runs that are controlled, whose processes are no leftovers."""
    return [
        *_driver(facts),
        *_packages(facts, needs),
        *_memory(facts, needs),
        *_health(facts),
        *_disk(facts),
        *_limits(facts, needs),
        *_paths(facts),
        *_interfaces(facts, needs),
        *_left(facts, running),
    ]


def planned_symptoms(hosts: Sequence[HostFacts], needs: Needs) -> list[Symptom]:
    """What only a plan tells. Where it is known when the hosts are asked, host_symptoms tells of memory, and the plan has
    judged the fullest disk, with what a resumed run has written.
    """
    return [*(one for facts in hosts for one in _memory(facts, needs)), *_room(hosts, needs)]


def _room(hosts: Sequence[HostFacts], needs: Needs) -> Iterator[Symptom]:
    """Every disk that is too small for the plan; the shared one, which is that of this machine too, once."""
    for where, facts in {HERE if one.share == "seen" else one.host: one for one in hosts}.items():
        free = facts.disk_free_bytes
        if free < needs.disk_bytes:
            what = f"{bytes_text(needs.disk_bytes)} of checkpoints and artifacts, {bytes_text(free)} are free where they go"
            hint = f"free {bytes_text(needs.disk_bytes - free)} there, or choose another folder with --runs or LAUNCHER_RUNS"
            yield symptom(where, "E211", what, hint)


def pip(facts: HostFacts, *words: str) -> str:
    """What installs something for that host's Python."""
    return typed(facts, facts.executable, "-m", "pip", "install", *words)


def typed(facts: HostFacts, *argv: str) -> str:
    """What one types here to do something there."""
    return shlex.join(argv if facts.host == HERE else ("ssh", facts.host, *argv))


def memory_problems(where: str, needs: Needs, *, free_bytes: int, gpus: Sequence[GpuFact]) -> list[Problem]:
    """E409: free now against the planned peak of the largest stage, of the host and of every GPU that is meant."""
    begin = f"{where}, " if where else ""
    found = [] if needs.host_bytes <= free_bytes else [_too_little(f"{begin}host memory", needs.host_bytes, free_bytes)]
    if not needs.gpu_bytes:
        return found
    scarce = [gpu for gpu in gpus if gpu.free_bytes < needs.gpu_bytes]
    return found + [_too_little(f"{begin}GPU {gpu.number}", needs.gpu_bytes, gpu.free_bytes) for gpu in scarce]


def _too_little(where: str, needed: int, free: int) -> Problem:
    what = f"the plan needs {bytes_text(needed)} at its peak, {bytes_text(free)} are free now"
    hint = "end what uses it, or plan smaller: fewer cluster.slots, a smaller batch.micro"
    return Problem(code="E409", where=where, what=what, hint=hint)


def _driver(facts: HostFacts) -> Iterator[Symptom]:
    for what in facts.problems:
        yield symptom(facts.host, "E410", what, "see nvidia-smi on the host")


def _packages(facts: HostFacts, needs: Needs) -> Iterator[Symptom]:
    wanted = (*RANK_PACKAGES, *(["bitsandbytes"] if needs.quantized else []))
    missing = [name for name in wanted if facts.version(name) is None]
    if missing:
        what = f"not installed for {facts.executable}: {', '.join(missing)}"
        yield symptom(facts.host, "E407", what, pip(facts, *missing))


def _memory(facts: HostFacts, needs: Needs) -> Iterator[Symptom]:
    meant = facts.gpus[: needs.slots]
    for problem in memory_problems(facts.host, needs, free_bytes=facts.free_memory_bytes, gpus=meant):
        yield Symptom(host=facts.host, problem=problem)


def _health(facts: HostFacts) -> Iterator[Symptom]:
    for gpu in facts.health:
        yield from _gpu_health(facts, gpu)


def _gpu_health(facts: HostFacts, gpu: GpuHealth) -> Iterator[Symptom]:
    if gpu.failing:
        lost = "could not" in gpu.failing or "answer" in gpu.failing
        hint = "have it replaced, and leave the host out until then" if lost else "reset it: nvidia-smi -r, or restart the host"
        yield symptom(facts.host, "E434", f"GPU {gpu.number}: {gpu.failing}", hint, stops=lost)
    if gpu.ecc_errors:
        what = f"GPU {gpu.number}: {gpu.ecc_errors} memory errors that could not be corrected since its driver was loaded"
        yield symptom(facts.host, "E434", what, "see nvidia-smi -q -d ECC; have it replaced if they grow", stops=False)
    if gpu.pids:
        pids = ", ".join(map(str, gpu.pids))
        what = f"GPU {gpu.number}: memory of it is held by process {pids}"
        yield symptom(facts.host, "E434", what, "end what should not be there", stops=False)


def _disk(facts: HostFacts) -> Iterator[Symptom]:
    hint = "free some, or choose another folder with --runs or LAUNCHER_RUNS"
    if facts.disk_free_bytes < LITTLE_DISK_BYTES:
        what = f"{bytes_text(facts.disk_free_bytes)} are free where checkpoints go"
        yield symptom(facts.host, "E438", what, hint, stops=False)
    if facts.inodes_free is not None and facts.inodes_free < FEW_INODES:
        what = f"{facts.inodes_free} more files can be made where checkpoints go"
        yield symptom(facts.host, "E438", what, hint, stops=facts.inodes_free < FEWEST_INODES)


def _limits(facts: HostFacts, needs: Needs) -> Iterator[Symptom]:
    files = FILES_OF_A_RANK + FILES_A_PEER * needs.world
    if facts.open_files < files:
        what = f"a process may open {facts.open_files} files, a rank among {needs.world} needs about {files}"
        hint = f"set `* soft nofile {max(files, 65536)}` in /etc/security/limits.conf and log in again"
        yield symptom(facts.host, "E429", what, hint, stops=False)
    if facts.fabric and facts.locked_bytes is not None:
        what = f"a process may lock {bytes_text(facts.locked_bytes)} of memory, and its InfiniBand cards need all that is sent"
        hint = "set `* soft memlock unlimited` and `* hard memlock unlimited` in /etc/security/limits.conf and log in again"
        yield symptom(facts.host, "E429", what, hint, stops=False)
    ranks = min(needs.slots or len(facts.gpus), len(facts.gpus))
    if ranks > 1 and facts.shm_free_bytes < SMALL_SHM_BYTES:
        free, whole = bytes_text(facts.shm_free_bytes), bytes_text(facts.shm_bytes)
        what = f"{free} of {whole} are free in /dev/shm, over which {ranks} GPUs of a host exchange what they compute"
        hint = "start the container with --shm-size 16g or --ipc host, or: mount -o remount,size=16g /dev/shm"
        if facts.shm_bytes >= SMALL_SHM_BYTES:
            hint = "remove what ended programs have left there: see ls -l /dev/shm"
        yield symptom(facts.host, "E429", what, hint, stops=facts.shm_free_bytes <= SMALLEST_SHM_BYTES)


def _paths(facts: HostFacts) -> Iterator[Symptom]:
    for path, refusal in facts.unusable.items():
        hint = "mount or copy it there under the same path"
        yield symptom(facts.host, "E433", f"{path} {refusal}", hint)


def _interfaces(facts: HostFacts, needs: Needs) -> Iterator[Symptom]:
    for variable, name in needs.interfaces:
        if not any(one.startswith(name) for one in facts.interfaces):
            what = f"{variable} names {name}, and its network cards are {', '.join(facts.interfaces)}"
            yield symptom(facts.host, "E439", what, "name a card that every host has, or leave the variable out")


def _left(facts: HostFacts, running: Collection[str]) -> Iterator[Symptom]:
    for run in facts.left:
        if run.token in running:
            continue
        what = f"{len(run.pids)} processes of the run {run.token} are alive, which nobody controls"
        hint = f"end them, if they are not wanted: {typed(facts, 'kill', *map(str, run.pids))}"
        yield symptom(facts.host, "E435", what, hint, stops=False)
