"""Ranks forked from one parent that has imported the whole stack: a job of two ranks starts in about a second.

    values = run_ranks(function, argument, world=2)     # what function returned on rank 0, 1, …; RanksFailed otherwise
    ends = fork_ranks(function, argument, world=2)      # the same with exit codes, CPU seconds and peak memory, never raises
    ends = run_verb("train", run_dir, "sft", world=2)   # `python -m launcher.stages train RUN STAGE`, forked instead of started

Always CPU processes over gloo, whatever the machine has: CUDA does not survive a fork (tests/gpu starts processes instead).
Rules that keep it reliable: the parent makes no process group, no engine, no autograd call and no threads; ranks leave by
os._exit; a rank that fails ends its peers after a grace time, or they would sit in a gloo receive for ten minutes.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU_ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
GRACE_S = 3.0  # between the first failing rank and the end of its peers: time to print their own error

_preloaded = False


def preload() -> None:
    """Import once what every rank needs. trl and transformers load lazily: what is not named here, each rank pays for again."""
    global _preloaded
    if _preloaded:
        return
    os.environ.update(CPU_ENVIRONMENT)  # before the first torch import
    import torch

    torch.set_num_threads(1)  # an OpenMP pool of the parent would not survive the fork
    import accelerate  # noqa: F401
    import bitsandbytes  # noqa: F401
    import datasets
    import deepspeed
    import deepspeed.ops
    import deepspeed.runtime.zero.muon.muon_optimizer  # pulls in torch._inductor: seconds in each rank
    import deepspeed.runtime.zero.stage3
    import deepspeed.runtime.zero.stage_1_and_2
    import peft  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        GenerationConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        LlamaForTokenClassification,
        PreTrainedTokenizerFast,
        Trainer,
    )
    from trl import DPOTrainer, RewardTrainer, SFTTrainer  # noqa: F401

    import launcher.stages.dpo
    import launcher.stages.pretrain
    import launcher.stages.reward
    import launcher.stages.sft  # noqa: F401

    datasets.disable_progress_bars()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else 70 s of build and 69 MB in /dev/shm per rank
    gc.freeze()  # DeepSpeed collects garbage at each of its memory messages: ranks must not walk through all modules again
    _preloaded = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """How one rank ended. `value` is what the function returned, `error` its traceback; both None after os._exit or a kill."""

    rank: int
    exit_code: int  # negative: the signal that ended it
    value: Any
    error: str | None
    output: str
    cpu_s: float
    peak_rss_bytes: int


class RanksFailed(AssertionError):
    """At least one rank did not end well; the message holds every rank's error and the end of its output."""

    def __init__(self, ends: list[RankEnd]):
        self.ends = ends
        parts = [f"rank {end.rank} exit {end.exit_code}\n{end.error or ''}\n{end.output[-3000:]}" for end in ends]
        super().__init__("\n".join(parts))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _child(rank: int, world: int, port: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> int:
    os.setsid()
    import torch

    # torch makes its thread pool anew in the first call behind a fork; two threads that make that call together crash.
    torch.set_num_threads(1)
    os.environ.update(CPU_ENVIRONMENT)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_SIZE=str(world))
    os.environ.update(LOCAL_WORLD_SIZE=str(world), CROSS_RANK="0", CROSS_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    output = os.open(folder / f"{rank}.out", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    try:
        result, code = (function(*args), None), 0
    except BaseException as error:
        traceback.print_exc()
        result, code = (None, traceback.format_exc()), error.code if isinstance(getattr(error, "code", None), int) else 1
    temporary = folder / f"{rank}.tmp"
    temporary.write_bytes(pickle.dumps(result))
    temporary.rename(folder / f"{rank}.pkl")
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _end(rank: int, folder: Path, status: int, usage: Any) -> RankEnd:
    kept, output = folder / f"{rank}.pkl", folder / f"{rank}.out"
    value, error = pickle.loads(kept.read_bytes()) if kept.exists() else (None, None)
    return RankEnd(
        rank=rank,
        exit_code=os.waitstatus_to_exitcode(status),
        value=value,
        error=error,
        output=output.read_text(errors="replace") if output.exists() else "",
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=usage.ru_maxrss * 1024,
    )


def fork_ranks(function: Callable[..., Any], *args: Any, world: int = 2, timeout_s: float = 120.0) -> list[RankEnd]:
    """Call `function(*args)` in `world` forked ranks with RANK, WORLD_SIZE, MASTER_* … set, as the deepspeed command does."""
    preload()
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder, port, started, running, ends = Path(name), free_port(), time.monotonic(), {}, []
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = _child(rank, world, port, folder, function, args)
                finally:
                    os._exit(code)  # whatever happens: never on in the parent's code, never its exit handlers
            running[pid] = rank
        give_up = started + timeout_s
        while running:
            for pid in list(running):
                done, status, usage = os.wait4(pid, os.WNOHANG)
                if done:
                    ends.append(_end(running.pop(pid), folder, status, usage))
                    if ends[-1].exit_code:
                        give_up = min(give_up, time.monotonic() + GRACE_S)
            if running and time.monotonic() > give_up:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                give_up = float("inf")
            time.sleep(0.01)
    return sorted(ends, key=lambda end: end.rank)


def run_ranks(function: Callable[..., Any], *args: Any, world: int = 2, timeout_s: float = 120.0) -> list[Any]:
    """What `function` returned on each rank. RanksFailed where any rank raised, was killed or took too long."""
    ends = fork_ranks(function, *args, world=world, timeout_s=timeout_s)
    if any(end.exit_code or end.error for end in ends):
        raise RanksFailed(ends)
    return [end.value for end in ends]


def run_verb(verb: str, *arguments: object, world: int = 1, timeout_s: float = 120.0) -> list[RankEnd]:
    """`python -m launcher.stages VERB ARGUMENTS` on `world` forked ranks: its real entry, with its logs, markers and exit."""
    from launcher.stages.__main__ import main

    return fork_ranks(main, [verb, *map(str, arguments)], world=world, timeout_s=timeout_s)
