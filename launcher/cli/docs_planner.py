"""Scores of the planner -> docs/planner.md. On published runs: benchmarks/results/planner.json; on CPU ranks: cpu_plan.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.units import MIB

RESULTS = "benchmarks/results/planner.json"
CPU_RESULTS = "benchmarks/results/cpu_plan.json"

_INTRO = """\
# The planner

Built by `python -m launcher.cli.docs` from the last `python benchmarks/planner.py --out benchmarks/results/planner.json`.

`launcher plan` works out, for every legal layout of every stage, how much memory its fullest rank needs and how long a step
takes, and takes the fastest that fits. It is arithmetic in plain Python: no torch, no run, some hundreds of layouts in a
tenth of a second.

- **Memory** (`launcher/plan/states.py`, `activations.py`, `memory.py`): weights, gradients, optimizer and buckets as
  DeepSpeed keeps them; activations counted from what each operation saves; logits of one tile; the CUDA context,
  communicators and fragmentation. Two moments are compared, the loss and the optimizer step, on every pipeline stage; ppo
  and 4-bit stages have others.
- **Time** (`launcher/plan/cost/`): each matrix product takes the longer of its arithmetic and its memory traffic, less for
  short inner sizes, unfilled tiles and sizes off the tensor cores' grid; attention by kernel; element-wise traffic counted
  from the operations of the software; the host's launches; what tensor, sequence, pipeline and data parallelism send and do
  not hide; the bubble; the optimizer; offload over PCIe and the host's memory.
- **Fit** is a probability: true peaks are spread around the prediction, and a plan counts as one that fits at 95 %.
- **Choice**: among the plans within 2 % of the fastest the plainest, then the one with the largest micro-batch.

## How far off it is

Scored on runs that others published (`benchmarks/data/published_points.csv`, each row with its source), with **every source
predicted by constants that were fitted without it** (`benchmarks/published/fit.py`).
"""
_UNKNOWN = """\
## Families of no table

`launcher/plan/families/` counts the families that are listed there from config.json alone. Of any other, `plan`, `render` and
`run` start one process on this machine that builds the model with the installed transformers on tensors without memory, with
two and three layers and once whole, and writes down (`launcher/train/blueprint.py`): every tensor; the matrices of a block;
heads, widths, window, norms; and the bytes that autograd keeps of a block for its backward pass, in 32 and 16 bit, with sdpa
and eager attention, all weights trained or an adapter. The answer is kept in `<runs>/.cache/blueprints/` under the hash of
the config, and made anew under another transformers or torch. `validate` takes it where it is there, and starts nothing.

- Parameters are exact, tensor by tensor, and so is what a block keeps on a CPU: blueprints of the families of the tables say
  what the tables say (`tests/stages/test_blueprints.py`). On a GPU the published footprint of transformers by widths is taken,
  as for every family, in which a norm on queries and keys is not counted; time is that of a block of these widths.
- Data parallelism with every ZeRO stage, LoRA and nf4 are planned. Tensor, pipeline and sequence degrees are refused (E223):
  how matrices are cut is a table. A family that changes its logits behind the head (granite, cohere) is planned, not trained
  (E222).
- Refused (E212): experts, blocks that differ, layers of other kinds (Mamba, chunks), attention that sees what is to come, an
  encoder, pictures, no sdpa attention, and code of its own (auto_map), which is never run.
"""
_CALIBRATION = """\
## Calibration

`launcher calibrate` measures this machine with the ranks that a plan would use, all at once: large matrix products, attention
forward and backward, memory, all-reduce and all-gather at two sizes, Adam on the host; on GPUs copies to them; on CPUs a block
of Llama and the loss. `<runs>/calibration/<device>.json` keeps the figures and the numbers that follow from them, by which
the model of time tells the measured seconds; a plan for the same device takes them instead of the catalogue's and says so
(`speeds by measured:<file>`), and that other programs took more than a fifth of the cores meanwhile, if they did
(`calibration.disturbed`). Of a GPU only what the hardware does is replaced, how the software uses it stays as fitted. Of
CPU ranks, for which nothing is published, the software's part is measured too; they serve to check the plan against real runs
where there is no GPU (`benchmarks/cpu_plan.py`).

When a stage has finished, its usual step (the median behind the first three) and its largest peak are compared with what
the plan says for rows as long as they were. `<runs>/calibration/scales.json` keeps measured / predicted of each device and
precision as geometric means; n stages count n / (n + 2). Plans are multiplied by them and say so (`calibration.runs`).
Measuring anew starts the times again. ppo is left out: its iterations are mostly sampling. Links between hosts are not
measured yet.
"""
_CPU = """\
## Against real runs on CPU ranks

`python benchmarks/cpu_plan.py` measures a machine with `launcher calibrate`, plans five layouts of a model of 41 M parameters
by it, and runs them. No scale of an earlier run is applied.
"""
_CPU_CAVEATS = """\
Tensor parallelism is predicted too fast there. Its ranks take a quarter more CPU time than those of ZeRO 1, so they do not only
wait for each other: products of pieces of matrices, and all-reduces of a megabyte in the middle of every block, cost more than
the large ones that `calibrate` measures. A GPU has neither trouble to this extent, and nothing of it is modelled.
"""
_CAVEATS = """\
ZeRO 3 and tensor parallelism are predicted too fast there. Ranks are busy for most of what is missing, they do not wait: gloo
has no reduce-scatter of its own and adds whole vectors up, ZeRO 3 copies every module's weights into place and splits its
gradients, and pieces of matrices run slower than the whole ones that are measured. None of it is modelled; a GPU does it beside
the products.
"""
_CAVEATS = """\
## What these numbers do not say

