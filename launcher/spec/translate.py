"""Pydantic's errors -> our findings: one sentence each, with the rule, the value got and the nearest that works. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from launcher.spec import base, kubernetes, slurm
from launcher.spec.fields import FOREIGN, block_at, field_at, homes_of, keys_of
from launcher.spec.places import FieldPath, Finding, value_at
from launcher.spec.wording import listed, nearest, shown

# Fields that may be written in two ways: what to expect, and the branch of Pydantic's union for each kind of value.
_TWO_WAYS: dict[str, tuple[str, dict[type, str]]] = {
    "held_out": (
        "a fraction above 0 and up to 0.5, or a block with `source` and `split`",
        {dict: "DataSource", float: "constrained-float", int: "constrained-float"},
    ),
    "tokenizer": (
        "a hub id, a folder or {train: {vocab: 2048}}",
        {dict: "NewTokenizer", str: "constrained-str"},
    ),
    "gpu": (
        "a GPU of the catalogue, or a block with its numbers",
        {dict: "GpuSpec", str: "constrained-str"},
    ),
    "targets": ("all-linear or a list of module names", {list: "tuple[constrained-str, ...]"}),
}
_NEEDED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "model_type": "a block of fields",
    "model_attributes_type": "a block of fields",
    "dict_type": "a block of fields",
    "tuple_type": "a list",
    "list_type": "a list",
}
# Pattern -> what a text of it is, and one that works.
_TEXTS = {
    base.PLAIN_PATH: ("an absolute path of letters, digits and _./+-", "write it as `/runs`"),
    base.IMAGE: ("an image's name", "write it as `registry.example.com/team/image:1.0`"),
    kubernetes.OBJECT: ("a name of lower-case letters, digits, - and .", "Kubernetes names its objects so"),
    kubernetes.LABEL: ("a name of lower-case letters, digits and -", "Kubernetes names its namespaces so"),
    kubernetes.QUALIFIED: ("a name that Kubernetes takes", "write it as `example.com/name`"),
    kubernetes.LABEL_VALUE: ("the value of a label: letters, digits, -, _ and .", "write what `kubectl get nodes -L` shows"),
    kubernetes.SECRET_KEY: ("a key of a Secret: letters, digits, -, _ and .", "write what `kubectl describe secret` shows"),
    slurm.OPTION_VALUE: (
        "a value of sbatch: letters, digits and _.,:=&|*()[]@+/-, without blanks",
        "write it as sbatch takes it",
    ),
    slurm.OPTION_NAME: ("the long name of an option of sbatch, without dashes before it", "write it as `nodelist`"),
}
_LIMITS = ("ge", "gt", "le", "lt")


def findings_of(error: ValidationError, raw: object) -> list[Finding]:
    """Every error of one validation of `raw`, once for each field."""
    findings: dict[tuple[FieldPath, str], Finding] = {}
    for detail in error.errors(include_url=False, include_context=True):
        path, branch = _real_path(detail["loc"], raw)
        finding = _two_ways(path, branch, detail, raw) if branch is not None else _finding(path, detail, raw)
        if finding:
            findings.setdefault((finding.path, finding.code), finding)
    return list(findings.values())


def _real_path(loc: tuple[int | str, ...], raw: object) -> tuple[FieldPath, str | None]:
    """Pydantic's location without its own words (`sft`, `[key]`), and the union branch it speaks of, if any."""
    path: list[int | str] = []
    branch: str | None = None
    for index, step in enumerate(loc):
        if (index == 2 and loc[0] == "stages") or step == "[key]":
            continue  # the kind that told the union apart; the mark for a key
        if path and path[-1] in _TWO_WAYS and branch is None:
            branch = str(step)
            continue
        path.append(step)
    return tuple(path), branch


def _two_ways(path: FieldPath, branch: str, detail: Any, raw: object) -> Finding | None:
    """Of the errors of all branches, those of the branch that was meant; where none was, one that names them all."""
    top = next(index for index, step in enumerate(path) if step in _TWO_WAYS) + 1
    expected, branches = _TWO_WAYS[str(path[top - 1])]
    value = value_at(raw, path[:top])
    meant = branches.get(type(value))
    if meant == branch:
        return _finding(path, detail, raw)
    if meant:
        return None
    what = f"{shown(value)} is not {expected}"
    return Finding(code="E105", path=path[:top], what=what, hint=f"write {expected}")


