"""A parsed config.json -> its fields, typed, with one problem for each that cannot be used. DERIVE, opens no file."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from launcher.errors import Problem
from launcher.plan.families.model_shape import PLANNED_FAMILIES, AnyFamily

Config = Mapping[str, object]
_ALL = ", ".join(PLANNED_FAMILIES)


class Reader:
    """Collects problems instead of raising, so that all of them are reported at once."""

    def __init__(self, config: Config, file: str) -> None:
        self.config = config
        self.file = file
        self.problems: list[Problem] = []

    def fail(self, field: str, what: str) -> None:
        hint = "use the config.json that belongs to the weights"
        self.problems.append(Problem(code="E213", where=self.file, what=f"{field}: {what}", hint=hint))

    def family(self) -> AnyFamily | None:
        name = self.config.get("model_type")
        for family in PLANNED_FAMILIES:
            if family == name:
                return family
        near = get_close_matches(str(name), PLANNED_FAMILIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use a model of one of these families: {_ALL}"
        what = f"model_type: {name!r} is not a family that can be planned ({_ALL})"
        if name is None:
            what = "model_type: is missing"
        self.problems.append(Problem(code="E212", where=self.file, what=what, hint=hint))
        return None

    def count(self, field: str, default: int | None = None) -> int:
        """A whole number of at least 1; `default` where the field is absent or null; 0 after a failure."""
        value = self.config.get(field)
        if value is None:
            if default is None:
                self.fail(field, "is missing")
            return default or 0
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail(field, f"{value!r} is not a whole number of at least 1")
            return 0
        return value

    def counts(self, field: str) -> tuple[int, ...]:
        """A list of whole numbers, 0 among them; empty where the field is absent or null."""
        value = self.config.get(field)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or any(isinstance(item, bool) or not isinstance(item, int) for item in value):
            self.fail(field, f"{value!r} is not a list of whole numbers")
            return ()
        return tuple(value)

    def flag(self, field: str, default: bool) -> bool:
        value = self.config.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(field, f"{value!r} is neither true nor false")
            return default
        return value

    def require(self, field: str, wanted: object, meaning: str) -> None:
        """A failure where the field is given with another value: `meaning` says what that would be."""
        value = self.config.get(field)
        if value is not None and value != wanted:
            self.fail(field, f"{value!r} means {meaning}, which is not supported")

    def refuse_quantized(self) -> None:
        if self.config.get("quantization_config"):
            self.fail("quantization_config", "the weights are already quantized, they cannot be trained or merged")
