"""The hub's failures become problems: without a network, and for names that are none."""

from __future__ import annotations

import pytest

from launcher.backends import hub
from launcher.errors import LauncherError


def test_a_model_that_is_not_in_the_cache_of_an_offline_machine_is_a_clear_problem(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LauncherError) as caught:
        hub.fetch_json("owner/no-such-model", "config.json", None)
    [problem] = caught.value.problems
    assert problem.code == "E413"
    assert problem.where == "hub:owner/no-such-model"


@pytest.mark.parametrize("text", ["[1]", "{"])
def test_a_config_that_is_broken_is_no_fault_of_the_hub(monkeypatch, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **kwargs: str(tmp_path / "config.json"))
    with pytest.raises(LauncherError, match=r"\[E213\] has a config\.json that is not a JSON object") as caught:
        hub.fetch_json("owner/model", "config.json", "main")
    assert caught.value.exit_code == 3
