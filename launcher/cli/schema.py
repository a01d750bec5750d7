"""`launcher schema`: the JSON schema of the job file on stdout, for editors."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from launcher.cli.common import write_out
from launcher.errors import EXIT_DONE
from launcher.spec.base import Auto
from launcher.spec.fields import all_blocks, keys_of
from launcher.spec.job import JobSpec
from launcher.spec.parallel import StageAuto

_AUTO = {"const": "auto"}


def add_arguments(parser: ArgumentParser) -> None:
    """No arguments: there is one schema."""


def run(args: Namespace) -> int:
    write_out(schema_text())
    return EXIT_DONE


def schema_text() -> str:
    """The schema, fields by the names that users write, and `auto` where it stands for `the plan chooses`."""
    schema = JobSpec.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "launcher job"
    for _, block in all_blocks():
        properties = schema["properties"] if block is JobSpec else schema["$defs"][block.__name__]["properties"]
        for key, info in keys_of(block).items():
            if {Auto, StageAuto} & set(info.metadata) and _AUTO not in properties[key]["anyOf"]:
                properties[key]["anyOf"].append(_AUTO)
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
