"""Facts of all hosts -> what is not alike. Pure.

What most hosts have is right; where as many have the one as the other, what this machine has, and without that the first host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from launcher.hosts.checks.fitness import RANK_PACKAGES, pip
from launcher.hosts.checks.symptom import Symptom, symptom
from launcher.hosts.machine.facts import HERE, HostFacts

LAUNCHER = "zerolaunch"
COMPARED = (LAUNCHER, *RANK_PACKAGES, "bitsandbytes")  # another version of one of these trains something else, or hangs
MOST_NAMED = 6


def unlike_symptoms(hosts: Sequence[HostFacts], here: HostFacts) -> list[Symptom]:
    """Each host against the others, and what they have in common against `here`, where the run is prepared and controlled."""
    if not hosts:
        return []
    usual = {name: _usual([one.version(name) for one in hosts], here.version(name)) for name in _names(hosts)}
    code = _usual([_told(one.code) for one in (*hosts, here)], _told(here.code))
    whole = next(one.code for one in (here, *hosts) if _told(one.code) == code)
    python = _usual([one.python for one in hosts], here.python)
    user = _usual([one.user for one in hosts], here.user)
    found: list[Symptom] = []
    for one in hosts:
        found += _python(one, python or "")
        found += _versions(one, usual)
        found += _code(one, whole)
        if one.user != user:
            what = f"the login there is as {one.user}, on most hosts as {user}"
            hint = f"write `User {user}` for {one.host} in ~/.ssh/config"
            found.append(symptom(one.host, "E427", what, hint))
    return [*found, *_gpus(hosts), *_here(here, usual, whole)]


def _names(hosts: Sequence[HostFacts]) -> list[str]:
    return sorted({name for one in hosts for name in one.packages})


def _usual(values: Sequence[str | None], ours: str | None) -> str | None:
    counted = Counter(values)
    most = max(counted.values())
    often = [value for value, times in counted.items() if times == most]
    return ours if ours in often else often[0]


def _told(code: dict[str, str]) -> str:
    return "\n".join(f"{path} {code[path]}" for path in sorted(code))


def _python(one: HostFacts, usual: str) -> Iterator[Symptom]:
    if one.python != usual:
        stops = one.python.split(".")[:2] != usual.split(".")[:2]
        hint = "name a Python in cluster.python that is the same on every host"
        yield symptom(one.host, "E425", f"Python {one.python} ({one.executable}), usual is {usual}", hint, stops=stops)


def _versions(one: HostFacts, usual: dict[str, str | None]) -> Iterator[Symptom]:
    other = {name: version for name, version in usual.items() if one.version(name) != version}
    counts = [name for name in COMPARED if name in other and one.version(name) is not None]
    if counts:
        what = _listed(counts, one, other)
        wanted = [f"{name}=={other[name]}" for name in counts if other[name] is not None]
        yield symptom(one.host, "E425", what, pip(one, *wanted) if wanted else "uninstall it there, or install it on all")
    rest = sorted(set(other) - set(COMPARED))
    if rest:
        hint = "install the same environment on every host"
        yield symptom(one.host, "E425", _listed(rest, one, other), hint, stops=False)


def _listed(names: Sequence[str], one: HostFacts, usual: dict[str, str | None]) -> str:
    parts = [f"{name} {one.version(name) or 'is missing'}, usual is {usual[name] or 'none'}" for name in names[:MOST_NAMED]]
    more = len(names) - MOST_NAMED
    return "; ".join([*parts, *([f"and {more} packages more"] if more > 0 else [])])


def _code(one: HostFacts, usual: dict[str, str]) -> Iterator[Symptom]:
    if one.code != usual:
        hint = "install the very same zerolaunch on every host, or put its folder on the shared one"
        yield symptom(one.host, "E426", f"its launcher is another one than usual: {_changed(one.code, usual)}", hint)


def _changed(code: dict[str, str], usual: dict[str, str]) -> str:
    names = sorted(path for path in {*code, *usual} if code.get(path) != usual.get(path))
    more = f" and {len(names) - MOST_NAMED} files more" if len(names) > MOST_NAMED else ""
    return f"launcher/{', launcher/'.join(names[:MOST_NAMED])}{more}"


def _gpus(hosts: Sequence[HostFacts]) -> Iterator[Symptom]:
    """Other kinds or numbers of GPUs: the plan is for the weakest. Drivers: their first number decides what they can run."""
    kinds = _usual([_kind(one) for one in hosts], None)
    driver = _usual([one.driver for one in hosts], None)
    for one in hosts:
        if _kind(one) != kinds:
            hint = "all ranks run the plan of the weakest: leave the host out, or take as many slots as all have"
            yield symptom(one.host, "E434", f"has {_kind(one)}, usual is {kinds}", hint, stops=False)
        if one.driver != driver:
            stops = (one.driver or "").split(".")[0] != (driver or "").split(".")[0]
            what = f"NVIDIA driver {one.driver or 'missing'}, usual is {driver or 'none'}"
            yield symptom(one.host, "E425", what, "install the same driver on every host", stops=stops)


def _kind(one: HostFacts) -> str:
    names = Counter(gpu.name for gpu in one.gpus)
    return " and ".join(f"{times} x {name}" for name, times in sorted(names.items())) or "no GPU"


def _here(here: HostFacts, usual: dict[str, str | None], code: dict[str, str]) -> Iterator[Symptom]:
    """This machine prepares data and writes what the ranks read. What it does not have, it does not need."""
    if here.code != code:
        what = f"its launcher is not that of the hosts: {_changed(here.code, code)}"
        yield symptom(HERE, "E426", what, "install the very same zerolaunch here and there")
    other = {name: version for name, version in usual.items() if here.version(name) not in (None, version)}
    counts = [name for name in RANK_PACKAGES if other.get(name) is not None]
    if counts:
        hint = f"{here.executable} -m pip install {' '.join(f'{name}=={other[name]}' for name in counts)}"
        yield symptom(HERE, "E425", _listed(counts, here, other), hint, stops=False)
