"""One job file that is right, and what changing one thing of it gives."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import LauncherError
from launcher.spec.job import JobSpec
from launcher.spec.load import load_job_text

RIGHT = """\
name: job
model: {source: owner/model}
stages:
  - {kind: sft, data: {source: owner/data}}
  - {kind: reward, from: sft, data: {source: owner/data}}
  - {kind: ppo, from: sft, reward: reward, data: {source: owner/data}}
"""


def load(text: str = RIGHT, *overrides: str, folder: Path = Path("/nowhere")) -> JobSpec:
    return load_job_text(text, file_name="job.yaml", folder=folder, overrides=overrides)


def errors(text: str = RIGHT, *overrides: str, folder: Path = Path("/nowhere")) -> list[str]:
    """`CODE where what` of every problem; empty where the job loads."""
    try:
        load(text, *overrides, folder=folder)
    except LauncherError as error:
        return [f"{problem.code} {problem.where} {problem.what}" for problem in error.problems]
    return []
