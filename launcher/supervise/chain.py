"""(RunDir, Planned) -> Ending: prepare, then stage after stage, each started only on what was checked. DO.

For each stage: policy.decide (keep, resume, redo, start), check of the parents' artifacts, launch and watch, check of what it
handed on, gate. The first failure ends the chain; nothing that finished before it is lost.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from launcher.backends.registry import load_backend
from launcher.backends.request import LaunchRequest
from launcher.backends.shell import Process, end_processes
from launcher.dsconfig.order import stage_order
from launcher.errors import LauncherError, Problem
from launcher.hosts.machine.ports import free_port
from launcher.rundir.folder import RunDir, read_json
from launcher.rundir.inputs import parent_stages, stage_inputs
from launcher.rundir.leave import SAVE_S
from launcher.rundir.order import StageOrder
from launcher.spec.cluster import RENDERED
from launcher.spec.stages import Reward, StageBase
from launcher.supervise import evidence, left, watch
from launcher.supervise.create import Planned
from launcher.supervise.feedback import feed_back
from launcher.supervise.home import bring_home
from launcher.supervise.journal import Journal
from launcher.supervise.policy import Decision, damage_problems, decide
from launcher.supervise.preflight import record_versions
from launcher.supervise.progress import Progress
from launcher.supervise.stop import StopFlag
from launcher.supervise.verify import Verifier
from launcher.units import seconds_text

PORT_TRIES = 3
_PORT_TAKEN = ("EADDRINUSE", "Address already in use", "address already in use")


class Stopped(Exception):
    """The run was asked to stop. `step`: behind which the ranks have saved and left, if they have."""

    def __init__(self, step: int | None = None):
        super().__init__()
        self.step = step


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the chain ended. `stage` is where; empty for prepare and for a chain that is done."""

    state: Literal["done", "failed", "stopped"]
    stage: str = ""
    problems: tuple[Problem, ...] = ()
    step: int | None = None  # behind which the ranks of a stopped stage have saved and left; None: they were ended
    signal: str = ""  # the first that asked a stopped chain to stop; SIGUSR1: a scheduler, whose time is nearly over


