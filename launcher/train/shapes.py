"""Values of a row -> a canonical row for a stage, or the reason why they give none. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from launcher.spec.data import Shape
from launcher.spec.stages import Kind
from launcher.train.canonical import BadRow, Dialogue, Document, Message, Pair, Place, Prompt, Row, message
from launcher.train.layout import OPTIONAL, Layout, listed
from launcher.train.readers import Values
from launcher.train.turns import (
    Unusable,
    answered_prompt,
    check_turns,
    is_transcript,
    prompt_of,
    refuse_leak,
    text_of,
    transcript_turns,
    turns_of,
)

FORMAT = 1  # raised when the same values give another row


def make_row(kind: Kind, layout: Layout, place: Place, values: Values) -> Row | BadRow:
    """The canonical row of a stage, or why these values give none."""
    try:
        found = {ours: _value(values, theirs, ours, layout) for ours, theirs in layout.columns.items()}
        row = MAKERS[layout.shape](place, found)
        return _prompt_only(row) if kind == "ppo" else row
    except Unusable as error:
        return BadRow(place, str(error))


def _value(values: Values, theirs: str, ours: str, layout: Layout) -> object:
    if theirs in values:
        return values[theirs]
    if ours in OPTIONAL.get(layout.shape, ()):
        return None
    close = get_close_matches(theirs, list(values), n=1)
    raise Unusable(f"has no `{theirs}`; " + (f"did it mean `{close[0]}`?" if close else f"it has {listed(values)}"))


def _text_row(place: Place, found: Mapping[str, object]) -> Row:
    return Document(place, text_of(found["text"], "text"))


def _completion_row(place: Place, found: Mapping[str, object]) -> Row:
    prompt, plain = prompt_of(found["prompt"], "prompt")
    return Dialogue(place, [*prompt, message("assistant", _answer(found["completion"], "completion"))], plain)


def _instruction_row(place: Place, found: Mapping[str, object]) -> Row:
    instruction, given = text_of(found["instruction"], "instruction"), text_of(found.get("input"), "input", blank=True)
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return Dialogue(place, [message("user", prompt), message("assistant", text_of(found["output"], "output"))])


def _messages_row(place: Place, found: Mapping[str, object]) -> Row:
    turns = turns_of(found["messages"], "messages")
    check_turns(turns, "messages")
    if not any(turn["role"] == "assistant" for turn in turns):
        raise Unusable("`messages` has no answer")
    return Dialogue(place, turns)


def _preference_row(place: Place, found: Mapping[str, object]) -> Row:
    prompt, chosen, rejected, plain = _pair(found)
    if chosen == rejected:
        raise Unusable("`chosen` and `rejected` are the same")
    refuse_leak("\n\n".join(turn["content"] for turn in prompt), chosen, rejected)
    group = found.get("group")
    return Pair(place, prompt, chosen, rejected, "" if group is None else str(group), plain)


def _pair(found: Mapping[str, object]) -> tuple[list[Message], str, str, bool]:
    """(prompt, chosen, rejected, plain). Whole dialogues carry their prompt; answers alone need the column."""
    chosen, rejected, given = found["chosen"], found["rejected"], found.get("prompt")
    both = [_whole_dialogue(chosen, "chosen"), _whole_dialogue(rejected, "rejected")]
    if both[0] is not None and both[1] is not None:
        prompt, good, bad = answered_prompt(both[0], both[1])
        if isinstance(given, str):
            refuse_leak(given, good, bad)
        return prompt, good, bad, False
    if given is None:
        raise Unusable("`chosen` and `rejected` are answers alone, and there is no `prompt`")
    if isinstance(given, str) and isinstance(chosen, str) and isinstance(rejected, str):
        refuse_leak(given, chosen, rejected)
        if chosen.startswith(given) and rejected.startswith(given) and given.strip():
            chosen, rejected = chosen[len(given) :], rejected[len(given) :]
    prompt, plain = prompt_of(given, "prompt")
    return prompt, _answer(chosen, "chosen"), _answer(rejected, "rejected"), plain


def _whole_dialogue(value: object, name: str) -> list[Message] | None:
    """The turns of a value that holds its prompt too, else None."""
    if is_transcript(value):
        return transcript_turns(str(value))
    if isinstance(value, list):
        turns = turns_of(value, name)
        return turns if any(turn["role"] == "user" for turn in turns) else None
    return None


def _answer(value: object, name: str) -> str:
    """One answer: text, or a list of one assistant message."""
    if not isinstance(value, list):
        return text_of(value, name)
    turns = turns_of(value, name)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise Unusable(f"`{name}` has {len(turns)} turns; an answer is one turn of the assistant")
    return turns[0]["content"]


def _prompts_row(place: Place, found: Mapping[str, object]) -> Row:
    return Prompt(place, *prompt_of(found["prompt"], "prompt"))


def _prompt_only(row: Row) -> Prompt:
    """The prompt part of a row, never its answer: the turns before the last answer."""
    if isinstance(row, Prompt):
        return row
    if isinstance(row, Pair):
        return Prompt(row.place, row.prompt, row.plain)
    assert isinstance(row, Dialogue)
    last = max(index for index, turn in enumerate(row.messages) if turn["role"] == "assistant")
    turns = row.messages[:last]
    if not turns or turns[-1]["role"] != "user":
        raise Unusable("has no turn of the user before its last answer")
    return Prompt(row.place, turns, row.plain)


MAKERS: dict[Shape, Callable[[Place, Mapping[str, object]], Row]] = {
    "text": _text_row,
    "prompt_completion": _completion_row,
    "instruction": _instruction_row,
    "messages": _messages_row,
    "preference": _preference_row,
    "prompts": _prompts_row,
}
