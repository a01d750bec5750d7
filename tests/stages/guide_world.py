"""The files that examples/llama2_guide.yaml names, in small: a Llama-2-like model folder and data of the same two shapes.

    world = make_guide_world(folder)          # folder/llama2, folder/guanaco/train.jsonl, folder/hh-rlhf/{train,test}.jsonl
    run = make_guide_run(folder)              # the run folder of the example itself, with other sources, sizes and rates

What is odd about the published files is odd here too: a padding token without an embedding row, half-precision weights in two
shards, sampling settings without do_sample, code beside the weights that nobody may run, pairs that are too long and pairs that
are none.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from launcher.cli.goldens import SMALL_MACHINE
from launcher.plan.make import make_plan
from launcher.rundir.folder import RunDir
from launcher.spec.load import open_job
from launcher.supervise.create import Planned, make_folder, write_run
from launcher.supervise.facts import find_shape
from tests.stages.harness import run_ranks

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama2_guide.yaml"
VOCAB = 600
NUM_TEXTS, NUM_PAIRS, NUM_TEST_PAIRS = 200, 160, 40
NUM_TOO_LONG, NUM_BAD = 6, 4  # of the training pairs, besides
THINGS = ("river", "garden", "window", "letter", "engine", "bridge", "forest", "mirror", "planet", "market")
# The answers differ in their manner: what a reward model of two layers can tell apart.
GOOD, BAD = "Gladly. A {thing} is worth {n} of them, and here is why.", "No idea. Go and ask another one about {thing} {n}."
# As the published one: turns alternate, an answer is closed by the end token, every question begins anew.
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def make_guide_world(folder: Path) -> Path:
    """Everything under `folder`; the model is drawn by a forked rank, the parent stays clean."""
    draw = random.Random(7)
    _write_rows(folder / "guanaco" / "train.jsonl", ({"text": _guanaco_text(draw)} for _ in range(NUM_TEXTS)))
    _write_rows(folder / "hh-rlhf" / "train.jsonl", _train_pairs(draw))
    _write_rows(folder / "hh-rlhf" / "test.jsonl", (_hh_pair(draw) for _ in range(NUM_TEST_PAIRS)))
    run_ranks(_write_model, folder / "llama2", world=1)
    return folder


def make_guide_run(folder: Path) -> RunDir:
    """The run folder of the example on two CPU ranks, as `launcher run --set …` would write it."""
    loaded = open_job(EXAMPLE, overrides(folder))
    plan = make_plan(loaded.job, machine=SMALL_MACHINE, shape=find_shape(loaded.job), places=loaded.places)
    run = RunDir(folder / "runs" / loaded.job.name / "twin")
    make_folder(run)
    write_run(run, Planned(job=loaded.job, job_text=loaded.text, plan=plan))
    return run


def overrides(folder: Path) -> list[str]:
    """All in which the twin differs from the example: where things lie, how much of them, and rates for a model that small."""
    sources = {"sft": "guanaco", "reward": "hh-rlhf", "ppo": "hh-rlhf", "dpo": "hh-rlhf"}
    steps = {"sft": 24, "reward": 16, "ppo": 3, "dpo": 12}
    rates = {"sft": 1e-2, "reward": 1e-2, "ppo": 1e-3, "dpo": 1e-2}
    changed = [f"model.source={folder}/llama2", "cluster.gpu=null", "cluster.slots=2", "batch.global=8"]
    for stage, source in sources.items():
        changed += [f"stages.{stage}.data.source={folder}/{source}", f"stages.{stage}.steps={steps[stage]}"]
        changed += [f"stages.{stage}.lr={rates[stage]}"]
        changed += [f"stages.{stage}.log_every=1"]
    return [*changed, "stages.ppo.critic_lr=1e-3", "stages.ppo.max_new_tokens=12"]


def _write_rows(path: Path, rows: Iterator[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _question(draw: random.Random) -> tuple[str, dict[str, object]]:
    words = {"thing": draw.choice(THINGS), "n": draw.randrange(10, 100)}
    return f"How many is a {words['thing']} worth, more than {words['n']}?", words


def _guanaco_text(draw: random.Random) -> str:
    """One text a row, special tokens written out, one or two turns."""
    turns = []
    for _ in range(draw.choice((1, 1, 2))):
        question, words = _question(draw)
        turns.append(f"<s>[INST] {question} [/INST] {GOOD.format(**words)} </s>")
    return "".join(turns)


def _hh_pair(draw: random.Random) -> dict[str, str]:
    """Two whole dialogues that part in the last answer."""
    before = ""
    if draw.random() < 0.3:
        question, words = _question(draw)
        before = f"\n\nHuman: {question}\n\nAssistant: {GOOD.format(**words)}"
    question, words = _question(draw)
    before += f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": before + GOOD.format(**words), "rejected": before + BAD.format(**words)}


def _train_pairs(draw: random.Random) -> Iterator[dict[str, str]]:
    pairs = [_hh_pair(draw) for _ in range(NUM_PAIRS)]
    for _ in range(NUM_TOO_LONG):
        pair = _hh_pair(draw)
        pairs.append(pair | {"rejected": pair["rejected"] + " No idea." * 300})
    same, empty, goes_on, no_turn = (_hh_pair(draw) for _ in range(NUM_BAD))
    pairs += [
        same | {"rejected": same["chosen"]},
        empty | {"chosen": empty["chosen"][: empty["chosen"].rindex("Assistant:") + len("Assistant:")]},
        goes_on | {"rejected": goes_on["rejected"] + "\n\nHuman: And then?\n\nAssistant: Nothing."},
        no_turn | {"chosen": "\n\nHuman: Another question?\n\nAssistant: Another answer."},
    ]
    draw.shuffle(pairs)
    yield from pairs


def _write_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = _write_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).half().save_pretrained(folder, max_shard_size="200KB")
    _amend(folder / "config.json", {"auto_map": {"AutoModelForCausalLM": "code.LlamaForCausalLM", "AutoConfig": "code.Config"}})
    _amend(folder / "generation_config.json", {"temperature": 0.9, "top_p": 0.6, "do_sample": None})
    # transformers would run a copy of it that lies elsewhere, so the mark it leaves is named in full
    (folder / "code.py").write_text(f"open({str(folder / 'it-ran')!r}, 'w').close()\n", encoding="utf-8")


def _write_tokenizer(folder: Path) -> int:
    """Byte-fallback BPE with <unk> <s> </s> as its first entries and no padding token; the number of entries."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    specials = ["<unk>", "<s>", "</s>"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    draw = random.Random(8)
    bpe.train_from_iterator([f"{pair['chosen']} {pair['rejected']}" for pair in (_hh_pair(draw) for _ in range(200))], trainer)
    bpe.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir()
    written = json.loads(bpe.to_str())
    written["added_tokens"] = written["added_tokens"][: len(specials)]  # bytes are entries like any other
    # as in early copies of Llama-2: a padding token behind the last embedding row
    vocabulary = len(written["model"]["vocab"])
    pad = {"id": vocabulary, "content": "<pad>", "special": False, "normalized": True}
    written["added_tokens"].append(pad | dict.fromkeys(("single_word", "lstrip", "rstrip"), False))
    (folder / "tokenizer.json").write_text(json.dumps(written), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": vocabulary}), encoding="utf-8")
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None, "padding_side": "left"}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
    auto_map = {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}, "model_max_length": 64}
    text = json.dumps({**named, **settings, **auto_map, "chat_template": CHAT_TEMPLATE})
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return vocabulary


def _amend(path: Path, fields: dict[str, object]) -> None:
    """Fields put into a JSON file; None takes one away."""
    merged = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}), encoding="utf-8")
