"""(job, plan) -> the files that nodes take with them, and back: what was rendered is what is run, wherever the nodes are.

    job.yaml job.json        as given; as loaded
    rendered/planned.json    the whole plan, and the version that made it

DO, small files. The plan is not made again on the nodes: what was measured in other places would make it another one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from launcher import __version__
from launcher.errors import LauncherError, Problem
from launcher.plan.plan import Plan
from launcher.spec.job import JobSpec

SEALED_FILES = JOB_YAML, JOB_JSON, PLANNED = "job.yaml", "job.json", "rendered/planned.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    launcher: str  # version
    plan: Plan


def sealed_texts(job: JobSpec, job_text: str, plan: Plan) -> dict[str, str]:
    """Path in the run folder -> text. What the plan did not take is left out: objects of a cluster are small."""
    stages = tuple(replace(stage, rejected=(), pareto=()) for stage in plan.stages)
    sealed = Sealed(launcher=__version__, plan=replace(plan, stages=stages))
    return {
        JOB_YAML: job_text,
        JOB_JSON: _json(job.model_dump(mode="json", by_alias=True)),
        PLANNED: _json(asdict(sealed)),
    }


def read_sealed(folder: Path) -> tuple[JobSpec, str, Plan]:
    """Job, its text as given, plan. LauncherError E420 where another version rendered it, E510 where it cannot be read."""
    try:
        version = json.loads((folder / PLANNED).read_bytes())["launcher"]
        if version != __version__:
            what = f"zerolaunch {version} rendered the job, this node has {__version__}"
            hint = "render again with the version of the image, or name an image of the version that rendered"
            raise LauncherError(Problem(code="E420", where=str(folder), what=what, hint=hint))
        sealed = TypeAdapter(Sealed).validate_json((folder / PLANNED).read_bytes())
        job = JobSpec.model_validate_json((folder / JOB_JSON).read_text(encoding="utf-8"))
        return job, (folder / JOB_YAML).read_text(encoding="utf-8"), sealed.plan
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"what was rendered cannot be read: {str(error).partition(chr(10))[0]}"
        hint = "name the folder that `launcher render` wrote, or render again with the version of the image"
        raise LauncherError(Problem(code="E510", where=str(folder), what=what, hint=hint)) from None


def _json(value: dict[str, object]) -> str:
    """One line: in a manifest it stands between what people read."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n"
