"""Model folders as they are met: what a stage reads is what transformers reads, whatever the layout; the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.rundir.folder import RunDir
from tests.stages import runs
from tests.stages.harness import run_ranks
from tests.stages.look import refused
from tests.stages.runs import END, HIDDEN, PAD, VOCAB, make_run

pytestmark = pytest.mark.ranks

LAYOUTS = {
    "alone": {},
    "zero 3": {"ranks": 2, "zero": 3, "micro": 4},
    "tensor": {"ranks": 2, "tp": 2, "zero": 1},
    "pipeline": {"ranks": 2, "pp": 2, "zero": 1, "micro": 4, "accum": 2},
}


def _save(folder: Path, config, *, dtype: str = "float32", reward: bool = False, **how: object):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    kind.from_config(config).to(getattr(torch, dtype)).save_pretrained(folder, **how)


def _llama(**changes: object):
    from transformers import LlamaConfig

    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "tie_word_embeddings": False}
    return LlamaConfig(**{**sizes, **heads, "bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD, **changes})


def _several_files(folder: Path) -> None:
    _save(folder, _llama(), max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 3


def _half(folder: Path) -> None:
    _save(folder, _llama(), dtype="float16")


def _bf16(folder: Path) -> None:
    _save(folder, _llama(tie_word_embeddings=True), dtype="bfloat16")


def _first_gpt2(folder: Path) -> None:
    """As published: names without `transformer.`, and the causal masks saved with the weights."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import GPT2Config

    ids = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD}
    _save(folder, GPT2Config(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=2, n_head=2, n_positions=64, **ids))
    state = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): weight for name, weight in state.items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(2)}
    save_file(bare | masks, folder / "model.safetensors", metadata={"format": "pt"})


def _neox(folder: Path) -> None:
    """Its head is `embed_out` in the folder and `lm_head` in today's model."""
    from transformers import GPTNeoXConfig

    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2}
    ids = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD}
    _save(folder, GPTNeoXConfig(num_attention_heads=2, max_position_embeddings=64, **sizes, **ids))


def _scorer(folder: Path) -> None:
    _save(folder, _llama(num_labels=1), reward=True)