def _finding(path: FieldPath, detail: Any, raw: object) -> Finding | None:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "too_short" and isinstance(value, list) and len(value) >= context["min_length"]:
        return None  # the elements are there, and have errors of their own
    maker = _MAKERS.get(kind, _wrong_type)
    return maker(path, value, context, raw)


def _unknown_key(path: FieldPath, value: object, context: Mapping[str, Any], raw: object) -> Finding:
    key = str(path[-1])
    block = block_at(path[:-1], raw)
    known = keys_of(block) if block else {}
    return Finding(code="E104", path=path, what="there is no such field", hint=_key_hint(key, known))


def _key_hint(key: str, known: Iterable[str]) -> str:
    known = tuple(known)
    ours = FOREIGN.get(key, key)
    if ours in known:
        return f"it is called `{ours}` here"
    meant = nearest(key, (*known, *(foreign for foreign, name in FOREIGN.items() if name in known)))
    if meant:
        return f"did you mean `{FOREIGN.get(meant, meant)}`?"
    homes = homes_of(ours)
    if homes:
        return f"it belongs to {listed(homes[:3])}"
    return f"the fields here are {listed(known)}" if known else "remove it"


def _missing(path: FieldPath, value: object, context: Mapping[str, Any], raw: object) -> Finding:
    if isinstance(path[-1], int):
        return _wrong_length(path[:-1], value, {"actual_length": path[-1]}, raw)
    info = field_at(path, raw)
    meaning = f" ({info.description})" if info and info.description else ""
    return Finding(code="E107", path=path, what="is missing", hint=f"add `{path[-1]}: …`{meaning}")


def _wrong_length(path: FieldPath, value: object, context: Mapping[str, Any], raw: object) -> Finding:
    if path == ("stages",):
        few = context["actual_length"] < 1
        what = "there is no stage" if few else f"{context['actual_length']} stages are more than 64"
        return Finding(code="E106", path=path, what=what, hint="list 1 to 64 stages, each `- kind: …`")
    if path and path[-1] == "betas":
        what = f"{shown(value)} is not two numbers"
        return Finding(code="E105", path=path, what=what, hint="write two numbers, such as [0.9, 0.999]")
    return Finding(code="E106", path=path, what=f"{shown(value)} has a wrong number of values", hint="see `launcher schema`")


def _out_of_range(path: FieldPath, value: object, context: Mapping[str, Any], raw: object) -> Finding:
    limits = _limits_of(field_at(path, raw)) or {name: context[name] for name in _LIMITS if name in context}
    if path[-1] == "held_out":
        limits = {"gt": 0, "le": 0.5}
    elif isinstance(path[-1], int):
        limits = {"ge": 0, "lt": 1}  # betas, the only list of numbers
    what = f"{shown(value)} is not {_limits_text(limits)}"
    return Finding(code="E106", path=path, what=what, hint=_range_hint(value, limits, field_at(path, raw)))


def _limits_of(info: FieldInfo | None) -> dict[str, float]:
    found = {name: getattr(part, name) for part in (info.metadata if info else ()) for name in _LIMITS if hasattr(part, name)}
    return {name: limit for name, limit in found.items() if limit is not None}


def _limits_text(limits: Mapping[str, float]) -> str:
    if set(limits) == {"ge", "le"}:
        return f"from {_number(limits['ge'])} to {_number(limits['le'])}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {_number(limits[name])}" for name in _LIMITS if name in limits)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _range_hint(value: object, limits: Mapping[str, float], info: FieldInfo | None) -> str:
    """The nearest value that works: the limit itself where it is allowed, else the default."""
    assert isinstance(value, int | float)
    for name, beyond in (("ge", value < limits.get("ge", value)), ("le", value > limits.get("le", value))):
        if beyond:
            return f"use {limits[name]:g}" if isinstance(limits[name], float) else f"use {limits[name]}"
    default = info.get_default() if info else None
    return f"use {default:g}, the default" if isinstance(default, int | float) else f"use a value {_limits_text(limits)}"


def _unknown_word(path: FieldPath, value: object, context: Mapping[str, Any], raw: object) -> Finding:
    words = [text or number for text, number in re.findall(r"'([^']*)'|(\d+)", context["expected"])]
    return _not_one_of(path, value, words, field_at(path, raw))


def _unknown_kind(path: FieldPath, value: object, context: Mapping[str, Any], raw: object) -> Finding:
    words = re.findall(r"'([^']*)'", context["expected_tags"])
    return _not_one_of((*path, "kind"), value_at(raw, (*path, "kind")), words, None)


