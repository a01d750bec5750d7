"""--set PATH=VALUE."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launcher.spec.job import JobSpec
from tests.unit.spec.world import RIGHT, errors, load


@pytest.mark.parametrize(
    ("override", "get"),
    [
        ("stages.sft.lr=1e-5", lambda job: job.stages[0].lr == 1e-5),
        ("stages.0.lr=1e-5", lambda job: job.stages[0].lr == 1e-5),
        ("stages[0].lr=1e-5", lambda job: job.stages[0].lr == 1e-5),
        ("stages.ppo.betas=[0.9, 0.95]", lambda job: job.stages[2].betas == (0.9, 0.95)),
        ("stages.reward.gate={accuracy: 0.7}", lambda job: job.stages[1].gate.accuracy == 0.7),
        ("stages.reward.gate.accuracy=0.7", lambda job: job.stages[1].gate.accuracy == 0.7),
        ("batch.global=64", lambda job: job.batch.global_seqs == 64),
        ("parallel.zero=2", lambda job: job.parallel.zero == 2),
        ("name=other", lambda job: job.name == "other"),
        ('cluster.env.A="a=b.c"', lambda job: job.cluster.env == {"A": "a=b.c"}),
        ("model.revision=null", lambda job: job.model.revision is None),
    ],
)
def test_an_override_reaches_its_field(override: str, get: Callable[[JobSpec], bool]) -> None:
    assert get(load(RIGHT, override))


def test_the_last_override_of_a_field_counts() -> None:
    assert load(RIGHT, "seed=1", "seed=2").seed == 2


def test_an_override_replaces_a_block_and_its_places() -> None:
    text = RIGHT.replace(
        "{source: owner/model}", "\n  new: {family: llama, layers: 2, hidden: 64, heads: 4}\n  tokenizer: {train: {}}"
    )
    found = errors(text, "model.new={family: llama, layers: 0, hidden: 64, heads: 4}")
    assert found == ["E106 --set model.new model.new.layers: 0 is not from 1 to 1,000"]


def test_an_override_mends_what_is_wrong_in_the_file() -> None:
    assert errors("seed: .nan\n" + RIGHT, "seed=3") == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "E112 --set seed"),
        ("=3", "E112 --set "),
        ("seed=", "E112 --set seed has no value"),
        ("stages..lr=3", "E112 --set stages..lr"),
        ("stages.stf.lr=3", 'E112 --set stages.stf.lr there is no stage "stf"'),
        ("stages.7.lr=3", 'E112 --set stages.7.lr there is no stage "7"'),
        ("stages.sft.lrr=3", "E112 --set stages.sft.lrr stages.sft.lrr: there is no such field"),
        ("optimizer.lr=3", "E112 --set optimizer.lr optimizer: there is no such field"),
        ("seed=&x 3", "E112 --set seed"),
        ("seed=!!int 3", "E112 --set seed"),
        ("seed=1e999", "E112 --set seed"),
        ("seed=\ud800", "E112 --set seed"),
        ("stages.ppo.betas.0=0.5", 'E105 --set stages.ppo.betas.0 stages.ppo.betas: {"0": 0.5} is not a list'),
        ("seed=x", 'E105 --set seed seed: "x" is not a whole number'),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(override: str, says: str) -> None:
    found = errors(RIGHT, override)
    assert len(found) == 1
    assert found[0].startswith(says)


def test_stages_of_the_same_name_are_told_apart_by_number() -> None:
    text = RIGHT.replace("kind: reward, from: sft", "kind: sft")
    assert any('there is no stage "sft"' in line for line in errors(text, "stages.sft.lr=3"))
    assert not any("E112" in line for line in errors(text, "stages.1.lr=3"))
