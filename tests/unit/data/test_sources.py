"""Files, folders, splits and sides: which rows a stage reads, and on which side of the held-out split each lies."""

from __future__ import annotations

import os

import datasets
import pytest

from launcher.errors import LauncherError
from launcher.train.canonical import BadRow, Document, Place, share
from launcher.train.corpus import Corpus, CorpusRows
from launcher.train.files import data_files
from launcher.train.pydocs import Doc
from launcher.train.pydocs_rows import DAMAGES, first_sentence, lessons
from launcher.train.sources import FileRows, HubTable, split_by_hash

ROWS = [{"text": f"text number {number}"} for number in range(400)]


def sides(items) -> dict[str, list[str]]:
    return {side: [row.text for row_side, row in items if row_side == side] for side in ("train", "held_out")}


def test_the_held_out_share_is_drawn_by_hash_and_never_moves(write_rows, make_stage, read_stage):
    good, _ = read_stage(make_stage("pretrain", write_rows(ROWS), data={"held_out": 0.1}))
    more, _ = read_stage(make_stage("pretrain", write_rows([{"text": "new"}, *reversed(ROWS)]), data={"held_out": 0.1}))
    held_out = sides(good)["held_out"]
    assert 20 <= len(held_out) <= 60
    assert set(held_out) == set(sides(more)["held_out"]) - {"new"}
    assert sorted(sides(good)["train"] + held_out) == sorted(row["text"] for row in ROWS)


def test_of_few_rows_one_is_held_out(write_rows, make_stage, read_stage):
    for number in range(2, 8):
        good, _ = read_stage(make_stage("pretrain", write_rows(ROWS[:number]), data={"held_out": 0.0001}))
        assert [len(rows) for rows in sides(good).values()] == [number - 1, 1]


def test_the_smallest_hash_is_held_out_where_none_is_below_the_share():
    rows = [Document(Place("f", number), f"t{number}") for number in range(50)]
    made = list(split_by_hash(iter(rows), 1e-9))
    (held_out,) = [row for side, row in made if side == "held_out"]
    assert held_out.text == min((row.text for row in rows), key=share)
    assert len(made) == 50


def test_one_row_alone_trains():
    assert [side for side, _ in split_by_hash(iter([Document(Place("f", 1), "t")]), 0.5)] == ["train"]


def test_one_prompt_lies_on_the_same_side_in_every_stage(write_rows, make_stage, read_stage):
    rows = [{"prompt": f"Question {n}?", "completion": "Yes.", "chosen": "Yes.", "rejected": "No."} for n in range(100)]
    path = write_rows(rows)
    found = []
    for kind, shape in (("sft", "prompt_completion"), ("dpo", "preference"), ("ppo", "prompt_completion")):
        good, _ = read_stage(make_stage(kind, path, data={"held_out": 0.2, "shape": shape}))
        found.append({row.key() for side, row in good if side == "held_out"})
    assert found[0] == found[1] == found[2]


def test_the_limit_takes_the_first_rows(write_rows, make_stage, read_stage):
    good, _ = read_stage(make_stage("pretrain", write_rows(ROWS), data={"limit": 10}))
    assert {row.text for _, row in good} == {row["text"] for row in ROWS[:10]}


def test_another_file_may_be_held_out_and_is_checked_for_its_columns(write_rows, make_stage, read_stage, problems_of):
    train, test = write_rows(ROWS, "train.jsonl"), write_rows([{"text": "other"}], "other.jsonl")
    good, _ = read_stage(make_stage("pretrain", train, data={"held_out": {"source": str(test)}}))
    assert sides(good)["held_out"] == ["other"]
    wrong = write_rows([{"txt": "other"}], "wrong.jsonl")
    (problem,) = problems_of(FileRows, make_stage("pretrain", train, data={"held_out": {"source": str(wrong)}}))
    assert problem.what == "wrong.jsonl has no column 'text', which rows of shape text need; its columns are txt"
    assert problem.hint == "data.columns: {text: txt}"


@pytest.mark.parametrize("name", ["folder", "folder/a.jsonl"])
def test_training_data_are_no_held_out_data(write_rows, make_stage, problems_of, tmp_path, name):
    write_rows(ROWS, "folder/a.jsonl")
    stage = make_stage("pretrain", tmp_path / "folder", data={"held_out": {"source": str(tmp_path / name)}})
    assert "data.held_out is training data" in problems_of(FileRows, stage)[0].what


