"""What hosts say of themselves and of each other. Nouns only: filled by look.py and doors.py there, read by ask.py here."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.errors import Problem
from launcher.hosts.machine.gpus import GpuFact

HERE = "this machine"  # where a host is named: the one that `launcher` was started on


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuHealth:
    """What the driver says of one GPU's state. None: it does not tell."""

    number: int
    ecc_errors: int | None  # that could not be corrected, since the driver was loaded
    failing: str | None  # why the memory cannot be trusted: rows or pages that could not be replaced, or wait for a reset
    pids: tuple[int, ...]  # of processes that hold memory on it


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftRun:
    """Processes of this user that carry a run's token."""

    token: str
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One host. Sizes in bytes."""

    host: str  # as the hostfile has it
    name: str  # as the host calls itself
    machine: str = ""  # machine_id: the same for two names of one host; empty: not known
    user: str
    python: str
    executable: str
    system: str
    packages: dict[str, str]  # every installed distribution -> version
    code: dict[str, str]  # every source of the launcher package -> hash: the same code, whatever its version says
    cores: int
    memory_bytes: int
    free_memory_bytes: int
    shm_bytes: int
    shm_free_bytes: int
    gpus: tuple[GpuFact, ...]
    health: tuple[GpuHealth, ...] = ()
    driver: str | None
    network_gbs: float | None
    fabric: bool  # InfiniBand or RoCE, whose drivers lock memory
    interfaces: tuple[str, ...]  # names of its network cards
    own_address: str | None  # the first one of its own that its own name leads to; None: to none
    own_card: str | None  # the network card of that address, where it has a name
    disk_free_bytes: int
    inodes_free: int | None  # None: the file system does not count them
    open_files: int
    locked_bytes: int | None  # None: no limit
    unusable: dict[str, str] = field(default_factory=dict)  # path that was asked for -> what the system says
    share: str = "none"  # the file that shows whether the folder is shared: none asked for, seen, missing, or what failed
    left: tuple[LeftRun, ...] = ()
    problems: tuple[str, ...] = ()

    def version(self, package: str) -> str | None:
        return self.packages.get(package)


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where one host can be met. `interface` is the card of `address`, where it has a name; `own`: where its own name leads."""

    host: str
    word: str
    address: str
    port: int
    interface: str | None = None
    own: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd:
    """What is not as it should be on the way to one other host.

    `by_address`: what happened at its door, empty where it answered, or where nobody was to knock. `resolved`: where its name
    leads from here, None for nowhere; `by_name`: what happened there, empty for the right host, else a word or an error.
    `by_own`: the same where its own name leads on the host itself; empty too where nobody was to knock.
    """

    host: str
    by_address: str
    resolved: str | None
    by_name: str
    by_own: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """How far a host's clock is ahead of ours, right to `within_s`: half of the fastest way there and back."""

    ahead_s: float
    within_s: float


@dataclass(slots=True)
class Examined:
    """What was heard of every host. One that is in `problems` did not answer, or not to the end."""

    facts: dict[str, HostFacts] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    doors: dict[str, Door] = field(default_factory=dict)
    knocks: dict[str, tuple[str, ...]] = field(default_factory=dict)  # host -> at whose doors it was asked to knock
    odd: dict[str, tuple[Odd, ...]] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
