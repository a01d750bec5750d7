"""One tiny world (tokenizer, model, rows) for all tests of the stages, made once by a forked rank."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.stages import runs
from tests.stages.harness import CPU_ENVIRONMENT

os.environ.update(CPU_ENVIRONMENT)  # some modules here import torch and deepspeed when they are collected


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_world(tmp_path_factory.mktemp("world"))
