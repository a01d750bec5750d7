"""A parsed config.json -> its fields, typed, with one problem for each that cannot be used. DERIVE, opens no file."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.errors import Problem
from launcher.plan.families.model_shape import PLANNED_FAMILIES, AnyFamily

Config = Mapping[str, object]
# What no model has: a file that says more was not written for one. As in spec/model.py, with room for what others drew.
MOST_LAYERS, MOST_HEADS, MOST_WIDTH, MOST_VOCAB, MOST_POSITIONS, MOST_EXPERTS = 1000, 1024, 2**20, 10**7, 2**30, 10_000
_MOST: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), MOST_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads", "num_kv_heads"), MOST_HEADS),
    **dict.fromkeys(("num_local_experts", "num_experts", "num_experts_per_tok"), MOST_EXPERTS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "sliding_window"), MOST_POSITIONS),
    "vocab_size": MOST_VOCAB,
}
_ALL = ", ".join(PLANNED_FAMILIES)


def _letters(name: str) -> str:
    """What two spellings of one name share: gemma2 is not gemma, GPT-NeoX is gpt_neox."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


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
        meant = next((family for family in PLANNED_FAMILIES if _letters(family) == _letters(str(name))), None)
        hint = f"did you mean {meant}?" if meant else f"use a model of one of these families: {_ALL}"
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
        most = _MOST.get(field, MOST_WIDTH)
        if value > most:
            told = value if value < 10**18 else "a number of many digits"
            self.fail(field, f"{told} is more than any model has: at most {most}")
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

    def names(self, field: str) -> tuple[str, ...]:
        """A list of words; empty where the field is absent or null."""
        value = self.config.get(field)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            self.fail(field, f"{value!r} is not a list of names")
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
