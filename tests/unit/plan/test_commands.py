"""`launcher plan`, `render` and `lint`, in this process: what they print, write and exit with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launcher.cli.main import main
from launcher.rundir.order import read_order

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # plan for CPU processes, whatever this machine has
    monkeypatch.delenv("LAUNCHER_RUNS", raising=False)


def test_plan_prints_one_row_for_each_stage_and_the_reasons(capsys):
    assert main(["plan", str(EXAMPLES / "tiny.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:8]] == ["pretrain", "sft", "reward", "dpo", "ppo"]
    assert any("[zero." in line for line in lines)
    assert not any(line.startswith("  not ") for line in lines)


def test_plan_all_lists_what_was_rejected(capsys):
    assert main(["plan", str(EXAMPLES / "tiny.yaml"), "--all"]) == 0
    assert "  not     ZeRO-0" in capsys.readouterr().out


def test_plan_json_is_one_object_and_nothing_else(capsys):
    assert main(["plan", str(EXAMPLES / "tiny.yaml"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["job"] == "tiny"
    assert [stage["name"] for stage in plan["stages"]] == ["pretrain", "sft", "reward", "dpo", "ppo"]


def test_plan_takes_overrides(capsys):
    assert main(["plan", str(EXAMPLES / "tiny.yaml"), "--json", "--set", "cluster.slots=1", "--set", "parallel.zero=3"]) == 0
    assert {(stage["world"], stage["zero"]) for stage in json.loads(capsys.readouterr().out)["stages"]} == {(1, 3)}


def test_a_plan_for_gpus_elsewhere_needs_neither_them_nor_the_network(capsys):
    assert main(["plan", str(EXAMPLES / "llama2_guide.yaml"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["machine"]["gpu"], plan["machine"]["slots"]) == ("h100-80gb", 8)


def test_an_illegal_plan_exits_with_3_and_names_the_line(capsys):
    assert main(["plan", str(EXAMPLES / "tiny.yaml"), "--set", "batch.global=33"]) == 3
    assert "--set batch.global [E204] batch.global: 33 is not a multiple of data-parallel" in capsys.readouterr().err


def test_nothing_is_written_by_plan(tmp_path):
    main(["plan", str(EXAMPLES / "tiny.yaml")])
    assert list(tmp_path.iterdir()) == []


def test_render_writes_a_whole_run_folder(tmp_path, capsys):
    assert main(["render", str(EXAMPLES / "tiny.yaml"), "-o", "out"]) == 0
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    stages = ("pretrain", "sft", "reward", "dpo", "ppo")
    rendered = {f"rendered/{stage}.{kind}.json" for stage in stages for kind in ("ds", "order")}
    assert files == {"job.yaml", "job.json", "plan.json", "rendered/commands.sh", "rendered/hostfile"} | rendered
    assert sorted(capsys.readouterr().out.split()) == sorted(str(tmp_path / "out" / name) for name in files)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    order = read_order(tmp_path / "out" / "rendered" / "ppo.order.json")
    assert (order.micro_batch, order.world) == (plan["stages"][-1]["micro_batch"], plan["stages"][-1]["world"])
    assert (tmp_path / "out" / "job.yaml").read_bytes() == (EXAMPLES / "tiny.yaml").read_bytes()


def test_render_writes_nothing_over(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert main(["render", str(EXAMPLES / "tiny.yaml"), "-o", "out"]) == 2
    assert "out [E119] is there already; nothing is written over" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == []


def test_lint_exits_with_2_for_errors_and_0_for_warnings(tmp_path, capsys):
    bad, fine = tmp_path / "bad.json", tmp_path / "fine.json"
    bad.write_text('{"train_batch_size": 8, "zero_optimizaton": {"stage": 3}}')
    fine.write_text('{"train_batch_size": 8, "optimizer": {"type": "Adam"}}')
    assert main(["lint", str(bad)]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == f"{bad}: 1 error, no warnings for DeepSpeed 0.19.8"
    assert main(["lint", str(fine)]) == 0
    assert capsys.readouterr().out.startswith(f"warning: {fine}:1:39 [E354] optimizer.type: Adam computes AdamW here")


def test_lint_json_tells_the_level_of_each_problem(tmp_path, capsys):
    path = tmp_path / "ds.json"
    path.write_text('{"train_batch_size": 8, "gradient_cliping": 1}')
    assert main(["lint", str(path), "--json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["code"], problem["level"], problem["where"]) == ("E303", "error", f"{path}:1:25")


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read: no such file"), (b"\xff\xfe", "is not UTF-8 text")])
def test_lint_says_why_a_file_cannot_be_read(tmp_path, capsys, content, message):
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_bytes(content)
    assert main(["lint", str(path)]) == 2
    assert message in capsys.readouterr().err
