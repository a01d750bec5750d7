"""The eight mistakes of the guide behind examples/llama2_guide.yaml: each is refused, or cannot be written at all.

What the trained twin shows of them is in tests/stages/test_guide_twin.py.
"""

from __future__ import annotations

import ast
import copy
import itertools
import json
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from huggingface_hub.utils import filter_repo_objects
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from launcher.errors import LauncherError
from launcher.rundir.artifact import read_manifest
from launcher.spec.chain import check, parent_of
from launcher.spec.job import JobSpec
from launcher.spec.load import open_job, open_job_text
from launcher.spec.model import Lora
from launcher.train.adapters import lora_config
from launcher.train.batches import language_batch
from launcher.train.chat import Chat
from launcher.train.hub import MODEL_FILES, NEVER_FETCHED
from launcher.train.prepared import Recipe, prepare_rows
from launcher.train.rollout import left_padded
from launcher.train.sources import FileRows
from launcher.train.tokenise import tokenise
from launcher.train.tokenizers import load_tokenizer, make_ready

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "llama2_guide.yaml"
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "launcher").rglob("*.py"))}
QUESTION = "\n\nHuman: What does it return?\n\nAssistant: "
GOOD, BAD = "It returns a list of names.", "It returns what is true."


def errors(change: tuple[str, str] | None = None, *overrides: str) -> list[str]:
    """`CODE what` of every problem of the example with one text replaced."""
    text = EXAMPLE.read_text(encoding="utf-8")
    if change:
        assert change[0] in text
        text = text.replace(*change)
    with pytest.raises(LauncherError) as caught:
        open_job_text(text, file_name="job.yaml", folder=ROOT, overrides=overrides)
    return [f"{problem.code} {problem.what}" for problem in caught.value.problems]


def test_1_a_ppo_stage_without_a_reward_model_is_refused():
    assert errors(("    reward: reward\n", "")) == ["E107 stages.ppo.reward: is missing"]
    assert errors(("    reward: reward\n", "    reward: sft\n")) == ["E110 stages.ppo.reward: sft is of kind sft, not reward"]
    assert "E110 stages.ppo.reward: there is no stage scorer" in errors(("    reward: reward\n", "    reward: scorer\n"))


def test_1_no_chain_lets_ppo_start_from_the_base_or_from_a_reward_model():
    """Every chain of up to three stages before it, and every `from` that could be written."""
    kinds, accepted = ("pretrain", "sft", "reward", "dpo"), 0
    for before in itertools.chain.from_iterable(itertools.product(kinds, repeat=count) for count in range(4)):
        names = [f"s{number}" for number in range(len(before))]
        for start, scorer in itertools.product([None, "ppo", *names], ["none", *names]):
            stages = [{"kind": kind, "name": name, "data": {"source": "a/b"}} for kind, name in zip(before, names, strict=True)]
            ppo = {"kind": "ppo", "from": start, "reward": scorer, "data": {"source": "a/b"}}
            job = JobSpec.model_validate_json(json.dumps({"name": "x", "model": {"source": "a/b"}, "stages": [*stages, ppo]}))
            if not check(job):
                parent = parent_of(job, job.stages[-1])
                assert parent is not None
                assert parent.kind in ("pretrain", "sft", "dpo")
                accepted += 1
    assert accepted > 20  # or the loop has looked at nothing


def test_1_the_example_starts_ppo_and_dpo_from_its_sft_stage():
    job = open_job(EXAMPLE).job
    parents = {stage.kind: parent_of(job, stage) for stage in job.stages}
    assert {kind: parent and parent.stage_name for kind, parent in parents.items()} == {
        "sft": None,
        "reward": "sft",
        "ppo": "sft",
        "dpo": "sft",
    }


def test_2_the_stage_sets_the_adapters_task_and_the_head_and_a_job_file_cannot():
    assert lora_config(Lora(), "reward").task_type == "SEQ_CLS"
    assert lora_config(Lora(), "reward").modules_to_save == ["score"]
    assert lora_config(Lora(), "causal").task_type == "CAUSAL_LM"
    assert lora_config(Lora(), "causal").modules_to_save is None
    for path in ("model.num_labels", "model.adapter.task_type", "stages.sft.num_labels"):
        assert errors(None, f"{path}=1")[0].startswith("E112 ")


def test_3_a_dpo_prompt_that_contains_the_answers_is_refused(write_rows, make_stage, read_stage):
    both = {"prompt": QUESTION + GOOD + QUESTION + BAD, "chosen": QUESTION + GOOD, "rejected": QUESTION + BAD}
    good, [bad, _] = read_stage(make_stage("dpo", write_rows([both, both])))
    assert not good
    assert "`prompt` ends with the answer of `rejected`" in bad.reason


def test_3_the_dpo_prompt_is_what_both_dialogues_share(write_rows, make_stage, read_stage, chat):
    row = {"chosen": QUESTION + GOOD, "rejected": QUESTION + BAD}
    [(_, pair), _], _ = read_stage(make_stage("dpo", write_rows([row, row])))
    [made] = tokenise([pair], chat, "dpo", "answers")
    prompt, chosen, rejected = (chat.tokenizer.decode(made.columns[f"{n}_ids"]) for n in ("prompt", "chosen", "rejected"))
    assert prompt == "<|user|>What does it return?<|assistant|>"
    # what the answers have in common stays with them
    assert (chosen, rejected) == (GOOD + "<|end|>", BAD + "<|end|>")


