"""Finished artifact → a model to use: verified against its manifest first, loaded without DeepSpeed, on the device there is.

For `generate` and `export`. Also how these two tell a user's mistake: a text on stderr or one JSON object, and the exit code.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from launcher.errors import LauncherError, Problem, printable
from launcher.rundir.artifact import find_damage
from launcher.rundir.handed_on import HandedOn

KINDS = {"causal": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}


def quiet() -> None:
    """No progress bars and no notes of the libraries between the lines of a tool: its stdout is data."""
    os.environ.setdefault("DS_ACCELERATOR", device().type)  # saving imports DeepSpeed, which would print that it looks for one
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def refuse_damage(model: HandedOn) -> Path:
    """The artifact's folder, every file hashed and equal to the manifest. E505 names each that is not."""
    folder = model.folder.artifact
    problems = [
        Problem(
            code="E505",
            where=str(folder / damage.file),
            what=f"{damage.file} {damage.what}",
            hint="restore the file, or remove the artifact folder and resume: the stage is then redone",
        )
        for damage in find_damage(folder)
    ]
    if problems:
        raise LauncherError(problems)
    return folder


def load_model(folder: Path, model_kind: str, *, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The plain model in eval mode, on the CPU. "auto": in the dtype it is stored in, which is what is shipped."""
    return KINDS[model_kind].from_pretrained(folder, dtype=dtype).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def tell(error: LauncherError, *, as_json: bool) -> int:
    """Print the problems where a reader of this tool looks for them; the exit code."""
    if as_json:
        text = json.dumps({"errors": [problem.as_dict() for problem in error.problems]}, indent=1)
        sys.stdout.write(text + "\n")
    else:
        sys.stderr.write(printable(error.text()) + "\n")
    return error.exit_code
