"""Shapes are told from columns, rows of every shape become what their stage needs, and nothing else passes."""

from __future__ import annotations

import pytest

from launcher.train.canonical import Dialogue, Document, Pair, Prompt
from launcher.train.sources import FileRows

Q, GOOD, BAD = "What is it?", "It is a good answer.", "It is a bad answer."
USER, ANSWER = {"role": "user", "content": Q}, {"role": "assistant", "content": GOOD}
WORSE = {"role": "assistant", "content": BAD}
HH = f"\n\nHuman: {Q}\n\nAssistant: "


def turns(row) -> list[str]:
    return [turn["content"] for turn in row.messages]


@pytest.fixture
def first_row(write_rows, make_stage, read_stage):
    def first(kind, row, **fields):
        good, bad = read_stage(make_stage(kind, write_rows([row, row]), **fields))
        assert not bad, bad[0].reason
        return good[0][1]

    return first


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "completion": GOOD},
        {"prompt": [USER], "completion": [ANSWER]},
        {"instruction": Q, "input": "", "output": GOOD},
        {"instruction": Q, "output": GOOD},
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": GOOD}]},
        {"instruction": Q, "input": None, "output": GOOD, "text": "the same in one string"},
    ],
)
def test_every_shape_of_dialogue_serves_sft_and_its_prompt_serves_ppo(first_row, row):
    sft, ppo = first_row("sft", row), first_row("ppo", row)
    assert isinstance(sft, Dialogue)
    assert isinstance(ppo, Prompt)
    assert (turns(sft), turns(ppo)) == ([Q, GOOD], [Q])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "chosen": GOOD, "rejected": BAD},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
        {"prompt": Q, "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"chosen": HH + GOOD, "rejected": HH + BAD},
        {"prompt": Q + "\n", "chosen": Q + "\n" + GOOD, "rejected": Q + "\n" + BAD},
        {"prompt": HH, "chosen": HH + GOOD, "rejected": HH + BAD},
    ],
)
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_every_shape_of_pair_serves_reward_and_dpo(first_row, kind, row):
    pair = first_row(kind, row)
    assert isinstance(pair, Pair)
    assert [turn["content"].strip() for turn in pair.prompt] == [Q]
    assert (pair.chosen, pair.rejected, pair.group) == (GOOD, BAD, "")
    assert [text.strip() for text in turns(first_row("ppo", row))] == [Q]


def test_the_input_of_an_instruction_is_part_of_the_prompt(first_row):
    assert turns(first_row("ppo", {"instruction": "Add.", "input": "1 and 2", "output": "3"})) == ["Add.\n\n1 and 2"]


def test_prompts_serve_ppo_alone_and_text_serves_pretraining(first_row):
    assert turns(first_row("ppo", {"prompt": Q})) == [Q]
    assert isinstance(first_row("pretrain", {"text": Q}), Document)


def test_the_group_of_a_pair_is_kept(first_row):
    assert first_row("dpo", {"prompt": Q, "chosen": GOOD, "rejected": BAD, "group": "tone"}).group == "tone"


def test_columns_are_mapped_to_our_names(first_row):
    row = {"question": Q, "best": GOOD, "worst": BAD, "prompt": "not this"}
    columns = {"prompt": "question", "chosen": "best", "rejected": "worst"}
    pair = first_row("dpo", row, data={"columns": columns})
    assert (pair.prompt, pair.chosen) == ([USER], GOOD)