def _not_one_of(path: FieldPath, value: object, words: list[str], info: FieldInfo | None) -> Finding:
    meant = nearest(value, words) if isinstance(value, str) else None
    choice = f"use {listed(words)}"
    if info and not info.is_required() and info.default is None:
        choice += ", or leave it out"
    hint = f"did you mean {meant}?" if meant and len(words) > 1 else choice
    return Finding(code="E108", path=path, what=f"{shown(value)} is not {listed(words)}", hint=hint)


def _missing_kind(path: FieldPath, value: object, context: Mapping[str, Any], raw: object) -> Finding:
    hint = "add `kind: …`: pretrain, sft, reward, dpo or ppo"
    return Finding(code="E107", path=(*path, "kind"), what="is missing", hint=hint)


def _bad_text(path: FieldPath, value: object, context: Mapping[str, Any], raw: object) -> Finding:
    """A text that does not match its pattern: which pattern decides what can be said."""
    assert isinstance(value, str)
    if not value:
        return Finding(code="E106", path=path, what="is empty", hint="write a value or remove the line")
    if context["pattern"] in _TEXTS:
        meant, hint = _TEXTS[context["pattern"]]
        return Finding(code="E106", path=path, what=f"{shown(value)} is not {meant}", hint=hint)
    if "A-Za-z_" in context["pattern"]:
        what = f"{shown(value)} is not a name of letters, digits and _"
        return Finding(code="E106", path=path, what=what, hint="environment variables are named like NCCL_DEBUG")
    if "a-z0-9" in context["pattern"]:
        what = f"{shown(value)} is not lower-case letters, digits, - and _, with a letter or digit at both ends"
        return Finding(code="E106", path=path, what=what, hint=f"use {_as_name(value) or 'a name such as my-job'}")
    bad = next(char for char in value if not re.match(context["pattern"], char))
    what = f"{shown(value)} holds the character U+{ord(bad):04X}, which does not print"
    return Finding(code="E106", path=path, what=what, hint="remove it")


def _as_name(value: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", value.lower()).strip("-_")[:63].rstrip("-_")


def _too_long(path: FieldPath, value: object, context: Mapping[str, Any], raw: object) -> Finding:
    limit = context["max_length"]
    assert isinstance(value, str)
    what = f"{shown(value)} is longer than {limit:,} characters"
    return Finding(code="E106", path=path, what=what, hint=f"use at most {limit:,}")


def _wrong_type(path: FieldPath, value: object, context: Mapping[str, Any], raw: object, needed: str = "") -> Finding:
    """Also what answers any error of Pydantic's that has no maker of its own."""
    needed = needed or "a value of the right type"
    if value is None:
        return Finding(code="E105", path=path, what="has no value", hint=f"write {needed} or remove the line")
    return Finding(code="E105", path=path, what=f"{shown(value)} is not {needed}", hint=_type_hint(value, needed, path, raw))


def _type_hint(value: object, needed: str, path: FieldPath, raw: object) -> str:
    info = field_at(path, raw)
    if value == "auto" and info and not info.is_required():
        return "leave it out for the default"
    if isinstance(value, str) and "number" in needed:
        digits = value.replace("_", "").replace(",", "").strip()
        if re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", digits):
            return f"write {digits.lstrip('0') or '0'}, without quotes, separators or leading zeros"
    if isinstance(value, float) and needed == "a whole number":
        return f"use {round(value)}"
    if isinstance(value, int | float) and needed == "text":
        return f'write "{value}" in quotes'
    if str(value).lower() in ("yes", "no", "on", "off") and needed == "true or false":
        return f"write {'true' if str(value).lower() in ('yes', 'on') else 'false'}"
    return f"write {needed}"


def _needing(needed: str) -> Callable[[FieldPath, object, Mapping[str, Any], object], Finding]:
    return lambda path, value, context, raw: _wrong_type(path, value, context, raw, needed)


_MAKERS: dict[str, Callable[[FieldPath, object, Mapping[str, Any], object], Finding]] = {
    **{kind: _needing(needed) for kind, needed in _NEEDED.items()},
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "too_short": _wrong_length,
    "too_long": _wrong_length,
    "greater_than_equal": _out_of_range,
    "greater_than": _out_of_range,
    "less_than_equal": _out_of_range,
    "less_than": _out_of_range,
    "literal_error": _unknown_word,
    "union_tag_invalid": _unknown_kind,
    "union_tag_not_found": _missing_kind,
    "string_pattern_mismatch": _bad_text,
    "string_too_long": _too_long,
}
