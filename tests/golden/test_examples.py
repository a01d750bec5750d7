"""Every job file of examples/ is validated, planned and rendered by the commands a user types, where there is no GPU or hub."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from launcher.cli.main import main
from launcher.rundir.order import read_order
from launcher.spec.cluster import COMING
from launcher.spec.load import load_job

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
AWAY = [path for path in EXAMPLES if load_job(path).cluster.gpu]  # planned for named GPUs: the same on every machine

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no network, an empty folder."""

    def refuse(*args: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)


def answer_of(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    code = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.out + captured.err
    return json.loads(captured.out)


@each_example
def test_every_example_is_valid(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told, job = answer_of(capsys, "validate", example), load_job(example)
    assert (told["valid"], told["plan_checked"], told["job"]) == (True, True, job.name)
    assert told["stages"] == [stage.stage_name for stage in job.stages]


@each_example
def test_every_example_has_a_plan_for_every_stage(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, job = answer_of(capsys, "plan", example), load_job(example)
    assert [stage["name"] for stage in plan["stages"]] == [stage.stage_name for stage in job.stages]
    assert {stage["world"] for stage in plan["stages"]} == {
        (job.cluster.slots or plan["machine"]["slots"]) * (job.cluster.nodes or 1)
    }


@each_example
def test_every_example_is_rendered_whole(example: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told, job = answer_of(capsys, "render", example, "-o", tmp_path / "out"), load_job(example)
    rendered = tmp_path / "out" / "rendered"
    names = {f"rendered/{stage.stage_name}.{kind}.json" for stage in job.stages for kind in ("ds", "order")}
    names |= {"job.yaml", "job.json", "plan.json"}
    nodes = {"kubernetes": "rendered/kubernetes/job.yaml", "slurm": "rendered/job.sbatch"}
    if job.cluster.backend in COMING:
        assert names | {"rendered/planned.json", nodes[job.cluster.backend]} <= set(told["files"])
    else:
        assert names | {"rendered/hostfile", "rendered/commands.sh"} <= set(told["files"])
        lines = [line for line in (rendered / "commands.sh").read_text().splitlines() if "launcher.stages" in line]
        assert len(lines) == 1 + len(job.stages)  # prepare, then each stage
    for stage in job.stages:
        assert '"auto"' not in (rendered / f"{stage.stage_name}.ds.json").read_text()


@pytest.mark.parametrize("example", AWAY, ids=lambda path: path.stem)
def test_what_is_rendered_for_gpus_elsewhere_is_the_golden(
    example: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer_of(capsys, "render", example, "-o", tmp_path / "out")
    for golden in sorted((ROOT / "ds_configs" / example.stem).glob("*.json")):
        written = tmp_path / "out" / "rendered" / f"{golden.stem}.ds.json"
        assert json.loads(written.read_text()) == json.loads(golden.read_text()), golden.stem
        order = read_order(tmp_path / "out" / "rendered" / f"{golden.stem}.order.json")
        assert (order.device, order.precision) == ("cuda", "bf16")


def test_the_guide_is_one_of_them_and_needs_no_gpu_to_be_looked_at(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """PPO and DPO start from the SFT artifact, the reward model that was trained scores, and only PPO is not on 4 bit."""
    guide = ROOT / "examples" / "llama2_guide.yaml"
    assert guide in AWAY
    answer_of(capsys, "render", guide, "-o", tmp_path / "out")
    orders = {
        name: read_order(tmp_path / "out" / "rendered" / f"{name}.order.json") for name in ("sft", "reward", "ppo", "dpo")
    }
    assert {name: order.model for name, order in orders.items()} == {
        "sft": "base/model",
        "reward": "stages/sft/artifact",
        "ppo": "stages/sft/artifact",
        "dpo": "stages/sft/artifact",
    }
    assert {name: order.reward_model for name, order in orders.items()} == {
        "sft": None,
        "reward": None,
        "ppo": "stages/reward/artifact",
        "dpo": None,
    }
    assert {(order.world, order.micro_batch, order.grad_accum) for order in orders.values()} == {(8, 4, 1)}