def test_a_folder_never_mixes_train_and_test(write_rows, make_stage, read_stage, tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test", "validation_1"):
        write_rows([{"text": name}], f"folder/{name}.jsonl")
    stage = make_stage("pretrain", tmp_path / "folder", data={"held_out": {"split": "test"}})
    assert sides(read_stage(stage)[0]) == {
        "train": ["train-00000-of-00002", "train-00001-of-00002"],
        "held_out": ["test"],
    }


def test_a_folder_without_split_names_is_read_whole_in_the_order_of_names(write_rows, make_stage, read_stage, tmp_path):
    for name in ("b", "a", "part/c"):
        write_rows([{"text": name}], f"folder/{name}.jsonl")
    write_rows([{"text": "hidden"}], "folder/.cache/x.jsonl")
    other = write_rows([{"text": "other"}], "other.jsonl")
    good, _ = read_stage(make_stage("pretrain", tmp_path / "folder", data={"held_out": {"source": str(other)}}))
    assert sides(good)["train"] == ["a", "b", "part/c"]


@pytest.mark.parametrize(
    ("name", "data", "code", "what"),
    [
        ("missing.jsonl", {}, "E530", "does not exist"),
        ("data.xml", {}, "E531", "a file of kind '.xml' cannot be read"),
        ("data.jsonl", {"split": "test"}, "E539", "data.split is 'test', but"),
        ("data.jsonl", {"config": "main"}, "E539", "data.config is for hub datasets"),
        ("folder", {"split": "dev"}, "E536", "has no split 'dev'; its files say test, train"),
        ("nothing", {}, "E536", "holds no data file"),
        ("empty.jsonl", {}, "E536", "the file is empty"),
    ],
)
def test_data_that_cannot_be_found_say_why(write_rows, make_stage, problems_of, tmp_path, name, data, code, what):
    write_rows(ROWS)
    write_rows(ROWS, "data.xml")
    write_rows([], "empty.jsonl")
    write_rows(ROWS, "folder/train.jsonl")
    write_rows(ROWS, "folder/test.jsonl")
    (tmp_path / "nothing").mkdir()
    (problem,) = problems_of(FileRows, make_stage("pretrain", tmp_path / name, data=data))
    assert problem.code == code
    assert what in f"{problem.where} {problem.what}"


def test_a_hub_dataset_without_network_is_one_clear_problem(make_stage, problems_of, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (problem,) = problems_of(FileRows, make_stage("pretrain", "nobody/no-such-dataset"))
    assert problem.code == "E547"
    assert "nobody/no-such-dataset cannot be fetched" in problem.what


def test_a_hub_split_is_read_row_by_row_without_decoding():
    table = HubTable(datasets.Dataset.from_list([{"text": "a"}, {"text": None}]), "owner/name/train")
    assert table.columns() == ["text"]
    assert list(table.rows()) == [
        (Place("owner/name/train", 1), {"text": "a"}),
        (Place("owner/name/train", 2), {"text": None}),
    ]
    assert table.fingerprint() != HubTable(datasets.Dataset.from_list([{"text": "b"}]), "owner/name/train").fingerprint()


def test_a_folder_that_datasets_wrote_is_read(tmp_path, make_stage, read_stage):
    datasets.Dataset.from_list(ROWS[:5]).save_to_disk(str(tmp_path / "saved"))
    splits = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS[:3]), "test": datasets.Dataset.from_list(ROWS[3:5])}
    )
    splits.save_to_disk(str(tmp_path / "splits"))
    assert len(read_stage(make_stage("pretrain", tmp_path / "saved"))[0]) == 5
    good, _ = read_stage(make_stage("pretrain", tmp_path / "splits", data={"held_out": {"split": "test"}}))
    assert [len(rows) for rows in sides(good).values()] == [3, 2]


def test_the_fingerprint_names_the_content_and_not_the_clock(write_rows, make_stage):
    path = write_rows(ROWS)
    before = FileRows(make_stage("pretrain", path)).fingerprint()
    os.utime(path, (1, 1))
    assert FileRows(make_stage("pretrain", path)).fingerprint() == before
    raw, stat = bytearray(path.read_bytes()), path.stat()
    raw[20] ^= 1
    path.write_bytes(bytes(raw))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert FileRows(make_stage("pretrain", path)).fingerprint() != before
    assert FileRows(make_stage("pretrain", write_rows(ROWS), data={"limit": 5})).fingerprint() != before
    assert FileRows(make_stage("pretrain", write_rows(ROWS), data={"held_out": 0.3})).fingerprint() != before


