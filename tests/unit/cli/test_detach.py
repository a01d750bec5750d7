"""`--detach`: what is left behind has begun, or its own words and exit code are told. Real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cli.detach import detach
from launcher.rundir.folder import RunDir


def test_a_controller_that_never_begins_is_told_in_its_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "runs" / "job" / "one")
    run.path.mkdir(parents=True)
    run.job_json.write_text("{}")
    run.controller_log.write_text("of an earlier one\n")
    assert detach(run, [], as_json=False) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert "[E510] the run's job cannot be read" in err
    assert "earlier" not in err
