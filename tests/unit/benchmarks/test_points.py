"""`planner.py --points FILE` on files from anywhere: a row is scored, told why not, or counted as an error; nothing crashes."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import planner
import pytest
from published.rows import PEAK, SIZES, Point, Skipped, point_of, read_points
from published.table import COLUMNS, NEEDED, NotATable, Row, read_rows

from launcher.plan.parameters import causal_parameters

GOOD = {
    "id": "ONE",
    "source": "a paper",
    "model": "GPT-13B",
    "layers": "40",
    "hidden": "5120",
    "heads": "40",
    "kv_heads": "40",
    "ffn": "20480",
    "vocab": "50304",
    "seq": "2048",
    "GPU": "A100-SXM-80GB",
    "gpu_mem_GB": "80",
    "n_gpus": "8",
    "dp": "8",
    "tp": "1",
    "pp": "1",
    "sp": "1",
    "zero_stage": "3",
    "recompute": "full",
    "micro_batch": "4",
    "global_batch": "64",
    "grad_accum": "2",
    "precision": "bf16",
    "metric": "step_s",
    "value": "10.5",
    "method": "full",
    "gated_mlp": "0",
    "tied_emb": "1",
    "attn": "flash2",
    "framework": "Megatron-LM",
    "measured": "1",
    "complete": "1",
}
PEAK_ROW = GOOD | {"id": "TWO", "metric": PEAK, "value": "60", "mem_kind": "max allocated GiB"}
HOSTILE = (
    "",
    "0",
    "-1",
    "nan",
    "inf",
    "1e400",
    "9" * 400,
    "1e15",
    "abc",
    "1,024",
    "~7",
    "8 (per GPU)",
    "0.3",
    "½",
    "=1+1",
    "\x00",
)


def text_of(*rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@pytest.fixture
def points(tmp_path: Path) -> Callable[[str | bytes], tuple[list[Point], list[Skipped]]]:
    def read(content: str | bytes) -> tuple[list[Point], list[Skipped]]:
        path = tmp_path / "points.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_points(path)

    return read


def table_row(**changes: str) -> Row:
    return dict.fromkeys(COLUMNS, "") | GOOD | changes


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], dict]:
    """What the script prints with --json."""

    def scored(content: str) -> dict:
        path = tmp_path / "points.csv"
        path.write_text(content, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["planner.py", "--points", str(path), "--json"])
        planner.main()
        return json.loads(capsys.readouterr().out)

    return scored


def test_a_whole_row_of_each_kind_is_scored(score):
    told = score(text_of(GOOD, PEAK_ROW))
    assert (told["time_rows"], told["memory_rows"], told["missed"]) == (1, 1, 0)
    assert 0 < told["time_mape"] < 1
    assert 0 < told["memory_mape"] < 1


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + text_of(GOOD, PEAK_ROW),
        text_of(GOOD, PEAK_ROW).rstrip("\r\n"),
        text_of(GOOD, PEAK_ROW).replace("\r\n", "\n"),
        text_of(GOOD, PEAK_ROW).replace("\r\n", "\n\n"),
        text_of({name: f"  {cell} " for name, cell in GOOD.items()}, PEAK_ROW),
        text_of(GOOD, PEAK_ROW, columns=tuple(reversed(COLUMNS))),
        text_of(GOOD, PEAK_ROW).replace("id,source", " id , source "),
        text_of(GOOD | {"notes": 'two\nlines, "quoted"'}, PEAK_ROW),
        text_of(GOOD, PEAK_ROW).replace("\r\n", ",more,cells,than,columns\r\n"),
    ],
    ids=[
        "BOM",
        "no newline at the end",
        "LF",
        "empty lines",
        "spaces",
        "order",
        "spaced names",
        "a note of two lines",
        "too long",
    ],
)
def test_the_form_of_the_file_does_not_matter(points, content):
    found, skipped = points(content)
    assert [(point.id, point.value) for point in found] == [("ONE", 10.5), ("TWO", 60 * 2**30)]
    assert skipped == []


def test_bytes_that_are_no_text_hurt_only_their_own_cell(points):
    found, _ = points(text_of(GOOD).encode().replace(b"a paper", b"a \xff\xfe paper"))
    assert [point.id for point in found] == ["ONE"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no column metric and value in its first line"),
        ("a;b\n1;2\n", "no column metric and value in its first line"),
        ("metric,layers\nstep_s,4\n", "no column value in its first line"),
        (text_of(GOOD).replace("A100", '"A100'), "unexpected end of data"),
    ],
    ids=["empty", "semicolons", "no values", "a quote that never ends"],
)
def test_what_is_no_table_is_refused_in_one_line_and_not_half_read(tmp_path, monkeypatch, capsys, content, said):
    path = tmp_path / "points.csv"
    path.write_text(content, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["planner.py", "--points", str(path)])
    with pytest.raises(SystemExit) as caught:
        planner.main()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path):
    with pytest.raises(NotATable, match="No such file"):
        read_rows(tmp_path / "absent.csv")
    with pytest.raises(NotATable, match="directory"):
        read_rows(tmp_path)


def test_a_file_without_rows_has_no_score(score):
    told = score(text_of())
    assert (told["time_mape"], told["memory_mape"], told["missed"], told["sources"]) == (None, None, 0, [])


@pytest.mark.parametrize(
    "change",
    [
        {"layers": "", "model": "a decoder"},
        {"layers": "0", "model": ""},
        {"hidden": "-5120", "model": "ours"},
        {"hidden": "1e30", "model": "ours"},
        {"layers": "20000"},
        {"heads": "6000"},
        {"tp": "64"},
        {"pp": "64"},
    ],
    ids=lambda change: "-".join(f"{name} {cell or 'empty'}" for name, cell in change.items()),
)
def test_a_complete_dense_row_that_cannot_be_predicted_counts_as_100_percent(score, change):
    told = score(text_of(GOOD | change))
    assert (told["time_rows"], told["missed"], told["time_mape"]) == (0, 1, 1.0)
    assert list(told["skipped"].values()) == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"complete": "0", "layers": ""},
        {"measured": "0"},
        {"value": ""},
        {"value": "OOM"},
        {"metric": "samples_per_s"},
        {"metric": ""},
        {"ep": "8"},
        {"model": "Mixtral-8x7B"},
        {"model": "Qwen3-30B-A3B"},
    ],
    ids=lambda change: "-".join(f"{name} {cell or 'empty'}" for name, cell in change.items()),
)
def test_what_is_no_complete_measurement_of_a_dense_model_is_left_out_and_says_why(score, change):
    told = score(text_of(GOOD | change))
    assert (told["time_rows"], told["missed"], told["time_mape"]) == (0, 0, None)
    assert sum(told["skipped"].values()) == 1


def test_without_a_column_complete_a_row_is_complete_where_no_size_is_missing(points):
    columns = tuple(name for name in COLUMNS if name not in ("complete", "measured"))
    assert len(points(text_of(GOOD, columns=columns))[0]) == 1
    _, (impossible,) = points(text_of(GOOD | {"pp": "64"}, columns=columns))
    _, (short,) = points(text_of(GOOD | {"layers": "", "model": "a decoder"}, columns=columns))
    assert (impossible.missed, short.missed) == (True, False)


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in (*NEEDED, *SIZES, "GPU")])
def test_a_column_that_is_not_there_is_done_without(points, name):
    columns = tuple(column for column in COLUMNS if column != name)
    found, skipped = points(text_of(GOOD, PEAK_ROW, columns=columns))
    assert (len(found), skipped) == (2, [])
    assert all(math.isfinite(one.predicted) and one.predicted > 0 for one in planner.score_all(found))


def test_heads_that_do_not_divide_the_width_have_the_nearest_width():
    assert point_of(table_row(heads="48")).work.shape.head_dim == 107


def test_replicas_follow_from_the_gpus_and_degrees_where_no_row_says_them():
    point = point_of(table_row(dp="", n_gpus="64", tp="4", pp="2"))
    assert (point.work.dp, point.work.world) == (8, 64)


def test_the_micro_batch_follows_from_the_global_batch_and_the_accumulation():
    assert point_of(table_row(micro_batch="")).work.tokens == 4 * 2048
    alone = point_of(table_row(micro_batch="", grad_accum="", global_batch=""))
    assert (alone.work.tokens, alone.work.micro_batches, alone.global_rows) == (2048, 1, 8)


def test_a_gpu_is_known_by_its_name_then_by_its_memory():
    names = [
        ("NVIDIA A100-SXM4", "40", "a100-40gb"),
        ("A100-80GB (400W)", "", "a100-80gb"),
        ("A100-80GB", "40", "a100-40gb"),
        ("A100 80GB PCIe", "80", "a100-pcie-80gb"),
        ("V100", "16", "v100-16gb"),
        ("H800", "80", "h800-80gb"),
        ("A10", "24", "a10-24gb"),
        ("NVIDIA L40S", "", "l40s-48gb"),
        ("L40", "48", "l40-48gb"),
        ("RTX 6000 Ada", "48", "rtx6000ada-48gb"),
        ("RTX5090", "", "rtx5090-32gb"),
        ("8x 2080 Ti", "11", "rtx2080ti-11gb"),
        ("AMD Instinct MI250X", "", "mi250x-64gb"),
        ("MI355X", "288", "mi355x-288gb"),
        ("Gaudi 3", "128", "gaudi3-128gb"),
        ("TPU v5p", "", "tpuv5p-95gb"),
        ("(not stated)", "141", "h200-141gb"),
    ]
    assert [point_of(table_row(GPU=gpu, gpu_mem_GB=memory)).gpu.name for gpu, memory, _ in names] == [
        name for *_, name in names
    ]


@pytest.mark.parametrize(
    ("gpu", "memory", "taken"),
    [
        ("A2000", "12", "a100-80gb"),
        ("RTX 3060", "12", "rtx3090-24gb"),
        ("MI8", "", "mi300x-192gb"),
        ("", "46", "l40s-48gb"),
        ("", "", "a100-80gb"),
    ],
)
def test_a_gpu_that_nobody_knows_is_taken_for_the_nearest_one_and_that_is_said(score, gpu, memory, taken):
    told = score(text_of(GOOD | {"GPU": gpu, "gpu_mem_GB": memory}))
    said = f"{gpu or 'no GPU'}{f' of {memory} GB' if memory else ''} taken for {taken}"
    assert (told["time_rows"], told["missed"], told["assumed"]) == (1, 0, {said: 1})


def test_a_gpu_of_others_has_its_own_peak():
    """Which a share of the peak is told in, and which decides the time."""
    fast, slow = (point_of(table_row(GPU=gpu, gpu_mem_GB="", metric="mfu", value="40")) for gpu in ("MI325X", "MI250"))
    assert fast.value / slow.value == pytest.approx(181 / 1307)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("GPT-3 175B", (96, 12288, 96, 96, 49152)),
        ("Llama-2-70b-hf", (80, 8192, 64, 8, 28672)),
        ("meta-llama/Meta-Llama-3-8B", (32, 4096, 32, 8, 14336)),
        ("LLaMA 65B", (80, 8192, 64, 64, 22016)),
        ("OPT-30B", (48, 7168, 56, 56, 28672)),
        ("bloom-7b1", (30, 4096, 32, 32, 16384)),
        ("GPT-NeoX-20B", (44, 6144, 64, 64, 24576)),
        ("pythia-1.4b", (24, 2048, 16, 16, 8192)),
        ("mpt-30b", (48, 7168, 56, 56, 28672)),
        ("falcon-40b", (60, 8192, 128, 8, 32768)),
        ("Mistral-7B", (32, 4096, 32, 8, 14336)),
        ("Qwen2.5-72B", (80, 8192, 64, 8, 29568)),
    ],
)
def test_a_model_that_is_known_by_name_needs_no_sizes(model, sizes):
    blank = dict.fromkeys(("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "gated_mlp", "tied_emb"), "")
    point = point_of(table_row(model=model, **blank))
    shape = point.work.shape
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.ffn) == sizes
    assert point.assumed[0].startswith("sizes of ")
    told = float(re.search(r"([\d.]+)B$", point.assumed[0])[1])
    assert causal_parameters(shape) / 1e9 == pytest.approx(told, rel=0.06)


def test_sizes_that_a_row_has_are_kept_and_say_which_model_it_is():
    point = point_of(table_row(model="Llama", layers="40", heads="", kv_heads="", ffn="", params_B="13"))
    assert (point.work.shape.heads, point.work.shape.ffn) == (40, 13824)
    other = point_of(table_row(model="GPT-13B", layers="38"))
    assert other.work.shape.layers == 38


def test_a_decoder_of_which_only_its_size_is_known_has_the_usual_sizes():
    blank = dict.fromkeys(("layers", "hidden", "heads", "kv_heads", "ffn"), "")
    point = point_of(table_row(model="ours", params_B="20", gated_mlp="0", **blank))
    assert causal_parameters(point.work.shape) / 1e9 == pytest.approx(20, rel=0.1)
    assert point.assumed == ("layers, hidden, heads of a usual decoder",)


@pytest.mark.parametrize(
    ("change", "like"),
    [
        ({"recompute": "Full"}, {}),
        ({"recompute": "True"}, {}),
        ({"recompute": "yes"}, {}),
        ({"recompute": "uniform"}, {}),
        ({"recompute": "Gradient Checkpointing"}, {}),
        ({"recompute": "No"}, {"recompute": "none"}),
        ({"recompute": "Selective"}, {"recompute": "selective(core_attn)"}),
        ({"zero_stage": "ZeRO-3"}, {}),
        ({"zero_stage": "Stage 3"}, {}),
        ({"zero_stage": "", "framework": "Megatron-DeepSpeed ZeRO-3"}, {"framework": "Megatron-DeepSpeed ZeRO-3"}),
        ({"zero_stage": "FULL_SHARD", "framework": "FSDP"}, {"framework": "FSDP"}),
        ({"zero_stage": "", "framework": "FSDP2"}, {"framework": "FSDP2"}),
        ({"zero_stage": "DDP"}, {"zero_stage": "0"}),
        ({"zero_stage": "distributed optimizer"}, {"zero_stage": "1"}),
        ({"method": "QLoRA"}, {"method": "qlora"}),
        ({"method": "LoRA r=8"}, {"method": "lora r=8"}),
        ({"precision": "BF16"}, {}),
        ({"gated_mlp": "False", "tied_emb": "yes"}, {}),
        ({"tp": "4", "sp": "True"}, {"tp": "4", "sp": "4"}),
        ({"seq": "2k", "hidden": "5K", "vocab": "50.304k"}, {}),
        ({"framework": "transformers + DeepSpeed"}, {"framework": "HF Trainer + DeepSpeed"}),
    ],
    ids=str,
)
def test_wording_and_case_do_not_matter(change, like):
    one, other = (point_of(table_row(**changes)) for changes in (change, like))
    assert (one.work, one.stack) == (other.work, other.stack)


@pytest.mark.parametrize("cell", ["0", "0.0", "False", "no", "N", "f"])
def test_a_row_may_say_no_in_many_words(cell):
    assert [point_of(table_row(**{name: cell})).missed for name in ("complete", "measured")] == [False, False]


def test_a_share_of_the_peak_is_a_percentage_or_a_number_up_to_1():
    values = {point_of(table_row(metric="mfu", value=value)).value for value in ("40", "0.40", "40%", "0.4")}
    assert len(values) == 1


def test_a_batch_may_be_counted_in_tokens():
    assert point_of(table_row(global_batch="4M tokens")).global_rows == 2048


def test_fp32_is_taken_for_tf32_where_there_is_tf32_and_that_is_said():
    ampere, strict, volta = (
        point_of(table_row(precision=precision, GPU=gpu, gpu_mem_GB=""))
        for precision, gpu in (("fp32", "A100"), ("fp32 (no TF32)", "A100"), ("fp32", "V100"))
    )
    assert [point.work.arithmetic for point in (ampere, strict, volta)] == ["tf32", "fp32", "fp32"]
    assert [point.assumed for point in (ampere, strict, volta)] == [("fp32 taken for TF32",), (), ()]


def test_what_is_offloaded_costs_time_and_spares_memory():
    plain, moved = (planner.score_all([point_of(table_row(offload=cell))])[0].predicted for cell in ("none", "optimizer=cpu"))
    assert moved > 1.1 * plain
    rows = [
        dict.fromkeys(COLUMNS, "") | PEAK_ROW | {"offload": cell} for cell in ("none", "optimizer=cpu", "optimizer+param=cpu")
    ]
    peaks = [one.predicted for one in planner.score_all([point_of(row) for row in rows])]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3


def test_a_peak_does_not_depend_on_the_gpu():
    known, unknown = (point_of(dict.fromkeys(COLUMNS, "") | PEAK_ROW | {"GPU": gpu}) for gpu in ("A100-SXM-80GB", "Gaudi 3"))
    assert [one.predicted for one in planner.score_all([known])] == [one.predicted for one in planner.score_all([unknown])]


def test_a_row_that_claims_to_be_ours_and_is_not_written_by_our_benchmark_is_scored_like_any_other():
    point = point_of(table_row(framework="zerolaunch", notes="typed by hand"))
    assert point.own is None


def test_numbers_with_commas_signs_and_words_are_read():
    point = point_of(table_row(seq="2,048", vocab="~50304", micro_batch="4 (per GPU)", value="1.05e+1"))
    assert (point.work.row_tokens, point.work.shape.vocab, point.work.tokens, point.value) == (2048, 50304, 8192, 10.5)


def scored_rows() -> list[Row]:
    """The two above, and some measurements of other programs."""
    usable = [row for row in read_rows(planner.DATA) if isinstance(point_of(row), Point)]
    return [table_row(), table_row(**PEAK_ROW), *random.Random(7).sample(usable, 2)]


@pytest.mark.parametrize("name", COLUMNS)
def test_no_cell_of_any_content_stops_the_scoring_or_makes_a_row_vanish(name):
    """A dense complete row is scored with a finite number, or it counts as missed, or its value or its kind is what is gone."""
    for row in scored_rows():
        for cell in HOSTILE:
            found = point_of(row | {name: cell})
            if isinstance(found, Skipped):
                gone = name in ("metric", "value", "measured", "complete", "ep", "model", "framework")
                assert found.missed or gone, (row["id"], name, cell, found.reason)
                assert found.reason
                continue
            (scored,) = planner.score_all([found])
            assert math.isfinite(scored.error), (row["id"], name, cell)
            assert scored.predicted > 0, (row["id"], name, cell)


def test_rows_of_nothing_but_nonsense_are_told_and_do_not_stop_the_scoring(score):
    draw = random.Random(3)
    rows = [{name: draw.choice((*HOSTILE, GOOD.get(name, ""))) for name in COLUMNS} for _ in range(400)]
    told = score(text_of(*rows).replace("\x00", ""))
    assert told["time_rows"] + told["memory_rows"] + sum(told["skipped"].values()) == 400
