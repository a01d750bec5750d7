"""(job, machine, shape) -> every combination that cannot work or has no effect, as findings.

DERIVE, pure. `validate`, `plan` and docs/parallelism.md read the same table, so that they cannot disagree. Memory and disk are
not judged here.
"""

from __future__ import annotations

from launcher.plan.legality.batch import BATCH_RULES
from launcher.plan.legality.degrees import DEGREE_RULES
from launcher.plan.legality.model import MODEL_RULES
from launcher.plan.legality.offload import OFFLOAD_RULES
from launcher.plan.legality.precision import PRECISION_RULES
from launcher.plan.legality.rule import Case, Rule, spots_of
from launcher.spec.places import Finding

SUBJECTS: dict[str, tuple[Rule, ...]] = {
    "degrees": DEGREE_RULES,
    "ZeRO and offload": OFFLOAD_RULES,
    "precision": PRECISION_RULES,
    "model": MODEL_RULES,
    "batch and lengths": BATCH_RULES,
}


def find_illegal(case: Case) -> list[Finding]:
    """Every problem, in the order of the table. What is written once for the job is said once, not for each stage."""
    rules = [rule for rules in SUBJECTS.values() for rule in rules]
    findings = [
        Finding(code=rule.code, path=refusal.path, what=refusal.what, hint=refusal.hint)
        for rule in rules
        for spot in spots_of(case)
        for refusal in rule.find(spot)
    ]
    return list(dict.fromkeys(findings))
