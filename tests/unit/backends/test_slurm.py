"""What is said to SLURM and to mpirun: as scripts that a real shell reads, and what is heard from squeue."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from launcher.backends import registry, slurm
from launcher.errors import LauncherError
from launcher.plan.make import make_plan
from launcher.rundir.folder import RunDir
from launcher.spec.load import open_job_text
from launcher.supervise.facts import coming_nodes, find_shape, machine_here
from tests.unit.backends.test_local import HOSTILE

JOB = """
name: job_1
model: {new: {family: llama, layers: 2, hidden: 64, heads: 4, positions: 256}, tokenizer: {train: {vocab: 512}}}
cluster: %s
batch: {global: 24}
stages:
  - {kind: pretrain, data: {source: python-docs, max_tokens: 64}, steps: 10}
"""
SLURM = {"cpus": 4, "memory_gib": 8}


def job_with(cluster: dict[str, object]):  # type: ignore[no-untyped-def]
    return open_job_text(JOB % json.dumps(cluster), file_name="job.yaml", folder=Path("/nowhere"))


def script(path: Path | str = "/somewhere/one", **fields: object) -> str:
    gpu = fields.pop("gpu", None)
    cluster = {"backend": "slurm", "nodes": 3, "slots": 2, "slurm": {**SLURM, **fields}, **({"gpu": gpu} if gpu else {})}
    loaded = job_with(cluster)
    plan = make_plan(loaded.job, machine=coming_nodes(loaded.job.cluster), shape=find_shape(loaded.job), places=loaded.places)
    return slurm.rendered(loaded.job, plan, RunDir(Path(path)), {})[slurm.SCRIPT]


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")]


def asked(text: str, folder: Path, *words: str) -> tuple[list[str], str]:
    """What a shell makes of the script: the argv of srun or mpirun, and what is written on stdout."""
    spy = folder / "spy"
    spy.mkdir()
    for name in ("srun", "mpirun"):
        (spy / name).write_text(
            '#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >"$SEEN"; echo talk; echo "$LAUNCHER_MASTER" >&2\n'
        )
        (spy / name).chmod(0o755)
    (folder / "script").write_text(text)
    env = {"PATH": f"{spy}:{os.environ['PATH']}", "SEEN": str(folder / "seen")}
    done = subprocess.run(["sh", str(folder / "script"), *words], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return (folder / "seen").read_text().split("\0")[:-1], done.stderr


def test_one_task_on_each_node_with_the_cores_said_twice(tmp_path: Path) -> None:
    text = script()
    assert {"nodes=3", "ntasks-per-node=1", "cpus-per-task=4", "mem=8G", "requeue", "signal=USR1@900"} <= set(directives(text))
    words, _ = asked(text, tmp_path)
    assert {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--cpus-per-task=4", "--kill-on-bad-exit=0"} <= set(words)
    assert words[words.index("launcher") :] == ["launcher", "node", "/somewhere/one", "--from", "/somewhere/one"]


def test_gpus_are_asked_for_by_the_name_that_the_cluster_has_for_them() -> None:
    assert "gres=gpu:2" in directives(script(gpu="h100-80gb"))
    assert "gres=gpu:h100:2" in directives(script(gpu="h100-80gb", gres="gpu:h100"))
    assert not [line for line in directives(script()) if line.startswith("gres")]


def test_what_the_job_says_stands_in_the_script() -> None:
    told = directives(
        script(partition="gpu", account="a-1", qos="high", minutes=90, leave_s=120, exclusive=True, requeue=False)
        + script(options={"nodelist": "node[1-3]", "mail-type": "END"}, constraint="h100&ib")
    )
    assert {"partition=gpu", "account=a-1", "qos=high", "time=90", "signal=USR1@120", "exclusive", "no-requeue"} <= set(told)
    assert {"nodelist=node[1-3]", "mail-type=END", "constraint=h100&ib"} <= set(told)


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"options": {"nodes": "4"}}, "E109", "cluster.nodes decides it"),
        ({"options": {"mem": "4G"}}, "E109", "slurm.memory_gib decides it"),
        ({"options": {"output": "x"}}, "E109", "lies in its folder"),
        ({"options": {"gpus-per-socket": "2"}}, "E109", "slurm.gres decide it"),
        ({"options": {"export": "NONE"}}, "E109", "cluster.secrets decide it"),
        ({"options": {"clusters": "east"}}, "E109", "the cluster of this host"),
        ({"options": {"chdir": "tmp"}}, "E109", "starts where it is submitted"),
        ({"options": {"time-min": "5"}}, "E109", "slurm.minutes decides it"),
        ({"options": {"outp": "x"}}, "E109", "sbatch may read it as output, and the talk of a run lies in its folder"),
        ({"options": {"nice": "1 --wrap=id"}}, "E106", "is not a value of sbatch"),
        ({"partition": "a\n#SBATCH --uid=0"}, "E106", "is not a value of sbatch"),
        ({"options": {"Foo": "1"}}, "E106", "is not the long name of an option"),
        ({"minutes": 5, "leave_s": 240}, "E109", "hint: use leave_s: 150 where ranks save within that, or minutes: 6 or more"),
        ({"minutes": 16}, "E109", "900 s before a limit of 16 min is before the first step"),
        ({"cpus": None}, "E107", "one core"),
        ({"memory_gib": None}, "E107", "cores and memory"),
    ],
)
def test_what_would_be_overruled_or_is_missing_is_refused(fields: dict[str, object], code: str, said: str) -> None:
    with pytest.raises(LauncherError) as caught:
        script(**fields)
    assert [problem.code for problem in caught.value.problems] == [code]
    assert said in caught.value.text()


@pytest.mark.parametrize("option", ["nodelist", "exclude", "mail-type", "begin", "deadline", "dependency", "nice", "bb"])
def test_other_options_of_sbatch_are_handed_on(option: str) -> None:
    assert f"{option}=1" in directives(script(minutes=17, options={option: "1"}))


def test_the_name_of_a_job_is_one_word_without_commas() -> None:
    """`squeue --name` splits at commas, a line of sbatch at blanks and quotes; the comment has the folder as it is."""
    told = directives(script("/a/100%j runs & `id` ✓/one,two"))
    assert "job-name=100_j_runs____id___.one_two" in told
    assert 'comment="/a/100%j runs & `id` ✓/one,two"' in told


@pytest.mark.parametrize("name", ["with blank", "100%j", "it$HOME`id`", "ä✓", "a;b&c|d", "#x"])
def test_a_path_stands_in_both_kinds_of_line_as_it_is(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    text = script(folder)
    words, _ = asked(text, tmp_path, "--stage", "a b")
    assert words[-5:] == [str(folder), "--from", str(folder), "--stage", "a b"]
    output = next(line for line in directives(text) if line.startswith("output="))
    assert output == f'output="{folder}/controller.log"'.replace("%", "%%")


@pytest.mark.parametrize("name", ['dou"ble', "it's", "back\\slash", "new\nline"])
def test_a_path_that_a_line_of_sbatch_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(LauncherError, match="E443"):
        script(f"/somewhere/{name}")


def test_what_squeue_says_is_read_to_the_comment(tmp_path: Path) -> None:
    told = "12|RUNNING|node[1-2]|None|/runs/a|b\n13|PENDING||Resources|/runs/c\n14|TIMEOUT|node3|TimeLimit|/runs/d\nodd\n"
    (first, comment), (second, _), (third, _) = slurm.parse_states(told)
    assert (first.text(), comment) == ("SLURM job 12: RUNNING on node[1-2]", "/runs/a|b")
    assert (second.text(), second.waits, second.over) == ("SLURM job 13: PENDING (Resources)", True, False)
    assert (third.waits, third.over) == (False, True)


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ("12|CANCELLED by 0|None assigned|a.b\n", "SLURM job 12: CANCELLED"),
        ("12|OUT_OF_MEMORY|node[1-2]|a.b\n", "SLURM job 12: OUT_OF_MEMORY on node[1-2]"),
        ("12|COMPLETED|node1|other.run\n12|TIMEOUT|node3|a.b\n", "SLURM job 12: TIMEOUT on node3"),
    ],
)
def test_what_sacct_says_is_the_end_of_the_runs_own_job(told: str, text: str) -> None:
    state = slurm.parse_account(told, RunDir(Path("/runs/a/b")))
    assert state is not None
    assert (state.text(), state.over) == (text, True)


@pytest.mark.parametrize("told", ["", "odd\n", "12|RUNNING|node1|a.b\n", "12||node1|a.b\n", "12|FAILED|node1|other.run\n"])
def test_accounts_that_do_not_know_an_end_say_nothing(told: str) -> None:
    assert slurm.parse_account(told, RunDir(Path("/runs/a/b"))) is None


@pytest.mark.parametrize("text", ["", "\n", "sbatch: error", "12a", "-3"])
def test_a_number_of_a_job_is_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="no number"):
        slurm.submitted_job(text)


def test_the_number_of_a_job_in_one_of_several_clusters() -> None:
    assert slurm.submitted_job("some words of a plugin\n4711;east\n") == "4711"


def test_mpirun_starts_one_process_on_each_host_and_hands_names_on_not_values(tmp_path: Path) -> None:
    loaded = job_with({"backend": "mpi", "hosts": ["n1", "n2"], "slots": 2, "gpu": "h100-80gb", "secrets": ["HF_TOKEN"]})
    plan = make_plan(loaded.job, machine=coming_nodes(loaded.job.cluster), shape=find_shape(loaded.job), places=loaded.places)
    backend = registry.load_backend("mpi")
    assert isinstance(backend, registry.Starts)
    folder = tmp_path / HOSTILE[0].replace("/", "")[:40]
    files = backend.rendered(loaded.job, plan, RunDir(folder), {})
    words, said = asked(files["mpirun.sh"], tmp_path, "--stage", "x")
    assert words[words.index("--host") + 1] == "n1,n2"
    assert [words[at + 1] for at, word in enumerate(words) if word == "-x"] == ["LAUNCHER_MASTER", "HF_TOKEN"]
    assert words[-6:] == ["node", str(folder), "--from", str(folder), "--stage", "x"]
    assert said == "n1\n"
    assert files["hostfile"] == "n1 slots=2\nn2 slots=2\n"


def test_hosts_of_mpirun_are_as_this_machine_is_and_all_alike(tmp_path: Path) -> None:
    here = machine_here(job_with({"backend": "mpi", "hosts": ["n1", "n2", "n3"]}).job.cluster, runs_root=tmp_path, environ={})
    assert (here.hosts, here.nodes, here.world) == (("n1", "n2", "n3"), 3, 3)
    (tmp_path / "hosts").write_text("n1 slots=2\nn2 slots=1\n")
    odd = job_with({"backend": "mpi", "hostfile": str(tmp_path / "hosts")})
    with pytest.raises(LauncherError, match=r"E403.*n2 takes slots 0"):
        machine_here(odd.job.cluster, runs_root=tmp_path, environ={})
