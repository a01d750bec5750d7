"""Rules between stages and between fields: what is refused, and what must not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.spec.chain import effective_batch, effective_parallel, parent_of
from tests.unit.spec.world import RIGHT, errors, load

NEW = """\
name: job
model:
  new: {family: %s, layers: 2, hidden: %d, heads: %d}
  tokenizer: {train: {vocab: 512}}
stages:
  - {kind: pretrain, data: {source: python-docs}}
"""


def job(*stages: str, model: str = "{source: owner/model}") -> str:
    lines = "".join(f"  - {{{stage}, data: {{source: owner/data}}}}\n" for stage in stages)
    return f"name: job\nmodel: {model}\nstages:\n{lines}"


def codes(text: str) -> list[str]:
    return [line.split()[0] for line in errors(text)]


def test_a_stage_starts_from_the_one_it_names_else_from_the_one_before() -> None:
    loaded = load(job("kind: sft", "kind: dpo", "kind: reward, from: sft"))
    sft, dpo, reward = loaded.stages
    assert parent_of(loaded, sft) is None
    assert parent_of(loaded, dpo) is sft
    assert parent_of(loaded, reward) is sft


def test_the_embedded_corpus_is_not_the_held_out_part_of_other_data() -> None:
    text = job("kind: sft").replace("owner/data", "owner/data, held_out: {source: python-docs}")
    assert "python-docs cannot be the held-out part of other data" in "\n".join(errors(text))


def test_the_batch_of_a_stage_falls_back_field_by_field() -> None:
    text = (
        job("kind: sft, batch: {micro: 2}", "kind: dpo, batch: {global: 8}", "kind: dpo, name: last")
        + "batch: {global: 64, micro: 4}\n"
    )
    loaded = load(text)
    batches = [effective_batch(loaded, stage) for stage in loaded.stages]
    assert [(batch.global_seqs, batch.micro_seqs) for batch in batches] == [(64, 2), (8, 4), (64, 4)]


def test_the_layout_of_a_stage_replaces_the_jobs_as_a_whole() -> None:
    text = (
        job("kind: sft", "kind: dpo, parallel: {zero: 3}", "kind: dpo, name: free, parallel: auto") + "parallel: {tensor: 2}\n"
    )
    loaded = load(text)
    layouts = [effective_parallel(loaded, stage) for stage in loaded.stages]
    assert [(layout.tensor, layout.zero) for layout in layouts if layout] == [(2, None), (1, 3), (1, None)]


def test_a_job_without_a_layout_leaves_everything_to_the_plan() -> None:
    loaded = load(job("kind: sft"))
    assert effective_parallel(loaded, loaded.stages[0]) is None


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (["kind: sft", "kind: sft"], ["E110"]),
        (["kind: sft", "kind: sft, name: sft-2"], []),
        (["kind: sft, from: sft"], ["E110"]),
        (["kind: sft, from: dpo", "kind: dpo"], ["E110"]),
        (["kind: sft", "kind: dpo, from: nothing"], ["E110"]),
        (["kind: sft", "kind: reward", "kind: dpo"], ["E110"]),
        (["kind: sft", "kind: reward", "kind: dpo, from: reward"], ["E110"]),
        (["kind: sft", "kind: reward", "kind: pretrain, from: reward"], ["E110"]),
        (["kind: sft", "kind: reward", "kind: reward, name: again, from: reward"], []),
        (["kind: sft", "kind: ppo, reward: sft"], ["E110"]),
        (["kind: sft", "kind: ppo, reward: ppo"], ["E110"]),
        (["kind: sft", "kind: ppo, reward: nothing"], ["E110"]),
        (["kind: ppo, reward: reward", "kind: reward, from: ppo"], ["E110"]),
        (["kind: reward", "kind: sft"], ["E110"]),
        (["kind: sft, steps: 1, epochs: 2"], ["E109"]),
    ],
)
def test_chains(stages: list[str], expected: list[str]) -> None:
    assert codes(job(*stages)) == expected


@pytest.mark.parametrize(
    ("model", "stages", "expected"),
    [
        ("{}", ["kind: sft"], ["E107"]),
        ("{source: a/b, tokenizer: {train: {vocab: 500}}}", ["kind: sft"], ["E109"]),
        ("{source: a/b, tokenizer: c/d}", ["kind: sft"], []),
        ("{source: a/b, revision: main}", ["kind: sft"], []),
        ("{source: a/b, quantize: nf4}", ["kind: sft"], ["E109"]),
        ("{source: a/b, quantize: nf4, adapter: {}}", ["kind: sft"], []),
        ("{source: a/b, adapter: {}}", ["kind: pretrain"], ["E109"]),
        ("{source: a/b, adapter: {}}", ["kind: sft", "kind: reward", "kind: ppo, from: sft, reward: reward"], []),
        ("{new: {family: llama, layers: 1, hidden: 64, heads: 4}}", ["kind: sft"], ["E107"]),
    ],
)
def test_models(model: str, stages: list[str], expected: list[str]) -> None:
    assert codes(job(*stages, model=model)) == expected


@pytest.mark.parametrize(
    ("family", "hidden", "heads", "expected"),
    [
        ("llama", 64, 4, []),
        ("llama", 64, 3, ["E117"]),
        ("llama", 15, 3, ["E117"]),  # heads 5 wide cannot be turned in pairs
        ("gpt2", 15, 3, []),
        ("gpt_neox", 64, 8, []),
        ("gpt_neox", 15, 3, []),
    ],
)
def test_widths_of_a_new_model(family: str, hidden: int, heads: int, expected: list[str]) -> None:
    assert codes(NEW % (family, hidden, heads)) == expected


@pytest.mark.parametrize(("kv_heads", "family", "expected"), [(2, "llama", []), (3, "llama", ["E117"]), (4, "gpt2", ["E115"])])
def test_key_value_heads(kv_heads: int, family: str, expected: list[str]) -> None:
    assert codes((NEW % (family, 64, 4)).replace("heads: 4", f"heads: 4, kv_heads: {kv_heads}")) == expected


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD",
        "BASH_ENV",
        "PYTHONSTARTUP",
        "PATH",
        "GIT_SSH_COMMAND",
        "HF_TOKEN",
        "MY_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
    ],
)
def test_the_environment_takes_neither_foreign_code_nor_secrets(name: str) -> None:
    assert codes(RIGHT + f"cluster: {{env: {{{name}: x}}}}\n") == ["E118"]


@pytest.mark.parametrize(
    "name", ["NCCL_DEBUG", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "LD_LIBRARY_PATH", "HF_HOME", "MAX_TOKENS"]
)
def test_the_environment_takes_what_ranks_need(name: str) -> None:
    assert codes(RIGHT + f"cluster: {{env: {{{name}: 'x$(touch C) `b`'}}}}\n") == []


def test_python_docs_takes_no_options_and_a_default_is_no_option(tmp_path: Path) -> None:
    text = job("kind: sft").replace("source: owner/data", "source: python-docs, split: %s")
    assert errors(text % "train", folder=tmp_path) == []
    assert "stages.sft.data.split: has no effect" in errors(text % "test", folder=tmp_path)[0]


def test_a_shape_that_cannot_serve_the_stage_is_refused() -> None:
    text = job("kind: %s, from: sft").replace("stages:\n", "stages:\n  - {kind: sft, data: {source: owner/data}}\n")
    text = text.replace("data: {source: owner/data}}\n", "data: {source: owner/data, shape: %s}}\n").replace(
        "shape: %s", "shape: messages", 1
    )
    assert codes(text % ("dpo", "preference")) == []
    assert codes(text % ("dpo", "messages")) == ["E109"]
    assert codes(text % ("reward", "text")) == ["E109"]


@pytest.mark.parametrize(
    ("family", "hidden", "wrong"),
    [("phi", 64, False), ("phi", 40, True), ("gemma", 40, False), ("gemma", 36, True), ("opt", 36, False)],
)
def test_heads_are_as_wide_as_the_positions_of_the_family_need(family: str, hidden: int, wrong: bool) -> None:
    """Phi turns half of each head, so its width is a multiple of 4; OPT turns nothing."""
    found = errors(NEW % (family, hidden, 4))
    assert [line.split()[0] for line in found] == (["E117"] if wrong else [])


def test_opt_has_no_key_value_heads_of_its_own() -> None:
    assert codes((NEW % ("opt", 64, 4)).replace("heads: 4", "heads: 4, kv_heads: 2")) == ["E115"]


def test_names_of_other_programs_are_told_how_they_are_called_here() -> None:
    found = errors(job("kind: sft") + "parallel: {tensor_parallel_size: 2, zero_hpz_partition_size: 4}\n")
    assert [line.split()[0] for line in found] == ["E104", "E104"]


def test_no_word_means_true_or_false_for_a_switch() -> None:
    assert codes(job("kind: sft") + "tf32: 1\n") == ["E105"]
    assert codes(job("kind: sft") + "parallel: {quantized_weights: 1}\n") == ["E105"]


@pytest.mark.parametrize("ratio", ["0", "1.5", "-1"])
def test_a_ratio_is_a_share(ratio: str) -> None:
    assert codes(job("kind: sft") + f"parallel: {{offload: {{ratio: {ratio}}}}}\n") == ["E106"]