@dataclass(slots=True)
class Chain:
    """One controller's walk along the stages of one run."""

    run: RunDir
    planned: Planned
    journal: Journal
    stop: StopFlag
    verifier: Verifier = field(default_factory=Verifier)
    at: str = ""  # the stage it is at

    def walk(self, only: str | None = None) -> Ending:
        """The whole chain, or prepare and one stage."""
        started_s = time.monotonic()
        self.journal.event("run.started", job=self.planned.job.name, stages=[stage.name for stage in self.planned.plan.stages])
        try:
            self._prepare()
            for stage in self.planned.job.stages:
                if only in (None, stage.stage_name):
                    self.at = stage.stage_name
                    self._stage(stage)
        except LauncherError as error:
            return self._failed(error.problems)
        except OSError as error:  # a full or vanished disk, a file that may not be written
            return self._failed((_unwritable(self.run, error),))
        except Stopped as stopped:
            self.journal.event("run.stopped", stage=self.at, signal=self.stop.signal_name, step=stopped.step)
            return Ending(state="stopped", stage=self.at, step=stopped.step, signal=self.stop.signal_name)
        self.journal.event("run.finished", seconds=round(time.monotonic() - started_s, 1))
        return Ending(state="done")

    def _failed(self, problems: tuple[Problem, ...]) -> Ending:
        self.journal.problems("run.failed", list(problems), stage=self.at)
        return Ending(state="failed", stage=self.at, problems=problems)

    def end_leftovers(self) -> None:
        """No process of an earlier attempt writes into the run or holds memory. LauncherError E511 where one does not end."""
        found, alive = end_processes(str(self.run.path), grace_s=watch.TERM_GRACE_S, hurry=lambda: self.stop.hard)
        if found:
            self.journal.event("leftovers.ended", pids=[process.pid for process in found])
            self.journal.say(f"ended {len(found)} processes of an earlier attempt of this run")
        _refuse_alive(alive)

    def _prepare(self) -> None:
        """Versions are recorded; data, tokenizer and base model are there."""
        record_versions(self.run)
        self.journal.say("prepare")
        request = load_backend(self.planned.job.cluster.backend).prepare_request(self.planned.job, self.run)
        self._attempt(request, watch.prepare_files(self.run), "prepare")

    def _stage(self, stage: StageBase) -> None:
        name, plan = stage.stage_name, self.planned.plan.stage(stage.stage_name)
        order = stage_order(self.planned.job, self.planned.plan, name)
        self._check_parents(order)
        inputs = _inputs(self.run, order)
        bring_home(self.run, name, self.planned, self.journal)
        facts = left.stage_facts(self.run, name, self.verifier)
        decision = decide(facts, inputs=inputs, precision=plan.precision)
        if decision.action == "keep":
            self.journal.event("stage.kept", stage=name, reason=decision.reason)
            self.journal.say(f"{name}: kept; {decision.reason}")
        else:
            self._make_room(name, decision)
            self._launch(stage, decision)
            self._check_artifact(name, inputs)
            feed_back(self.run, self.planned, name, self.journal)
        _check_gate(self.run, stage)

    def _check_parents(self, order: StageOrder) -> None:
        """Every stage this one starts from has handed on a whole folder."""
        problems: list[Problem] = []
        for parent in dict.fromkeys(parent_stages(order).values()):
            folder = self.run.stage(parent).artifact
            if not folder.is_dir():
                what = f"starts from stage {parent}, which has handed on nothing in this run"
                hint = f"run the chain up to it first: launcher resume {self.run.path.name}"
                problems.append(Problem(code="E509", where=f"stage {order.stage}", what=what, hint=hint))
                continue
            problems += damage_problems(parent, str(folder), self.verifier.find_damage(folder))
        if problems:
            raise LauncherError(problems)

    def _make_room(self, name: str, decision: Decision) -> None:
        move = left.set_aside if decision.action == "redo" else left.set_unfinished_artifact_aside
        moved = move(self.run, name)
        kind = "stage.resumed" if decision.action == "resume" else "stage.started"
        self.journal.event(
            kind, stage=name, action=decision.action, reason=decision.reason, set_aside=str(moved) if moved else None
        )
        self.journal.say(f"{name}: {decision.action}; {decision.reason}")
        if moved:
            self.journal.say(f"  what it had left is in {moved}")

    def _launch(self, stage: StageBase, decision: Decision) -> None:
        """The ranks of one stage, on another port where the first was taken between its test and its use.

        Once where a manifest or a task file names the port: another attempt would find the same one.
        """
        name, job, plan = stage.stage_name, self.planned.job, self.planned.plan
        backend, started_s = load_backend(job.cluster.backend), time.monotonic()
        progress = Progress(name, self.run.stage(name).metrics, stage.steps, self.journal)
        for tries_left in reversed(range(1 if job.cluster.backend in RENDERED else PORT_TRIES)):
            request = backend.stage_request(job, plan, self.run, name, port=free_port())
            files = watch.stage_files(self.run, name, request.world)
            progress.start()
            try:
                self._attempt(request, files, "stage", progress)
                break
            except LauncherError as error:
                if not tries_left or not _is_port_taken(error):
                    raise
                self.journal.say(f"{name}: the port on which the ranks meet was taken; once more on another one")
        seconds = time.monotonic() - started_s
        self.journal.event("stage.finished", stage=name, seconds=round(seconds, 1))
        self.journal.say(f"{name}: done in {seconds_text(seconds)}")

    def _attempt(self, request: LaunchRequest, files: watch.Files, kind: str, progress: Progress | None = None) -> None:
        """One launch, followed to its end. LauncherError with the first cause where it failed."""
        if self.stop.asked:
            raise Stopped
        self.journal.event(f"{kind}.launched", stage=request.stage, world=request.world, command=request.shell_text())
        tick = progress.tick if progress else lambda now_s: None
        on_leave = partial(self._say_leaving, request.stage)
        outcome = watch.follow(request, self.run, files, self.stop, on_tick=tick, on_leave=on_leave)
        _refuse_alive(outcome.still_alive)
        step = evidence.left_after(outcome.evidence)
        if step is not None:
            self.journal.event("stage.left", stage=request.stage, step=step)
            self.journal.say(f"{request.stage}: saved step {step}")
            raise Stopped(step)
        problems = evidence.find_problems(outcome.evidence)
        if outcome.stopped and problems:
            if kind == "stage":
                self._say_unsaved(request.stage, outcome, problems)
            raise Stopped
        if problems:
            rank = evidence.blamed_rank(outcome.evidence)
            self.journal.problems(
                "rank.problem" if files.rank_logs else "prepare.problem", problems, stage=request.stage, rank=rank
            )
            self.journal.event(f"{kind}.failed", stage=request.stage, exit_code=outcome.evidence.exit_code)
            raise LauncherError(problems)
        if kind == "prepare":
            self.journal.event("prepare.finished")

    def _say_leaving(self, name: str) -> None:
        self.journal.event("stage.leaving", stage=name, signal=self.stop.signal_name)
        self.journal.say(f"{name}: asked to save and leave within {seconds_text(SAVE_S)}; asked again, it ends unsaved")

    def _say_unsaved(self, name: str, outcome: watch.Outcome, problems: list[Problem]) -> None:
        """Of ranks that we have ended there is nothing to tell but why; others have failed, perhaps while they saved."""
        why = outcome.unsaved
        if not why:
            self.journal.problems("rank.problem", problems, stage=name, rank=evidence.blamed_rank(outcome.evidence))
            why = "; ".join(problem.text() for problem in problems)
        self.journal.event("stage.unsaved", stage=name, reason=why)
        self.journal.say(f"{name}: ended without another checkpoint: {why}")

    def _check_artifact(self, name: str, inputs: str) -> None:
        """What a stage hands on is whole and made of what it should be; only then may the next one start."""
        folder = self.run.stage(name).artifact
        problems = damage_problems(name, str(folder), self.verifier.find_damage(folder))
        manifest = read_json(folder / "manifest.json") if not problems else {}
        if not problems and manifest.get("inputs") != inputs:
            what = "was made of other settings, data or parents than those of now: a file changed while the stage ran"
            hint = "resume: the stage is done again with the settings of now"
            problems = [Problem(code="E505", where=str(folder / "manifest.json"), what=what, hint=hint)]
        if problems:
            raise LauncherError(problems)


