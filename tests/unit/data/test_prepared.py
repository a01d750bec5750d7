"""Tokenised rows on disk: dropped by their measured length and counted, packed, cached by content, whole or not there."""

from __future__ import annotations

import multiprocessing
import os
import shutil

import pytest
from datasets import load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import LauncherError
from launcher.rundir.artifact import find_damage, read_manifest
from launcher.train.cache import cached
from launcher.train.canonical import BadRow, Dialogue, Document, Pair, Place, message
from launcher.train.packing import Wrapped, pack_whole
from launcher.train.prepared import Recipe, prepare_rows


class Given:
    """A RowSource of the rows it is given; counts how often they are read."""

    def __init__(self, *items, name="f"):
        self.items, self.name, self.reads = items, name, 0

    def fingerprint(self) -> str:
        return self.name

    def rows(self):
        self.reads += 1
        yield from self.items


def place(number: int) -> Place:
    return Place("f", number)


def talk(number: int, answer: str, side="train"):
    return side, Dialogue(place(number), [message("user", "what"), message("assistant", answer)], plain=True)


def pair(number: int, chosen: str, rejected: str, side="train"):
    return side, Pair(place(number), [message("user", "what")], chosen, rejected)


def recipe(kind="sft", **fields) -> Recipe:
    return Recipe(**{"where": f"stage {kind}", "kind": kind, "max_tokens": 64, "min_rows": 1, **fields})


@pytest.fixture
def prepare(chat, tmp_path):
    """(manifest, train rows, held-out rows, was in the cache)."""

    def call(source, **fields):
        entry, hit = prepare_rows(recipe(**fields), source, chat, "tokenizer", tmp_path / ".cache")
        return read_manifest(entry), load_from_disk(str(entry / "train")), load_from_disk(str(entry / "held_out")), hit

    return call


@pytest.fixture
def problems(prepare):
    def call(source, **fields):
        with pytest.raises(LauncherError) as caught:
            prepare(source, **fields)
        return caught.value.problems

    return call


def test_rows_are_measured_before_they_are_dropped_and_never_cut(prepare, chat):
    fits = chat.dialogues([[message("user", "what"), message("assistant", "yes " * 3)]])[0]
    source = Given(talk(1, "yes " * 3), talk(2, "yes " * 4), talk(3, "yes " * 300), talk(4, "no", "held_out"))
    manifest, train, _, _ = prepare(source, max_tokens=len(fits.ids))
    assert train["input_ids"][:] == [fits.ids]
    assert manifest["dropped"] == {"too_long": 2, "bad": 0}
    assert manifest["rows"] == {"train": 1, "held_out": 1}
    assert manifest["tokens"]["train"] == len(fits.ids)


def test_a_pair_is_dropped_when_either_side_is_too_long(prepare):
    source = Given(
        pair(1, "yes", "no " * 100), pair(2, "yes " * 100, "no"), pair(3, "yes", "no"), pair(4, "no", "yes", "held_out")
    )
    for kind in ("reward", "dpo"):
        manifest, train, _, _ = prepare(source, kind=kind)
        assert (manifest["dropped"]["too_long"], len(train)) == (2, 1)


def test_where_every_row_is_too_long_the_lengths_are_told(problems):
    (problem,) = problems(Given(*[talk(n, "yes " * n) for n in range(100, 120)], talk(200, "yes " * 99, "held_out")))
    assert problem.code == "E537"
    assert problem.what.startswith("all 21 rows are longer than data.max_tokens = 64; the longest have ")
    enough = int(problem.hint.split()[1])
    longest = int(problem.what.split("have ")[1].split(",")[0])
    assert 64 < enough <= longest


def test_a_bad_row_stops_the_stage_with_its_place_and_reason(problems):
    (problem,) = problems(
        Given(talk(1, "yes"), BadRow(Place("data.jsonl", 1000, 1000), "broken JSON"), talk(2, "no", "held_out"))
    )
    assert problem.text() == (
        "data.jsonl:1000 [E534] row 1000: broken JSON\n"
        "  hint: mend the row, or skip and count such rows with data.bad_rows: skip"
    )


def test_of_many_bad_rows_the_first_are_listed_and_all_counted(problems):
    found = problems(Given(*[BadRow(place(n), "x") for n in range(1, 31)], *[talk(n, "yes") for n in range(31, 41)]))
    assert [problem.code for problem in found] == ["E534"] * 11
    assert found[-1].what == "30 of 40 rows are bad; the first 10 are listed above"


def test_bad_rows_are_skipped_and_counted_where_the_job_says_so(prepare):
    good = [talk(n, "yes", "held_out" if n == 1 else "train") for n in range(1, 20)]
    manifest, train, _, _ = prepare(Given(*good, BadRow(place(20), "x"), BadRow(place(21), "x")), bad_rows="skip")
    assert (manifest["dropped"]["bad"], len(train)) == (2, 18)


