"""Where answers stand, token by token, with and without {% generation %} tags; what does not fit is refused."""

from __future__ import annotations

import copy

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from launcher.errors import LauncherError
from launcher.train.canonical import BadRow, Dialogue, Document, Pair, Place, Prompt, message
from launcher.train.chat import Chat, Unrenderable
from launcher.train.tokenise import NO_LOSS, tokenise
from launcher.train.tokenizers import CHAT_TEMPLATE

HERE = Place("f", 1)
TALK = [message("user", "is it true"), message("assistant", "yes"), message("user", "what"), message("assistant", "a list")]
UNTAGGED = CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
# ChatML: the end token is followed by a newline that is no part of the answer
CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Llama-2: no generation prompt, the answer closes the turn
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture
def with_template(tokenizer):
    def make(template: str | None) -> Chat:
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        return Chat(other)

    return make


def labelled(chat: Chat, row, loss_on="answers") -> list[str]:
    """The runs of tokens with a label, as text."""
    (made,) = tokenise([row], chat, "sft", loss_on)
    runs, current = [], []
    for token, label in zip(made.columns["input_ids"], made.columns["labels"], strict=True):
        assert label in (NO_LOSS, token)
        if label == NO_LOSS and current:
            runs.append(chat.tokenizer.decode(current))
            current = []
        elif label != NO_LOSS:
            current.append(token)
    return runs + ([chat.tokenizer.decode(current)] if current else [])


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, UNTAGGED, CHATML])
def test_exactly_the_answers_and_their_end_tokens_count(with_template, template):
    assert labelled(with_template(template), Dialogue(HERE, TALK)) == ["yes<|end|>", "a list<|end|>"]


def test_a_template_without_a_generation_prompt_is_located_by_its_turns(with_template):
    assert labelled(with_template(LLAMA2), Dialogue(HERE, TALK)) == [" yes <|end|>", " a list <|end|>"]


def test_both_ways_of_finding_answers_agree_on_every_token(with_template):
    tagged, untagged = (tokenise([Dialogue(HERE, TALK)], with_template(t), "sft", "answers") for t in (CHAT_TEMPLATE, UNTAGGED))
    assert tagged == untagged


def test_an_end_token_just_outside_of_the_tags_counts(with_template):
    outside = CHAT_TEMPLATE.replace(
        "m['content'] + eos_token -}}{%- endgeneration -%}", "m['content'] -}}{%- endgeneration -%}{{- eos_token -}}"
    )
    assert outside != CHAT_TEMPLATE
    assert labelled(with_template(outside), Dialogue(HERE, TALK)) == ["yes<|end|>", "a list<|end|>"]


def test_the_loss_on_all_covers_the_whole_row(with_template):
    (text,) = labelled(with_template(CHAT_TEMPLATE), Dialogue(HERE, TALK), "all")
    assert text.startswith("<|user|>is it true<|assistant|>yes<|end|>")


@pytest.mark.parametrize(
    ("template", "loss_on", "reason"),
    [
        (CHAT_TEMPLATE.replace(" + eos_token", ""), "answers", "does not end an answer with the end token <|end|>"),
        (UNTAGGED.replace(" + eos_token", ""), "answers", "does not end an answer with the end token <|end|>"),
        (UNTAGGED.replace(" + eos_token", ""), "all", "writes no end token <|end|>"),
        ("{{ messages | length }}" + UNTAGGED, "answers", "writes earlier turns differently"),
        (
            "{% generation %}{{ messages[-1]['content'] }}{{ eos_token }}{% endgeneration %}",
            "answers",
            "do not stand around every",
        ),
    ],
)
def test_a_template_that_would_train_the_wrong_tokens_is_refused(with_template, template, loss_on, reason):
    with pytest.raises(LauncherError) as caught:
        tokenise([Dialogue(HERE, TALK)], with_template(template), "sft", loss_on)
    assert caught.value.problems[0].code == "E542"
    assert reason in caught.value.problems[0].what


@pytest.mark.parametrize(
    "broken", ["{{ 1 / 0 }}", "{{ messages[9]['x'] + 1 }}", "{% for x in range(10 ** 12) %}a{% endfor %}", "{% if %}"]
)
def test_a_template_with_a_mistake_gives_bad_rows_and_no_crash(with_template, broken):
    made = tokenise([Dialogue(HERE, TALK)], with_template(broken), "sft", "answers")
    assert isinstance(made[0], BadRow)
    assert made[0].reason.startswith("the chat template refuses the dialogue: ")


def test_what_a_template_refuses_is_a_bad_row_among_good_ones(with_template):
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + UNTAGGED
    bad = [message("system", "be kind"), *TALK]
    made = tokenise([Dialogue(HERE, TALK), Dialogue(HERE, bad), Dialogue(HERE, TALK)], with_template(strict), "sft", "answers")
    assert made[1] == BadRow(HERE, "the chat template refuses the dialogue: user first")
    assert made[0] == made[2]
    assert isinstance(with_template(strict).prompts([bad])[0], Unrenderable)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, UNTAGGED, CHATML, LLAMA2])
