"""`python -m launcher.stages VERB …`: what runs on the nodes. Prepare once, then one `train` process per rank and stage.

    prepare RUN            the whole chain's data and tokenizer, one CPU process
    train RUN STAGE        one rank of one stage; RANK, WORLD_SIZE, MASTER_ADDR … as the deepspeed command sets them
    calibrate RUN DEVICE [PID]  one rank of those that measure this machine, started in the same way; DEVICE is cuda or cpu;
                           it ends when process PID does
    meet RUN DEVICE SLOTS  one rank of those that `doctor` has meet, SLOTS on each host
    blueprint FOLDER       what a plan has to know of a model whose family it has no table of
    generate RUN …         try a trained model
    export RUN …           write a plain Hugging Face folder

DO. A rank writes stages/<stage>/logs/rank<N>.log, then as its very last act done/rank<N>.json, or leave/rank<N>.json where it
was asked to save and leave, or problems/rank<N>.json.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from launcher.errors import EXIT_RUN, EXIT_USAGE, LauncherError, Problem
from launcher.rundir.folder import RunDir, StageDir, write_json
from launcher.rundir.order import StageOrder, read_order
from launcher.spec.job import JobSpec
from launcher.train.leaving import Left, hold_back

TOOLS = {name: f"launcher.stages.{name}" for name in ("generate", "export", "blueprint")}  # each has main(argv) -> exit code
STORIES = {kind: f"launcher.stages.{kind}" for kind in ("pretrain", "sft", "reward", "dpo", "ppo")}  # each has run(…)

PR_SET_PDEATHSIG = 1
# What libraries say of failures that are no bugs -> (code, what, hint). The first that fits counts: a cause before its effects.
FAILURES: tuple[tuple[tuple[str, ...], tuple[str, str, str]], ...] = (
    (
        ("out of memory", "DefaultCPUAllocator: can't allocate memory"),
        ("E555", "no memory is left on the device", "lower batch.micro or data.max_tokens, or use parallel.checkpointing full"),
    ),
    (
        # the last three are all that torch.save says of a full disk
        (
            *("No space left on device", "Disk quota exceeded", "Read-only file system"),
            *("basic_ios::clear: iostream error", "PytorchStreamWriter failed writing file", ". unexpected pos "),
        ),
        ("E513", "the disk takes no more", "free space, then resume: what has finished is kept"),
    ),
    (
        ("ignore_mismatched_sizes",),
        ("E546", "the weights do not fit config.json", "use the config.json that belongs to the weights"),
    ),
    (
        ("[Errno 13] Permission denied", "[Errno 1] Operation not permitted"),
        ("E513", "a file may not be read or written", "mend its permissions, then resume: what has finished is kept"),
    ),
    (
        ("EADDRINUSE", "address already in use"),
        (
            "E406",
            "port {port} of {host}, on which the ranks meet, is taken by another program",
            "see there with `ss -ltnp` who holds it, end it, and resume",
        ),
    ),
    (
        ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL communicator was aborted"),
        ("E551", "waited for a rank that had ended", "look at the rank that failed first"),
    ),
)


def main(argv: list[str]) -> int:
    """Exit code. `train` and `prepare` do not return: they leave by os._exit, past the exit handlers of the libraries."""
    match argv:
        case ["prepare", run]:
            leave(prepare(RunDir(Path(run).resolve())))
        case ["train", run, stage]:
            leave(train(RunDir(Path(run).resolve()), stage))
        case ["calibrate", run, device, *starter]:
            for pid in starter:
                die_with(int(pid))
            leave(calibrate(RunDir(Path(run).resolve()), device))
        case ["meet", run, device, slots]:
            leave(meet(RunDir(Path(run).resolve()), device, int(slots)))
        case [verb, *rest] if verb in TOOLS:
            return int(importlib.import_module(TOOLS[verb]).main(rest))
    sys.stderr.write(str(__doc__))
    return EXIT_USAGE


def leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def prepare(run: RunDir) -> int:
    """Everything before the first rank: prepare/log.txt, then prepare/done.json or prepare/problems.json."""
    folder = run.path / "prepare"
    _start_log(folder / "log.txt")
    _clear(folder / "done.json", folder / "problems.json")
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        importlib.import_module("launcher.stages.prepare").run(run, _job(run))
    except Exception as error:
        return _failed(error, folder / "problems.json")
    write_json(folder / "done.json", {"t": time.time()})
    return 0


def train(run: RunDir, stage_name: str) -> int:
    """One rank of one stage."""

    def story() -> int:
        job, order = _job(run), read_order(run.order(stage_name))
        stage = next(stage for stage in job.stages if stage.stage_name == stage_name)
        _check_world(order)
        _check_environment(job)
        _environment(order.device)
        _build_operators(run, order)
        clear_swap_files = importlib.import_module("launcher.train.swapping").clear_swap_files
        try:
            importlib.import_module(STORIES[order.kind]).run(run, job, stage, order)
        except Left:
            clear_swap_files(run, stage_name)
            raise
        clear_swap_files(run, stage_name)
        return order.world

    return _as_rank(run.stage(stage_name), story)


def calibrate(run: RunDir, device: str) -> int:
    """One rank of those that measure the machine; rank 0 writes what they found as the stage's result."""
    stage_dir = run.stage("calibrate")

    def story() -> int:
        _environment(device)
        return int(importlib.import_module("launcher.stages.calibrate").run(stage_dir, device))

    return _as_rank(stage_dir, story)