@pytest.mark.parametrize("num_good", [0, 17])
def test_skipping_hides_no_more_than_a_tenth(problems, num_good):
    source = Given(*[talk(n, "yes") for n in range(num_good)], *[BadRow(place(n), "wrong") for n in range(2)])
    found = problems(source, bad_rows="skip")
    assert (found[0].code, found[1].code) == ("E535", "E534")
    assert found[0].what == f"2 of {num_good + 2} rows are bad, more than the 10% that bad_rows: skip may hide"


def test_a_row_that_only_its_tokens_show_as_bad_counts_like_any_other(problems, chat):
    chat.template = chat.template.replace("m['content'] + eos_token", "m['content'] | trim + eos_token")
    found = problems(Given(pair(1, "yes", "no"), pair(7, "yes ", "yes"), pair(2, "yes", "no", "held_out")), kind="dpo")
    assert "row 7" in found[0].what


def test_fewer_rows_than_one_step_uses_are_refused_with_the_counts(problems):
    source = Given(talk(1, "yes"), talk(2, "yes " * 100), talk(3, "no", "held_out"))
    (problem,) = problems(source, min_rows=32)
    assert problem.code == "E538"
    assert problem.what == "1 training rows (1 dropped as too long, 0 as bad), but one step uses 32"


def test_no_held_out_row_is_refused(problems):
    assert problems(Given(talk(1, "yes"), talk(2, "no")))[0].code == "E536"


def test_pretraining_blocks_are_exactly_full_and_documents_are_joined_by_end_tokens(prepare, chat):
    texts = ["is it true", "a list of names", "yes no yes", "what does the function return"]
    source = Given(
        *[("train", Document(place(n), text)) for n, text in enumerate(texts)], ("held_out", Document(place(9), "what " * 9))
    )
    manifest, train, held_out, _ = prepare(source, kind="pretrain", max_tokens=8)
    stream = [token for ids in chat.documents(texts) for token in ids]
    assert [token for row in train["input_ids"] for token in row] == stream[: len(stream) // 8 * 8]
    assert all(len(row) == 8 for row in [*train["input_ids"], *held_out["input_ids"]])
    assert train["labels"][:] == train["input_ids"][:]
    assert manifest["tokens"]["train"] == len(train) * 8


def test_packed_rows_stay_whole_and_keep_their_lengths(prepare, chat):
    answers = ["yes", "no", "a list of names", "yes yes no", "is it true", "what"]
    rows = [talk(n, answer) for n, answer in enumerate(answers)]
    _, plain, _, _ = prepare(Given(*rows, talk(9, "no", "held_out")))
    _, packed, held_out, _ = prepare(Given(*rows, talk(9, "no", "held_out")), packing=True, max_tokens=32)
    found = []
    for row in packed:
        start = 0
        for length in row["seq_lengths"]:
            found.append((row["input_ids"][start : start + length], row["labels"][start : start + length]))
            start += length
        assert start == len(row["input_ids"]) <= 32
    assert sorted(found) == sorted(zip(plain["input_ids"], plain["labels"], strict=True))
    assert len(packed) < len(plain)
    assert held_out["seq_lengths"][:] == [[len(held_out["input_ids"][0])]]


def test_the_first_token_of_a_packed_row_is_no_target_for_the_row_before():
    (row,) = pack_whole([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}], 10)
    assert (row["input_ids"], row["labels"], row["seq_lengths"]) == ([5, 6, 7, 8, 9], [-100, 6, 7, -100, 9], [3, 2])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_packing_loses_no_row_and_overfills_no_sequence(lengths):
    rows = [{"input_ids": [number] * length, "labels": [number] * length} for number, length in enumerate(lengths)]
    packed = pack_whole(rows, 20)
    assert sorted(length for row in packed for length in row["seq_lengths"]) == sorted(lengths)
    assert all(len(row["input_ids"]) == len(row["labels"]) == sum(row["seq_lengths"]) <= 20 for row in packed)
    # best fit decreasing needs at most 11/9 of the best number of bins, plus one
    assert len(packed) <= 11 / 9 * len(lengths) + 1


@given(st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=20), st.integers(1, 12))
def test_wrapped_blocks_are_the_stream_cut_evenly(documents, block):
    wrapped = Wrapped(block)
    blocks = [block_ids for ids in documents for block_ids in wrapped.add(ids)]
    stream = [token for ids in documents for token in ids]
    assert [token for ids in blocks for token in ids] + wrapped.rest == stream
    assert all(len(ids) == block for ids in blocks)
    assert len(wrapped.rest) < block


def test_the_samples_show_what_the_model_sees(prepare):
    manifest, *_ = prepare(Given(*[talk(n, "yes") for n in range(5)], talk(9, "no", "held_out")))
    assert manifest["samples"] == ["<|user|>what<|assistant|>yes<|end|>"] * 3
    manifest, *_ = prepare(Given(pair(1, "yes", "no"), pair(2, "no", "yes", "held_out")), kind="dpo")
    assert manifest["samples"] == ["prompt: <|user|>what<|assistant|>\nchosen: yes<|end|>\nrejected: no<|end|>"]


