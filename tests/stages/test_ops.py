"""Operators that DeepSpeed compiles: named by the config, built once, refused with a cure, never waited for in vain.

Nothing is compiled here: the builders are stand-ins that take torch's lock as its own builds do.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from launcher.errors import LauncherError
from tests.stages.harness import fork_ranks, run_ranks

pytestmark = pytest.mark.ranks

NEEDED = {
    "nothing": ({"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 1.0}}, ()),
    "a ratio": ({"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.9}}, ("cpu_adam",)),
    "a disk": ({"stage": 3, "offload_optimizer": {"device": "nvme"}}, ("pin_memory", "async_io")),
    "parameters on a disk": ({"stage": 3, "offload_param": {"device": "nvme"}}, ("pin_memory", "async_io")),
    "quantised weights": ({"stage": 3, "zero_quantized_weights": True}, ("quantizer",)),
    "quantised gradients": ({"stage": 3, "zero_quantized_gradients": True}, ("quantizer",)),
}


@pytest.mark.parametrize(("zero", "wanted"), NEEDED.values(), ids=NEEDED.keys())
def test_the_config_tells_which_operators_are_needed(zero, wanted):
    from launcher.train.ops import needed_ops

    assert needed_ops({"zero_optimization": zero}) == wanted


class Builder:
    """A build of `build_s` seconds, with torch's own lock: a file that whoever wants to build waits for."""

    error_log = "the wrong phase of the moon"

    def __init__(self, folder: Path, *, build_s: float = 0.0, dies: bool = False, fails: str = "", compatible: bool = True):
        self.folder, self.build_s, self.dies, self.fails, self.compatible = folder, build_s, dies, fails, compatible

    def is_compatible(self, verbose: bool) -> bool:
        return self.compatible

    def load(self, verbose: bool) -> None:
        import time

        from torch.utils.file_baton import FileBaton

        baton = FileBaton(str(self.folder / "lock"))
        if not baton.try_acquire():
            baton.wait()
            return
        try:
            if (self.folder / "op.so").exists():
                return
            if self.fails:
                raise RuntimeError(self.fails)
            (self.folder / "build.ninja").write_text("build one.o: compile\nbuild two.o: compile\n")
            (self.folder / "one.o").touch()
            time.sleep(self.build_s)
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            with open(self.folder / "builds", "a") as builds:
                builds.write(f"{os.getpid()}\n")
            (self.folder / "op.so").touch()
        finally:
            baton.release()


def _prebuild(folder, op="cpu_adam", **builder):
    """prebuild with a stand-in; the problem's text where there is one."""
    from launcher.train import ops

    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    accelerator = type("Accelerator", (), {"create_op_builder": lambda self, name: Builder(folder / op, **builder)})
    ops.get_accelerator, ops.EVERY_S = accelerator, 0.2
    try:
        ops.prebuild([op])
    except LauncherError as error:
        return error.text()
    return ""


def test_one_rank_builds_and_the_others_wait_and_say_so(tmp_path):
    ends = fork_ranks(partial(_prebuild, build_s=1.0), tmp_path, world=2)
    said = sorted(end.output for end in ends)

    assert [end.value for end in ends] == ["", ""]
    assert len((tmp_path / "cpu_adam" / "builds").read_text().splitlines()) == 1
    assert said[0].startswith(f"building cpu_adam in {tmp_path / 'cpu_adam'}: ")
    assert said[1].startswith("waiting for cpu_adam, built elsewhere: ")
    assert "1 of 2 files, " in said[0]


def test_a_build_that_was_killed_does_not_stop_the_next_run(tmp_path):
    """Without our look at it, torch's lock file of a dead process is waited for, for ever."""
    [killed] = fork_ranks(partial(_prebuild, dies=True), tmp_path, world=1)
    lock = tmp_path / "cpu_adam" / "lock"
    assert (killed.exit_code, lock.exists()) == (-signal.SIGKILL, True)

    [end] = fork_ranks(_prebuild, tmp_path, world=1, timeout_s=20)

    assert (end.exit_code, end.value) == (0, "")
    assert f"removed {lock}: the process that built there has ended" in end.output
    assert (tmp_path / "cpu_adam" / "op.so").exists()