def test_4_a_query_of_ppo_holds_no_answer(write_rows, make_stage, read_stage, chat):
    row = {"chosen": QUESTION + GOOD, "rejected": QUESTION + BAD}
    source = write_rows([row, row])
    [(_, prompt), _], _ = read_stage(make_stage("ppo", source))
    [made] = tokenise([prompt], chat, "ppo", "answers")
    assert chat.tokenizer.decode(made.columns["prompt_ids"]) == "<|user|>What does it return?<|assistant|>"
    # the guide renamed the column to the query
    renamed = make_stage("ppo", source, data={"shape": "prompts", "columns": {"prompt": "chosen"}})
    assert "ends with an answer" in read_stage(renamed)[1][0].reason


def llama2_like(**named: str) -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "a", "b"])}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>", padding_side="left", **named
    )


def ready(tokenizer: PreTrainedTokenizerFast, *, rows: int = 5) -> PreTrainedTokenizerFast:
    return make_ready(tokenizer, where="model.tokenizer", embedding_rows=rows, end_ids=frozenset({2})).tokenizer


def test_5_padding_is_never_the_end_token():
    for given in ({}, {"pad_token": "</s>"}):
        made = ready(llama2_like(**given))
        assert (made.pad_token, made.eos_token, made.padding_side) == ("<unk>", "</s>", "right")


def test_5_a_padding_token_without_an_embedding_row_is_dropped(tmp_path):
    """Copies of Llama-2 have `<pad>` at 32000, behind 32000 rows: looking it up is an index error."""
    tokenizer = llama2_like()
    tokenizer.add_tokens("<pad>")
    tokenizer.pad_token = "<pad>"
    assert tokenizer.pad_token_id == 5
    ready(tokenizer).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (len(loaded), loaded.pad_token, loaded.pad_token_id) == (5, "<unk>", 0)
    assert max(loaded("a<pad>b")["input_ids"]) < 5
    tokenizer = llama2_like()
    tokenizer.add_tokens("<tool>")
    with pytest.raises(LauncherError, match="6 entries, the model only 5 embedding rows"):
        ready(tokenizer)


def test_5_training_pads_on_the_right_and_generation_on_the_left_and_the_end_token_counts():
    rows = [{"input_ids": [1, 3, 4, 2], "labels": [-100, 3, 4, 2]}, {"input_ids": [3, 2], "labels": [3, 2]}]
    batch = language_batch(rows, pad=0, multiple=1)
    assert batch.ids_ST.tolist() == [[1, 3, 4, 2], [3, 2, 0, 0]]
    assert batch.goal.tolist() == [[3, 4, 2, -100], [2, -100, -100, -100]]  # the token behind each
    ids, attention = left_padded([[1, 3, 4], [3]], pad=0, device="cpu")
    assert ids.tolist() == [[1, 3, 4], [0, 0, 3]]
    assert torch.equal(attention, torch.tensor([[1, 1, 1], [0, 0, 1]]))


def test_6_no_model_is_split_by_layers_beside_deepspeed():
    assert [str(path) for path, text in SOURCES.items() if "device_map" in text] == []
    assert errors(None, "model.device_map=auto") == ["E112 model.device_map: there is no such field"]


def test_7_remote_code_is_trusted_nowhere_and_not_even_fetched():
    values = [
        keyword.value.value if isinstance(keyword.value, ast.Constant) else keyword.value
        for text in SOURCES.values()
        for keyword in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.keyword))
        if keyword.arg == "trust_remote_code"
    ]
    assert values
    assert set(values) == {False}
    published = ["config.json", "tokenizer.json", "model-1.safetensors", "tokenizer_x.py", "modeling_x.py", "pytorch_model.bin"]
    fetched = filter_repo_objects(published, allow_patterns=MODEL_FILES, ignore_patterns=NEVER_FETCHED)
    assert list(fetched) == published[:3]
    assert errors(None, "model.trust_remote_code=true") == ["E112 model.trust_remote_code: there is no such field"]


def test_7_keys_stay_out_of_the_job_file_and_paths_out_of_anybodys_home():
    assert errors(None, "cluster.env.HF_TOKEN=hf_123")[0].startswith("E118 cluster.env.HF_TOKEN: looks like a secret")
    example = EXAMPLE.read_text(encoding="utf-8")
    assert "/home" not in example
    assert "~" not in example


def test_8_pairs_are_measured_whole_and_dropped_when_one_side_is_over_the_limit(write_rows, make_stage, chat, tmp_path):
    """The guide cut both sides to the tokenizer's limit and then compared the lengths: nothing was ever too long."""
    fits = {"chosen": QUESTION + GOOD, "rejected": QUESTION + BAD}
    side = len(chat.dialogues([[{"role": "user", "content": "What does it return?"}, _answer(GOOD)]])[0].ids)
    rows = [{**fits, "chosen": fits["chosen"] + " yes" * count} for count in (0, 1, 400)]
    rows += [{**fits, "rejected": fits["rejected"] + " yes" * 400}, *([fits] * 20)]
    short = copy.deepcopy(chat.tokenizer)
    short.model_max_length = 8
    source = FileRows(
        make_stage("reward", write_rows(rows), data={"held_out": {"source": str(write_rows([fits], "other.jsonl"))}})
    )
    recipe = Recipe(where="stage reward", kind="reward", max_tokens=side, min_rows=1)
    entry, _ = prepare_rows(recipe, source, Chat(short), "tokenizer", tmp_path / ".cache")
    kept = load_from_disk(str(entry / "train"))
    assert (read_manifest(entry) or {})["dropped"] == {"too_long": 3, "bad": 0}
    assert {len(ids) for ids in kept["chosen_ids"][:]} == {side}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