def test_the_prompt_of_ppo_never_holds_the_last_answer(first_row):
    dialogue = [USER, ANSWER, {"role": "user", "content": "More?"}, {"role": "assistant", "content": "the end"}]
    assert turns(first_row("ppo", {"messages": dialogue})) == [Q, GOOD, "More?"]


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("dpo", {"prompt": Q, "chosen": GOOD, "rejected": GOOD}, "are the same"),
        ("dpo", {"prompt": Q, "chosen": GOOD, "rejected": ""}, "`rejected` is empty"),
        ("dpo", {"prompt": HH + GOOD + HH + BAD, "chosen": HH + GOOD, "rejected": HH + BAD}, "`prompt` ends with the answer"),
        ("dpo", {"prompt": f"{Q} {GOOD} {BAD} so?", "chosen": GOOD, "rejected": BAD}, "`prompt` contains both answers"),
        (
            "dpo",
            {"prompt": [USER | {"content": f"{GOOD} {BAD} Which?"}], "chosen": [ANSWER], "rejected": [WORSE]},
            "`prompt` contains both answers",
        ),
        ("dpo", {"chosen": GOOD, "rejected": BAD}, "there is no `prompt`"),
        ("ppo", {"prompt": HH + GOOD}, "ends with an answer"),
        ("ppo", {"messages": [ANSWER]}, "has no turn of the user"),
        ("sft", {"messages": [USER]}, "has no answer"),
        ("sft", {"prompt": Q, "completion": 7}, "`completion` is a number (7), not text"),
        ("sft", {"instruction": Q, "input": [], "output": "x"}, "`input` is a list, not text"),
    ],
)
def test_a_row_that_would_teach_the_wrong_thing_is_bad(write_rows, make_stage, read_stage, kind, row, reason):
    good, (bad, _) = read_stage(make_stage(kind, write_rows([row, row])))
    assert not good
    assert reason in bad.reason


def test_ppo_on_whole_chosen_dialogues_is_refused(write_rows, make_stage, read_stage):
    """The guide renamed `chosen` to the query: every prompt then holds its answer."""
    stage = make_stage("ppo", write_rows([{"chosen": HH + GOOD}] * 2), data={"columns": {"prompt": "chosen"}})
    assert "ends with an answer" in read_stage(stage)[1][0].reason


@pytest.mark.parametrize(
    ("kind", "row", "data", "code", "what", "hint"),
    [
        ("pretrain", {"txt": "a"}, {}, "E532", "has the columns txt; a stage of kind pretrain needs text", "from txt"),
        (
            "dpo",
            {"prompt": Q, "chosen": GOOD, "reject": BAD},
            {"shape": "preference"},
            "E532",
            "no column 'rejected'",
            "reject}",
        ),
        ("sft", {"text": Q}, {}, "E533", "does not say where its answers are", "loss_on: all"),
        ("sft", {"text": Q}, {"shape": "text"}, "E533", "does not say where its answers are", "loss_on: all"),
        ("sft", {"prompt": Q}, {"shape": "prompts"}, "E533", "rows of shape prompts cannot serve", "messages"),
        (
            "sft",
            {"messages": [], "prompt": Q, "completion": Q},
            {},
            "E533",
            "fits several shapes: messages, prompt_completion",
            "",
        ),
        (
            "pretrain",
            {"text": "a"},
            {"columns": {"text": "body"}},
            "E532",
            "to 'body', which data.jsonl does not have",
            "columns",
        ),
        ("pretrain", {"body": "a"}, {"columns": {"text": "boddy"}}, "E532", "to 'boddy'", "did you mean body?"),
        (
            "pretrain",
            {"text": "a"},
            {"columns": {"txt": "text"}},
            "E532",
            "'txt', which is none of our names",
            "did you mean text?",
        ),
        (
            "pretrain",
            {"text": "a", "b": "c"},
            {"columns": {"prompt": "b"}},
            "E532",
            "maps prompt, which rows of shape text",
            "remove",
        ),
    ],
)
def test_columns_that_do_not_fit_are_listed_with_the_nearest(
    write_rows, make_stage, problems_of, kind, row, data, code, what, hint
):
    (problem,) = problems_of(FileRows, make_stage(kind, write_rows([row, row]), data=data))
    assert (problem.code, problem.where) == (code, f"stage {kind}")
    assert what in problem.what
    assert hint in problem.hint


def test_a_column_that_stands_twice_is_refused(tmp_path, make_stage, problems_of):
    path = tmp_path / "data.csv"
    path.write_text("text,text\na,b\n")
    (problem,) = problems_of(FileRows, make_stage("pretrain", path))
    assert (problem.code, "twice" in problem.what) == ("E532", True)


def test_text_serves_sft_with_a_loss_on_everything(first_row):
    assert isinstance(first_row("sft", {"text": Q}, loss_on="all"), Document)
