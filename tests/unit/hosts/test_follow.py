"""Nodes that hear each other over a folder alone: who is meant by a call, who has fallen silent, who was started anew."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from launcher.backends.fleet_order import FleetOrder, write_fleet_order
from launcher.errors import EXIT_STOPPED, LauncherError, Problem
from launcher.hosts.machine import ports
from launcher.hosts.machine.facts import HostFacts
from launcher.hosts.nodes import board, follow, gather
from launcher.hosts.nodes.alike import said_of
from launcher.hosts.nodes.board import Call, Card, Hearing
from launcher.hosts.nodes.follow import Follower
from launcher.hosts.nodes.gather import Gathering, Other
from launcher.hosts.nodes.part import Asked
from launcher.rundir.events import read_events
from launcher.rundir.folder import RunDir, read_json, write_json
from launcher.rundir.leave import SAVE_S
from tests.unit.hosts.conftest import WELL


@dataclass
class Clock:
    now_s: float = 1000.0
    at: dict[float, object] = field(default_factory=dict)  # what happens when

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for when in [when for when in self.at if when <= self.now_s]:
            self.at.pop(when)()  # type: ignore[operator]


@dataclass
class FakePart:
    """A part that ends when it is told to, or with a code that is set."""

    stage: str = ""
    code: int | None = None
    ended: bool = False
    asked: int = 0

    def ask_to_leave(self) -> None:
        self.asked += 1

    def look(self) -> int | None:
        return self.code

    def end(self) -> int:
        self.ended = True
        return -15 if self.code is None else self.code


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (board, follow, gather):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    write_fleet_order(run, FleetOrder(stage="sft", hosts=("node0", "node1"), slots=1, argv=("python3",), env={}, nodes=2))
    return run


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[FakePart]:
    """Every part that was begun."""
    begun: list[FakePart] = []

    def begin(run: RunDir, stage: str, *, node: int, host: str, slots: int, port: int) -> FakePart:
        begun.append(FakePart(stage))
        return begun[-1]

    for module in (follow, gather):
        monkeypatch.setattr(module, "begin", begin)
    return begun


SAID = said_of(WELL)


def follower(run: RunDir, asked: Asked) -> Follower:
    return Follower(run=run, node=1, asked=asked, facts=SAID, nonce="mine")


def leader(run: RunDir, beat: int) -> None:
    board.write_card(run, Card(node=0, nonce="zero", host="node1", beat=beat))


def test_a_call_to_somebody_else_is_none(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    """What an earlier attempt left in the folder: it names processes that are gone."""
    board.write_call(run, Call(do="stage", nodes={"1": "gone"}, attempt="a", stage="sft"))
    asked = Asked()
    clock.at[1010.0] = lambda: setattr(asked, "to_end", True)
    assert follower(run, asked).follow() == EXIT_STOPPED
    assert parts == []


def test_a_node_takes_part_once_and_ends_with_the_code_of_node_0(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    me = {"1": "mine"}
    board.write_call(run, Call(do="stage", nodes=me, attempt="a", stage="sft"))
    clock.at[1005.0] = lambda: setattr(parts[0], "code", 0)
    clock.at[1010.0] = lambda: board.write_call(run, Call(do="end", nodes=me, code=5))
    assert follower(run, Asked()).follow() == 5
    assert [part.stage for part in parts] == ["sft"]
    card = board.read_card(run, 1)
    assert card is not None
    assert (card.attempt, card.code) == ("a", 0)


def test_a_silent_node_0_is_taken_for_dead_and_a_new_one_is_followed(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    me = {"1": "mine"}
    leader(run, 1)
    board.write_call(run, Call(do="stage", nodes=me, attempt="a", stage="sft"))
    clock.at[1000.0 + board.SILENT_S + 10] = lambda: board.write_call(run, Call(do="stage", nodes=me, attempt="b", stage="sft"))
    clock.at[1000.0 + board.SILENT_S + 20] = lambda: board.write_call(run, Call(do="end", nodes=me))
    assert follower(run, Asked()).follow() == 0
    assert [part.ended for part in parts] == [True, True]


def test_without_any_node_0_a_node_gives_up(run: RunDir, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LEADER_WAIT_S", 120.0)
    with pytest.raises(LauncherError, match=r"E520.*node 0 was not heard for 2 min"):
        follower(run, Asked()).follow()


@pytest.mark.parametrize(("listening", "again"), [(True, False), (True, True), (False, False)])
def test_a_node_that_is_stopped_waits_for_its_ranks_to_save_with_all_others(
    run: RunDir, clock: Clock, parts: list[FakePart], listening: bool, again: bool
) -> None:
    """Unless they still load, or the node is told again."""
    asked = Asked()
    if listening:
        write_json(run.stage("sft").listening, {})
    board.write_call(run, Call(do="stage", nodes={"1": "mine"}, attempt="a", stage="sft"))
    clock.at[1010.0] = lambda: asked._take(signal.SIGTERM, None)
    if again:
        clock.at[1015.0] = lambda: asked._take(signal.SIGTERM, None)
    clock.at[1030.0] = lambda: setattr(parts[0], "code", 0)
    assert follower(run, asked).follow() == EXIT_STOPPED
    assert parts[0].asked == (1 if listening else 0)
    card = board.read_card(run, 1)
    assert card is not None
    assert card.code == (0 if listening and not again else -15)
    assert parts[0].ended


def test_a_node_gives_up_on_ranks_that_do_not_leave(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    write_json(run.stage("sft").listening, {})
    asked = Asked(to_end=True)
    board.write_call(run, Call(do="stage", nodes={"1": "mine"}, attempt="a", stage="sft"))
    node = follower(run, asked)
    node._obey(Call(do="stage", nodes={"1": "mine"}, attempt="a", stage="sft"))
    leader(run, 1)
    for beat in range(2, 200):
        clock.at[1000.0 + 5 * beat] = lambda beat=beat: leader(run, beat)  # type: ignore[misc]
    assert node.follow() == EXIT_STOPPED
    assert SAVE_S < clock.now_s - 1000.0 < SAVE_S + 10


def test_hearing_goes_by_what_changes_and_not_by_anybodys_clock(clock: Clock) -> None:
    hearing = Hearing(heard_s=clock.now_s)
    card = Card(node=1, nonce="n", host="h", beat=1)
    hearing.hear(card)
    clock.now_s += board.SILENT_S + 1
    hearing.hear(card)
    assert hearing.silent
    hearing.hear(Card(node=1, nonce="n", host="h", beat=2))
    assert not hearing.silent


def gathering(run: RunDir) -> Gathering:
    order = FleetOrder(stage="sft", hosts=("node0", "node1"), slots=1, argv=("python3",), env={}, nodes=2)
    return Gathering(run=run, order=order, asked=Asked(), others=[Other(1)], facts=WELL, attempt="a")


def speak(
    run: RunDir, beat: int, *, nonce: str = "n", attempt: str = "", code: int | None = None, facts: HostFacts = WELL
) -> None:
    card = Card(node=1, nonce=nonce, host="pod-1", beat=beat, attempt=attempt, code=code, facts=said_of(facts))
    board.write_card(run, card)


def test_a_stage_is_begun_when_all_have_come_and_is_done_when_all_have_ended(
    run: RunDir, clock: Clock, parts: list[FakePart]
) -> None:
    clock.at[1020.0] = lambda: speak(run, 1)
    clock.at[1025.0] = lambda: speak(run, 2, attempt="a")
    clock.at[1030.0] = lambda: setattr(parts[0], "code", 0)
    clock.at[1035.0] = lambda: speak(run, 3, attempt="a", code=0)
    assert gathering(run).gather() == 0
    assert clock.now_s < 1040.0
    call = board.read_call(run)
    assert call is not None
    assert (call.do, call.nodes) == ("stage", {"1": "n"})
    assert read_json(run.stage("sft").hosts)["hosts"] == {"pod-1": "ended"}


@pytest.mark.parametrize(
    ("nonce", "said"), [("new", "was started anew in the middle of the stage"), ("n", "was silent for 120 s")]
)
def test_a_node_that_is_lost_ends_the_attempt_and_is_named(
    run: RunDir, clock: Clock, parts: list[FakePart], nonce: str, said: str
) -> None:
    speak(run, 1)
    if nonce == "new":
        clock.at[1010.0] = lambda: speak(run, 1, nonce=nonce)
    assert gathering(run).gather() == 5
    [problem] = read_json(run.stage("sft").fleet_problem)["problems"]  # type: ignore[misc]
    assert (problem["code"], problem["where"], problem["what"]) == ("E520", "node 1 (pod-1)", said)
    assert parts[0].ended
    call = board.read_call(run)
    assert call is not None
    assert call.do == "stop"


def test_a_part_that_fails_elsewhere_ends_this_one(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    speak(run, 1)
    clock.at[1010.0] = lambda: speak(run, 2, attempt="a", code=247)
    assert gathering(run).gather() == 247
    assert parts[0].ended


def test_who_never_comes_is_named(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    assert gathering(run).gather() == 5
    [problem] = read_json(run.stage("sft").fleet_problem)["problems"]  # type: ignore[misc]
    assert problem["what"] == "did not come within 30 min"
    assert parts == []


TOO_FEW = Problem(code="E402", where="node 1", what="7 GPUs can be used here", hint="ask for more")
PLACE = {"LAUNCHER_NODES": "2", "LAUNCHER_MASTER": "node0"}


def refuse(run: RunDir, node: int = 1) -> None:
    follow.say_refusal(run, LauncherError(TOO_FEW), {**PLACE, "JOB_COMPLETION_INDEX": str(node)})


def test_a_node_that_takes_no_part_is_lost_at_once_in_its_own_words(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    leader(run, 1)
    clock.at[1003.0] = lambda: leader(run, 2)
    clock.at[1002.0] = lambda: refuse(run)
    assert gathering(run).gather() == 5
    assert clock.now_s < 1010.0
    assert read_json(run.stage("sft").fleet_problem)["problems"] == [TOO_FEW.as_dict()]
    assert [(event["kind"], event["what"]) for event in read_events(run.events)] == [("host.lost", TOO_FEW.what)]
    assert parts == []


def test_a_node_that_stops_taking_part_in_the_middle_tells_why(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    speak(run, 1)
    clock.at[1010.0] = lambda: board.write_card(run, Card(node=1, nonce="new", host="h", beat=1, refusal=[TOO_FEW.as_dict()]))
    assert gathering(run).gather() == 5
    assert read_json(run.stage("sft").fleet_problem)["problems"] == [TOO_FEW.as_dict()]
    assert parts[0].ended


def test_a_node_with_other_versions_is_refused_before_anything_starts(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    other = replace(WELL, packages={**WELL.packages, "deepspeed": "0.9"}, code={**WELL.code, "units.py": "cc"})
    speak(run, 1, facts=other)
    assert gathering(run).gather() == 5
    assert clock.now_s < 1002.0
    found = read_json(run.stage("sft").fleet_problem)["problems"]
    assert [(one["code"], one["where"], one["what"]) for one in found] == [  # type: ignore[attr-defined]
        ("E425", "node 1 (pod-1)", "deepspeed 0.9, usual is 1.0"),
        ("E426", "node 1 (pod-1)", "its launcher is another one than usual: launcher/units.py"),
    ]
    assert "pip install deepspeed==1.0" in found[0]["hint"]  # type: ignore[index]
    assert [event["kind"] for event in read_events(run.events)] == ["host.lost"]
    assert parts == []


def test_what_only_warns_is_noted_and_the_node_takes_part(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    speak(run, 1, facts=replace(WELL, python="3.11.8"))
    clock.at[1010.0] = lambda: speak(run, 2, attempt="a", code=0)
    clock.at[1012.0] = lambda: setattr(parts[0], "code", 0)
    assert gathering(run).gather() == 0
    [odd] = [event for event in read_events(run.events) if event["kind"] == "host.odd"]
    assert (odd["where"], odd["stops"]) == ("node 1 (pod-1)", False)


def test_a_node_started_anew_with_other_versions_is_refused_too(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    """Each process is compared when it comes, also while others are waited for."""
    order = FleetOrder(stage="sft", hosts=("node0", "node1", "node2"), slots=1, argv=(), env={}, nodes=3)
    waiting = Gathering(run=run, order=order, asked=Asked(), others=[Other(1), Other(2)], facts=WELL)
    speak(run, 1)
    clock.at[1010.0] = lambda: speak(run, 1, nonce="new", facts=replace(WELL, python="3.12.1"))
    assert waiting.gather() == 5
    [problem] = read_json(run.stage("sft").fleet_problem)["problems"]  # type: ignore[misc]
    assert problem["code"] == "E425"
    assert parts == []


def test_a_port_that_the_job_names_and_somebody_holds_is_told_before_anything_starts(
    run: RunDir, clock: Clock, parts: list[FakePart]
) -> None:
    speak(run, 1)
    with ports.bind_free_port(ports.EVERY_CARD) as held:
        held.listen()
        one = gathering(run)
        one.order = replace(one.order, port=held.getsockname()[1])
        with pytest.raises(LauncherError, match=r"port \d+ \[E406\] .*by process \d+"):
            one.gather()
    assert parts == []


def test_a_refusal_is_said_again_to_a_node_0_that_comes_later(run: RunDir, clock: Clock) -> None:
    """It forgets what was said before. The card has a name of its own, which no call names."""
    leader(run, 7)  # of an earlier attempt
    seen: list[str] = []

    def come() -> None:
        seen.extend(card.nonce for card in [board.read_card(run, 1)] if card is not None)
        board.clear(run)
        board.write_card(run, Card(node=0, nonce="new", host="h", beat=1))

    clock.at[1010.0] = come
    refuse(run)
    assert clock.now_s < 1012.0
    card = board.read_card(run, 1)
    assert card is not None
    assert ([card.nonce], card.refusal) == (seen, [TOO_FEW.as_dict()])


def test_a_refusal_waits_for_node_0_for_half_a_minute(run: RunDir, clock: Clock) -> None:
    refuse(run)
    assert follow.REFUSAL_S < clock.now_s - 1000.0 < follow.REFUSAL_S + 3


@pytest.mark.parametrize("environ", [{}, {**PLACE, "JOB_COMPLETION_INDEX": "0"}])
def test_who_has_no_place_or_the_first_writes_no_card(run: RunDir, clock: Clock, environ: dict[str, str]) -> None:
    follow.say_refusal(run, LauncherError(TOO_FEW), environ)
    assert (list(run.nodes.glob("*")), clock.now_s) == ([], 1000.0)


def test_a_stop_reaches_the_others(run: RunDir, clock: Clock, parts: list[FakePart]) -> None:
    speak(run, 1)
    one = gathering(run)
    clock.at[1010.0] = lambda: setattr(one.asked, "to_end", True)
    clock.at[1012.0] = lambda: speak(run, 2, attempt="a", code=-15)
    assert one.gather() == 143
    call = board.read_call(run)
    assert call is not None
    assert call.do == "stop"
