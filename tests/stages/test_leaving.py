"""Ranks that are asked to leave do so together, behind a checkpoint; resumed, the stage ends as the straight one, bit for bit.

One rank alone gets the signal, in the middle of a step: what the others do is agreed on in the step's own collective.
"""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from launcher.rundir.artifact import find_damage
from launcher.rundir.folder import read_json
from tests.stages.harness import fork_ranks
from tests.stages.look import curve, held_out, largest_difference, notes, train, weights
from tests.stages.ppo_world import make_ppo_run, make_ppo_world
from tests.stages.runs import make_run

pytestmark = pytest.mark.ranks

CASES = {
    "pretrain zero 1": {"kind": "pretrain", "ranks": 2, "zero": 1, "micro": 4},
    "sft zero 3": {"kind": "sft", "ranks": 2, "zero": 3, "micro": 4},
    "dpo zero 2": {"kind": "dpo", "ranks": 2, "zero": 2, "micro": 4},
    "pretrain in a pipeline": {"kind": "pretrain", "ranks": 2, "pp": 2, "zero": 1, "micro": 4, "accum": 2},
}
PPO = {"kl_target": 1.0, "schedule": "cosine", "steps": 3, "eval_rows": 4}


def train_and_ask(run, kind, *, ranks, step, who=1):
    """Train, and have rank `who` asked to leave while it takes step number `step` (from 1)."""
    ends = fork_ranks(_train_and_ask, run.path, kind, step, who, world=ranks)
    logs = "\n".join(run.stage(kind).rank_log(rank).read_text()[-3000:] for rank in range(ranks))
    assert [end.exit_code for end in ends] == [0] * ranks, logs


def _train_and_ask(path, kind, at, who):
    import launcher.stages.ppo
    import launcher.train.course
    from launcher.stages.__main__ import main

    def asking(rate):
        """Both loops work out a rate once a step."""

        def wrapped(*args, **kwargs):
            step = next(value for value in args if isinstance(value, int)) + 1
            if (step, os.environ["RANK"]) == (at, str(who)):
                os.kill(os.getpid(), signal.SIGUSR1)
            return rate(*args, **kwargs)

        return wrapped

    launcher.train.course.learning_rate = asking(launcher.train.course.learning_rate)
    launcher.stages.ppo.rate_share = asking(launcher.stages.ppo.rate_share)
    main(["train", str(path), kind])


def check_left(run, kind, *, ranks, step):
    stage = run.stage(kind)
    assert [(read_json(stage.left(rank))["world"], read_json(stage.left(rank))["step"]) for rank in range(ranks)] == [
        (ranks, step)
    ] * ranks
    assert not any(stage.done(rank).exists() or stage.problem(rank).exists() for rank in range(ranks))
    assert not stage.artifact.exists()
    assert find_damage(stage.checkpoints / f"step{step}") == []


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_stage_that_was_left_and_resumed_equals_the_straight_one_bit_for_bit(world, case):
    case = dict(case)
    kind, ranks = case.pop("kind"), case["ranks"]
    settings = {"checkpoint_every": 4, "stage": {"steps": 6, "keep": 9}}
    straight, left = (make_run(world, kind=kind, **settings, **case) for _ in range(2))
    train(straight, kind, ranks=ranks)

    train_and_ask(left, kind, ranks=ranks, step=3)
    check_left(left, kind, ranks=ranks, step=3)  # no periodic one, and no step more than the one that was being taken
    train(left, kind, ranks=ranks)

    assert "resumed from step 3" in notes(left, kind)
    assert not left.stage(kind).left(0).exists()
    assert (curve(left, kind), held_out(left, kind)) == (curve(straight, kind), held_out(straight, kind))
    assert largest_difference(weights(left.stage(kind).artifact), weights(straight.stage(kind).artifact)) == 0.0


def test_ppo_leaves_behind_the_iteration_it_was_at(tmp_path):
    world = make_ppo_world(tmp_path)
    case = {"ranks": 2, "zero": 2, "micro": 4, "checkpoint_every": 9, "stage": PPO}
    straight, left = (make_ppo_run(world, **case) for _ in range(2))
    train(straight, "ppo", ranks=2)

    train_and_ask(left, "ppo", ranks=2, step=2)
    check_left(left, "ppo", ranks=2, step=2)
    train(left, "ppo", ranks=2)

    assert "resumed from iteration 2" in notes(left, "ppo")
    for name in ("score", "kl", "policy_loss", "kl_coef"):
        assert curve(left, "ppo", name) == curve(straight, "ppo", name), name
    assert held_out(left, "ppo") == held_out(straight, "ppo")
    assert largest_difference(weights(left.stage("ppo").artifact), weights(straight.stage("ppo").artifact)) == 0.0


def test_asked_in_the_last_step_ranks_leave_too_and_only_hand_on_when_they_come_back(world):
    """What comes behind the last step may take long: the trained weights are safe first."""
    run = make_run(world, kind="sft", ranks=2, zero=1, micro=4, checkpoint_every=3)
    train_and_ask(run, "sft", ranks=2, step=4, who=0)
    check_left(run, "sft", ranks=2, step=4)
    train(run, "sft", ranks=2)
    assert len(curve(run, "sft")) == 4
    assert "resumed from step 4" in notes(run, "sft")


def test_a_signal_that_came_before_the_first_step_ends_the_stage_behind_it(world):
    """While Python imports and weights are loaded it waits: nobody dies of it."""
    run = make_run(world, kind="sft", ranks=2, zero=1, micro=4, checkpoint_every=9)
    ends = fork_ranks(_train_asked_from_the_start, run.path, world=2)
    assert [end.exit_code for end in ends] == [0, 0]
    check_left(run, "sft", ranks=2, step=1)


def _train_asked_from_the_start(path):
    from launcher.stages.__main__ import main

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # as what starts ranks leaves it to them
    os.kill(os.getpid(), signal.SIGUSR1)
    main(["train", str(path), "sft"])


def test_a_stage_without_checkpoints_says_that_it_cannot_be_asked(world):
    run = make_run(world, kind="sft", ranks=2, zero=1, micro=4, checkpoint_every=0)
    train_and_ask(run, "sft", ranks=2, step=2)
    assert not run.stage("sft").listening.exists()
    assert run.stage("sft").done(1).exists()


def test_a_checkpoint_of_leaving_is_one_of_those_that_are_kept(world):
    run = make_run(world, kind="sft", ranks=1, zero=1, micro=8, checkpoint_every=2, stage={"keep": 1, "steps": 6})
    train_and_ask(run, "sft", ranks=1, step=3, who=0)
    assert [folder.name for folder in run.stage("sft").checkpoints.glob("step*")] == ["step3"]
    facts = json.loads((run.stage("sft").checkpoints / "step3" / "manifest.json").read_text())
    assert facts["step"] == 3
    shutil.rmtree(run.path)
