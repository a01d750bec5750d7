"""The C++ operators that DeepSpeed compiles when it first needs them: found out, checked and built before the ranks meet. DO.

    prebuild(needed_ops(ds_config))     # first thing on every rank; later uses find the operator loaded

Every rank calls the same: the one that gets the lock of an operator builds it, the others of the host (or of all hosts that
share the folder) wait and find it built. The lock is the kernel's, so it goes with a process that is killed. torch's own is a
file that stays behind, and the next process would wait for it for ever.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.git_version_info import installed_ops
from deepspeed.ops.op_builder.builder import CUDAOpBuilder, OpBuilder
from torch.utils import cpp_extension

from launcher.errors import LauncherError, Problem
from launcher.train.optimizer import twin_flow

BUILDERS = {
    "pin_memory": "PinMemoryBuilder",
    "async_io": "AsyncIOBuilder",
    "cpu_adam": "CPUAdamBuilder",
    "quantizer": "QuantizerBuilder",
}
EVERY_S = 10.0  # between two lines of a wait
LIBAIO = "install libaio (apt-get install libaio-dev, dnf install libaio-devel), or use offload.optimizer: cpu"


def needed_ops(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the operators that this DeepSpeed config will ask for."""
    zero = config["zero_optimization"]
    places = {zero.get(section, {}).get("device") for section in ("offload_optimizer", "offload_param")}
    wanted = {
        "pin_memory": "nvme" in places,  # async_io is linked against it
        "async_io": "nvme" in places,
        "cpu_adam": twin_flow(config),
        "quantizer": bool(zero.get("zero_quantized_weights") or zero.get("zero_quantized_gradients")),
    }
    return tuple(name for name, here in wanted.items() if here)


def prebuild(ops: Sequence[str]) -> None:
    """Load every operator into this process, built if need be. E568 where one cannot be built here."""
    _prefer_own_ninja()
    builders = {op: get_accelerator().create_op_builder(BUILDERS[op]) for op in ops}
    problems = [problem for op, builder in builders.items() if (problem := _obstacle(op, builder)) is not None]
    if problems:
        raise LauncherError(problems)
    for op, builder in builders.items():
        folder = Path(cpp_extension._get_build_directory(op, verbose=False))
        with _alone(folder, op):
            _load(op, builder, folder)


def _load(op: str, builder: OpBuilder, folder: Path) -> None:
    try:
        with _progress(lambda waited_s: f"building {op} in {folder}: {built_text(folder)}{waited_s:.0f} s"):
            builder.load(verbose=False)
    except (RuntimeError, OSError, ImportError) as error:  # ninja's output, a full disk, a library that does not link
        raise LauncherError(_not_built(f"{op} could not be built: {_reason(error)}", f"look into {folder}")) from error


def _prefer_own_ninja() -> None:
    """An interpreter called by its path leaves its environment out of PATH. Two versions of ninja do not read each other's
    logs: each would build everything again, so it has to be the same one in every run."""
    own, path = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    if shutil.which("ninja", path=own) and not path.startswith(own):
        os.environ["PATH"] = f"{own}{os.pathsep}{path}"


def _obstacle(op: str, builder: OpBuilder) -> Problem | None:
    """Why this operator cannot be built here; None: nothing is known to stand in the way."""
    if installed_ops.get(op, False):  # DeepSpeed was installed with it
        return None
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        hint = "install a C++ compiler (apt-get install g++), or choose an offload that needs none"
        return _not_built(f"{op} has to be compiled, and there is no compiler {compiler!r}", hint)
    if not cpp_extension.is_ninja_available():
        return _not_built(f"{op} has to be compiled, and there is no ninja", "pip install ninja")
    if isinstance(builder, CUDAOpBuilder) and torch.cuda.is_available() and cpp_extension.CUDA_HOME is None:
        return _not_built(f"{op} has to be compiled, and there is no CUDA toolkit", "install nvcc, or set CUDA_HOME")
    if not builder.is_compatible(verbose=False):
        if op == "async_io":
            return _not_built("offload to NVMe needs libaio, and it is not installed", LIBAIO)
        return _not_built(f"{op} cannot be built: {builder.error_log}", "run ds_report, which says what is missing")
    return None


def _not_built(what: str, hint: str) -> Problem:
    return Problem(code="E568", where=f"host {socket.gethostname()}", what=what, hint=hint)


def _reason(error: Exception) -> str:
    """The first line of a compiler's output that names an error."""
    lines = f"{error}\n{error.__cause__ or ''}".splitlines()
    return next((line.strip() for line in lines if "error:" in line.lower()), lines[0])[:300]


# --- who builds ----------------------------------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path, op: str) -> Iterator[None]:
    """Inside, no other process of ours builds in `folder`."""
    with open(folder / "launcher.lock", "w") as file:
        with _progress(lambda waited_s: f"waiting for {op}, built elsewhere: {built_text(folder)}{waited_s:.0f} s"):
            fcntl.flock(file, fcntl.LOCK_EX)
            clear_stale_lock(folder)
        yield


def clear_stale_lock(folder: Path) -> bool:
    """Remove torch's lock file from `folder` where its process has ended; whether there was one to remove.

    Returns when nobody of this host builds there: neither a process that holds the lock, nor a compiler that has outlived it.
    """
    lock = folder / "lock"
    while lock.exists():
        if not _is_used(folder, lock):
            lock.unlink(missing_ok=True)
            _say(f"removed {lock}: the process that built there has ended")
            return True
        time.sleep(0.5)
    return False


def _is_used(folder: Path, lock: Path) -> bool:
    """Whether a process of this host has the lock open or works in the folder, as far as this user may see."""
    for link in (*Path("/proc").glob("[0-9]*/fd/*"), *Path("/proc").glob("[0-9]*/cwd")):
        try:
            if os.readlink(link) in (str(folder.resolve()), str(lock.resolve())):
                return True
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return False


# --- what is told --------------------------------------------------------------------------------------------------


@contextmanager
def _progress(text: Callable[[float], str]) -> Iterator[None]:
    """Print `text(seconds waited)` every EVERY_S while the block goes on."""
    begun, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(EVERY_S):
            _say(text(time.monotonic() - begun))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def built_text(folder: Path) -> str:
    """`3 of 12 files, `: objects there are, of those that the newest build.ninja lists; empty before it is written."""
    try:
        recipe = folder / "build.ninja"
        begun = recipe.stat().st_mtime
        names = re.findall(r"^build (\S+\.o):", recipe.read_text(), flags=re.MULTILINE)
    except OSError:
        return ""
    done = [name for name in names if (folder / name).exists() and (folder / name).stat().st_mtime >= begun]
    return f"{len(done)} of {len(names)} files, "


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  the rank's log
