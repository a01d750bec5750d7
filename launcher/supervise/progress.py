"""metrics.jsonl as it grows -> a compact line for people every few seconds. DO, only reading."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from launcher.supervise.journal import Journal

SAY_EVERY_S = 5.0
_SHOWN = 3  # figures in a line


@dataclass(slots=True)
class Progress:
    """Follows one stage's metrics from where they end now: lines of earlier attempts are not shown again."""

    stage: str
    metrics: Path
    steps: int | None  # planned; None: told by the data
    journal: Journal
    _offset: int = 0
    _last: dict[str, object] | None = None
    _next_s: float = 0.0

    def start(self) -> None:
        self._offset = self.metrics.stat().st_size if self.metrics.exists() else 0

    def tick(self, now_s: float) -> None:
        """Called at every look of the watch."""
        if now_s < self._next_s:
            return
        self._next_s = now_s + SAY_EVERY_S
        for line in self._new_lines():
            self._last = line
        if self._last is not None:
            self.journal.say(progress_text(self.stage, self._last, self.steps))
            self._last = None

    def _new_lines(self) -> list[dict[str, object]]:
        """Whole lines that came since the last look, without those of held-out data."""
        try:
            with self.metrics.open("rb") as file:
                size = file.seek(0, 2)
                self._offset = self._offset if self._offset <= size else 0  # a resumed stage rewrote its metrics, shorter
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [line for line in map(_parse, whole.splitlines()) if line and not any("/" in name for name in line)]


def _parse(line: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def progress_text(stage: str, line: dict[str, object], steps: int | None) -> str:
    """`sft  step 120/300  loss 2.314`."""
    numbers = {name: value for name, value in line.items() if name not in ("step", "t") and isinstance(value, int | float)}
    figures = [f"{name} {value:.4g}" for name, value in numbers.items()]
    of_all = f"/{steps}" if steps else ""
    return "  ".join([f"  {stage}", f"step {line.get('step', '?')}{of_all}", *figures[:_SHOWN]])
