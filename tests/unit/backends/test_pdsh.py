"""The script for `deepspeed --launcher pdsh`: what it starts, what it hands on, and what it refuses instead of changing it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.backends import pdsh, ssh
from launcher.backends.request import LaunchRequest
from launcher.plan.make import make_plan
from launcher.plan.plan import Machine
from launcher.plan.shape import shape_of_new
from launcher.rundir.folder import RunDir
from launcher.spec.load import open_job_text
from launcher.units import GIB

STAGE = {"data": {"source": "python-docs", "max_tokens": 64}, "steps": 5}
JOB = {
    "name": "job",
    "model": {
        "new": {"family": "llama", "layers": 2, "hidden": 64, "heads": 4, "positions": 256},
        "tokenizer": {"train": {"vocab": 512}},
    },
    "batch": {"global": 8},
    "stages": [{**STAGE, "kind": "pretrain"}, {**STAGE, "kind": "sft"}],
}
CPUS = Machine.of_cpus(slots=2, memory_bytes=16 * GIB, cores=8, disk_free_bytes=None, nodes=2, hosts=("b2", "a1"))
GPUS = replace(CPUS, device="cuda", gpu="h100-80gb", memory_bytes=79 * GIB, devices=(0, 1))
PREPARE = LaunchRequest(stage="prepare", argv=("true",), env=(), world=1)
# What stands for Python: it notes what it was given, and leaves the markers of four ranks, or of three.
FAKE = """#!/bin/sh
exec >>NOTES
printf '%s\\n' "$DS_ENV_FILE" "$DS_ACCELERATOR" "$PWD"
printf '%s\\n' "$PDSH_SSH_ARGS_APPEND" "-$MLFLOW_TRACKING_TOKEN$PYTHONPATH$UCX_TLS-" "$@"
for stage; do :; done
for rank in RANKS; do mkdir -p "RUN/stages/$stage/done" && touch "RUN/stages/$stage/done/rank$rank.json"; done
"""


def files(
    machine: Machine = CPUS, *, path: str = "/runs/job/id", python: str = "/opt/venv/bin/python", **cluster: object
) -> dict[str, str]:
    text = json.dumps({**JOB, "cluster": {"backend": "ssh", "hosts": list(machine.hosts), "slots": 2, **cluster}})
    loaded = open_job_text(text, file_name="job.yaml", folder=Path("."))
    new = loaded.job.model.new
    assert new is not None
    plan = make_plan(loaded.job, machine=machine, shape=shape_of_new(new, 512), places=loaded.places)
    run = RunDir(Path(path))
    orders = [ssh.fleet_order(loaded.job, plan, run, stage.name) for stage in plan.stages]
    return pdsh.script(loaded.job, machine, run, orders, prepare=PREPARE, python=python, port=29500)


def run_script(text: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, check=False, env={**os.environ, **env})


def fake(tmp_path: Path, *, ranks: str = "0 1 2 3") -> str:
    python = tmp_path / "python"
    notes, run = tmp_path / "notes", tmp_path / "a run"
    python.write_text(FAKE.replace("NOTES", str(notes)).replace("RUN", str(run)).replace("RANKS", ranks))
    python.chmod(0o755)
    return str(python)


def test_each_stage_is_started_by_deepspeed_with_its_own_environment_and_nothing_of_this_shell(tmp_path):
    run = tmp_path / "a run"
    text = files(path=str(run), python=fake(tmp_path), ssh_config="/etc/hosts")["commands.sh"]
    for rank in range(4):  # of an earlier attempt
        (run / "stages/sft/done").mkdir(parents=True, exist_ok=True)
        (run / f"stages/sft/done/rank{rank}.json").touch()
    done = run_script(text, MLFLOW_TRACKING_TOKEN="a secret\nMLFLOW_X=y", PYTHONPATH="/x", UCX_TLS="tcp")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "notes").read_text().splitlines()
    runner = ["-X", "utf8", "-u", "-P", "-m", "deepspeed.launcher.runner", "--hostfile", f"{run}/rendered/hostfile"]
    runner += ["--launcher", "pdsh", "--force_multi", "--no_ssh_check", "--master_addr", "b2", "--master_port", "29500"]
    runner += ["--no_local_rank", "--module", "launcher.stages", "train", str(run)]
    expected = []
    for stage in ("pretrain", "sft"):
        config = "-F /etc/hosts -oBatchMode=yes -oStrictHostKeyChecking=yes -oServerAliveInterval=2 -oServerAliveCountMax=3"
        shell = [f"{run}/rendered/{stage}.env", "cpu", "/", f"{config} -oControlMaster=no -oControlPath=none -oLogLevel=ERROR"]
        expected += [*shell, "--", *runner, stage]
    assert lines == expected


def test_a_rank_without_its_marker_is_a_failure_whatever_deepspeed_says(tmp_path):
    text = files(path=str(tmp_path / "a run"), python=fake(tmp_path, ranks="0 1 3"))["commands.sh"]
    done = run_script(text)
    assert done.returncode == 5
    assert "rank 2 has not finished" in done.stderr
    assert (tmp_path / "notes").read_text().count("launcher.stages") == 1


def test_the_environment_is_a_file_of_assignments_that_deepspeed_can_read():
    env = files(GPUS, env={"NCCL_DEBUG": "INFO", "NOTE": "it's a=b, *;&|"})["sft.env"]
    values = dict(line.split("=", 1) for line in env.splitlines())
    assert values["NOTE"] == "it's a=b, *;&|"
    assert (values["NCCL_DEBUG"], values["DS_ACCELERATOR"], values["LAUNCHER_RUN"]) == ("INFO", "cuda", "/runs/job/id")
    assert values["PYTHONPATH"] == ""  # DeepSpeed would put its working folder there
    assert files(env={"PYTHONPATH": "/ours"})["sft.env"].count("PYTHONPATH") == 1


@pytest.mark.parametrize(
    ("machine", "include"),
    [
        (CPUS, None),
        (GPUS, None),
        (replace(GPUS, devices=(2, 3)), "b2:2,3@a1:2,3"),
        (replace(GPUS, devices=(0, 3)), "b2:0,3@a1:0,3"),
        (replace(CPUS, hosts=("b2",), nodes=1), None),
    ],
)
def test_slots_are_included_where_not_all_are_meant(machine: Machine, include: str | None):
    lines = [line for line in files(machine)["commands.sh"].splitlines() if line.startswith("deepspeed --hostfile")]
    assert len(lines) == 2
    assert all(("--include" in line) == bool(include) for line in lines)
    assert all(f"--include {include} " in line for line in lines if include)


def test_the_hostfile_has_every_slot_that_is_included():
    assert ssh.hostfile_text(GPUS) == "b2 slots=2\na1 slots=2\n"
    assert ssh.hostfile_text(replace(GPUS, devices=(0, 3))) == "b2 slots=4\na1 slots=4\n"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        *(({"env": {"NOTE": f"a{sign}b"}}, f"cluster.env.NOTE: its value has {sign}, which") for sign in '"$`\\!%'),
        ({"env": {"NOTE": " a"}}, "cluster.env.NOTE: its value begins or ends with a blank"),
        ({"env": {"NOTE": "a\u00a0"}}, "cluster.env.NOTE: its value has characters"),
        ({"env": {"UID": "7"}}, "cluster.env.UID: the hosts' shell sets this variable itself"),
        ({"secrets": ["WANDB_API_KEY"]}, "cluster.secrets: the value of WANDB_API_KEY would be in the command line"),
        ({"path": "/runs/it's"}, "the run folder: /runs/it's is not quoted on the way"),
        ({"path": "/runs/a $b"}, "the run folder: /runs/a $b has $, which"),
        ({"path": "/runs/a\n; b"}, "has characters that are not text in one line"),
        ({"path": "/runs/é"}, "the run folder: /runs/é is not quoted on the way"),
        ({"python": "/a b/python"}, "the path of Python: /a b/python is not quoted on the way"),
        ({"machine": replace(CPUS, hosts=("fe80::1", "a1")), "hosts": ["x", "a1"]}, "host fe80::1: pdsh takes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_arrive_as_something_else_is_refused_by_name(what: dict, said: str):
    written = files(what.pop("machine", CPUS), **what)
    assert list(written) == ["commands.sh"]
    done = run_script(written["commands.sh"])
    assert done.returncode == 2
    assert said in done.stderr
    assert "launcher run" in done.stderr
    assert done.stdout == ""


def test_a_configuration_of_ssh_that_pdsh_would_split_is_refused(tmp_path):
    (tmp_path / "a b").touch()
    done = run_script(files(ssh_config=str(tmp_path / "a b"))["commands.sh"])
    assert done.returncode == 2
    assert f"cluster.ssh_config: {tmp_path}/a b is not quoted on the way" in done.stderr


def test_everything_that_is_refused_is_told_at_once_and_once():
    done = run_script(files(env={"A": "$x", "B": "`y`"}, secrets=["WANDB_API_KEY"])["commands.sh"])
    assert [line.split(":")[0] for line in done.stderr.splitlines()[1:-1]] == [
        "cluster.secrets",
        "cluster.env.A",
        "cluster.env.B",
    ]
