"""`python -m launcher.stages prepare RUN`: everything between the job file and the first rank, on real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from datasets import load_from_disk
from transformers import AutoTokenizer
from trl.chat_template_utils import is_chat_template_stop_token_trained

from launcher.rundir.folder import RunDir, read_json
from launcher.spec.job import JobSpec
from launcher.train.base import draw_model
from launcher.train.tokenizers import train_tokenizer
from tests.stages.harness import RankEnd, run_ranks, run_verb

pytestmark = pytest.mark.ranks

NEW = {"family": "llama", "layers": 1, "hidden": 32, "heads": 2, "ffn": 64, "positions": 64}
TEXTS = [{"text": f"The answer to number {n} is {n * n}, and that of {n + 1} is not known yet."} for n in range(200)]
TALKS = [{"prompt": f"What is {n} times {n}?", "completion": f"It is {n * n}."} for n in range(100)]
PAIRS = [
    {
        "chosen": f"\n\nHuman: What is {n} times {n}?\n\nAssistant: {n * n}.",
        "rejected": f"\n\nHuman: What is {n} times {n}?\n\nAssistant: {a}.",
    }
    for n in range(100)
    for a in [n * n + 1]
]


def write(path: Path, rows: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def chain(tmp_path):
    """The stages of a chain on three files; a test changes the stage it is about."""
    texts, talks, pairs = (
        write(tmp_path / f"{name}.jsonl", rows) for name, rows in (("texts", TEXTS), ("talks", TALKS), ("pairs", PAIRS))
    )
    return {
        "pretrain": {"kind": "pretrain", "data": {"source": texts, "max_tokens": 32}},
        "sft": {"kind": "sft", "data": {"source": talks}},
        "reward": {"kind": "reward", "data": {"source": pairs}},
        "dpo": {"kind": "dpo", "from": "sft", "data": {"source": pairs}},
        "ppo": {"kind": "ppo", "from": "sft", "reward": "reward", "data": {"source": talks}, "max_new_tokens": 16},
    }


@pytest.fixture
def prepare(tmp_path):
    """Write job.json (changed at each call) into the one run of this test and prepare it."""
    run = RunDir(tmp_path / "runs" / "job" / "one")

    def call(stages, model=None) -> tuple[RunDir, RankEnd]:
        listed = list(stages.values()) if isinstance(stages, dict) else stages
        model = model or {"new": NEW, "tokenizer": {"train": {"vocab": 400}}}
        job = {"name": "job", "seed": 3, "model": model, "batch": {"global": 4}, "stages": listed}
        run.path.mkdir(parents=True, exist_ok=True)
        run.job_json.write_text(json.dumps(job))
        (end,) = run_verb("prepare", run.path)
        return run, end

    return call


def problems(run: RunDir, end: RankEnd) -> list[dict[str, str]]:
    assert end.exit_code == 5
    assert not (run.path / "prepare" / "done.json").exists()
    told = read_json(run.path / "prepare" / "problems.json")
    assert "traceback" not in told
    return told["problems"]


def log(run: RunDir) -> str:
    return (run.path / "prepare" / "log.txt").read_text()


def rows(run: RunDir, stage: str, side: str = "train"):
    prepared = read_json(run.stage(stage).prepared)
    found = load_from_disk(str(run.path / prepared[side]))
    assert len(found) == prepared["rows"][side]
    return found


def test_a_stage_that_names_only_its_micro_batch_keeps_the_global_batch_of_the_job(prepare, chain, tmp_path):
    """Ten rows are enough for steps of 4, which the job asks, and too few for the default of 32."""
    few = write(tmp_path / "few.jsonl", TALKS[:10])
    run, end = prepare([chain["sft"] | {"data": {"source": few}, "batch": {"micro": 2}}])
    assert end.exit_code == 0, log(run)


def test_a_whole_chain_is_prepared_and_a_second_time_nothing_is_read(prepare, chain):
    run, end = prepare(chain)
    assert end.exit_code == 0, end.output + log(run)
    assert (run.path / "prepare" / "done.json").exists()
    columns = {name: rows(run, name).column_names for name in chain}
    assert columns == {
        "pretrain": ["input_ids", "labels"],
        "sft": ["input_ids", "labels"],
        "reward": ["chosen_ids", "rejected_ids", "group"],
        "dpo": ["prompt_ids", "chosen_ids", "rejected_ids", "group"],
        "ppo": ["prompt_ids"],
    }
    assert all(len(row) == 32 for row in rows(run, "pretrain")["input_ids"])
    before = log(run)
    run, end = prepare(chain)
    assert end.exit_code == 0
    again = log(run)[len(before) :]
    assert [f"{name} kept" in again for name in ["tokenizer", "model", *chain]] == [True] * 7


def test_every_sft_row_and_every_answer_ends_with_the_end_token(prepare, chain):
    run, _ = prepare(chain)
    tokenizer = AutoTokenizer.from_pretrained(run.base / "tokenizer")
    assert is_chat_template_stop_token_trained(tokenizer)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for side in ("train", "held_out"):
        for row in rows(run, "sft", side):
            labels = [label for label in row["labels"] if label != -100]
            assert labels[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(labels).startswith("It is")
        for row in rows(run, "dpo", side):
            assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == tokenizer.eos_token_id
            assert not tokenizer.decode(row["prompt_ids"]).rstrip().endswith(".")


def test_problems_of_all_stages_come_at_once(prepare, chain, tmp_path):
    write(tmp_path / "talks.jsonl", [*TALKS * 9, *TALKS[:99], '{"prompt": "What?", "completion": "It\n', *TALKS])  # row 1000
    chain["dpo"]["data"]["source"] = write(tmp_path / "other.jsonl", [{"prompt": "a", "chosen": "b", "rejekted": "c"}])
    chain["reward"]["data"]["source"] = str(tmp_path / "nothing.jsonl")
    chain["pretrain"]["data"]["source"] = write(tmp_path / "empty.jsonl", [])
    found = problems(*prepare(chain))
    texts = [f"{problem['code']} {problem['where']} {problem['what']}" for problem in found]
    assert [text.split()[0] for text in texts] == ["E536", "E530", "E532", "E534"]
    assert f"{tmp_path}/empty.jsonl the file is empty" in texts[0]
    assert f"stage reward {tmp_path}/nothing.jsonl does not exist" in texts[1]
    assert "other.jsonl has the columns prompt, chosen, rejekted; a stage of kind dpo needs chosen+rejected" in texts[2]
    assert "talks.jsonl:1000 row 1000: broken JSON" in texts[3]


def test_a_changed_file_redoes_only_the_stages_that_read_it(prepare, chain, tmp_path):
    run, _ = prepare(chain)
    before = {name: read_json(run.stage(name).prepared)["fingerprint"] for name in chain}
    write(tmp_path / "pairs.jsonl", PAIRS[:-1])
    run, end = prepare(chain)
    after = {name: read_json(run.stage(name).prepared)["fingerprint"] for name in chain}
    assert end.exit_code == 0
    assert {name for name in chain if after[name] != before[name]} == {"reward", "dpo"}


def test_rows_that_are_too_long_are_dropped_counted_and_told(prepare, chain, tmp_path):
    long = {"prompt": "What is long?", "completion": "It is " + "very " * 200 + "long."}
    write(tmp_path / "talks.jsonl", [*TALKS, long, long])
    chain["sft"]["data"]["max_tokens"] = 48
    del chain["ppo"]
    run, end = prepare(chain)
    assert end.exit_code == 0, log(run)
    prepared = read_json(run.stage("sft").prepared)
    assert prepared["dropped"] == {"too_long": 2, "bad": 0}
    assert sum(prepared["rows"].values()) == 100
    assert "2 too long" in log(run)


@pytest.mark.parametrize(
    ("stage", "change", "code", "what"),
    [
        ("sft", {"data": {"max_tokens": 65}}, "E545", "data.max_tokens is 65, the model has 64 positions"),
        (
            "ppo",
            {"max_new_tokens": 40, "data": {"max_tokens": 30}},
            "E545",
            "is 30 and the answer 40, the model has 64 positions",
        ),
        ("ppo", {"max_new_tokens": 64}, "E545", "and the answer 64, the model has 64 positions"),
        ("sft", {"data": {"max_tokens": 8}}, "E537", "all 100 rows are longer than data.max_tokens = 8"),
        ("sft", {"batch": {"global": 500}}, "E538", "but one step uses 500"),
        ("ppo", {"rollout": 400}, "E538", "but one step uses 400"),
        ("pretrain", {"data": {"held_out": 0.0001, "limit": 20}}, "E536", "no held-out blocks of 32 tokens"),
    ],
)
def test_numbers_that_cannot_work_are_refused_before_any_rank(prepare, chain, stage, change, code, what):
    chain[stage]["data"] |= change.pop("data", {})
    chain[stage] |= change
    found = problems(*prepare(chain))
    assert [(problem["code"], problem["where"]) for problem in found] == [(code, f"stage {stage}")]
    assert what in found[0]["what"]


def _save_source(folder: Path, template: bool, vocab: int) -> None:
    tokenizer = train_tokenizer((row["text"] for row in TEXTS), vocab=vocab)
    if not template:
        tokenizer.chat_template = None
    tokenizer.pad_token = None
    draw_model(JobSpec.model_validate_json(json.dumps(SOURCE_JOB)).model.new, tokenizer, vocab=400, seed=0, folder=folder)
    (folder / "manifest.json").unlink()
    tokenizer.save_pretrained(folder)


SOURCE_JOB = {
    "name": "x",
    "model": {"new": NEW, "tokenizer": {"train": {"vocab": 400}}},
    "stages": [{"kind": "sft", "data": {"source": "x"}}],
}


@pytest.fixture
def source(tmp_path):
    """A model folder as a user has it: weights and tokenizer, here without a padding token."""

    def make(*, template=True, vocab=350) -> Path:
        run_ranks(_save_source, tmp_path / "source", template, vocab, world=1)
        return tmp_path / "source"

    return make


def test_a_local_model_is_linked_and_its_tokenizer_repaired(prepare, chain, source):
    folder = source()
    run, end = prepare(chain, {"source": str(folder)})
    assert end.exit_code == 0, log(run)
    assert (run.base / "model").resolve() == folder
    tokenizer = AutoTokenizer.from_pretrained(run.base / "tokenizer")
    assert (tokenizer.pad_token, tokenizer.pad_token_id != tokenizer.eos_token_id) == ("<|pad|>", True)
    assert "note: padding token was missing" in log(run)


def test_dialogues_need_a_chat_template_and_prompts_with_completions_do_not(prepare, chain, source):
    folder = source(template=False)
    found = problems(*prepare(chain, {"source": str(folder)}))
    assert {problem["code"] for problem in found} == {"E541"}
    assert "data.shape: prompt_completion" in found[0]["hint"]
    del chain["reward"], chain["dpo"], chain["ppo"]
    run, end = prepare(chain, {"source": str(folder)})
    assert end.exit_code == 0, log(run)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "as a pickle"),
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
    ],
)
def test_an_unusable_model_does_not_hide_a_bad_row(prepare, chain, source, tmp_path, damage, what):
    folder = source()
    damage(folder)
    write(tmp_path / "pairs.jsonl", [*PAIRS, {"chosen": "x", "rejected": None}])
    found = problems(*prepare(chain, {"source": str(folder)}))
    assert [problem["code"] for problem in found] == ["E546", "E534"]
    assert what in found[0]["what"]


@pytest.mark.parametrize("damage", [None, "{}", '{"model": {"vocab": {"a": 0}}, "version": "1.0"}'])
def test_a_model_without_a_tokenizer_that_loads_is_named_and_no_bug(prepare, chain, source, damage):
    folder = source()
    (folder / "tokenizer.json").unlink()
    if damage is not None:
        (folder / "tokenizer.json").write_text(damage)
    [problem] = problems(*prepare(chain, {"source": str(folder)}))
    assert problem["code"] == "E540"
    assert str(folder) in problem["what"]


def test_the_embedded_default_serves_all_five_stages(prepare, chain):
    for name, stage in chain.items():
        stage["data"] = {"source": "python-docs", "limit": 64, "max_tokens": 32 if name == "pretrain" else 64}
    chain["ppo"]["data"]["max_tokens"] = 48
    run, end = prepare(chain, {"new": NEW | {"positions": 96}, "tokenizer": {"train": {"vocab": 600}}})
    assert end.exit_code == 0, log(run)
    assert set(rows(run, "reward", "held_out")["group"]) == {"shuffle", "cut", "loop", "wrong"}
    held_out = [rows(run, name, "held_out") for name in ("sft", "dpo", "ppo")]
    assert min(map(len, held_out)) > 100
