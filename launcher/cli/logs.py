"""`launcher logs RUN [STAGE]`: what the processes of a run print. Without STAGE the one that the run is at."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from launcher.cli.common import add_run, runs_root, say, write_out
from launcher.errors import EXIT_DONE, LauncherError, Problem, printable
from launcher.report.summary import RunSummary, summarize
from launcher.rundir.find import find_run
from launcher.rundir.folder import RunDir
from launcher.supervise.holder import holder_of

POLL_S = 0.3
CHUNK_BYTES = 1 << 20
PREPARE = "prepare"


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("stage", metavar="STAGE", nargs="?", help="stage name, or prepare; default: where the run is")
    parser.add_argument(
        "--rank", metavar="N", type=int, help="log of this rank; default: rank 0, or the launcher's where it is absent"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")


def run(args: Namespace) -> int:
    folder = find_run(args.run, runs_root(args))
    going_on = (lambda: holder_of(folder) is not None) if args.follow else (lambda: False)
    log = _find_or_wait(folder, args, going_on)
    say(f"{log}:")
    _print(log, going_on)
    return EXIT_DONE


def _find_or_wait(folder: RunDir, args: Namespace, going_on: Callable[[], bool]) -> Path:
    """The log; with --follow it may still have to be begun. A stage that the job does not have is never waited for."""
    while True:
        last = not going_on()
        summary = summarize(folder, alive=not last)
        try:
            return find_log(folder, summary, args.stage, args.rank)
        except LauncherError:
            if last or args.stage not in (None, *_names(summary)):
                raise
        time.sleep(POLL_S)


def _names(summary: RunSummary) -> list[str]:
    return [PREPARE, *(stage.name for stage in summary.stages)]


def find_log(folder: RunDir, summary: RunSummary, stage: str | None, rank: int | None) -> Path:
    """LauncherError E120 where the stage or the rank is not there."""
    name = stage or _current(summary)
    if name not in _names(summary):
        raise LauncherError(_missing(folder, f"there is no stage {name}", f"the stages are {', '.join(_names(summary))}"))
    if name == PREPARE:
        return _existing(folder, folder.path / "prepare" / "log.txt", name)
    stage_dir = folder.stage(name)
    if rank is not None:
        return _existing(folder, stage_dir.rank_log(rank), f"rank {rank} of stage {name}")
    first = stage_dir.rank_log(0)
    return first if first.exists() else _existing(folder, stage_dir.logs / "launcher.log", f"stage {name}")


def _current(summary: RunSummary) -> str:
    """The stage that runs or failed; else the last one that has begun; else prepare."""
    begun = [stage for stage in summary.stages if stage.state != "waiting"]
    open_stages = [stage for stage in begun if stage.state not in ("done", "kept")]
    last = (open_stages or begun)[-1:]
    return last[0].name if last else PREPARE


def _existing(folder: RunDir, log: Path, owner: str) -> Path:
    if log.is_file():
        return log
    there = sorted(path.name for path in log.parent.glob("*.log"))
    hint = f"there are {', '.join(there)}" if there else "it has not started"
    raise LauncherError(_missing(folder, f"no log of {owner}", hint))


def _missing(folder: RunDir, what: str, hint: str) -> Problem:
    return Problem(code="E120", where=str(folder.path), what=what, hint=hint)


def _print(log: Path, going_on: Callable[[], bool]) -> None:
    """The file as it is, then what is appended while the run goes on and somebody reads it."""
    with log.open(encoding="utf-8", errors="replace") as file:
        while True:
            last = not going_on()
            while text := file.read(CHUNK_BYTES):
                if not write_out(printable(text)):
                    return
            if last:
                return
            time.sleep(POLL_S)
