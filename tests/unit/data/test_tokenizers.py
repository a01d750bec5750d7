"""What every stage may rely on: a fast tokenizer, an end token, another padding token, right padding, no entry too many."""

from __future__ import annotations

import copy

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from launcher.errors import LauncherError
from launcher.train.chat import Chat
from launcher.train.tokenizers import content_hash, load_tokenizer, make_ready, train_tokenizer


def word_tokenizer(*specials: str, **named: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["a", "b", *specials])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")), **named)


def ready(tokenizer, rows=None, end_ids=frozenset()):
    return make_ready(tokenizer, where="model.tokenizer", embedding_rows=rows, end_ids=end_ids)


def codes(tokenizer, rows=None) -> list[str]:
    with pytest.raises(LauncherError) as caught:
        ready(tokenizer, rows)
    return [problem.code for problem in caught.value.problems]


def test_a_trained_tokenizer_writes_every_text_and_reads_it_back(tokenizer):
    for text in ("größe 你好 🙂", "\x00\x7f\n\t  two  spaces", "never seen before: ÆØÅ"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.padding_side) == (0, 1, "right")


def test_training_is_deterministic_and_survives_saving(tokenizer, tmp_path):
    texts = ["the same text twice", "and another one"]
    for name in ("a", "b"):
        train_tokenizer(iter(texts), vocab=320).save_pretrained(tmp_path / name)
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    tokenizer.save_pretrained(tmp_path / "c")
    loaded = load_tokenizer(tmp_path / "c")
    talk = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "yes"}]
    assert Chat(loaded).dialogues([talk]) == Chat(tokenizer).dialogues([talk])
    assert content_hash(tmp_path / "c") != content_hash(tmp_path / "a")


def test_a_changed_template_changes_the_hash(tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.chat_template += " "
    tokenizer.save_pretrained(tmp_path / "a")
    other.save_pretrained(tmp_path / "b")
    assert content_hash(tmp_path / "a") != content_hash(tmp_path / "b")


def test_padding_by_the_end_token_is_replaced_by_a_reserved_entry():
    """Llama-2 has no padding token and an <unk> that its byte fallback never needs."""
    made = ready(word_tokenizer("<unk>", "</s>", eos_token="</s>", unk_token="<unk>"), rows=4)
    assert (made.tokenizer.pad_token, made.tokenizer.eos_token) == ("<unk>", "</s>")
    assert made.notes == ("padding token was missing; now <unk>, which the vocabulary already has",)
    made = ready(word_tokenizer("<pad>", "</s>", eos_token="</s>", pad_token="</s>"), rows=4)
    assert made.tokenizer.pad_token == "<pad>"


def test_a_spare_embedding_row_takes_a_new_padding_token():
    made = ready(word_tokenizer("</s>", eos_token="</s>"), rows=4)
    assert (made.tokenizer.pad_token_id, len(made.tokenizer)) == (3, 4)
    assert ready(word_tokenizer("</s>", eos_token="</s>")).tokenizer.pad_token_id == 3


def test_no_room_for_a_padding_token_is_refused():
    assert codes(word_tokenizer("</s>", eos_token="</s>"), rows=3) == ["E543"]


def test_more_entries_than_embedding_rows_and_no_end_token_are_refused_together():
    assert codes(word_tokenizer(), rows=1) == ["E540", "E544"]


def test_the_token_that_ends_a_turn_becomes_the_end_token():
    tokenizer = word_tokenizer("<|eot|>", "<|eos|>", "<pad>", eos_token="<|eos|>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<|eot|>' }}{% endfor %}"
    made = ready(tokenizer, end_ids=frozenset({2, 3}))
    assert made.tokenizer.eos_token == "<|eot|>"
    assert "instead of <|eos|>" in made.notes[0]


@pytest.mark.parametrize("template", ["{{ raise_exception('a system turn comes first') }}", "{{ 1 / 0 }}"])
def test_a_template_that_refuses_a_small_dialogue_leaves_the_end_token_as_it_is(template):
    tokenizer = word_tokenizer("<|eot|>", "<|eos|>", "<pad>", eos_token="<|eos|>", pad_token="<pad>")
    tokenizer.chat_template = template
    assert ready(tokenizer, end_ids=frozenset({2, 3})).tokenizer.eos_token == "<|eos|>"


def test_padding_and_truncation_are_on_the_right_and_no_length_limits_a_text():
    made = ready(word_tokenizer("</s>", "<pad>", eos_token="</s>", pad_token="<pad>", padding_side="left", model_max_length=4))
    assert (made.tokenizer.padding_side, made.tokenizer.truncation_side) == ("right", "right")
    assert made.tokenizer.model_max_length > 10**6
