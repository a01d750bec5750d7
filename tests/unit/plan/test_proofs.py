"""Every rule of the legality table names what proves it, and what it names is there."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

from launcher.plan.legality.rule import Rule
from launcher.plan.legality.table import SUBJECTS

ROOT = Path(__file__).parents[3]
RULES = [rule for rules in SUBJECTS.values() for rule in rules]
REASONS = r"arithmetic|ours: train/\w+\.py.*|needs CUDA: .+"

each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.find.__name__)


@lru_cache
def names_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@each_rule
def test_a_rule_has_a_proof_that_is_a_test_or_a_reason_why_there_is_none(rule: Rule) -> None:
    assert rule.proof
    for proof in rule.proof:
        assert "::" in proof or re.fullmatch(REASONS, proof), proof


@each_rule
def test_the_test_that_proves_a_rule_is_there(rule: Rule) -> None:
    for proof in rule.proof:
        file, _, test = proof.partition("::")
        if test:
            assert test in names_in(ROOT / file), proof


@each_rule
def test_the_place_of_our_own_limit_is_there(rule: Rule) -> None:
    for proof in rule.proof:
        for file in re.findall(r"ours: (train/\w+\.py)", proof):
            assert (ROOT / "launcher" / file).is_file(), proof


def test_every_refusal_of_deepspeed_that_is_tested_proves_a_rule() -> None:
    """One that proves nothing is left over from a rule that is gone."""
    file = "tests/stages/test_refusals.py"
    named = {proof.partition("::")[2] for rule in RULES for proof in rule.proof if proof.startswith(file)}
    assert {name for name in names_in(ROOT / file) if name.startswith("test_")} == named


def test_what_deepspeed_decides_is_proved_by_a_test() -> None:
    """A rule that blames DeepSpeed's code, with its file, shows it."""
    unproved = [
        rule.find.__name__ for rule in RULES if "DeepSpeed" in rule.because and not any("::" in one for one in rule.proof)
    ]
    assert unproved == []
