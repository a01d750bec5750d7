"""Dialogues in their usual forms, and the prompt rule for pairs of whole dialogues."""

from __future__ import annotations

import pytest

from launcher.train.turns import Unusable, answered_prompt, prompt_of, refuse_leak, transcript_turns, turns_of

U = {"role": "user", "content": "hi"}
A = {"role": "assistant", "content": "hello"}


def reason(function, *args) -> str:
    with pytest.raises(Unusable) as caught:
        function(*args)
    return str(caught.value)


def test_chatml_and_sharegpt_give_the_same_turns():
    sharegpt = [{"from": "system", "value": "be kind"}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    chatml = [{"role": "system", "content": "be kind"}, U, A]
    assert turns_of(sharegpt, "conversations") == turns_of(chatml, "messages") == chatml


def test_an_empty_system_turn_and_columns_of_nulls_are_left_out():
    assert turns_of([{"role": "system", "content": ""}, U | {"tool_calls": None}], "messages") == [U]


def test_content_in_text_parts_is_joined():
    assert turns_of([U | {"content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}], "m") == [U]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "`m` is a str, not a list of messages"),
        (None, "`m` is null"),
        ([], "`m` has no turn"),
        (["hi"], "`m[0]` is a str, not an object with role and content"),
        ([{"content": "x"}], "`m[0]` has neither `role` nor `from`"),
        ([U, {"role": "tool", "content": "x"}], "`m[1]` has the role 'tool'"),
        ([{"role": "user"}], "`m[0].content` is null"),
        ([{"role": "user", "content": 3}], "`m[0].content` is a number (3), not text"),
        ([{"role": "assistant", "content": " "}], "`m[0].content` is empty"),
        ([U | {"content": [{"type": "image"}]}], "`m[0]` has a part that is not text"),
    ],
)
def test_a_message_list_that_is_none_says_why(value, expected):
    assert reason(turns_of, value, "m").startswith(expected)


def test_a_transcript_becomes_turns():
    assert transcript_turns("\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more?\n\nAssistant:") == [
        U,
        A,
        {"role": "user", "content": "more?"},
        {"role": "assistant", "content": ""},
    ]


def test_two_turns_of_one_speaker_become_one():
    assert transcript_turns("Human: a\n\nHuman: b\n\nAssistant: c")[0] == {"role": "user", "content": "a\n\nb"}


def test_the_speakers_names_inside_a_sentence_are_text():
    assert transcript_turns("\n\nHuman: is Assistant: a word?\n\nAssistant: yes")[0]["content"] == "is Assistant: a word?"


def test_the_prompt_is_what_both_dialogues_share_up_to_the_answer():
    chosen = transcript_turns("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: The good one")
    rejected = transcript_turns("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: The bad one")
    prompt, good, bad = answered_prompt(chosen, rejected)
    # "The " is common to both strings and still belongs to the answers
    assert ([turn["content"] for turn in prompt], good, bad) == (["a", "b", "c"], "The good one", "The bad one")


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([U, A], [U, A], "`chosen` and `rejected` are the same"),
        ([U, A], [U], "`rejected` has no answer of its own"),
        ([U, A], [U, A | {"content": " "}], "the answer of `rejected` is empty"),
        ([U, A], [U | {"content": "x"}, A], "have no prompt in common"),
        ([U, A, U], [U, A, U | {"content": "x"}], "part in a turn of the user"),
        ([U, A], [U, A | {"content": "x"}, U], "`rejected` goes on after the answer"),
        ([U, A, A], [U, A, A | {"content": "x"}], "part behind an answer"),
    ],
)
def test_dialogues_without_a_clean_pair_of_answers_say_why(chosen, rejected, expected):
    assert expected in reason(answered_prompt, chosen, rejected)


def test_a_prompt_that_ends_with_an_answer_is_refused():
    assert "ends with an answer" in reason(prompt_of, "\n\nHuman: hi\n\nAssistant: hello", "query")
    assert "ends with an answer" in reason(prompt_of, [U, A], "prompt")
    assert prompt_of("\n\nHuman: hi\n\nAssistant:", "query") == ([U], False)
    assert prompt_of("hi", "prompt") == ([U], True)


def test_a_prompt_made_out_of_both_answers_is_refused():
    good, bad = "The sky is blue today.", "The sky is green today."
    assert "contains both" in reason(refuse_leak, f"{good} or {bad}?", good, bad)
    assert "ends with the answer of `chosen`" in reason(refuse_leak, f"Why? {good}", good, bad)
    refuse_leak(f"Is it true that {good} Say why.", good, bad)
    refuse_leak("Yes or no?", "Yes", "no")
