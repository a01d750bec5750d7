"""From a run folder to what people and programs read."""

from __future__ import annotations

import json

import pytest

from launcher.errors import LauncherError
from launcher.report.markdown import markdown_text
from launcher.report.summary import summarize
from launcher.report.table import aligned, report_text, runs_text, table_text
from launcher.rundir.events import append_event
from launcher.rundir.folder import RunDir

TABLE = """\
stage     state  steps  time       held-out           before  after  also                                       memory
--------  -----  -----  ---------  -----------------  ------  -----  -----------------------------------------  -------
pretrain  done   400    1 min 0 s  loss (nats/token)  7.631   4.205                                             1.2 GiB
sft       done   300    1 min 1 s  loss (nats/token)  4.900   3.123                                             1.2 GiB
reward    done   200    1 min 2 s  accuracy           0.490   0.910  margin 0.00 → 2.10                         1.2 GiB
dpo       done   80     1 min 3 s  accuracy           0.000   0.880  margin 0.00 → 1.25                         1.2 GiB
ppo       done   40     1 min 4 s  score              -0.400  0.600  kl 3.20 nats, length 14.00 → 16.50 tokens  1.2 GiB"""


def state_of(run: RunDir, name: str, *, alive: bool) -> str:
    return next(stage.state for stage in summarize(run, alive=alive).stages if stage.name == name)


def test_the_end_table_has_one_row_a_stage_with_before_and_after(run):
    assert table_text(summarize(run, alive=False)) == TABLE


def test_the_report_says_what_the_reward_model_can_and_cannot_tell_apart(run):
    text = " ".join(report_text(summarize(run, alive=False)).split())
    assert "reward: tells apart other topic 0.98, cut short 0.93; can hardly tell apart wrong word 0.52" in text


def test_the_report_says_that_the_score_of_ppo_is_that_same_models(run):
    text = " ".join(report_text(summarize(run, alive=False)).split())
    assert "ppo: its score is given by the model of stage reward, which also trained it." in text
    assert "ppo: kl_coef ended at 0.05" in text


def test_the_json_holds_every_figure_and_absent_ones_as_null(run):
    run.stage("sft").result.unlink()
    value = json.loads(json.dumps(summarize(run, alive=False).as_dict()))
    assert value["stages"][2]["groups"]["wrong word"] == 0.52
    assert value["stages"][1]["peak_bytes"] is None
    assert value["schema"] == 1


def test_markdown_shows_names_and_messages_as_they_are(run):
    append_event(
        run.events,
        "run.failed",
        stage="ppo",
        problems=[{"code": "E502", "where": "a|b", "what": "<b>*x*\nline", "hint": "`h`"}],
    )
    text = markdown_text(summarize(run, alive=False))
    assert "| reward | done | 200 |" in text
    assert "**E502** a\\|b: \\<b\\>\\*x\\* line" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {10}


@pytest.mark.parametrize(("alive", "state"), [(True, "running"), (False, "interrupted")])
def test_a_stage_without_an_end_runs_only_while_somebody_controls_it(run, alive, state):
    append_event(run.events, "run.started")
    append_event(run.events, "stage.kept", stage="pretrain")
    append_event(run.events, "stage.launched", stage="sft")
    summary = summarize(run, alive=alive)
    assert summary.state == state
    assert [stage.state for stage in summary.stages[:2]] == ["kept", state]


def test_a_failure_before_a_launch_shows_at_its_stage(run):
    append_event(run.events, "run.failed", stage="dpo", problems=[{"code": "E505", "where": "f", "what": "w", "hint": "h"}])
    assert state_of(run, "dpo", alive=False) == "failed"
    assert "f [E505] w\n  hint: h" in report_text(summarize(run, alive=False))


def test_problems_of_an_attempt_are_gone_when_the_next_one_starts(run):
    append_event(run.events, "run.failed", stage="dpo", problems=[{"code": "E505"}])
    append_event(run.events, "run.started")
    assert summarize(run, alive=True).problems == ()


def test_progress_is_read_from_the_end_of_the_metrics_even_when_the_last_line_is_torn(run):
    append_event(run.events, "stage.launched", stage="sft")
    run.stage("sft").metrics.write_text('{"step": 110, "loss": 2}\n{"step": 120, "loss": 1}\n{"step": 13')
    stage = summarize(run, alive=True).stages[1]
    assert (stage.state, stage.step, stage.steps) == ("running", 120, 300)
    assert "120/300" in table_text(summarize(run, alive=True))


def test_a_torn_event_is_passed_over(run):
    with run.events.open("a") as file:
        file.write('{"t": 1, "kind": "run.fai')
    assert summarize(run, alive=False).state == "done"


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_run_folder_that_cannot_be_read_is_a_clear_problem(run, text):
    run.plan_json.write_text(text)
    with pytest.raises(LauncherError) as caught:
        summarize(run, alive=False)
    assert caught.value.problems[0].code == "E510"


def test_runs_are_listed_with_where_they_are(run):
    append_event(run.events, "run.failed", stage="ppo")
    lines = runs_text([summarize(run, alive=False)]).splitlines()
    assert " ".join(lines[2].split()) == "20261124-120000-abcdef tiny failed 4 of 5 stages done, next ppo"


def test_columns_without_content_are_left_out():
    assert aligned([("a", "b", "c"), ("1", "", "3")]) == "a  c\n-  -\n1  3"
