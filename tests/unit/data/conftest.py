"""What the data tests share: stages by their fields, files by their rows, one small tokenizer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from launcher.errors import LauncherError
from launcher.spec.stages import Stage
from launcher.train.canonical import BadRow
from launcher.train.chat import Chat
from launcher.train.sources import FileRows
from launcher.train.tokenizers import train_tokenizer

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests/stages forks ranks from this process

WORDS = "what does the function return a list of names is it true that an answer ends here yes no"


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([WORDS, "Explain `json.loads`. It reads a text.", "größe 你好"], vocab=400)


@pytest.fixture
def chat(tokenizer):
    return Chat(tokenizer)


@pytest.fixture
def make_stage():
    def make(kind: str, source: Path | str, **fields):
        data = {"source": str(source), **fields.pop("data", {})}
        needed = {"reward": "reward"} if kind == "ppo" else {}
        return TypeAdapter(Stage).validate_json(json.dumps({"kind": kind, "data": data, **needed, **fields}))

    return make


@pytest.fixture
def write_rows(tmp_path):
    def write(rows, name="data.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def read_stage():
    """(good rows, bad rows) of a stage's data."""

    def read(stage):
        items = list(FileRows(stage).rows())
        return [item for item in items if not isinstance(item, BadRow)], [item for item in items if isinstance(item, BadRow)]

    return read


@pytest.fixture
def problems_of():
    def call(function, *args, **kwargs):
        with pytest.raises(LauncherError) as caught:
            function(*args, **kwargs)
        return caught.value.problems

    return call