def _refuse_alive(alive: list[Process]) -> None:
    if alive:
        pids = ", ".join(str(process.pid) for process in alive)
        hint = "a driver or a file system may hold them in the kernel; look at them with ps"
        raise LauncherError(Problem(code="E511", where=f"process {pids}", what="does not end, not even by SIGKILL", hint=hint))


def _unwritable(run: RunDir, error: OSError) -> Problem:
    hint = "free space or mend the folder, then resume: what has finished is kept"
    return Problem(code="E513", where=str(error.filename or run.path), what=f"{error.strerror or error}", hint=hint)


def _is_port_taken(error: LauncherError) -> bool:
    return any(problem.code == "E406" or sign in problem.what for problem in error.problems for sign in _PORT_TAKEN)


def _inputs(run: RunDir, order: StageOrder) -> str:
    """The hash of all that the stage's result depends on. LauncherError E510 where a file for it cannot be read."""
    try:
        return stage_inputs(run, read_json(run.job_json), order)
    except (OSError, ValueError, KeyError) as error:
        raise LauncherError(_unreadable(f"stage {order.stage}", error)) from None


def _check_gate(run: RunDir, stage: StageBase) -> None:
    """LauncherError E506 where the stage asks for more on held-out data than it reached."""
    if not isinstance(stage, Reward) or stage.gate is None:
        return
    try:
        after = read_json(run.stage(stage.stage_name).result)["after"]
    except (OSError, ValueError, KeyError) as error:
        raise LauncherError(_unreadable(f"stage {stage.stage_name}", error)) from None
    reached = after.get("accuracy") if isinstance(after, dict) else None
    if isinstance(reached, int | float) and reached >= stage.gate.accuracy:
        return
    got = f"{reached:.3f}" if isinstance(reached, int | float) else "no figure"
    what = f"gate.accuracy: {stage.gate.accuracy:g} of held-out pairs is asked, the stage reached {got}"
    hint = "train longer or on better pairs; or lower the gate, then resume with the job file: the stage is kept"
    raise LauncherError(Problem(code="E506", where=f"stage {stage.stage_name}", what=what, hint=hint))


def _unreadable(where: str, error: Exception) -> Problem:
    named = getattr(error, "filename", None)
    what = f"{named} cannot be read: {getattr(error, 'strerror', None)}" if named else f"a file of the run is damaged: {error}"
    return Problem(code="E510", where=where, what=what, hint="restore the file, or start a new run")