ROWS = (talk(1, "yes"), talk(2, "no", "held_out"))


def test_a_second_preparation_reads_no_row(prepare):
    source = Given(*ROWS)
    assert prepare(source)[3] is False
    assert prepare(source)[3] is True
    assert source.reads == 1


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 65},
        {"loss_on": "all"},
        {"packing": True},
        {"bad_rows": "skip"},
        {"source": Given(*ROWS, name="other data")},
    ],
)
def test_whatever_changes_the_rows_changes_the_entry(prepare, change):
    source = change.pop("source", Given(*ROWS))
    first = prepare(Given(*ROWS))[0]["fingerprint"]
    manifest, _, _, hit = prepare(source, **change)
    assert hit is False
    assert manifest["fingerprint"] != first


def test_another_tokenizer_makes_another_entry(chat, tmp_path):
    entries = {prepare_rows(recipe(), Given(*ROWS), chat, name, tmp_path)[0] for name in ("a", "b")}
    assert len(entries) == 2


def test_the_same_rows_give_the_same_tokens(chat, tmp_path):
    tables = []
    for name in ("one", "two"):
        entry, _ = prepare_rows(recipe(), Given(*ROWS), chat, "t", tmp_path / name)
        tables.append(load_from_disk(str(entry / "train")).to_dict())
    assert tables[0] == tables[1]


@pytest.mark.parametrize("damage", ["flip", "cut", "no manifest", "file missing", "broken manifest"])
def test_a_damaged_entry_is_made_anew(chat, tmp_path, damage):
    entry, _ = prepare_rows(recipe(), Given(*ROWS), chat, "t", tmp_path)
    data = next((entry / "train").glob("*.arrow"))
    raw = bytearray(data.read_bytes())
    if damage == "flip":
        raw[-10] ^= 1
        data.write_bytes(bytes(raw))
    elif damage == "cut":
        data.write_bytes(bytes(raw[:-5]))
    elif damage == "file missing":
        data.unlink()
    elif damage == "broken manifest":
        (entry / "manifest.json").write_text("{")
    else:
        (entry / "manifest.json").unlink()
    again, hit = prepare_rows(recipe(), Given(*ROWS), chat, "t", tmp_path)
    assert (again, hit) == (entry, False)
    assert find_damage(entry) == []
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]  # nothing half-made is left


def test_a_failed_preparation_leaves_nothing(problems, tmp_path):
    problems(Given(BadRow(place(1), "x")))
    assert list((tmp_path / ".cache").iterdir()) == []


def _race(chat, cache, barrier, queue):
    class Late(Given):
        def rows(self):
            barrier.wait(30)  # both have seen that there is no entry
            return super().rows()

    try:
        entry, hit = prepare_rows(recipe(), Late(*ROWS), chat, "t", cache)
        queue.put((str(entry), hit, len(load_from_disk(str(entry / "train")))))
    except BaseException as error:
        queue.put(repr(error))


def test_two_preparers_of_one_entry_both_end_well(chat, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    preparers = [context.Process(target=_race, args=(chat, tmp_path, barrier, queue)) for _ in range(2)]
    for preparer in preparers:
        preparer.start()
    first, second = queue.get(timeout=60), queue.get(timeout=60)
    for preparer in preparers:
        preparer.join(30)
    assert first == second
    assert first[1:] == (False, 1)
    assert [str(path) for path in tmp_path.iterdir()] == [first[0]]
    assert find_damage(tmp_path / os.path.basename(first[0])) == []


def test_what_another_builder_finished_meanwhile_is_kept(tmp_path):
    def build(text, first=lambda: None):
        def fill(folder):
            first()
            (folder / "file").write_text(text)
            return {}

        return fill

    entry = tmp_path / "entry"
    slow = build("slow", first=lambda: cached(entry, "fingerprint", build("quick")))
    assert cached(entry, "fingerprint", slow) is False
    assert (entry / "file").read_text() == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_an_entry_that_appears_between_the_look_and_the_rename_is_kept(tmp_path, monkeypatch):
    def build(folder):
        (folder / "file").write_text("x")
        return {}

    entry, really = tmp_path / "entry", os.path.lexists
    looks = []

    def lexists(path):
        if not looks:
            looks.append(path)
            cached(entry, "fingerprint", build)  # the other builder, just after we saw nothing
            return False
        return really(path)

    monkeypatch.setattr("launcher.train.cache.os.path.lexists", lexists)
    assert cached(entry, "fingerprint", build) is False
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_deleting_the_cache_costs_time_and_nothing_else(chat, tmp_path):
    entry, _ = prepare_rows(recipe(), Given(*ROWS), chat, "t", tmp_path / "c")
    shutil.rmtree(tmp_path / "c")
    assert prepare_rows(recipe(), Given(*ROWS), chat, "t", tmp_path / "c") == (entry, False)
