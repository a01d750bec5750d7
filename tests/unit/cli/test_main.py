"""The command line's base: exit codes, where output goes, and that a command costs only its own imports."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher import __version__
from launcher.cli import main as cli
from launcher.cli.main import COMMANDS, main, make_parser
from launcher.errors import EXIT_CODES, LauncherError, Problem
from launcher.hosts.nodes.board import read_card
from launcher.hosts.nodes.place import SOURCES
from launcher.rundir.folder import RunDir
from tests.unit.spec.world import RIGHT

TINY = Path(__file__).parents[3] / "examples" / "tiny.yaml"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(TINY.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """`launcher schema` fails with `error`."""

    def run(args: Namespace) -> int:
        raise error

    monkeypatch.setattr(cli, "_command", lambda module: SimpleNamespace(add_arguments=lambda parser: None, run=run))


def test_every_command_has_a_module_help_and_a_description() -> None:
    parser = make_parser(COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            parser.parse_args([name, "--help"])
        assert end.value.code == 0


def test_every_command_that_reports_takes_json() -> None:
    parser = make_parser(COMMANDS)
    text = {name: parser._subparsers._group_actions[0].choices[name].format_help() for name in COMMANDS}  # type: ignore[union-attr,index]
    silent = {"schema", "logs"}  # one is JSON anyway, the other hands on what the ranks print
    assert {name for name in COMMANDS if "--json" not in text[name]} <= silent


def test_version_and_help_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"launcher {__version__}\n"
    assert main(["--help"]) == 0
    assert "validate" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv", [[], ["--nonsense"], ["validate"], ["validate", "x", "--nonsense"], ["vlidate"], ["validate", "x", "--js"]]
)
def test_wrong_usage_exits_with_2_and_says_how(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("[E111] launcher")
    assert "\n  hint: " in err


@pytest.mark.parametrize("band", EXIT_CODES)
def test_the_band_of_a_code_decides_the_exit_code(band: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = {"1": "E105", "2": "E201", "3": "E301", "4": "E401", "5": "E501", "9": "E901"}[band]
    failing(monkeypatch, LauncherError(Problem(code=code, where="", what="x", hint="y")))
    assert main(["schema"]) == EXIT_CODES[band]


def test_errors_go_to_stderr_or_as_one_json_object_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "/no/job.yaml"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", "/no/job.yaml [E101] does not exist")
    assert main(["validate", "/no/job.yaml", "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    assert set(json.loads(out)["errors"][0]) == {"code", "where", "what", "hint"}


def test_a_bug_is_ours_and_its_traceback_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    failing(monkeypatch, ZeroDivisionError("\x1b[31mno"))
    assert main(["schema"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "\x1b" not in err
    (kept,) = tmp_path.glob("launcher-bug-*.txt")
    assert str(kept) in err
    assert "ZeroDivisionError" in kept.read_text(encoding="utf-8")
    assert kept.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG])
def test_a_file_that_the_system_refuses_is_no_bug(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, OSError(number, os.strerror(number), "/runs/x/events.jsonl"))
    assert main(["schema"]) == 4
    assert capsys.readouterr().err.startswith(f"/runs/x/events.jsonl [E414] cannot be used: {os.strerror(number).lower()}")


def test_what_no_file_explains_stays_a_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, OSError(errno.EBADF, "Bad file descriptor"))
    assert main(["schema"]) == 1
    assert "[E901]" in capsys.readouterr().err


def test_a_stop_by_the_keyboard_exits_with_6(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert main(["schema"]) == 6


def test_validate_says_how_many_stages_and_json_says_which(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(job)]) == 0
    assert capsys.readouterr().out == f"{job}: 5 stages, valid\n"
    assert main(["validate", str(job), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "job": "tiny",
        "valid": True,
        "plan_checked": True,
        "stages": ["pretrain", "sft", "reward", "dpo", "ppo"],
    }


def test_validate_checks_the_plan_and_places_what_it_finds(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ("parallel.balance=time", "cluster.slots=2", "batch.micro=5")
    assert main(["validate", str(job), *(word for text in wrong for word in ("--set", text))]) == 3
    err = capsys.readouterr().err
    assert "--set parallel.balance [E221]" in err
    assert "[E204]" in err
    assert main(["validate", str(job), "--set", "cluster.backend=slurm"]) == 2
    assert "--set cluster.backend [E107] cluster.slurm.cpus: is missing" in capsys.readouterr().err


PODS = "{backend: kubernetes, kubernetes: {image: x, claim: runs, cpus: 2, memory_gib: 8}}"


def test_nodes_that_come_by_themselves_are_rendered_and_not_run(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pods = ("--set", f"cluster={PODS}")
    assert main(["validate", str(job), *pods]) == 0
    capsys.readouterr()
    assert main(["run", str(job), *pods, "--runs", str(tmp_path / "runs")]) == 4
    assert "[E401]" in (err := capsys.readouterr().err)
    assert "kubectl apply" in err
    assert main(["render", str(job), *pods, "-o", str(tmp_path / "a b")]) == 2
    assert "[E119]" in capsys.readouterr().err
    assert main(["render", str(job), *pods, "-o", str(tmp_path / "run-1")]) == 0
    out, err = capsys.readouterr()
    assert f"{tmp_path}/run-1/rendered/kubernetes/job.yaml" in out.splitlines()
    assert err == f"start it with: kubectl apply -f {tmp_path}/run-1/rendered/kubernetes\n"


def test_a_node_says_who_told_it_its_place_or_that_nobody_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in SOURCES:
        monkeypatch.delenv(source.node, raising=False)
    assert main(["node", str(tmp_path / "run"), "--from", str(tmp_path)]) == 4
    assert "[E440] nobody tells which node this is" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_node_that_refuses_says_so_on_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in SOURCES:
        monkeypatch.delenv(source.node, raising=False)
    for name, value in {"JOB_COMPLETION_INDEX": "1", "LAUNCHER_NODES": "2", "LAUNCHER_MASTER": "node0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("launcher.hosts.nodes.follow.REFUSAL_S", -1.0)
    code = main(["node", str(tmp_path), "--from", str(tmp_path / "nowhere")])
    card = read_card(RunDir(tmp_path), 1)
    assert card is not None
    assert (code, len(card.refusal)) == (5, 1)


def test_validate_asks_no_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(RIGHT.replace("owner/model", "nobody/no-such-model"), encoding="utf-8")
    env = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    env.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "validate", str(path)], env=env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"{path}: 3 stages, valid\n")
    assert "not checked against the plan" in done.stderr


def test_a_reader_that_leaves_early_makes_no_noise() -> None:
    script = f"{sys.executable} -m launcher schema | head -c 10"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_output_that_the_terminal_cannot_encode_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "jöb.yaml"
    path.write_text("", encoding="utf-8")
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "validate", str(path)], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "j\\xf6b.yaml [E102] the file is empty" in done.stderr


FULL = Path("/dev/full")
SHOWN = [["schema"], ["--help"], ["plan", "--help"], ["plan", str(TINY)], ["plan", str(TINY), "--json"]]


def launched(words: list[str], **streams: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "launcher", *words]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, **streams)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_a_reader_that_has_gone_away_changes_nothing(words: list[str]) -> None:
    child = launched(words, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    assert (child.communicate()[1], child.returncode) == ("", 0)


def test_a_failure_is_one_whoever_reads_it(tmp_path: Path) -> None:
    for as_json in ([], ["--json"]):
        child = launched(["validate", str(tmp_path / "none.yaml"), *as_json], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.close()
        child.communicate()
        assert child.returncode == 2


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_what_cannot_be_kept_is_an_error_and_no_traceback(words: list[str]) -> None:
    with FULL.open("w") as full:
        child = launched(words, stdout=full)
        told = child.communicate()[1]
    assert child.returncode == EXIT_CODES["4"]
    assert told == "stdout [E414] cannot be written: no space left on device\n  hint: send it where there is room\n"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model_type": "llama", "a": ' + "[" * 100_000 + "]" * 100_000 + "}"])
def test_a_config_that_is_nested_without_end_is_an_error_of_the_file(tmp_path: Path, job: Path, text: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(text)
    model = "{source: " + str(tmp_path / "model") + "}"
    told = subprocess.run(
        [sys.executable, "-m", "launcher", "plan", str(job), "--set", f"model={model}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "model/config.json [E213]" in told.stderr
    assert "nested too deeply" in told.stderr
    assert "E901" not in told.stderr


def test_an_empty_folder_of_runs_is_a_mistake(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(job), "--runs", ""]) == 2
    assert "[E111] launcher plan: argument --runs: an empty name is no folder" in capsys.readouterr().err