def test_a_pair_has_one_prompt_and_two_answers_that_end(with_template, template):
    chat = with_template(template)
    pair = Pair(HERE, TALK[:3], chosen="a list", rejected="a name", group="g")
    (dpo,), (reward,) = (tokenise([pair], chat, kind, "answers") for kind in ("dpo", "reward"))
    prompt, chosen, rejected = (dpo.columns[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    assert chat.tokenizer.decode(chosen).strip() in ("a list<|end|>", "a list <|end|>")
    assert chosen[-1] == rejected[-1] == chat.end_id
    assert reward.columns == {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected, "group": "g"}
    assert dpo.length == reward.length == max(len(prompt + chosen), len(prompt + rejected))
    # what ppo samples from is what dpo trains behind
    (ppo,) = tokenise([Prompt(HERE, TALK[:3])], chat, "ppo", "answers")
    assert ppo.columns["prompt_ids"] == prompt


def test_pairs_that_differ_only_in_what_the_template_cuts_are_bad(with_template):
    trimming = UNTAGGED.replace("m['content'] + eos_token", "m['content'] | trim + eos_token")
    (made,) = tokenise([Pair(HERE, TALK[:1], "yes", "yes ")], with_template(trimming), "dpo", "answers")
    assert made == BadRow(HERE, "chosen and rejected are the same once they are tokenised")


def test_without_a_template_a_prompt_is_followed_by_its_completion(with_template):
    chat = with_template(None)
    row = Dialogue(HERE, [message("user", "is it true "), message("assistant", "yes")], plain=True)
    assert labelled(chat, row) == ["yes<|end|>"]
    (made,) = tokenise([row], chat, "sft", "answers")
    assert chat.tokenizer.decode(made.columns["input_ids"]) == "is it true yes<|end|>"


@pytest.mark.parametrize(
    ("kind", "row"),
    [("sft", Dialogue(HERE, TALK)), ("dpo", Pair(HERE, TALK[:1], "yes", "no")), ("ppo", Prompt(HERE, TALK[:1]))],
)
def test_dialogues_without_a_template_are_refused(with_template, kind, row):
    with pytest.raises(LauncherError) as caught:
        tokenise([row], with_template(None), kind, "answers")
    assert caught.value.problems[0].code == "E541"
    assert "prompt_completion" in caught.value.problems[0].hint


def test_documents_end_with_one_end_token(chat):
    made = tokenise([Document(HERE, "a list"), Document(HERE, "a list<|end|>")], chat, "pretrain", "all")
    assert made[0] == made[1]
    assert made[0].columns["input_ids"].count(chat.end_id) == 1


def test_the_beginning_token_stands_once_where_the_tokenizer_adds_one(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(single="<|system|> $A", special_tokens=[("<|system|>", 2)])
    other.chat_template = None
    chat = Chat(other)
    assert chat.prefix == [2]
    row = Dialogue(HERE, [message("user", "is it true"), message("assistant", " yes")], plain=True)
    (made,), (text,) = (
        tokenise([row], chat, "sft", "answers"),
        tokenise([Document(HERE, "<|system|>a")], chat, "pretrain", "all"),
    )
    assert made.columns["input_ids"][0] == 2
    assert made.columns["labels"][0] == NO_LOSS
    assert text.columns["input_ids"].count(2) == 1
    assert (
        chat.prompts([[message("user", "is it true")]])[0] == made.columns["input_ids"][: made.columns["labels"].count(NO_LOSS)]
    )


@pytest.fixture(scope="module")
def llama_like():
    """Words with a mark for the space before them, a mark before the first word, and a beginning token: Llama-2's kind."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    bpe.train_from_iterator(["is it true [INST] what a list [/INST] yes no the function returns"] * 4, trainer)
    bpe.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    tokenizer.chat_template = LLAMA2.replace("'[INST] '", "bos_token + '[INST] '")
    return tokenizer


def test_a_llama_like_tokenizer_marks_the_same_answers_and_begins_once(llama_like):
    chat = Chat(llama_like)
    dialogue, pair = Dialogue(HERE, TALK), Pair(HERE, TALK[:3], "a list", "no")
    (sft,), (dpo,), (ppo,) = (
        tokenise([row], chat, kind, "answers")
        for kind, row in (("sft", dialogue), ("dpo", pair), ("ppo", Prompt(HERE, TALK[:3])))
    )
    assert [text.strip() for text in labelled(chat, dialogue)] == ["yes </s>", "a list </s>"]
    assert sft.columns["input_ids"].count(1) == 2  # this template begins anew at each question
    assert sft.columns["input_ids"] == dpo.columns["prompt_ids"] + dpo.columns["chosen_ids"]
    assert ppo.columns["prompt_ids"] == dpo.columns["prompt_ids"]
    assert dpo.columns["chosen_ids"][-1] == dpo.columns["rejected_ids"][-1] == 2


def test_the_guides_ready_made_text_gets_no_second_beginning_or_end(llama_like):
    chat = Chat(llama_like)
    (made,) = tokenise([Document(HERE, "<s>[INST] is it true [/INST] yes </s>")], chat, "sft", "all")
    ids = made.columns["input_ids"]
    assert (ids[0], ids[-1], ids.count(1), ids.count(2)) == (1, 2, 1, 1)
    assert made.columns["labels"] == ids
