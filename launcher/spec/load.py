"""job.yaml -> JobSpec, or every problem in it at once, each with its place. ASK: reads the file and looks at its local paths.

text -> yaml_source -> plain values -> overrides -> paths -> Pydantic (strict, JSON mode) -> chain and combine
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from launcher.errors import LauncherError, Problem
from launcher.spec.chain import check
from launcher.spec.hostfile import read_hostfile
from launcher.spec.job import JobSpec
from launcher.spec.overrides import apply_overrides, stage_names
from launcher.spec.paths import resolve
from launcher.spec.places import FieldPath, Finding, Places, value_at
from launcher.spec.prices import read_prices
from launcher.spec.translate import findings_of
from launcher.spec.wording import nearest, shown
from launcher.spec.yaml_source import MAX_BYTES, YamlSource, decode, read_yaml

# Stands for what is missing or wrong, so that the rest can still be checked. Findings about these fields are dropped.
_STAND_INS: dict[str, object] = {
    "name": "job",
    "model": {"source": "owner/name"},
    "data": {"source": "owner/name"},
    "source": "owner/name",
    "family": "llama",
    "layers": 1,
    "hidden": 1024,
    "heads": 1,
    "reward": "reward",
    "train": {},
    "image": "image",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedJob:
    """A job, and where each of its fields is written."""

    job: JobSpec
    text: str  # the file as given
    places: Places

    def place_of(self, path: FieldPath) -> str:
        """`job.yaml:12:3` for a path such as ("stages", 1, "data", "source")."""
        return self.places.place_of(path)


def load_job(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The job in `path`. LauncherError with everything that is wrong with it."""
    return open_job(path, overrides).job


