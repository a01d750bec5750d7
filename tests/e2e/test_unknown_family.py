"""A model of a family that no table has, made by transformers: planned, pretrained at ZeRO 3 on two CPU ranks, handed on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launcher.rundir.artifact import find_damage
from launcher.rundir.folder import read_json

pytestmark = pytest.mark.e2e

MAKE = """
import sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from launcher.train.tokenizers import train_tokenizer
torch.manual_seed(0)
config = AutoConfig.for_model(
    "olmo2", vocab_size=512, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=160, max_position_embeddings=128, pad_token_id=0, bos_token_id=None, eos_token_id=1,
)
AutoModelForCausalLM.from_config(config).save_pretrained(sys.argv[1])
texts = ["def answer(question): return 42  # the quick brown fox " * 50] * 20
train_tokenizer(iter(texts), vocab=400).save_pretrained(sys.argv[1])
"""
JOB = """
name: unknown
seed: 0
model: {source: ./olmo2}
batch: {global: 8}
cluster: {slots: 2}
parallel: {zero: 3}
stages:
  - {kind: pretrain, data: {source: python-docs, max_tokens: 64, limit: 300}, steps: 12, lr: 3.0e-3, eval_rows: 16}
"""


def test_an_unknown_family_is_planned_trained_and_handed_on(launcher):
    subprocess.run([sys.executable, "-c", MAKE, str(launcher.folder / "olmo2")], check=True)
    (launcher.folder / "job.yaml").write_text(JOB)
    code, out, err = launcher("validate", "job.yaml")
    assert (code, "not checked against the plan" in err) == (0, True), err
    code, out, err = launcher("plan", "job.yaml")
    assert code == 0, err
    assert "[family.measured]" in out
    code, out, err = launcher("validate", "job.yaml")
    assert (code, err) == (0, "")
    code, out, err = launcher("run", "job.yaml")
    assert code == 0, err
    stage = launcher.run.stage("pretrain")
    figures = read_json(stage.result)
    assert figures["world"] == 2
    assert find_damage(stage.artifact) == []
    assert read_json(stage.artifact / "config.json")["model_type"] == "olmo2"
