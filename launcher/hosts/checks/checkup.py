"""(what was heard of all hosts, what a run needs) -> Checkup: every symptom, host by host. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from launcher.hosts.checks.fitness import host_symptoms
from launcher.hosts.checks.likeness import unlike_symptoms
from launcher.hosts.checks.meeting import Meeting, meeting_symptoms
from launcher.hosts.checks.needs import Needs
from launcher.hosts.checks.symptom import Symptom, symptom
from launcher.hosts.checks.ways import same_machine_symptoms, way_symptoms
from launcher.hosts.machine.facts import HERE, Examined, HostFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """All that `doctor` found. `hosts` is their order."""

    hosts: tuple[str, ...]
    found: Examined = field(repr=False)
    symptoms: tuple[Symptom, ...]
    meeting: Meeting | None = None

    @property
    def ready(self) -> bool:
        """Whether a run can start. Warnings do not stop it."""
        return not any(one.stops for one in self.symptoms)

    def of(self, host: str) -> list[Symptom]:
        return [one for one in self.symptoms if one.host == host]

    def with_symptoms(self, more: Sequence[Symptom]) -> Checkup:
        return replace(self, symptoms=tuple(_in_order([*self.symptoms, *more], self.hosts)))

    def with_meeting(self, meeting: Meeting) -> Checkup:
        return replace(self.with_symptoms(meeting_symptoms(meeting)), meeting=meeting)


def checkup_of_hosts(
    hosts: Sequence[str],
    found: Examined,
    needs: Needs,
    here: HostFacts,
    *,
    folder: str,
    unseen: Collection[str],
    running: Collection[str],
) -> Checkup:
    """`unseen`: hosts whose file in `folder` is not seen here; `running`: tokens of runs that somebody controls."""
    answered = [found.facts[host] for host in hosts if host in found.facts]
    symptoms = [Symptom(host=host, problem=problem) for host, problem in found.problems.items()]
    symptoms += [one for facts in answered for one in host_symptoms(facts, needs, running=running)]
    symptoms += [one for facts in answered for one in _share(facts, folder, facts.host in unseen)]
    symptoms += unlike_symptoms(answered, here)
    symptoms += same_machine_symptoms(answered)
    symptoms += way_symptoms(found, needs)
    return Checkup(hosts=tuple(hosts), found=found, symptoms=tuple(_in_order(symptoms, hosts)))


def _share(facts: HostFacts, folder: str, unseen: bool) -> list[Symptom]:
    hint = "mount the same folder there and here (NFS, Lustre, FSx, Filestore), and name it with --runs or LAUNCHER_RUNS"
    if facts.share == "none" or (facts.share == "seen" and not unseen):
        return []
    if facts.share == "missing":
        what = f"{folder} is not shared: what a stage needs is sent to it, and what it wrote is fetched"
        return [symptom(facts.host, "E432", what, hint, stops=False)]
    if facts.share == "seen":
        what = f"{folder} is not shared both ways: a file that was written there is not seen here"
    else:
        what = f"{folder} {facts.share}"
    return [symptom(facts.host, "E432", what, hint)]


def _in_order(symptoms: Sequence[Symptom], hosts: Sequence[str]) -> list[Symptom]:
    """Host by host, what stops first. What is of no host, such as the plan, comes last."""
    places = {host: number for number, host in enumerate((HERE, *hosts))}
    return sorted(symptoms, key=lambda one: (places.get(one.host, len(places)), not one.stops))