def _looked_at(folder, hold):
    """Seconds that clear_stale_lock waits for a process that does `hold` for a second, and what it says in the end."""
    import time

    from launcher.train.ops import clear_stale_lock

    if os.fork() == 0:
        hold(folder)
        os._exit(0)
    while not (folder / "lock").exists():
        time.sleep(0.01)
    begun = time.monotonic()
    return clear_stale_lock(folder), time.monotonic() - begun, (folder / "lock").exists()


def _build_elsewhere(folder):
    import time

    from torch.utils.file_baton import FileBaton

    baton = FileBaton(str(folder / "lock"))
    baton.try_acquire()
    time.sleep(1.0)
    baton.release()


def _compile_on(folder):
    """ninja and its compilers run in the folder, and go on when the rank that started them is killed."""
    import time

    os.chdir(folder)
    (folder / "lock").touch()
    time.sleep(1.0)


@pytest.mark.parametrize(("hold", "removed"), [(_build_elsewhere, False), (_compile_on, True)])
def test_a_living_build_is_waited_for(tmp_path, hold, removed):
    [(was_removed, waited_s, there)] = run_ranks(_looked_at, tmp_path, hold, world=1)

    assert (was_removed, there) == (removed, False)
    assert waited_s > 0.5


REFUSALS = {
    "no compiler": ("cpu_adam", {"CXX": "/nowhere/c++"}, {}, "there is no compiler '/nowhere/c++'", "apt-get install g++"),
    "no libaio": (
        "async_io",
        {},
        {"compatible": False},
        "NVMe needs libaio, and it is not installed",
        "apt-get install libaio-dev",
    ),
    "anything else": ("quantizer", {}, {"compatible": False}, "the wrong phase of the moon", "ds_report"),
    "a build that fails": (
        "cpu_adam",
        {},
        {"fails": "Error building extension\nFAILED: one.o\ncpu_adam.cpp:1:1: fatal error: no.h: No such file"},
        "cpu_adam could not be built: cpu_adam.cpp:1:1: fatal error: no.h: No such file",
        "look into",
    ),
}


def _refused(folder, op, environment, builder):
    os.environ.update(environment)
    return _prebuild(folder, op, **builder)


@pytest.mark.parametrize(("op", "environment", "builder", "what", "hint"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_cannot_be_built_is_refused_with_its_cure(tmp_path, op, environment, builder, what, hint):
    [text] = run_ranks(_refused, tmp_path, op, environment, builder, world=1)

    assert "[E568]" in text
    assert what in text
    assert hint in text.splitlines()[1]


def _without_ninja(folder):
    from launcher.train import ops

    ops._prefer_own_ninja = lambda: None
    (folder / "bin").mkdir()
    (folder / "bin" / "c++").symlink_to("/bin/true")
    os.environ["PATH"] = str(folder / "bin")
    return _prebuild(folder)


def test_without_ninja_the_cure_is_named(tmp_path):
    [text] = run_ranks(_without_ninja, tmp_path, world=1)

    assert text.endswith("there is no ninja\n  hint: pip install ninja")


def _own_ninja(folder):
    import shutil
    import sys

    (folder / "ninja").touch(mode=0o755)
    sys.executable = str(folder / "python")
    _prebuild(folder)
    return shutil.which("ninja")


def test_the_environments_own_ninja_comes_first_however_python_was_called(tmp_path):
    """Two versions of ninja do not read each other's logs: each would build everything again."""
    assert run_ranks(_own_ninja, tmp_path, world=1) == [str(tmp_path / "ninja")]
