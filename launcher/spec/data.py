"""The data of a stage, as the user names it. ASK: nothing is read here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from launcher.spec.base import Block, Name, Text

Fraction = Annotated[float, Field(gt=0, le=0.5)]
Shape = Literal["text", "prompt_completion", "instruction", "messages", "preference", "prompts"]

# The embedded corpus: the docstrings and the language reference of the Python that runs (train/pydocs.py).
PYTHON_DOCS = "python-docs"
DEFAULT_MAX_TOKENS = 1024


class DataSource(Block):
    """A second file or split, read with the same shape and columns as the data it belongs to."""

    source: Text | None = Field(None, description="None: the same source as the training data")
    split: Text = Field("train", description="split of a hub dataset")


class DataSpec(Block):
    """Where rows come from and how they are read. Local paths are relative to the job file."""

    source: Text = Field(
        description="local file or folder (jsonl, json, csv, parquet, arrow, txt), Hugging Face dataset id, or 'python-docs'"
    )
    split: Text = Field("train", description="split of a hub dataset")
    config: Text | None = Field(None, description="configuration name of a hub dataset that has several")
    shape: Shape | None = Field(
        None,
        description="what a row looks like; None: told from the columns. text | prompt_completion | instruction (Alpaca)"
        " | messages (ChatML, ShareGPT) | preference | prompts",
    )
    columns: dict[Name, Text] = Field(
        default_factory=dict, description="our column name -> the name in the file, where they differ"
    )
    max_tokens: int | None = Field(
        None,
        ge=8,
        le=16_777_216,
        description="longest row in tokens, measured before any cut; None: the smaller of 1024 and the model's positions."
        " pretrain: length of a packed block; other stages: longer rows are dropped and counted",
    )
    limit: int | None = Field(None, ge=1, le=10**12, description="use only the first rows; None: all")
    bad_rows: Literal["fail", "skip"] = Field("fail", description="a row that cannot be used: stop, or skip and count it")
    held_out: Fraction | DataSource | None = Field(
        None,
        description="rows for evaluation: a fraction split off by a hash of the row, or another file or split;"
        " None: 0.05 (python-docs brings its own split)",
    )
