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


def test_a_config_that_is_not_an_object_is_refused(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **kwargs: str(tmp_path / "config.json"))
    with pytest.raises(LauncherError, match="not an object"):
        hub.fetch_json("owner/model", "config.json", None)


def test_a_broken_config_is_refused(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **kwargs: str(tmp_path / "config.json"))
    with pytest.raises(LauncherError, match=r"gave no config\.json"):
        hub.fetch_json("owner/model", "config.json", "main")
