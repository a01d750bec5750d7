"""A price file -> PricesSpec: what GPU hours, energy and carbon cost where the job runs. ASK: reads one file.

currency: EUR
gpu_hour: {h100-80gb: 2.40}      # by name of the catalogue
overhead: 1.15                   # of the building: power usage effectiveness
co2_kg_per_kwh: 0.05
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from launcher.errors import LauncherError, Problem
from launcher.spec.base import Block, Text
from launcher.spec.places import FieldPath
from launcher.spec.wording import nearest, shown
from launcher.spec.yaml_source import YamlSource, decode, read_yaml

Price = Annotated[float, Field(ge=0, le=1e6)]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]


class PricesSpec(Block):
    """Prices of the place where the job runs; what is absent is the catalogue's or a mean."""

    currency: Currency = Field("USD", description="three letters")
    gpu_hour: dict[Text, Price] = Field(default_factory=dict, description="of one GPU, by its name in the catalogue")
    power_share: float = Field(0.85, gt=0, le=1, description="of a GPU's power limit that training draws")
    host_watts_per_gpu: float = Field(100.0, ge=0, le=10_000, description="what the host draws for each GPU")
    overhead: float = Field(1.3, ge=1, le=5, description="what the building draws for each watt (PUE)")
    co2_kg_per_kwh: float = Field(0.44, ge=0, le=5, description="of the electricity")


def read_prices(path: Path) -> PricesSpec:
    """The prices in `path`. LauncherError E121 with every problem, each with its line; E101, E102 as for a job file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        what = f"the price file cannot be read: {(error.strerror or 'unknown reason').lower()}"
        raise LauncherError(Problem(code="E101", where=str(path), what=what, hint="check the path")) from None
    source = read_yaml(decode(data, str(path)), str(path))
    problems = [_problem(path, source, finding.path, finding.what, finding.hint) for finding in source.findings]
    told = {finding.path for finding in source.findings}
    prices = None
    try:
        prices = PricesSpec.model_validate_json(json.dumps(source.value if source.value is not None else {}))
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if tuple(detail["loc"]) not in told:
                problems.append(_of_detail(path, source, tuple(detail["loc"]), str(detail["type"]), str(detail["msg"])))
    if problems or prices is None:
        raise LauncherError(problems)
    return prices


def _of_detail(path: Path, source: YamlSource, field: FieldPath, kind: str, message: str) -> Problem:
    names = list(PricesSpec.model_fields)
    if kind == "extra_forbidden":
        meant = nearest(str(field[-1]), names)
        hint = f"did you mean `{meant}`?" if meant else f"fields are {', '.join(names)}"
        return _problem(path, source, field, "there is no such field", hint)
    value = source.value
    for step in field:
        value = value.get(step) if isinstance(value, dict) else None
    if kind in ("model_type", "dict_type"):
        wanted, before = ("a price by GPU", "") if field else ("fields by name", "gpu_hour: ")
        return _problem(path, source, field, f"{shown(value)}: not {wanted}", f"write {before}{{h100-80gb: 2.40}}")
    hint = "three capital letters, as USD" if field == ("currency",) else "use a number in these bounds, without a unit"
    return _problem(path, source, field, f"{shown(value)}: {message[:1].lower()}{message[1:]}", hint)


def _problem(path: Path, source: YamlSource, field: FieldPath, what: str, hint: str) -> Problem:
    mark = next((source.places[field[:end]] for end in range(len(field), 0, -1) if field[:end] in source.places), (1, 1))
    name = ".".join(map(str, field))
    text = f"{name}: {what}" if name else what
    return Problem(code="E121", where=f"{path}:{mark[0]}:{mark[1]}", what=text, hint=hint)
