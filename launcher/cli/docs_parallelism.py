"""Legality table and equal runs -> docs/parallelism.md. The cells of its tables are what the rules say of a sample job."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launcher.plan.away import away_machine
from launcher.plan.legality.rule import Case
from launcher.plan.legality.table import SUBJECTS, find_illegal
from launcher.plan.shape import FAMILIES, shape_of_new
from launcher.spec.job import JobSpec
from launcher.units import seconds_text

RESULTS = "benchmarks/results/equal_runs.json"
VOCAB = 2048
GPUS = away_machine("h100-80gb", slots=8)

Block = Mapping[str, object]

_INTRO = """\
# Parallelism

Built by `python -m launcher.cli.docs` from the legality table (`launcher/plan/legality/`) and the last `make test-matrix`.

`ranks = data x tensor x pipeline x sequence`. The ranks of one replica (tensor x pipeline x sequence) work on the same rows,
and `batch.global = micro x accumulation x data`, where data counts replicas. `parallel: auto` leaves
all of it to the plan: it times every legal layout that fits and takes the fastest (docs/planner.md). In a `parallel` block, of
the job or of one stage (a stage's block replaces the job's as a whole), degrees that are not named are 1.

| degree | what is shared | what it is for | what it costs |
|---|---|---|---|
"""
_PURPOSES = (
    ("data", "rows", "more rows a second", "one reduction of the gradients a step"),
    ("ZeRO 1, 2, 3", "optimizer, gradients, parameters", "states that do not fit", "3: parameters are gathered twice a step"),
    (
        "tensor",
        "heads, MLP columns and vocabulary of every matrix",
        "blocks and logits too large for one rank",
        "two sums a block and pass, so inside one host",
    ),
    (
        "pipeline",
        "blocks, in order",
        "models too deep for one rank, over slow links",
        "ranks idle while it fills: (p - 1) / (accumulation + p - 1)",
    ),
    ("sequence", "tokens of every row (Ulysses)", "rows too long for one rank", "four exchanges a block and pass"),
)
_LAYOUTS: dict[str, Block] = {
    **{f"data, ZeRO {zero}": {"zero": zero} for zero in range(4)},
    **{f"tensor 2, ZeRO {zero}": {"tensor": 2, "zero": zero} for zero in range(4)},
    **{f"pipeline 2, ZeRO {zero}": {"pipeline": 2, "zero": zero} for zero in range(4)},
    "tensor 2 x pipeline 2, ZeRO 1": {"tensor": 2, "pipeline": 2, "zero": 1},
    **{f"sequence 2, ZeRO {zero}": {"sequence": 2, "zero": zero} for zero in range(4)},
}
_DATA = {"source": "python-docs", "max_tokens": 96}
_REWARD = {"kind": "reward", "data": _DATA}
_STAGES: dict[str, Block] = {
    "pretrain": {"kind": "pretrain"},
    "sft": {"kind": "sft"},
    "sft, packed": {"kind": "sft", "packing": True},
    "reward": {"kind": "reward"},
    "dpo": {"kind": "dpo"},
    "ppo": {"kind": "ppo", "reward": "reward", "max_new_tokens": 32},
}
_WEIGHTS: dict[str, Block] = {
    "all weights": {},
    "LoRA": {"adapter": {"kind": "lora"}},
    "LoRA on nf4": {"adapter": {"kind": "lora"}, "quantize": "nf4"},
}
_OFFLOADS: dict[str, Block] = {
    "optimizer on the CPU": {"offload": {"optimizer": "cpu"}},
    "half of it": {"offload": {"optimizer": "cpu", "ratio": 0.5}},
    "parameters on the CPU": {"offload": {"parameters": "cpu"}},
    "optimizer on NVMe": {"offload": {"optimizer": "nvme", "nvme_path": "/local_nvme"}},
    "parameters on NVMe": {"offload": {"parameters": "nvme", "nvme_path": "/local_nvme"}},
    "both on NVMe": {"offload": {"optimizer": "nvme", "parameters": "nvme", "nvme_path": "/local_nvme"}},
    "checkpoints on the CPU": {"checkpointing": "offload"},
    "hpZ 2": {"hpz": 2},
    "qwZ": {"quantized_weights": True},
    "qgZ": {"quantized_gradients": True},
}
_PRECISIONS = ("fp32", "bf16", "fp16")


def parallelism_text(root: Path) -> str:
    """The whole page; `root` is where the results of the equal runs lie."""
    purposes = "".join(f"| {' | '.join(row)} |\n" for row in _PURPOSES)
    return "\n".join([f"{_INTRO}{purposes}\n{_combinations()}", *_rules(), *_proved(root / RESULTS)]) + "\n"


def _combinations() -> str:
    families = ", ".join(FAMILIES)
    by_stage = _table(_STAGES, lambda layout, stage: _refused(layout, stage=stage))
    by_weights = _table(_WEIGHTS, lambda layout, model: _refused(layout, model=model))
    by_offload = _table(_OFFLOADS, lambda layout, more: _refused({**layout, **more}))
    precisions = {name: {"precision": name} for name in _PRECISIONS}
    by_precision = _table(precisions, lambda layout, job: _refused(layout, job=job))
    return f"""\
