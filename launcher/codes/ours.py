"""E9xx: our own faults."""

from __future__ import annotations

from launcher.codes.info import CodeInfo

CODES: dict[str, CodeInfo] = {
    "E901": CodeInfo(
        title="a bug in launcher",
        when="Something failed that is not the user's doing.",
        remedy="The traceback is in the file that is named; please report it.",
    ),
}
