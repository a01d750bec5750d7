"""Families of no table on the control side: small processes in place of the one that builds the model."""

from __future__ import annotations

import json
import sys

import pytest

from launcher.backends import local
from launcher.backends.request import TOKEN, LaunchRequest
from launcher.cli.main import main
from launcher.errors import LauncherError
from launcher.plan.kept import kept_of_block
from launcher.plan.parameters import causal_parameters, lora_parameters
from launcher.plan.shape import shape_from_blueprint
from launcher.spec.load import open_job_text
from launcher.spec.model import Lora
from launcher.supervise import drafting
from launcher.supervise.blueprints import blueprint_path, kept_shapes, read_blueprint
from launcher.supervise.drafting import drafted_shapes
from launcher.supervise.planning import plan_of
from tests.unit.cli.cases import BLUEPRINT

STORED = json.loads(BLUEPRINT.read_text(encoding="utf-8"))
CONFIG, TOLD = STORED["config"], STORED["blueprint"]
JOB = """\
name: job
model: {source: ./olmo2}
cluster: {gpu: h100-80gb, slots: 8}
batch: {global: 64}
stages: [{kind: sft, data: {source: python-docs, max_tokens: 128}}]
"""
PROCESS = """
import json, sys
from pathlib import Path
folder, told = Path(sys.argv[1]), sys.argv[2]
assert json.loads((folder / "config.json").read_text())["model_type"] == "olmo2"
if told == "hang":
    import time; time.sleep(60)
if told == "die":
    raise SystemExit("no module named torch")
name = "problems.json" if "problems" in json.loads(told) else "blueprint.json"
(folder / name).write_text(told)
"""


@pytest.fixture
def builds(monkeypatch):
    """Replaces the process by one that leaves `told`; the list grows with each that is started."""
    started = []

    def answer(told: str) -> list[str]:
        def request(run):
            started.append(str(run.path))
            argv = (sys.executable, "-S", "-c", PROCESS, str(run.path), told)
            return LaunchRequest(stage="blueprint", argv=argv, env=((TOKEN, str(run.path)),), world=1)

        monkeypatch.setattr(local, "blueprint_request", request)
        monkeypatch.setattr(drafting, "version", TOLD.get)  # as if what is stored were built here
        return started

    return answer


def test_a_model_is_measured_once_and_its_answer_kept(builds, tmp_path):
    started = builds(json.dumps(TOLD))
    for _ in range(2):
        shape = drafted_shapes(tmp_path)(CONFIG, "config.json")
        assert causal_parameters(shape) == TOLD["parameters"]
    assert len(started) == 1
    assert kept_shapes(tmp_path)(CONFIG, "config.json") == shape
    assert [path.name for path in (tmp_path / ".cache/blueprints").iterdir()] == [blueprint_path(tmp_path, CONFIG).name]


@pytest.mark.parametrize("other", [CONFIG | {"vocab_size": 1004}, CONFIG | {"model_type": "olmo3"}])
def test_another_config_is_another_model(tmp_path, other):
    assert blueprint_path(tmp_path, other) != blueprint_path(tmp_path, CONFIG)


def test_another_transformers_measures_anew(builds, tmp_path, monkeypatch):
    started = builds(json.dumps(TOLD))
    drafted_shapes(tmp_path)(CONFIG, "config.json")
    monkeypatch.setattr(drafting, "version", lambda name: "99.0")
    drafted_shapes(tmp_path)(CONFIG, "config.json")
    assert len(started) == 2


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": 2},
        {"parameters": TOLD["parameters"] + 1},
        {"block": TOLD["block"][1:]},
        {"shape": TOLD["shape"] | {"colour": 3}},
        {"linears": [{"name": "q_proj"}]},
        {"behind": "none"},
        {"before": [{"name": "embed", "size": [-1, 2]}]},
    ],
)
def test_a_file_that_is_not_what_was_built_is_made_anew(builds, tmp_path, damage):
    path = blueprint_path(tmp_path, CONFIG)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(TOLD | damage))
    assert read_blueprint(path) is None
    assert builds(json.dumps(TOLD)) == []
    drafted_shapes(tmp_path)(CONFIG, "config.json")
    assert read_blueprint(path) is not None


def refusal(tmp_path, config=CONFIG) -> str:
    with pytest.raises(LauncherError) as caught:
        drafted_shapes(tmp_path)(config, "model/config.json")
    return caught.value.text()


