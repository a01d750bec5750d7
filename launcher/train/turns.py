"""Values of a cell -> turns of a dialogue: strings, message lists (ChatML, ShareGPT) and HH transcripts. Pure.

A value that is none of these raises Unusable with a reason that can follow `row 1000:`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.train.canonical import Message, Role, message

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}
# Anthropic's transcripts: "\n\nHuman: … \n\nAssistant: …"
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
# Shorter answers ("Yes.") may stand in a prompt by chance.
TELLING_CHARS = 16


class Unusable(ValueError):
    """Why a value cannot be used."""


def text_of(value: object, name: str, *, blank: bool = False) -> str:
    """The value as text that can be encoded and says something; `blank` texts are let through as they are."""
    if value is None and not blank:
        raise Unusable(f"`{name}` is null")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unusable(f"`{name}` is {kind_name(value)}, not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Unusable(f"`{name}` is not valid Unicode: half a surrogate pair at character {error.start + 1}") from error
    if not blank and not value.strip():
        raise Unusable(f"`{name}` is empty")
    return value


def kind_name(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes"}
    name = names.get(type(value), f"a {type(value).__name__}")
    return f"{name} ({value})" if isinstance(value, int | float) else name


def turns_of(value: object, name: str) -> list[Message]:
    """The turns of a message list; empty system turns are left out."""
    if not isinstance(value, list):
        raise Unusable(f"`{name}` is {kind_name(value)}, not a list of messages" if value is not None else f"`{name}` is null")
    if not value:
        raise Unusable(f"`{name}` has no turn")
    turns = [_turn(item, f"{name}[{index}]") for index, item in enumerate(value)]
    return [turn for turn in turns if turn["content"] or turn["role"] != "system"]


def is_transcript(value: object) -> bool:
    return isinstance(value, str) and SPEAKER.match(value.lstrip("\n")) is not None


def transcript_turns(text: str) -> list[Message]:
    """Turns of a transcript, texts stripped; two turns of one speaker become one. A last empty answer stays, as a question."""
    parts = SPEAKER.split(text.lstrip("\n"))[1:]
    turns: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role, content = SPEAKERS[speaker], content.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1] = message(role, f"{turns[-1]['content']}\n\n{content}".strip())
        else:
            turns.append(message(role, content))
    return turns


def dialogue_of(value: object, name: str) -> tuple[list[Message], bool]:
    """(turns, whether it was one plain text) of a prompt, an answer or a dialogue, in whichever form it comes."""
    if isinstance(value, list):
        return turns_of(value, name), False
    text = text_of(value, name)
    if is_transcript(text):
        return transcript_turns(text), False
    return [message("user", text)], True


def prompt_of(value: object, name: str) -> tuple[list[Message], bool]:
    """Turns that wait for an answer. A prompt that ends with an answer would teach, or be scored for, what it should ask."""
    turns, plain = dialogue_of(value, name)
    if turns and turns[-1] == message("assistant", ""):
        turns = turns[:-1]
    check_turns(turns, name)
    if turns[-1]["role"] != "user":
        raise Unusable(f"`{name}` ends with an answer; a prompt ends with the turn that is to be answered")
    return turns, plain


def check_turns(turns: Sequence[Message], name: str) -> None:
    if not turns:
        raise Unusable(f"`{name}` has no turn")
    for index, turn in enumerate(turns):
        if not turn["content"].strip():
            raise Unusable(f"turn {index + 1} of `{name}` ({turn['role']}) is empty")


def answered_prompt(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """(prompt, chosen, rejected) of two dialogues: the prompt is what they share, up to the answers in which they part."""
    if chosen == rejected:
        raise Unusable("`chosen` and `rejected` are the same")
    shared = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    if shared == 0:
        raise Unusable("`chosen` and `rejected` have no prompt in common")
    answers = []
    for name, turns in (("chosen", chosen[shared:]), ("rejected", rejected[shared:])):
        if not turns:
            raise Unusable(f"`{name}` has no answer of its own")
        if turns[0]["role"] != "assistant":
            raise Unusable("`chosen` and `rejected` part in a turn of the user, not in an answer")
        if len(turns) > 1:
            raise Unusable(f"`{name}` goes on after the answer in which the two part")
        if not turns[0]["content"].strip():
            raise Unusable(f"the answer of `{name}` is empty")
        answers.append(turns[0]["content"])
    prompt = chosen[:shared]
    check_turns(prompt, "prompt")
    if prompt[-1]["role"] != "user":
        raise Unusable("`chosen` and `rejected` part behind an answer, not behind a turn of the user")
    return prompt, answers[0], answers[1]


def refuse_leak(prompt: str, chosen: str, rejected: str) -> None:
    """A prompt made out of its answers (one of the guide's mistakes) trains nothing and measures nothing."""
    prompt, chosen, rejected = prompt.strip(), chosen.strip(), rejected.strip()
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) >= TELLING_CHARS and prompt.endswith(answer):
            raise Unusable(f"`prompt` ends with the answer of `{name}`")
    if min(len(chosen), len(rejected)) >= TELLING_CHARS and chosen in prompt and rejected in prompt:
        raise Unusable("`prompt` contains both answers")


def _turn(item: object, name: str) -> Message:
    if not isinstance(item, dict):
        raise Unusable(f"`{name}` is {kind_name(item) if item is not None else 'null'}, not an object with role and content")
    role = item.get("role") if item.get("role") is not None else item.get("from")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    if role is None:
        raise Unusable(f"`{name}` has neither `role` nor `from`")
    known = ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise Unusable(f"`{name}` has the role {role!r}; known are {', '.join(ROLES)}")
    if isinstance(content, list):
        content = "".join(_part(part, name) for part in content)
    return message(known, text_of(content, f"{name}.content", blank=known == "system"))


def _part(part: object, name: str) -> str:
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise Unusable(f"`{name}` has a part that is not text")