- The terms of the model were chosen while looking at all sources; only the constants are held out. A program that is unlike
  all of these has a larger error.
- No run of this program on a GPU is among the rows: `benchmarks/gpu.py` measures one, and finished runs correct the plan
  (`launcher calibrate`). Until then a peak is told with a spread of 12 %, wider than the one above.
- What the peaks of other programs test is what blocks and losses keep, the context and the fragmentation. The states are
  theirs (`benchmarks/published/peaks.py`, with eight constants of its own); `states.py`, the launcher's own, is compared
  to the tensor with real runs on CPU ranks (`tests/stages/test_held_bytes.py`), not on a GPU.
- A stage's hours are its passes over rows of full length: loading, evaluation and checkpoints come on top.
- Rows of ZeRO 3 on more than 700 GPUs are predicted too fast, by up to three times: their collectives ran at a tenth of
  what the network could.
- ppo's sampling and scoring, offload and NVMe follow from bandwidths; no published run has enough detail to check them.
- Models with experts are counted, but what routing keeps and sends is not modelled.

## Constants

`launcher/plan/cost/constants.py` holds what only measurements can tell; `python benchmarks/planner.py --fit` prints it
again from all rows, each value beside the one that was known beforehand. `--points FILE` scores another file with the same
columns, whatever its wording: GPUs that no job can name (`benchmarks/published/devices.py`), sizes of models that are known by
name (`models.py`), what is offloaded. What a row does not tell is taken from the nearest that is known, and counted under
`assumed`; fp32 on GPUs with TF32 is taken for TF32.
"""


def planner_text(root: Path) -> str:
    """docs/planner.md."""
    path = root / RESULTS
    if not path.is_file():
        return "\n".join([_INTRO, f"Nothing is on record: there is no `{RESULTS}`.", "", _UNKNOWN, _CALIBRATION, _CAVEATS])
    results = json.loads(path.read_text(encoding="utf-8"))
    return "\n".join(
        [
            _INTRO,
            *_scores(results),
            "",
            *_sources(results["sources"]),
            "",
            *_worst(results["worst"]),
            "",
            _UNKNOWN,
            _CALIBRATION,
            *_cpu(root / CPU_RESULTS),
            _CAVEATS,
        ]
    )


def _scores(results: Mapping[str, object]) -> list[str]:
    def share(name: str) -> str:
        return f"{float(str(results[name])):.1%}"

    return [
        "| | rows | MAPE | median |",
        "|---|---|---|---|",
        f"| step time | {results['time_rows']} | {share('time_mape')} | {share('time_median')} |",
        f"| peak memory | {results['memory_rows']} | {share('memory_mape')} | {share('memory_median')} |",
        "",
        "Taking the plan that is predicted best of at least three measured ones for the same job loses"
        f" {share('choice_loss')} of throughput on average ({results['choices']} jobs).",
        f"{share('over_limit_at_95')} of the peaks lie above the limit at which the planner would have said 95 %.",
    ]


def _sources(sources: Sequence[Mapping[str, object]]) -> list[str]:
    lines = ["| held-out source | measures | rows | MAPE | median | predicted / measured |", "|---|---|---|---|---|---|"]
    for one in sources:
        cells = [one["source"], one["measures"], one["rows"], _share(one["mape"]), _share(one["median"]), one["ratio"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _worst(rows: Sequence[Mapping[str, object]]) -> list[str]:
    lines = ["Predicted worst:", "", "| row | what | predicted / measured |", "|---|---|---|"]
    return lines + [f"| {row['id']} | {row['what']} | {row['ratio']} |" for row in rows]


def _cpu(path: Path) -> list[str]:
    """Nothing where nothing is on record."""
    if not path.is_file():
        return []
    results = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| layout | predicted | measured | ratio | predicted | measured | ratio |", "|---|---|---|---|---|---|---|"]
    for row in results["rows"]:
        cells = [row["layout"], *_pair(row["predicted_s"], row["measured_s"], "{:.2f} s")]
        cells += _pair(row["predicted_bytes"] / MIB, row["measured_bytes"] / MIB, "{:.0f} MiB")
        lines.append(f"| {' | '.join(cells)} |")
    mape = f"MAPE of step times {_share(results['time_mape'])}, of peaks {_share(results['memory_mape'])}"
    calibration = results["calibration"]
    measured = f"the calibration took {calibration['seconds']} s, on {calibration['measured'][:10]}"
    return [_CPU, *lines, "", f"{mape}; {measured}.", "", _CPU_CAVEATS]


def _pair(predicted: float, measured: float, text: str) -> list[str]:
    return [text.format(predicted), text.format(measured), f"{predicted / measured:.2f}"]


def _share(value: object) -> str:
    return f"{float(str(value)):.1%}"