def meet(run: RunDir, device: str, slots: int) -> int:
    """One rank of those that only meet; rank 0 writes how fast they exchanged something as the stage's result."""
    stage_dir = run.stage("meet")

    def story() -> int:
        _environment(device)
        return int(importlib.import_module("launcher.stages.meet").run(stage_dir, device, slots))

    return _as_rank(stage_dir, story)


def _as_rank(stage_dir: StageDir, story: Callable[[], int]) -> int:
    """From the rank's log to its marker. The story returns the world it saw."""
    rank = int(os.environ.get("RANK", "0"))
    _start_log(stage_dir.rank_log(rank))
    _clear(stage_dir.done(rank), stage_dir.left(rank), stage_dir.problem(rank), *([stage_dir.listening] if rank == 0 else []))
    die_with_parent()
    hold_back()
    marker, told = stage_dir.done(rank), {}
    try:
        try:
            told = {"world": story()}
        except Left as left:
            marker, told = stage_dir.left(rank), {"world": left.world, "step": left.step}
        importlib.import_module("launcher.train.ranks").leave()
    except Exception as error:
        return _failed(error, stage_dir.problem(rank))
    write_json(marker, {**told, "t": time.time()})
    return 0


def _job(run: RunDir) -> JobSpec:
    return JobSpec.model_validate_json(run.job_json.read_text(encoding="utf-8"))


def _check_world(order: StageOrder) -> None:
    """Before anything waits for anybody: a stage planned for N ranks is never trained by another number."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != order.world:
        raise LauncherError(
            Problem(
                code="E550",
                where=f"stage {order.stage}",
                what=f"{world} ranks were started, the plan is for {order.world}",
                hint=f"start exactly {order.world} ranks, or plan again for {world}",
            )
        )


def _check_environment(job: JobSpec) -> None:
    """What the job gives every rank has come, whatever stands between: ssh, a scheduler, a container, launch.py."""
    given, here = job.cluster.env, dict(os.environ)
    odd = [
        f"{name} is {here[name]!r} here" if name in here else f"{name} is not set"
        for name in given
        if here.get(name) != given[name]
    ]
    odd += [f"{name}, a secret, is not set" for name in job.cluster.secrets if name not in here]
    if odd:
        hint = "see what sets or drops it on this host: a module, a profile, an image, the rendered command"
        raise LauncherError(
            Problem(code="E570", where="cluster.env", what=f"{'; '.join(odd)}; the job says otherwise", hint=hint)
        )


def _environment(device: str) -> None:
    """What the libraries read when they are imported. Given values win, so that a rendered command can change them."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name, value in (
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("DO_NOT_TRACK", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
    ):
        os.environ.setdefault(name, value)


def _build_operators(run: RunDir, order: StageOrder) -> None:
    """What DeepSpeed would compile in the middle of the stage, before anybody waits in a collective."""
    ops = importlib.import_module("launcher.train.ops")
    config = json.loads(run.ds_config(order.stage).read_text(encoding="utf-8"))
    ops.prebuild(ops.needed_ops(config))


def die_with_parent() -> None:
    """A rank whose launcher was killed ends too, instead of holding its GPU. Linux only; elsewhere the launcher must."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with(pid: int) -> None:
    """A rank whose figures nobody would read ends when that process does, by whatever: launch.py would outlive it. Linux."""
    if sys.platform != "linux":
        return
    try:
        ended = os.pidfd_open(pid)  # readable once the process has ended
    except ProcessLookupError:
        leave(EXIT_RUN)
    except OSError:
        return  # a kernel that has no such files

    def wait() -> None:
        select.select([ended], [], [])
        leave(EXIT_RUN)

    threading.Thread(target=wait, daemon=True).start()


def _start_log(path: Path) -> None:
    """Send stdout and stderr, of Python and of C libraries alike, to `path` before anything heavy is imported."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _clear(*markers: Path) -> None:
    for marker in markers:
        marker.unlink(missing_ok=True)


def _failed(error: Exception, path: Path) -> int:
    """Tell the log and the problems file; the exit code. A user's mistake carries no traceback."""
    text = traceback.format_exc()
    told: dict[str, object] = {"t": time.time()}
    if isinstance(error, LauncherError):
        told["problems"], code = [problem.as_dict() for problem in error.problems], error.exit_code
        sys.stderr.write(error.text() + "\n")
    else:
        problem = known_failure(error) or _bug(error, path)
        told["problems"], code = [problem.as_dict()], LauncherError(problem).exit_code
        told["traceback"] = text
        sys.stderr.write(text)
    write_json(path, json.loads(json.dumps(told, default=str)))
    return code


def known_failure(error: Exception) -> Problem | None:
    """The problem that a library's error stands for, with the library's own first line; None: a bug."""
    text = "".join(traceback.format_exception(error))
    for signs, (code, what, hint) in FAILURES:
        if any(sign in text for sign in signs):
            what = what.format(host=os.uname().nodename, port=os.environ.get("MASTER_PORT", ""))
            return Problem(code=code, where="", what=f"{what} ({_first_line(error)})", hint=hint)
    return None


def _bug(error: Exception, path: Path) -> Problem:
    return Problem(code="E901", where="", what=_first_line(error), hint=f"the traceback is in {path}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
