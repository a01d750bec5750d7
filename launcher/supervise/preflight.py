"""Everything that can be known to fail before the first process starts: all problems at once. DO, only looking.

Disk space is judged by the plan, which knows what each stage writes (E211); shapes and paths by the job's loading.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from launcher.backends.registry import Starts, load_backend
from launcher.errors import LauncherError, Problem
from launcher.hosts.checks.fitness import RANK_PACKAGES, memory_problems
from launcher.hosts.checks.needs import planned_needs
from launcher.hosts.checks.symptom import Symptom
from launcher.hosts.machine.capacity import free_memory_bytes, used_bytes
from launcher.hosts.machine.gpus import find_gpus
from launcher.plan.asked import parallel_of
from launcher.plan.plan import Plan
from launcher.rundir.folder import RunDir, write_json
from launcher.spec.job import JobSpec
from launcher.supervise.doctor import check_hosts_for, is_remote
from launcher.supervise.packages import missing_package, version
from launcher.units import bytes_text

PACKAGES = RANK_PACKAGES


def check(job: JobSpec, plan: Plan, *, writable: Path) -> list[Symptom]:
    """What is odd and does not stop the run. LauncherError with every E4xx problem, of this machine and of every host.

    `writable` is the run folder, or its nearest parent where it is not made yet.
    """
    problems = here_problems(job, plan, writable=writable)
    symptoms: list[Symptom] = []
    if is_remote(job.cluster):
        symptoms += check_hosts_for(job, plan, folder=writable).symptoms
    problems += [one.problem for one in symptoms if one.stops]
    if problems:
        raise LauncherError(problems)
    return [one for one in symptoms if not one.stops]


def check_outside(job: JobSpec, plan: Plan, *, writable: Path) -> None:
    """LauncherError with every outside problem."""
    if problems := outside_problems(job, plan, writable=writable):
        raise LauncherError(problems)


def outside_problems(job: JobSpec, plan: Plan, *, writable: Path) -> list[Problem]:
    """What shows from here where the ranks and their controller will be on nodes that come by themselves."""
    problems = job_problems(job, writable=writable)
    backend = load_backend(job.cluster.backend)
    assert isinstance(backend, Starts)
    if shutil.which(program := backend.program(os.environ)) is None:
        hint = "run it where it is, on a login node or inside an allocation, or install it"
        problems.append(Problem(code="E445", where=program, what="is not installed here, and would start the nodes", hint=hint))
    if (nodes := backend.num_nodes(os.environ)) is not None and nodes != plan.machine.nodes:
        what = f"the allocation has {nodes} nodes, the plan is for {plan.machine.nodes}"
        hint = f"set cluster.nodes to {nodes}, or allocate {plan.machine.nodes}"
        problems.append(Problem(code="E441", where="cluster.nodes", what=what, hint=hint))
    for number, name in enumerate(job.cluster.secrets):
        if name not in os.environ:
            where, hint = f"cluster.secrets.{number}", f"export {name}=… in this shell, or remove the name"
            problems.append(Problem(code="E444", where=where, what=f"{name} is not set in this shell", hint=hint))
    return problems


def here_problems(job: JobSpec, plan: Plan, *, writable: Path) -> list[Problem]:
    """Every E4xx problem of this machine. Where the ranks are on other hosts, it only prepares and controls."""
    problems = job_problems(job, writable=writable)
    if is_remote(job.cluster):
        return problems
    return [*problems, *_nvme_problems(job, plan), *_memory_problems(job, plan)]


def job_problems(job: JobSpec, *, writable: Path) -> list[Problem]:
    """Those that can be told without a plan."""
    problems = load_backend(job.cluster.backend).find_problems(job)
    problems += write_problems(writable)
    problems += package_problems(*(["bitsandbytes"] if job.model.quantize else []))
    problems += _path_problems(job)
    return problems


def write_problems(folder: Path) -> list[Problem]:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    what = _refusal_to_write(folder)
    hint = "choose another folder with --runs or LAUNCHER_RUNS"
    return [Problem(code="E404", where=str(folder), what=what, hint=hint)] if what else []


def _refusal_to_write(folder: Path) -> str | None:
    """What the system says to a new file in `folder`; None: it can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"cannot be written: {error.strerror}"


def _nvme_problems(job: JobSpec, plan: Plan) -> list[Problem]:
    """A folder that is not there DeepSpeed makes itself: where the disk is not mounted, on another one."""
    needed: dict[str, int] = {}  # bytes of this host's ranks, in the stage that takes the most
    for stage in job.stages:
        path, per_rank = parallel_of(job, stage).nvme_path, plan.stage(stage.stage_name).memory.nvme_bytes
        if path is not None:
            needed[path] = max(needed.get(path, 0), plan.machine.slots * per_rank)
    problems = []
    for path, need in needed.items():
        what = _refusal_to_write(Path(path)) or _lack_of_room(Path(path), need)
        hint = f"make it on a fast local disk (mkdir -p {shlex.quote(path)}), or name another one in offload.nvme_path"
        problems += [Problem(code="E415", where=path, what=what, hint=hint)] if what else []
    return problems


def _lack_of_room(folder: Path, need: int) -> str | None:
    """What swap files lack; those of a run before are written over. None: there is room."""
    there = shutil.disk_usage(folder).free + used_bytes(folder / "zero_stage_3")
    return None if need <= there else f"takes {bytes_text(there)}, swap files need {bytes_text(need)}"


def package_problems(*more: str) -> list[Problem]:
    """Installed, or not; nothing is imported. The `deepspeed` command must be that of this Python."""
    missing = [name for name in (*PACKAGES, *more) if version(name) is None]
    problems = [missing_package(name) for name in missing]
    command = Path(sys.executable).parent / "deepspeed"
    if "deepspeed" not in missing and not os.access(command, os.X_OK):
        what = f"the command {command} is missing, though the package is installed"
        hint = f"{sys.executable} -m pip install --force-reinstall --no-deps deepspeed"
        problems.append(Problem(code="E407", where="deepspeed", what=what, hint=hint))
    return problems


def _path_problems(job: JobSpec) -> list[Problem]:
    """Local paths are absolute in a loaded job, and were there when it was loaded: a resumed run may be days younger."""
    paths = {"model.source": job.model.source, "model.tokenizer": job.model.tokenizer}
    for stage in job.stages:
        paths[f"stages.{stage.stage_name}.data.source"] = stage.data.source
        held_out = stage.data.held_out
        paths[f"stages.{stage.stage_name}.data.held_out.source"] = getattr(held_out, "source", None)
    return [
        Problem(code="E408", where=path, what=f"{field}: the path is gone", hint="restore it, or correct the job file")
        for field, path in paths.items()
        if isinstance(path, str) and path.startswith("/") and not os.path.exists(path)
    ]


def _memory_problems(job: JobSpec, plan: Plan) -> list[Problem]:
    """Free now against the planned peak of the largest stage: of the host, and of every GPU that is meant."""
    needs = planned_needs(job, plan)
    meant = [gpu for gpu in find_gpus({}) if gpu.number in plan.machine.devices] if needs.gpu_bytes else []
    return memory_problems("", needs, free_bytes=free_memory_bytes(), gpus=meant)


def record_versions(run: RunDir) -> None:
    """versions.json: what this run is made with on this host. The ranks use the same Python."""
    packages = {name: version(name) for name in ("zerolaunch", *PACKAGES, "bitsandbytes", "pydantic", "huggingface-hub")}
    facts = {"python": platform.python_version(), "system": platform.platform(), "host": socket.gethostname()}
    write_json(run.path / "versions.json", {"schema": 1, **facts, "packages": packages})
