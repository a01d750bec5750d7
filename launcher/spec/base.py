"""What every block of the job file shares: strictness, and the few text types that may be written in it.

ASK. Pydantic models are validated in JSON mode (see spec/load.py): strict, so that `true`, `3.0` and `"3"` are not 3.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints


class Block(BaseModel):
    """A mapping of the job file: unknown keys are errors, numbers are finite, nothing is changed after loading."""

    # defer_build: only JobSpec's validator is built, once, when the first job is loaded (80 ms less at every start).
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, serialize_by_alias=True, defer_build=True
    )


def _auto_is_none(value: Any) -> Any:
    return None if value == "auto" else value


# `auto` and an absent value mean the same: the plan chooses and says why. Written `Annotated[int | None, Auto]`.
Auto = BeforeValidator(_auto_is_none)


def _bool_as_word(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


# For Literal[0, 1, …]: Python holds True for 1 and False for 0, so that `zero: false` would be ZeRO 0 without a word.
NotBool = BeforeValidator(_bool_as_word)

# No control characters (C0, DEL, C1) and no bidirectional overrides: these texts reach terminals, files and argv.
_PLAIN = r"^[^\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+$"
Text = Annotated[str, StringConstraints(pattern=_PLAIN, max_length=4096)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$", max_length=63)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=255)]
# Nothing in it means anything to a shell, to YAML, or to Kubernetes, which fills `$(NAME)` in.
PLAIN_PATH = r"^/[A-Za-z0-9_./+-]+$"
PlainPath = Annotated[str, StringConstraints(pattern=PLAIN_PATH, max_length=1024)]
IMAGE = (
    r"^[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9][a-z0-9._-]*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(@sha256:[0-9a-f]{64})?$"
)
ImageName = Annotated[str, StringConstraints(pattern=IMAGE, max_length=512)]