def test_a_file_that_grows_while_it_is_read_is_refused(write_rows, make_stage, problems_of):
    path = write_rows(ROWS)
    source = FileRows(make_stage("pretrain", path))
    source.fingerprint()
    with path.open("a") as file:
        file.write('{"text": "late"}\n')
    assert "was changed while it was read" in problems_of(lambda: list(source.rows()))[0].what


def test_bad_rows_come_out_in_their_place(write_rows, make_stage, read_stage):
    good, bad = read_stage(make_stage("pretrain", write_rows([*ROWS[:10], {"text": ""}, *ROWS[10:20]])))
    assert (len(good), [row.place.row for row in bad]) == (20, [11])


@pytest.fixture(scope="module")
def corpus():
    return Corpus(seed=0)


def test_the_embedded_corpus_is_the_same_for_the_same_seed_and_another_for_another(corpus):
    again, other = Corpus(seed=0), Corpus(seed=1)
    other.docs = corpus.docs  # the walk takes seconds, and the seed has no part in it
    assert again.fingerprint == corpus.fingerprint != other.fingerprint
    assert again.lessons == corpus.lessons
    assert {lesson.name for lesson in other.lessons} == {lesson.name for lesson in corpus.lessons}


def test_the_embedded_corpus_holds_thousands_of_rows_and_holds_out_the_same_questions_everywhere(corpus):
    held_out = {}
    for kind in ("sft", "reward", "dpo", "ppo"):
        items = list(CorpusRows(corpus, kind, None).rows())
        assert len(items) > 3000
        held_out[kind] = {row.key() for side, row in items if side == "held_out"}
    assert held_out["sft"] == held_out["reward"] == held_out["dpo"] == held_out["ppo"]
    assert 100 < len(held_out["sft"]) < 1000
    assert not any(isinstance(item, BadRow) for item in CorpusRows(corpus, "pretrain", None).rows())


def test_every_damage_makes_another_answer(corpus):
    by_damage = {damage: [lesson for lesson in corpus.lessons if lesson.damage == damage] for damage in DAMAGES}
    assert all(len(found) > 500 for found in by_damage.values())
    assert all(lesson.worse != lesson.answer for lesson in corpus.lessons)
    assert all(sorted(x.worse.rstrip(".").split()) == sorted(x.answer.rstrip(".").split()) for x in by_damage["shuffle"])


def test_the_limit_of_the_corpus_counts_training_rows(corpus):
    items = list(CorpusRows(corpus, "sft", 50).rows())
    assert sum(side == "train" for side, _ in items) == 50
    assert sum(side == "held_out" for side, _ in items) > 100


def test_a_new_docstring_moves_no_other_row():
    docs = [Doc(name=f"m.f{n}", signature="f()", text=f"Return the number {n} as it is.", kind="function") for n in range(30)]
    before = {lesson.name: (lesson.question, lesson.damage, lesson.held_out) for lesson in lessons(docs[1:], seed=3)}
    after = {lesson.name: (lesson.question, lesson.damage, lesson.held_out) for lesson in lessons(docs, seed=3)}
    assert before == {name: value for name, value in after.items() if name in before}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return the sum of two numbers. More follows.", "Return the sum of two numbers."),
        ("sum(a, b) -> int\nReturn the sum of two numbers.", "Return the sum of two numbers."),
        ("Return the sum of two numbers\n\nMore.", "Return the sum of two numbers."),
        ("Too short.", None),
        ("lower case at the beginning of it.", None),
        (">>> Run this and see what it gives you.", None),
    ],
)
def test_an_answer_is_a_first_sentence_of_prose(text, expected):
    assert first_sentence(text) == expected


@pytest.mark.parametrize("name", ["dataset_dict.json", "state.json"])
def test_a_saved_dataset_whose_list_of_files_is_damaged_is_named(tmp_path, name):
    (tmp_path / name).write_text("{")
    with pytest.raises(LauncherError) as caught:
        data_files(tmp_path, "train", "stage sft")
    assert [(problem.code, problem.where) for problem in caught.value.problems] == [("E531", str(tmp_path / name))]