def _read(run: RunDir, kind: str, writer: Callable[[Path], None], folder: Path) -> tuple[dict, dict]:
    """(weights of the assembled engine, weights as transformers loads them), both whole and by name, on rank 0."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from launcher.train.gathering import whole_weights
    from launcher.train.ranks import barrier

    assembled, ranks = _assembled(run, kind, writer, folder)
    with torch.no_grad():
        ours = {name: weight.numpy().copy() for name, weight in whole_weights(assembled.trained.pieces, assembled.trained.mesh)}
    theirs = {}
    if ranks.first and kind == "sft":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    elif ranks.first:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1)
        theirs = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    barrier()
    return ours, theirs


def _assembled(run: RunDir, kind: str, writer: Callable[[Path], None], folder: Path):
    from launcher.rundir.order import read_order
    from launcher.spec.job import JobSpec
    from launcher.train.assemble import assemble
    from launcher.train.batches import language_batch, scored_pairs
    from launcher.train.objectives import LANGUAGE, REWARD, Objective, bradley_terry, language_losses
    from launcher.train.ranks import barrier
    from launcher.train.task import begin

    order, job = read_order(run.order(kind)), JobSpec.model_validate_json(run.job_json.read_text())
    objective = Objective(names=LANGUAGE, collate=language_batch, losses=language_losses)
    if kind == "reward":
        objective = Objective(
            names=REWARD, collate=scored_pairs, losses=lambda scores, batch: bradley_terry(scores[0], center=0.0)
        )
    task = begin(run, job, job.stages[0], order, objective, adapter=job.model.adapter, quantize=False)
    if task.ranks.first and not folder.exists():
        writer(folder)
    barrier()
    return assemble(task), task.ranks


def read(world: Path, writer: Callable[[Path], None], *, kind: str = "sft", layout: str = "alone") -> tuple[dict, dict]:
    folder = world / writer.__name__.strip("_")
    run = make_run(world, kind=kind, start=folder, **LAYOUTS[layout])
    ranks = LAYOUTS[layout].get("ranks", 1)
    return run_ranks(_read, run, kind, writer, folder, world=ranks)[0]


@pytest.mark.parametrize("writer", [_several_files, _half, _bf16, _first_gpt2, _neox], ids=lambda writer: writer.__name__)
def test_a_folder_is_read_in_fp32_as_transformers_reads_it(world, writer):
    ours, theirs = read(world, writer)

    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert weight.dtype == "float32"
        assert (weight == theirs[name]).all(), name


@pytest.mark.parametrize("layout", ["zero 3", "tensor", "pipeline"])
@pytest.mark.parametrize("writer", [_several_files, _first_gpt2], ids=lambda writer: writer.__name__)
def test_every_layout_reads_the_same_weights(world, writer, layout):
    ours, theirs = read(world, writer, layout=layout)

    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize("layout", ["zero 3", "tensor", "pipeline"])
def test_a_new_reward_head_is_drawn_from_the_seed_whatever_the_layout(world, layout):
    """And the language head, left over on an untied model, is no error there."""
    alone, without_head = read(world, _several_files, kind="reward")
    ours, _ = read(world, _several_files, kind="reward", layout=layout)

    assert (ours["score.weight"] == alone["score.weight"]).all()
    assert alone["score.weight"].std() == pytest.approx(0.02, rel=0.5)
    assert {name for name in ours if (ours[name] != without_head[name]).any()} == {"score.weight"}


def test_another_seed_draws_another_head(world):
    folder = world / "several_files"
    run = make_run(world, kind="reward", start=folder, job={"seed": 4})
    [(other, _)] = run_ranks(_read, run, "reward", _several_files, folder, world=1)

    assert (other["score.weight"] != read(world, _several_files, kind="reward")[0]["score.weight"]).all()


def test_the_head_of_a_reward_model_is_kept(world):
    ours, theirs = read(world, _scorer, kind="reward")

    assert (ours["score.weight"] == theirs["score.weight"]).all()


def test_an_adapter_is_drawn_the_same_under_every_layout_and_adds_nothing_yet(world):
    model = {"adapter": {"kind": "lora", "rank": 2, "alpha": 4}}
    told = []
    for layout in LAYOUTS.values():
        run = make_run(world, kind="sft", model=model, start=world / "several_files", **layout)
        told.append(run_ranks(_read, run, "sft", _several_files, world / "several_files", world=layout.get("ranks", 1))[0][0])

    matrices = {name for name in told[0] if ".lora_A." in name}
    assert len(matrices) == 14
    for ours in told:
        assert ours.keys() == told[0].keys()
        assert all((ours[name] == told[0][name]).all() for name in ours)
        assert all((ours[name] != 0).any() for name in matrices)
        assert not any(ours[name].any() for name in ours if ".lora_B." in name)


def _broken(folder: Path, change: Callable[[dict], None]) -> None:
    from safetensors.torch import load_file, save_file

    runs.write_model(folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _renamed(state: dict) -> None:
    state["left.over"] = state.pop("model.layers.1.mlp.up_proj.weight")


def _narrower(state: dict) -> None:
    state["model.norm.weight"] = state["model.norm.weight"][:-1].clone()


def _third_layer(state: dict) -> None:
    state["model.layers.2.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"].clone()


@pytest.mark.parametrize("kind", ["sft", "reward"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_renamed, "1 missing: model.layers.1.mlp.up_proj.weight; 1 left over: left.over"),
        (_narrower, "1 of another shape: model.norm.weight"),
        (_third_layer, "1 left over: model.layers.2.mlp.up_proj.weight"),
    ],
    ids=["renamed", "narrower", "third layer"],
)
def test_weights_that_do_not_fit_the_config_are_refused(world, kind, change, what):
    folder = world / change.__name__
    if not folder.exists():
        run_ranks(_broken, folder, change, world=1)
    codes, [problem] = refused(make_run(world, kind=kind, start=folder), kind)

    assert (codes, problem["code"], problem["where"].rsplit("/", 1)[-1]) == ({5}, "E556", "model")
    assert what in problem["what"]


def test_a_reward_model_is_no_language_model(world):
    folder = world / "scorer"
    if not folder.exists():
        run_ranks(_scorer, folder, world=1)
    codes, [problem] = refused(make_run(world, kind="sft", start=folder), "sft")

    assert (codes, problem["code"]) == ({5}, "E556")
    assert "1 missing: lm_head.weight; 1 left over: score.weight" in problem["what"]


def test_a_folder_without_safetensors_is_refused(world):
    folder = world / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((world / "model" / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    codes, [problem] = refused(make_run(world, kind="sft", start=folder), "sft")

    assert (codes, problem["code"], problem["what"]) == ({5}, "E556", "no *.safetensors file is there")


def _other_tokenizers(world: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "tokenizer")
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(world / "larger")


def test_a_tokenizer_with_more_entries_than_the_model_has_rows_is_refused(world):
    run_ranks(_other_tokenizers, world, world=1)
    run = make_run(world, kind="sft")
    (run.base / "tokenizer").unlink()
    (run.base / "tokenizer").symlink_to(world / "larger")
    codes, [problem] = refused(run, "sft")

    assert (codes, problem["code"]) == ({5}, "E556")
    assert f"the tokenizer has {VOCAB + 2} entries, the model's embedding only {VOCAB} rows" in problem["what"]


def test_special_tokens_of_the_stage_go_into_the_config_that_is_handed_on(world):
    """A folder without a padding token, as Llama-2's: the tokenizer that prepare made ready has one."""
    from tests.stages.look import train

    folder = world / "no_pad"
    run_ranks(_without_pad, folder, world=1)
    run = make_run(world, kind="sft", start=folder, stage={"steps": 1})
    train(run, "sft")

    config = json.loads((run.stage("sft").artifact / "config.json").read_text())
    assert (config["pad_token_id"], config["eos_token_id"]) == (PAD, END)


def _without_pad(folder: Path) -> None:
    _save(folder, _llama(pad_token_id=None))