## What goes together

`yes`, or the code of the rule that refuses it (below). Each cell is one job on 8 GPUs of one host, a model of 4 blocks and
4 heads; without a precision that is asked for, ZeRO 0 is planned in fp32. What holds for one family holds for all, as far as
heads, MLP and blocks can be divided: {families}.

`yes` means allowed. What was run and compared, all on CPU processes, is listed at the end; checkpoints on the CPU, fp16 and
quantized communication have not been run on a GPU.

### Stages

{by_stage}

### Adapters and 4-bit bases

{by_weights}

### Offload and ZeRO++

{by_offload}

On CPU ranks nothing is offloaded to the CPU (E203) and nothing is quantized (E221); offload to NVMe works there.

### Precision

{by_precision}

A CPU trains in fp32 and bf16; GPUs before Ampere in fp32 and fp16 (E205).
"""


def _table(columns: Mapping[str, Block], refused: Callable[[Block, Block], list[str]]) -> str:
    """One row a layout, one cell a column."""
    lines = [f"| layout | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, layout in _LAYOUTS.items():
        cells = [", ".join(refused(layout, column)) or "yes" for column in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _refused(
    layout: Block,
    *,
    stage: Block = _STAGES["sft"],
    model: Block = _WEIGHTS["all weights"],
    job: Block | None = None,
) -> list[str]:
    """Codes of the rules that refuse this combination."""
    before = [_REWARD] if stage["kind"] == "ppo" else []
    new = {"family": "llama", "layers": 4, "hidden": 4096, "heads": 4, "ffn": 12288, "positions": 512}
    text = {
        "name": "sample",
        "model": {"new": new, "tokenizer": {"train": {"vocab": VOCAB}}, **model},
        "batch": {"global": 64},
        "stages": [*before, {"data": _DATA, "parallel": layout, **stage}],
        **(job or {}),
    }
    spec = JobSpec.model_validate_json(json.dumps(text))
    assert spec.model.new is not None
    case = Case(job=spec, machine=GPUS, shape=shape_of_new(spec.model.new, VOCAB))
    return sorted({finding.code for finding in find_illegal(case)})


def _rules() -> list[str]:
    lines = [
        "## Rules",
        "",
        "Every message names the nearest plan that works for the job at hand, with its numbers. A proof is a test",
    ]
    lines += ["that shows what DeepSpeed or a library does with what is refused, or the reason why there is none."]
    for subject, rules in SUBJECTS.items():
        lines += [
            "",
            f"### {subject[0].upper()}{subject[1:]}",
            "",
            "| code | refused | because | instead | proof |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {rule.code} | {rule.refuses} | {rule.because} | {rule.instead} | {', '.join(map(_proof, rule.proof))} |"
            for rule in rules
        ]
    return lines


def _proof(proof: str) -> str:
    """A test is a sentence, and a link to its file."""
    file, _, test = proof.partition("::")
    return f"[{test.removeprefix('test_').replace('_', ' ')}](../{file})" if test else proof


def _proved(path: Path) -> list[str]:
    lines = ["", "## What was proved", ""]
    if not path.is_file():
        return [*lines, f"Nothing is on record: there is no `{RESULTS}`. `make test-matrix` writes it."]
    results = json.loads(path.read_text(encoding="utf-8"))
    cases: Sequence[Mapping[str, object]] = results["cases"]
    lines += [
        f"`make test-matrix` of {results['date']}, DeepSpeed {results['deepspeed']}, torch {results['torch']}.",
        f"{len(cases)} runs, each compared with one process of plain PyTorch, step by step and in the folder at the end.",
        "",
        "| run | stage | family | dp x tp x pp x sp | ZeRO | precision | largest difference of a loss | of a weight | took |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return [*lines, *map(_run_row, cases)]


def _run_row(case: Mapping[str, object]) -> str:
    degrees = " x ".join(str(case[name]) for name in ("dp", "tp", "pp", "sp"))
    differences = [f"{float(str(case[name])):.1e}" for name in ("largest_loss_difference", "largest_weight_difference")]
    cells = [case["name"], case["kind"], case["family"], degrees, case["zero"], case["precision"], *differences]
    return f"| {' | '.join(map(str, cells))} | {seconds_text(float(str(case['seconds'])))} |"
