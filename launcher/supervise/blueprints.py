"""<runs>/.cache/blueprints/: what the node side found of models whose family no table has. DO, small files.

    <family>-<hash>.json   named by the config.json; it says which versions built it, and drafting.py makes it anew under others

A file that cannot be understood is passed over and made anew: nothing of it was written by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

from launcher.errors import LauncherError, Problem
from launcher.plan.families.blueprint import SCHEMA
from launcher.plan.parameters import causal_parameters
from launcher.plan.shape import Config, ModelShape, shape_from_blueprint
from launcher.rundir.folder import read_json

NOT_MEASURED = "E422"

Unknown = Callable[[Config, str], ModelShape]  # config of a family that no table has, the name of its file -> its shape


def kept_shapes(runs_root: Path) -> Unknown:
    """Shapes from what is there already; LauncherError E422 for a model that was never measured. Starts nothing."""

    def find(config: Config, file: str) -> ModelShape:
        shape = read_blueprint(blueprint_path(runs_root, config))
        if shape is None:
            what = f"model_type: {config['model_type']!r} is in no table of the plan and was not measured yet"
            hint = "`launcher plan` measures it once: a process builds it without weights, in seconds"
            raise LauncherError(Problem(code=NOT_MEASURED, where=file, what=what, hint=hint))
        return shape

    return find


def blueprint_path(runs_root: Path, config: Config) -> Path:
    text = json.dumps([SCHEMA, config], sort_keys=True)
    family = re.sub(r"[^A-Za-z0-9_.-]", "_", str(config["model_type"]))[:40]
    return runs_root / ".cache" / "blueprints" / f"{family}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def read_blueprint(path: Path) -> ModelShape | None:
    """None where there is none, or none that can be used: its sizes must add up to the model that was built."""
    try:
        told = read_json(path)
        shape = shape_from_blueprint(told)
    except (OSError, ValueError):
        return None
    return shape if causal_parameters(shape) == told.get("parameters") else None
