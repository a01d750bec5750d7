"""What hosts heard of each other, and their clocks -> symptoms. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from statistics import median

from launcher.hosts.checks.needs import Needs
from launcher.hosts.checks.symptom import Symptom, symptom
from launcher.hosts.connection.failures import problem_of_same_machine
from launcher.hosts.machine.facts import HERE, Clock, Door, Examined, HostFacts, Odd
from launcher.hosts.machine.ports import FIRST_PORT, LAST_PORT, is_loopback

CLOCK_WARNS_S, CLOCK_STOPS_S = 1.0, 10.0
_OPEN = (
    "let the hosts reach each other on every TCP port from 1024 on (firewall, security group);"
    f" ranks meet on {FIRST_PORT} to {LAST_PORT}"
)
_NAMES = "mend /etc/hosts or DNS there: the name of a host has to lead to that host, from everywhere"
_SET_CLOCK = "set it by a time server: timedatectl set-ntp true, or chronyd"


def way_symptoms(found: Examined, needs: Needs) -> list[Symptom]:
    """Ports, names and clocks."""
    return [*_ports(found), *_names(found), *_own_names(found, needs), *clock_symptoms(found.clocks)]


def same_machine_symptoms(hosts: Iterable[HostFacts]) -> list[Symptom]:
    """Each further name of a machine, beside the first."""
    firsts: dict[str, str] = {}
    pairs = [(one.host, firsts.setdefault(one.machine, one.host)) for one in hosts if one.machine]
    return [Symptom(host=host, problem=problem_of_same_machine(host, first)) for host, first in pairs if host != first]


def clock_symptoms(clocks: Mapping[str, Clock]) -> list[Symptom]:
    """Against the middle of all clocks, ours among them: where we alone are off, no host is blamed for it."""
    if not clocks:
        return []
    middle_s = median([0.0, *(clock.ahead_s for clock in clocks.values())])
    every = {HERE: Clock(ahead_s=0.0, within_s=0.0), **clocks}
    return [one for host, clock in every.items() for one in _clock(host, clock, middle_s)]


def _clock(host: str, clock: Clock, middle_s: float) -> Iterator[Symptom]:
    off_s = clock.ahead_s - middle_s
    sure_s = abs(off_s) - clock.within_s
    if sure_s > CLOCK_WARNS_S:
        what = f"its clock is {abs(off_s):.1f} s {'ahead' if off_s > 0 else 'behind'}"
        yield symptom(host, "E428", what, _SET_CLOCK, stops=sure_s > CLOCK_STOPS_S)


def _ports(found: Examined) -> Iterator[Symptom]:
    """A host that nobody reaches, or that reaches nobody, is told once, not once a pair."""
    failed = {(host, odd.host): odd.by_address for host, odds in found.odd.items() for odd in odds if odd.by_address}
    for target in found.doors:
        sources = [host for host in found.odd if target in found.knocks.get(host, ())]
        if sources and all((host, target) in failed for host in sources):
            said = failed[sources[0], target]
            yield _unreached(found.doors[target], sources, said)
            for host in sources:
                del failed[host, target]
    of_source: dict[str, list[str]] = defaultdict(list)
    for host, target in failed:
        of_source[host].append(target)
    for host, targets in of_source.items():
        every = "any other host" if len(targets) == len(found.knocks[host]) else _some(targets)
        what = f"does not reach {every}: {_place(found.doors[targets[0]])} {failed[host, targets[0]]}"
        yield symptom(host, "E430", what, _OPEN)


def _unreached(door: Door, sources: list[str], said: str) -> Symptom:
    what = f"is not reached by {_some(sources)}: {_place(door)} {said}"
    return symptom(door.host, "E430", what, _OPEN)


def _place(door: Door) -> str:
    return f"{door.address} port {door.port}" + (f" ({door.interface})" if door.interface else "")


def _names(found: Examined) -> Iterator[Symptom]:
    words = {door.word: door.host for door in found.doors.values()}
    for host, odds in found.odd.items():
        unknown = [odd.host for odd in odds if odd.resolved is None]
        if unknown:
            what = f"does not know the name of {_some(unknown)}"
            yield symptom(host, "E431", what, _NAMES, stops=False)
        for odd in odds:
            if odd.resolved is not None and odd.by_name:
                what = f"there the name {odd.host} leads to {odd.resolved}, {_who(odd, host, words)}"
                yield symptom(host, "E431", what, _NAMES)


def _who(odd: Odd, host: str, words: Mapping[str, str]) -> str:
    if is_loopback(str(odd.resolved)):
        return f"which is {host} itself"
    if odd.by_name in words:
        return f"which is {words[odd.by_name]}"
    return f"where that host is not met: {odd.by_name if odd.by_name.isprintable() else 'a stranger answers'}"


def _own_names(found: Examined, needs: Needs) -> Iterator[Symptom]:
    """gloo has the other ranks come to where a host's own name leads: on the host, Debian's 127.0.1.1 is that host."""
    if needs.own_interface or len(found.facts) < 2:
        return
    for host, facts in found.facts.items():
        door = found.doors.get(host)
        fault = _own_fault(facts) or _own_unreached(found, host)
        odd = fault or (_own_other_card(facts, door) if door else "")
        if odd:
            card = f"`GLOO_SOCKET_IFNAME: {door.interface}`" if door and door.interface else "GLOO_SOCKET_IFNAME"
            hint = (
                f"have it lead to the address that other hosts reach in its /etc/hosts, or name the card in cluster.env: {card}"
            )
            what = f"its own name {facts.name} leads to {odd}"
            yield symptom(host, "E431", what, hint, stops=bool(fault))


def _own_fault(facts: HostFacts) -> str:
    if facts.own_address is None:
        return "no address of its own, and ranks come to where it leads"
    if is_loopback(facts.own_address):
        return f"{facts.own_address}, where no other host reaches it"
    return ""


def _own_unreached(found: Examined, host: str) -> str:
    """A second network, or a bridge of containers, of which every host has one. Who reaches nothing of it is told by E430."""
    facts, words = found.facts[host], {door.word for door in found.doors.values()}
    failed = {
        source: odd.by_own
        for source in found.knocks
        for odd in found.odd.get(source, ())
        if odd.host == host and odd.by_own and not odd.by_address
    }
    if not failed:
        return ""
    said = next(iter(failed.values()))
    heard = "another host answers" if said in words or not said.isprintable() else said
    return f"{facts.own_address}{_of_card(facts)}, where it is not reached by {_some(list(failed))}: {heard}"


def _own_other_card(facts: HostFacts, door: Door) -> str:
    """It works, and may not be meant: gloo uses another network than ssh and the ranks' meeting."""
    if facts.own_card is None or door.interface in (None, facts.own_card):
        return ""
    place = f"{door.address} ({door.interface})"
    return f"{facts.own_address}{_of_card(facts)}, over which ranks use gloo; the other hosts meet it at {place}"


def _of_card(facts: HostFacts) -> str:
    return f" ({facts.own_card})" if facts.own_card else ""


def _some(hosts: list[str]) -> str:
    """`node1, node2, node3 and 60 hosts more`."""
    return ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} hosts more" if len(hosts) > 3 else "")
