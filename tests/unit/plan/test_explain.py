"""Plan -> text. The whole text of the examples is in tests/golden; here what a reader must find."""

from __future__ import annotations

from launcher.plan.explain import fit_text, plan_text, table


def test_every_stage_has_a_row_and_every_reason_a_line(make_job, plan, ppo_chain):
    planned = plan(make_job(stages=ppo_chain))
    text = plan_text(planned)
    assert text.startswith("small on 2 CPU processes, 4.0 GiB each, speeds by catalogue\n")
    for stage in planned.stages:
        assert f"{stage.micro_batch} x {stage.grad_accum} x {stage.dp} = {stage.global_batch}" in text
        assert all(reason.text in text for reason in stage.reasons)


def test_rejected_candidates_are_listed_only_when_asked_for(make_job, plan):
    planned = plan(make_job())
    assert "  not     ZeRO-0" in plan_text(planned, rejected=True)
    assert "  not     " not in plan_text(planned)


def test_columns_are_aligned_and_lines_have_no_tail():
    assert table([("a", "bb", "c"), ("aaa", "b", "c")]) == ["a    bb  c", "aaa  b   c"]


def test_how_sure_a_fit_is_said_in_words():
    assert [fit_text(p_fit) for p_fit in (0.99, 0.92, 0.6, None)] == ["yes", "likely", "tight", "not known"]
