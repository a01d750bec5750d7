"""Which of many deaths and words is the first cause: a table, without processes."""

from __future__ import annotations

import signal

import pytest

from launcher.errors import Problem
from launcher.hosts.machine.ranks import Death
from launcher.supervise.evidence import Evidence, Leave, Told, find_problems, left_after

TERM, KILL, SEGV, EXIT_1 = int(signal.SIGTERM), int(signal.SIGKILL), int(signal.SIGSEGV), 1 << 8


def death(rank: int, wait_status: int | None, seen_s: float = 10.0) -> Death:
    return Death(rank=rank, seen_s=seen_s, wait_status=wait_status)


def word(rank: int, code: str = "E502", seen_s: float = 10.0) -> Told:
    problem = Problem(code=code, where="", what=f"said by rank {rank}", hint="")
    return Told(rank=rank, seen_s=seen_s, problems=(problem,))


def seen(*causes: Death | Told, exit_code: int = 1, ended_by_us: bool = False, **worlds: int) -> str:
    """The one problem's place, code and text."""
    evidence = Evidence(
        stage="sft",
        world=3,
        exit_code=exit_code,
        worlds={int(rank[1:]): world for rank, world in worlds.items()},
        told=tuple(cause for cause in causes if isinstance(cause, Told)),
        deaths=tuple(cause for cause in causes if isinstance(cause, Death)),
        ended_by_us=ended_by_us,
        logs={rank: f"rank{rank}.log" for rank in range(3)},
        launcher_log="launcher.log",
    )
    return " ".join(problem.text().splitlines()[0] for problem in find_problems(evidence))


@pytest.mark.parametrize(
    ("causes", "exit_code", "expected"),
    [
        ([death(0, TERM), death(1, KILL)], 247, "rank 1 [E501] killed by SIGKILL"),
        ([death(0, TERM), death(1, None)], 247, "rank 1 [E501] killed by SIGKILL"),  # reaped before anybody looked
        ([death(0, TERM), death(1, None)], 1, "rank 1 [E502] ended without a success marker"),
        ([death(0, TERM), death(1, EXIT_1)], 1, "rank 1 [E502] ended with exit code 1"),
        ([death(0, TERM, 11), death(1, TERM, 10)], 241, "rank 1 [E501] killed by SIGTERM"),
        ([word(0, seen_s=9), death(1, SEGV, 10)], 245, "rank 1 [E501] killed by SIGSEGV"),  # seen late, not dead late
        ([word(0, seen_s=5), death(1, SEGV, 10)], 1, "rank 0 [E502] said by rank 0"),
        ([word(0, "E551"), word(1, seen_s=11)], 5, "rank 1 [E502] said by rank 1"),
        ([word(0, "E551"), death(2, None, 12)], 250, "rank 2 [E501] killed by SIGABRT"),
        ([word(0, "E551", 10), word(1, "E551", 9)], 5, "rank 1 [E551] said by rank 1"),
        ([word(0), word(1, seen_s=9)], 1, "rank 1 [E502] said by rank 1"),
    ],
)
def test_the_first_cause_is_named_alone(causes, exit_code, expected):
    assert seen(*causes, exit_code=exit_code).startswith(f"stage sft, {expected}")


@pytest.mark.parametrize("exit_code", [0, -9, -15])
def test_a_launcher_that_was_killed_is_the_cause_of_its_ranks_deaths(exit_code):
    assert "[E503]" in seen(death(0, KILL), death(1, KILL), exit_code=exit_code)


def test_what_a_rank_said_outranks_a_launcher_that_exits_0():
    assert "[E502] said by rank 2" in seen(word(2), exit_code=0)


def test_a_launcher_that_we_ended_is_not_the_cause():
    assert "rank 1 [E502] ended with exit code 1" in seen(death(1, EXIT_1), exit_code=-15, ended_by_us=True)


@pytest.mark.parametrize("causes", [(), (death(0, 120 << 8),), (death(0, None),)])
def test_a_full_disk_is_named_where_no_rank_could_say_so(causes):
    evidence = Evidence(stage="sft", world=1, exit_code=1, worlds={}, deaths=causes, logs={0: "log"}, full_disk="/runs/x")
    (problem,) = find_problems(evidence)
    assert (problem.code, problem.where) == ("E513", "/runs/x")


def test_a_full_disk_is_not_blamed_for_a_signal_or_against_a_rank_s_word():
    common = {"stage": "sft", "world": 1, "exit_code": 1, "worlds": {}, "logs": {0: "log"}, "full_disk": "/runs/x"}
    assert find_problems(Evidence(**common, deaths=(death(0, SEGV),)))[0].code == "E501"
    assert find_problems(Evidence(**common, told=(word(0),)))[0].code == "E502"


def test_prepare_which_has_no_checkpoints_promises_none():
    evidence = Evidence(stage="prepare", world=1, exit_code=-9, worlds={}, told=(), deaths=(), launcher_log="log.txt")
    (problem,) = find_problems(evidence)
    assert (problem.code, problem.where) == ("E508", "prepare")
    assert "checkpoint" not in problem.hint
    assert "log.txt" in problem.hint


def test_every_rank_done_is_a_success_and_anything_less_is_not():
    assert seen(exit_code=0, r0=3, r1=3, r2=3) == ""
    assert seen(exit_code=-9, ended_by_us=True, r0=3, r1=3, r2=3) == ""  # it hung at its exit
    assert "[E503]" in seen(exit_code=1, r0=3, r1=3, r2=3)
    assert "no success marker of rank 2" in seen(exit_code=0, r0=3, r1=3)
    assert "[E504]" in seen(exit_code=0, r0=3, r1=3, r2=2)
    assert "said by rank 0" in seen(word(0), exit_code=0, r0=3, r1=3, r2=3)


@pytest.mark.parametrize(
    ("left", "change", "step"),
    [
        ({0: (2, 7), 1: (2, 7)}, {}, 7),
        ({0: (2, 7), 1: (2, 7)}, {"exit_code": -15, "ended_by_us": True}, 7),  # launch.py was slower than its ranks
        ({0: (2, 7), 1: (2, 7)}, {"exit_code": 1}, None),
        ({0: (2, 7), 1: (2, 8)}, {}, None),  # behind other steps: nobody can go on from that
        ({0: (2, 7)}, {}, None),
        ({0: (3, 7), 1: (3, 7)}, {}, None),
        ({0: (2, 7), 1: (2, 7)}, {"told": (word(1),)}, None),
    ],
)
def test_all_ranks_leave_behind_one_step_or_none_has(left, change, step):
    words = {rank: Leave(world=world, step=behind) for rank, (world, behind) in left.items()}
    fields = {"stage": "sft", "world": 2, "exit_code": 0, "worlds": {}, "left": words, **change}
    assert left_after(Evidence(**fields)) == step