def load_job_text(text: str, *, file_name: str, folder: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The job in `text`; local paths are relative to `folder`."""
    return open_job_text(text, file_name=file_name, folder=folder, overrides=overrides).job


def open_job(path: Path, overrides: Sequence[str] = ()) -> LoadedJob:
    """The job in `path`, with its places."""
    text = decode(_read(path), str(path))
    return open_job_text(text, file_name=str(path), folder=path.parent, overrides=overrides)


def open_job_text(text: str, *, file_name: str, folder: Path, overrides: Sequence[str] = ()) -> LoadedJob:
    source = read_yaml(text, file_name)
    if not isinstance(source.value, dict):
        what = f"the file holds {shown(source.value)}, not a mapping of fields"
        raise LauncherError(Problem(code="E102", where=f"{file_name}:1:1", what=what, hint="begin with `name: my-job`"))
    raw, overridden, misplaced = apply_overrides(source.value, overrides)
    places = Places(
        file_name=file_name,
        marks={path: mark for path, mark in source.places.items() if not _inside(path, overridden)},
        overridden=overridden,
        stage_names=stage_names(raw),
    )
    findings = _unless_overridden(source, overridden)
    findings += resolve(raw, folder)
    job, more = _validated(raw, findings)
    findings = [_of_override(finding, places) for finding in (*findings, *more)]
    problems = [*places.problems(findings), *misplaced, *_file_problems(job, findings)]
    if problems or job is None:
        raise LauncherError(problems)
    return LoadedJob(job=job, text=text, places=places)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        what, hint = "is a folder, not a job file", _hint_in(path)
    except FileNotFoundError:
        what, hint = "does not exist", _hint_near(path)
    except OSError as error:
        what, hint = f"cannot be read: {(error.strerror or 'unknown reason').lower()}", "check the path and its permissions"
    except ValueError:
        what, hint = "is not a path", "name a file without a NUL character"
    raise LauncherError(Problem(code="E101", where=shown(str(path)).strip('"'), what=what, hint=hint)) from None


def _hint_in(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("*.yaml"))
    return f"did you mean {folder / found[0]}?" if found else "name the YAML file in it"


def _hint_near(path: Path) -> str:
    beside = sorted(other.name for other in path.parent.iterdir()) if path.parent.is_dir() else []
    meant = nearest(path.name, beside)
    return f"did you mean {path.parent / meant}?" if meant else "`launcher init` writes one to start from"


def _unless_overridden(source: YamlSource, overridden: dict[FieldPath, str]) -> list[Finding]:
    return [finding for finding in source.findings if not _inside(finding.path, overridden)]


def _inside(path: FieldPath, tops: dict[FieldPath, str]) -> bool:
    return any(path[: len(top)] == top for top in tops)


def _validated(raw: object, before: list[Finding]) -> tuple[JobSpec | None, list[Finding]]:
    """The job, and what is wrong with it: of the schema, and of the chain as far as it can be told beside schema errors."""
    bad = [finding.path for finding in before if finding.code != "E103"]
    try:
        job = _parse(raw)
        found: list[Finding] = []
    except ValidationError as error:
        found = [finding for finding in _named_kinds(error, raw) if not _about(finding, bad)]
        bad += [finding.path for finding in found]
        mended = _mended(raw, bad)
        if mended is None:
            return None, found
        job = mended
    return job, found + [finding for finding in check(job) if not _about(finding, bad)]


def _parse(raw: object) -> JobSpec:
    return JobSpec.model_validate_json(json.dumps(raw))


def _named_kinds(error: ValidationError, raw: object) -> list[Finding]:
    """All findings; a stage of a misspelt kind is read a second time as the kind that was meant."""
    findings = findings_of(error, raw)
    guessed = copy.deepcopy(raw)
    for finding in findings:
        kind = value_at(raw, finding.path)
        meant = nearest(kind, ("pretrain", "sft", "reward", "dpo", "ppo")) if isinstance(kind, str) else None
        if finding.path[-1:] == ("kind",) and finding.path[0] == "stages" and meant:
            value_at(guessed, finding.path[:-1])["kind"] = meant  # type: ignore[index]
    if guessed == raw:
        return findings
    try:
        _parse(guessed)
    except ValidationError as again:
        known = {finding.path for finding in findings}
        findings += [finding for finding in findings_of(again, guessed) if finding.path not in known]
    return findings


def _mended(raw: object, bad: list[FieldPath]) -> JobSpec | None:
    """The job with every bad field taken out or stood in for, only to look for more problems. None: too little is left."""
    raw = copy.deepcopy(raw)
    for path in sorted(bad, key=len, reverse=True):
        holder = value_at(raw, path[:-1]) if path else None
        if isinstance(holder, dict):
            holder.pop(path[-1], None)
            if path[-1] in _STAND_INS:
                holder[path[-1]] = _STAND_INS[str(path[-1])]
        elif isinstance(holder, list) and path[:-1] != ("stages",):
            owner = value_at(raw, path[:-2])
            if isinstance(owner, dict):
                owner.pop(path[-2], None)
    try:
        return _parse(raw)
    except ValidationError:
        return None


def _about(finding: Finding, bad: list[FieldPath]) -> bool:
    """Whether the finding speaks of a field that is known to be wrong."""
    paths = (finding.path, *finding.also)
    return any(path[: len(top)] == top or top[: len(path)] == path for path in paths for top in bad)


def _of_override(finding: Finding, places: Places) -> Finding:
    """An unknown key that --set made is a mistake in --set."""
    if finding.code == "E104" and places.place_of(finding.path).startswith("--set "):
        return Finding(code="E112", path=finding.path, what=finding.what, hint=finding.hint)
    return finding


def _file_problems(job: JobSpec | None, findings: list[Finding]) -> list[Problem]:
    """Of the small files that the cluster block names."""
    if job is None:
        return []
    files: dict[str, tuple[str | None, Callable[[Path], object]]] = {
        "hostfile": (job.cluster.hostfile, read_hostfile),
        "prices": (job.cluster.prices, read_prices),
    }
    problems: list[Problem] = []
    for name, (file, read) in files.items():
        if file is None or any(finding.path == ("cluster", name) for finding in findings):
            continue
        try:
            read(Path(file))
        except LauncherError as error:
            problems += error.problems
    return problems
