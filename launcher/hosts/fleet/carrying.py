"""What a fleet carries: to hosts with disks of their own what the stage needs, and back from them what the ranks wrote. DO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.errors import Problem
from launcher.hosts.files.cargo import Away, arrive, cargo_of, write_away
from launcher.hosts.files.freight import Carried, fetch, ship
from launcher.hosts.fleet.host import Host, States, say
from launcher.rundir.folder import RunDir
from launcher.units import bytes_text


@dataclass(slots=True)
class Carrier:
    """Of hosts that share a disk one is served for all: the one that claimed it."""

    run: RunDir
    stage: str
    hosts: Sequence[Host]
    states: States
    away: Away | None = None  # once the ranks are to be started

    async def ship(self) -> None:
        """What the stage needs, to every disk but ours. A problem is its host's."""
        claimants = self._claimants()
        if not claimants:
            return
        for host in claimants.values():
            self.states.change(host, "receiving")
        try:
            cargo = cargo_of(self.run, self.stage)
        except (OSError, ValueError, KeyError) as error:
            hint = "restore the file, or start a new run"
            self.hosts[0].problem = Problem(code="E510", where=f"stage {self.stage}", what=str(error), hint=hint)
            return
        sent = await ship({name: host.link.argv for name, host in claimants.items()}, self.run, cargo)
        for name, what in sent.items():
            self._carried(claimants[name], "shipped", what)

    def note_disks(self) -> Away:
        """Which disk each rank will write to, kept in the run folder: files are fetched from where they were written."""
        disks: dict[str, tuple[int, ...]] = {}
        for host in self.hosts:
            disks[host.disk] = (*disks.get(host.disk, ()), *host.ranks)
        self.away = Away(attempt=self.hosts[0].link.order.attempt, disks=disks)
        if self.away.others:
            write_away(self.run.stage(self.stage), self.away)
        return self.away

    async def fetch(self, *, all_done: bool) -> None:
        """What the ranks wrote, from every disk but ours; then their markers, which say that what they handed on is here."""
        if self.away is None or not self.away.others:
            return
        stage, claimants = self.run.stage(self.stage), self._claimants()
        if all_done:
            self.away = replace(self.away, done={name: text for host in self.hosts for name, text in host.done.items()})
            write_away(stage, self.away)
        agents = {name: host.link.argv for name, host in claimants.items() if host.code is not None}
        fetched = await fetch(agents, self.run, self.stage, self.away)
        for name, got in fetched.hosts.items():
            self._carried(claimants[name], "fetched", got)
        if fetched.complete:
            arrive(stage, self.away)

    def _claimants(self) -> dict[str, Host]:
        return {host.link.host: host for host in self.hosts if host.disk == host.link.host}

    def _carried(self, host: Host, how: str, what: Carried | Problem) -> None:
        if isinstance(what, Problem):
            host.problem = host.problem or what
            self.states.change(host, "lost", what=what.what)
        else:
            self.states.change(host, how, files=what.files, bytes=what.num_bytes)
            say(f"{how} {what.files} files, {bytes_text(what.num_bytes)}: {host.link.host}")
