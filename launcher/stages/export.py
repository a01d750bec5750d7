"""`python -m launcher.stages export RUN -o DIR`: what a stage handed on → a plain Hugging Face folder for other programs.

The artifact is verified first. The new folder is written beside DIR, opened again, must give the same logits, and is renamed
to DIR last. Nothing is overwritten. An adapter stays behind: what is written is the merged model.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from launcher.errors import EXIT_DONE, LauncherError, Problem
from launcher.rundir.artifact import MANIFEST
from launcher.rundir.folder import RunDir
from launcher.rundir.handed_on import find_model
from launcher.train.finished import load_model, quiet, refuse_damage, tell

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Made anew by save_pretrained; everything else of the artifact (the tokenizer's files) is copied as it is.
OWN_FILES = {MANIFEST, "config.json", "generation_config.json", "model.safetensors.index.json"}
PROBE_TOKENS = 16
# Largest difference of a logit between the artifact and what was written, relative to the largest logit (at least 1).
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="export", allow_abbrev=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    quiet()
    try:
        told = export(RunDir(args.run.resolve()), args.stage, args.output.absolute(), dtype=args.dtype)
    except LauncherError as error:
        return tell(error, as_json=args.json)
    sys.stdout.write(json.dumps(told, indent=1) + "\n" if args.json else f"{told['folder']}\n")
    sys.stdout.flush()
    return EXIT_DONE


def export(run: RunDir, stage: str | None, output: Path, *, dtype: str | None) -> dict[str, object]:
    """{"schema", "stage", "folder", "dtype", "largest_logit_difference"}. The folder is whole or not there."""
    found = find_model(run, stage, any_kind=True)
    refuse_occupied(output)
    artifact = refuse_damage(found)
    original = load_model(artifact, found.model_kind)
    wanted = probe_logits(original)
    chosen = DTYPES[dtype] if dtype else original.dtype
    del original
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        model = load_model(artifact, found.model_kind, dtype=chosen)
        _write(model, artifact, partial)
        del model
        difference = _refuse_other_logits(wanted, load_model(partial, found.model_kind), partial, chosen)
        os.replace(partial, output)  # onto an empty folder at most: anything else is an OSError
    except OSError as error:
        hint = "choose a folder on a disk with room that you may write"
        raise LauncherError(
            Problem(code="E404", where=str(output), what=f"not written: {error.strerror}", hint=hint)
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "schema": 1,
        "stage": found.stage,
        "folder": str(output),
        "dtype": str(chosen).removeprefix("torch."),
        "largest_logit_difference": difference,
    }


def refuse_occupied(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        what = "it is a file" if not output.is_dir() else "the folder is not empty"
        raise LauncherError(Problem(code="E119", where=str(output), what=what, hint="name a new or an empty folder"))


def probe_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits (or the score) of one row of tokens, float32."""
    rows = model.config.get_text_config().vocab_size
    probe = torch.arange(1, PROBE_TOKENS + 1).remainder(rows).unsqueeze(0)
    with torch.no_grad():
        return model(input_ids=probe).logits.float()


def _write(model: PreTrainedModel, artifact: Path, partial: Path) -> None:
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    for file in artifact.iterdir():
        if file.is_file() and file.name not in OWN_FILES and file.suffix != ".safetensors":
            shutil.copyfile(file, partial / file.name)
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes files that only this user may read


def _refuse_other_logits(wanted: torch.Tensor, written: PreTrainedModel, folder: Path, dtype: torch.dtype) -> float:
    got = probe_logits(written)
    difference = ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)).item()
    if not (difference <= TOLERANCE.get(dtype, 0.02) and written.dtype == dtype):  # also refuses NaN
        raise LauncherError(
            Problem(
                code="E558",
                where=str(folder),
                what=f"read back as {written.dtype}, its logits differ by {difference:.2g} from the artifact's",
                hint="nothing was kept; export without --dtype writes the weights as they are",
            )
        )
    return difference
