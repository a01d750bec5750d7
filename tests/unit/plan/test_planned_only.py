"""Families that can be planned for and not trained: `plan` takes them where the GPUs are elsewhere, nothing trains them."""

from __future__ import annotations

import json

import pytest

from launcher.cli.main import main
from launcher.errors import LauncherError
from launcher.hosts.machine.gpus import GpuFact
from launcher.plan.known_shapes import KNOWN_CONFIGS
from launcher.plan.shape import PLANNED_ONLY, shape_from_config
from launcher.spec.load import open_job_text
from launcher.supervise import facts, planning
from launcher.units import GIB

TEXT = """\
name: job
model: {source: mistralai/Mixtral-8x7B-v0.1}
cluster: {gpu: h100-80gb, slots: 32}
batch: {global: 64}
stages: [{kind: sft, data: {source: python-docs, max_tokens: 512}}]
"""
REFUSED = (
    "[E222] model.source: mixtral can be planned for, not trained yet: the ranks do not know its blocks\n"
    "  hint: train a mistral model; `launcher plan` with cluster.gpu and cluster.slots plans this one"
)
KNOWN = [name for name, config in KNOWN_CONFIGS.items() if config["model_type"] in PLANNED_ONLY]


def loaded(tmp_path, *overrides):
    return open_job_text(TEXT, file_name="job.yaml", folder=tmp_path, overrides=overrides)


@pytest.fixture
def here(monkeypatch):
    """Thirty-two H100 in this machine."""

    def gpu(number):
        name, size = "NVIDIA H100 80GB HBM3", 80 * GIB
        return GpuFact(number=number, uuid=f"GPU-{number}", name=name, total_bytes=size, free_bytes=size, capability=(9, 0))

    monkeypatch.setattr(facts, "find_gpus", lambda environ: [gpu(number) for number in range(32)])


@pytest.mark.parametrize("name", KNOWN)
def test_it_is_planned_for_gpus_elsewhere(name, tmp_path):
    plan = planning.plan_of(loaded(tmp_path, f"model.source={name}"), runs_root=tmp_path)
    assert plan.stages[0].num_params > 6e9
    assert plan.stages[0].memory.peak_bytes <= plan.machine.memory_bytes


def test_it_is_not_planned_for_this_machine(tmp_path, here):
    with pytest.raises(LauncherError) as caught:
        planning.plan_of(loaded(tmp_path, "cluster.gpu=null"), runs_root=tmp_path)
    assert caught.value.text() == f"job.yaml:2:9 {REFUSED}"


def test_it_is_not_run_though_the_gpu_that_is_named_is_here(tmp_path, here):
    with pytest.raises(LauncherError) as caught:
        planning.plan_here(loaded(tmp_path), runs_root=tmp_path)
    assert caught.value.text() == f"job.yaml:2:9 {REFUSED}"


def test_run_says_both_that_the_gpu_and_that_the_family_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "job.yaml").write_text(TEXT)
    assert main(["run", "job.yaml"]) == 3
    told = capsys.readouterr().err
    assert f"job.yaml:2:9 {REFUSED}" in told
    assert "[E216] cluster.gpu: h100-80gb is named" in told
    assert list(tmp_path.iterdir()) == [tmp_path / "job.yaml"]


@pytest.mark.parametrize("targets", ["all-linear", ["gate_proj"]])
def test_an_adapter_on_experts_is_not_planned(tmp_path, targets):
    adapter = json.dumps({"kind": "lora", "targets": targets})
    with pytest.raises(LauncherError) as caught:
        planning.plan_of(loaded(tmp_path, f"model.adapter={adapter}"), runs_root=tmp_path)
    assert caught.value.text() == (
        "--set model.adapter [E222] model.adapter: lora on mixtral: what peft would give its experts is not counted\n"
        "  hint: remove it: all weights of a model with experts can be planned for"
    )


def test_an_adapter_on_falcon_is_planned(tmp_path):
    overrides = ("model.source=tiiuae/falcon-40b", "model.adapter={kind: lora, targets: [dense]}")
    (stage,) = planning.plan_of(loaded(tmp_path, *overrides), runs_root=tmp_path).stages
    assert stage.num_trainable == 60 * 16 * 2 * 8192


def test_every_family_that_is_only_planned_for_has_a_well_known_model():
    families = {shape_from_config(KNOWN_CONFIGS[name], file=name).family for name in KNOWN}
    assert families == set(PLANNED_ONLY)
