"""Job file -> JobSpec: everything wrong at once, each at its place, and nothing but LauncherError."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import LauncherError, Problem
from launcher.spec.fields import FOREIGN, all_blocks, keys_of
from launcher.spec.job import JobSpec
from launcher.spec.load import load_job, load_job_text, open_job
from tests.unit.spec.world import RIGHT, errors, load

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
TINY = (Path(__file__).parents[3] / "examples" / "tiny.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_loads(path: Path) -> None:
    assert load_job(path).stages


def test_what_is_loaded_goes_through_json_and_back_unchanged() -> None:
    job = load(TINY)
    assert JobSpec.model_validate_json(job.model_dump_json(by_alias=True)) == job
    assert JobSpec.model_validate_json(json.dumps(job.model_dump(mode="json", by_alias=True))) == job


def test_auto_and_absent_mean_the_same() -> None:
    said = load(RIGHT + "parallel: auto\nprecision: auto\nbatch: {micro: auto}\ncluster: {slots: auto}\n")
    assert said == load(RIGHT)


def test_a_place_is_found_for_any_path(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(RIGHT, encoding="utf-8")
    loaded = open_job(file, ["stages.sft.lr=1e-4"])
    assert loaded.place_of(("stages", 1, "data", "source")) == f"{file}:5:38"
    assert loaded.place_of(("stages", 1, "lr")) == f"{file}:5:5"  # absent: the stage
    assert loaded.place_of(("stages", 0, "lr")) == "--set stages.sft.lr"
    assert loaded.place_of(("cluster", "slots")) == str(file)
    assert loaded.places.field_text(("stages", 2, "data", "source")) == "stages.ppo.data.source"
    assert loaded.places.path_of("stages.ppo.data.source") == ("stages", 2, "data", "source")
    assert loaded.text == RIGHT


def test_problems_come_in_the_order_of_the_file_and_overrides_last() -> None:
    found = errors("seed: -1\n" + RIGHT.replace("owner/data}}", "owner/data}, lr: 0}", 1) + "oops: 1\n", "stages.reward.lr=-1")
    assert [re.sub(r".*?(job.yaml:\d+|--set).*", r"\1", line) for line in found] == [
        "job.yaml:1",
        "job.yaml:5",
        "job.yaml:8",
        "--set",
    ]


def test_schema_errors_do_not_hide_what_is_wrong_in_the_chain() -> None:
    found = errors(RIGHT.replace("reward: reward", "reward: sft, lr: -1").replace("from: sft, data", "from: dpo, data", 1))
    assert sorted(line.split()[0] for line in found) == ["E106", "E110", "E110"]


def test_a_wrong_field_brings_no_second_error_about_itself() -> None:
    assert [line.split()[0] for line in errors(RIGHT.replace("from: sft, reward", "from: 7, reward"))] == ["E105"]
    assert [line.split()[0] for line in errors(RIGHT.replace("{source: owner/model}", "{sorce: owner/model}"))] == ["E104"]


def test_an_unknown_kind_hides_neither_the_other_stages_nor_its_own_fields() -> None:
    found = errors(
        RIGHT.replace("kind: reward, from: sft", "kind: rewrad, lr: x, from: sft").replace("kind: sft,", "kind: sft, lr: 0,")
    )
    assert [line.split()[0] for line in found] == ["E106", "E108", "E105"]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("held_out: x", "is not a fraction above 0"),
        ("held_out: [1]", "is not a fraction above 0"),
        ("held_out: true", "is not a fraction above 0"),
        ("held_out: 0.6", "is not above 0 and at most 0.5"),
        ("held_out: 1", "is not above 0 and at most 0.5"),
        ("held_out: {split: 3}", "data.held_out.split: 3 is not text"),
        ("held_out: {splt: test}", "data.held_out.splt: there is no such field"),
    ],
)
def test_a_field_with_two_forms_gives_one_error_of_the_form_that_was_meant(written: str, says: str) -> None:
    found = errors(RIGHT.replace("{source: owner/data}}", f"{{source: owner/data, {written}}}}}", 1))
    assert len(found) == 1
    assert says in found[0]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("tokenizer: 3", "is not a hub id"),
        ("tokenizer: {train: {vocab: 2}}", "model.tokenizer.train.vocab: 2 is not from 300"),
        ("tokenizer: {}", "model.tokenizer.train: is missing"),
        ("adapter: {targets: q_proj}", "is not all-linear or a list"),
        ("adapter: {targets: [q_proj, 3]}", "model.adapter.targets.1: 3 is not text"),
        ("adapter: {kind: dora}", 'model.adapter.kind: "dora" is not lora'),
    ],
)
def test_forms_of_the_model_block(written: str, says: str) -> None:
    found = errors(RIGHT.replace("{source: owner/model}", f"{{source: owner/model, {written}}}"))
    assert len(found) == 1
    assert says in found[0]


@pytest.mark.parametrize("field", ["spec_version", "parallel.zero"])
@pytest.mark.parametrize("word", ["true", "false"])
def test_true_is_not_one_and_false_is_not_zero_where_numbers_are_listed(field: str, word: str) -> None:
    block, _, key = field.rpartition(".")
    line = f"{block}: {{{key}: {word}}}" if block else f"{key}: {word}"
    found = errors(f"{RIGHT.rstrip()}\n{line}\n")
    assert [text.split()[0] for text in found] == ["E108"]
    assert f'{field}: "{word}" is not' in found[0]


def test_no_message_obeys_the_text_it_shows() -> None:
    text = 'name: "a\\e]8;;http://x\\a\\nb"\n' + RIGHT.partition("\n")[2]
    with pytest.raises(LauncherError) as caught:
        load(text)
    assert caught.value.text().replace("\n", "").isprintable()
    assert "\\u001b" in caught.value.text()


def test_words_of_other_programs_lead_to_ours() -> None:
    ours = {key for _, block in all_blocks() for key in keys_of(block)}
    assert set(FOREIGN.values()) <= ours
    assert not set(FOREIGN) & ours


@pytest.mark.parametrize(
    "value", ["null", "-1", "0", "3.5", "x", "''", "[]", "{}", "[1, {a: b}]", "true", "1e300", "'\\0'", "9" * 40]
)
def test_every_field_takes_any_value_without_a_traceback(value: str) -> None:
    """The bad-input list: wrong types, negative, empty and absurd values for every field there is."""
    paths = dict.fromkeys(f"{prefix}{key}" for prefix, block in all_blocks() for key in keys_of(block))
    for path in dict.fromkeys(path.replace("STAGE", name) for path in paths for name in ("sft", "reward", "ppo")):
        for line in errors(RIGHT, f"{path}={value}"):
            assert re.match(r"E1\d\d ", line), line


LINES = st.sampled_from(TINY.splitlines())
JUNK = st.text(alphabet="abc:{}[]-#'\"&*!%@,?|>~ \n\t0129.e_\\\0\x1bé", max_size=40)


def outcome(text: str, *overrides: str) -> tuple[Problem, ...]:
    """The problems of a text; empty where it is a job. Anything but LauncherError fails the test."""
    try:
        job = load_job_text(text, file_name="job.yaml", folder=Path("/nowhere"), overrides=overrides)
    except LauncherError as error:
        return error.problems
    return () if isinstance(job, JobSpec) else (Problem(code="E901", where="", what=str(job), hint=""),)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(LINES, JUNK), max_size=40))
def test_any_text_is_a_job_or_an_error(lines: list[str]) -> None:
    assert all(problem.hint and problem.where and problem.code[:2] == "E1" for problem in outcome("\n".join(lines)))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30), JUNK)
def test_any_override_is_taken_or_refused(path: str, value: str) -> None:
    assert all(problem.hint and problem.code[:2] == "E1" for problem in outcome(TINY, f"{path}={value}"))


def test_a_missing_or_unreadable_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(RIGHT, encoding="utf-8")
    for path, says in (
        (tmp_path / "jbo.yaml", f"did you mean {tmp_path / 'job.yaml'}?"),
        (tmp_path, f"did you mean {tmp_path / 'job.yaml'}?"),
        (tmp_path / "no" / "job.yaml", "launcher init"),
        (tmp_path / ("x" * 300), "check the path"),
    ):
        with pytest.raises(LauncherError) as caught:
            load_job(path)
        assert caught.value.problems[0].code == "E101"
        assert says in caught.value.problems[0].hint