def test_what_the_process_says_of_the_config_is_said_under_the_users_name_of_it(builds, tmp_path):
    problem = {"code": "E212", "where": "/somewhere", "what": "it has an encoder beside its decoder", "hint": "use another"}
    builds(json.dumps({"problems": [problem]}))
    assert refusal(tmp_path) == "model/config.json [E212] it has an encoder beside its decoder\n  hint: use another"
    assert list((tmp_path / ".cache/blueprints").iterdir()) == []


def test_a_process_that_dies_is_told_with_its_last_lines(builds, tmp_path):
    builds("die")
    text = refusal(tmp_path)
    assert text.startswith(
        "model/config.json [E421] the process that builds the model without weights ended with exit code 1\n"
    )
    assert "no module named torch" in text


def test_a_process_that_does_not_end_is_ended(builds, tmp_path, monkeypatch):
    monkeypatch.setattr(drafting, "LONGEST_S", 0.5)
    builds("hang")
    assert "[E421]" in refusal(tmp_path)


def test_missing_packages_are_named_and_nothing_is_started(builds, tmp_path, monkeypatch):
    started = builds(json.dumps(TOLD))
    monkeypatch.setattr(drafting, "version", lambda name: None)
    text = refusal(tmp_path)
    assert "[E407] transformers is not installed for" in text
    assert "[E407] torch is not installed for" in text
    assert "-m pip install torch" in text
    assert started == []


def test_weights_that_are_quantized_are_refused_without_a_process(builds, tmp_path):
    started = builds(json.dumps(TOLD))
    assert "[E213] quantization_config:" in refusal(tmp_path, CONFIG | {"quantization_config": {"bits": 4}})
    assert started == []


def loaded(tmp_path, *overrides):
    folder = tmp_path / "olmo2"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return open_job_text(JOB, file_name="job.yaml", folder=tmp_path, overrides=overrides)


def test_the_plan_says_that_the_family_was_measured_and_chooses_data_parallelism(builds, tmp_path):
    builds(json.dumps(TOLD))
    (stage,) = plan_of(loaded(tmp_path), runs_root=tmp_path, unknown=drafted_shapes(tmp_path)).stages
    assert (stage.dp, stage.num_params) == (8, TOLD["parameters"])
    assert stage.reasons[0].code == "family.measured"
    assert stage.reasons[0].text.startswith("olmo2 is measured, not known: transformers ")
    assert {one.code for one in stage.rejected if "tensor" in one.plan} <= {"E217", "E218", "E223"}


@pytest.mark.parametrize("degree", ["tensor", "pipeline", "sequence"])
def test_degrees_are_refused(builds, tmp_path, degree):
    builds(json.dumps(TOLD))
    with pytest.raises(LauncherError) as caught:
        plan_of(loaded(tmp_path, f"parallel.{degree}=2"), runs_root=tmp_path, unknown=drafted_shapes(tmp_path))
    assert [problem.code for problem in caught.value.problems] == ["E223"]


def test_rewards_need_a_classifier_of_the_family(builds, tmp_path):
    builds(json.dumps(TOLD | {"scores": False}))
    with pytest.raises(LauncherError) as caught:
        plan_of(loaded(tmp_path, "stages.sft.kind=reward"), runs_root=tmp_path, unknown=drafted_shapes(tmp_path))
    assert [problem.code for problem in caught.value.problems] == ["E222"]


def test_an_adapter_is_counted_from_the_matrices_that_were_seen():
    shape, lora = shape_from_blueprint(TOLD), Lora(rank=4, targets=("q_proj", "down_proj"))
    assert lora_parameters(shape, lora) == 4 * 4 * (64 + 64 + 192 + 64)
    kept = {rank: kept_of_block(shape, "bf16", row_tokens=8, eager=False, adapter=Lora(rank=rank)) for rank in (4, 5)}
    assert kept[5] - kept[4] == 2 * 7  # one product of each of seven matrices


def test_validate_starts_nothing_and_says_what_it_did_not_check(tmp_path, monkeypatch, capsys):
    loaded(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "blueprint_request", lambda run: pytest.fail("a process was started"))
    assert main(["validate", "job.yaml"]) == 0
    told = capsys.readouterr()
    assert "not checked against the plan: " in told.err
    assert "model_type: 'olmo2' is in no table of the plan and was not measured yet" in told.err
    assert not (tmp_path / "runs").exists()
