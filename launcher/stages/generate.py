"""`python -m launcher.stages generate RUN`: the trained model of a stage answers prompts. One process, CPU or one GPU.

Prompts are written as in training: by the chat template where the tokenizer has one. Temperature 0 takes the best token each
time; above it, every token is drawn from the whole distribution, the same for the same seed.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from launcher.errors import EXIT_DONE, LauncherError, Problem, printable
from launcher.rundir.folder import RunDir
from launcher.rundir.handed_on import find_model
from launcher.train.canonical import Message
from launcher.train.chat import Chat, Unrenderable
from launcher.train.finished import device, load_model, load_tokenizer, quiet, refuse_damage, tell
from launcher.train.rollout import sample, stream

PROMPTS_AT_ONCE = 8


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    quiet()
    try:
        answers = generate(args, args.prompt or _from_stdin())
    except LauncherError as error:
        return tell(error, as_json=args.json)
    sys.stdout.write(json.dumps(answers, indent=1) + "\n" if args.json else _text(answers["answers"]))
    sys.stdout.flush()
    return EXIT_DONE


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="generate", allow_abbrev=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage")
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser


def _from_stdin() -> list[str]:
    """One prompt a line. The control side refuses a terminal."""
    prompts = [line.strip() for line in sys.stdin if line.strip()]
    if not prompts:
        hint = "give --prompt TEXT, or one prompt a line on stdin"
        raise LauncherError(Problem(code="E111", where="stdin", what="there is no prompt", hint=hint))
    return prompts


def generate(args: Namespace, prompts: Sequence[str]) -> dict[str, object]:
    """{"schema", "stage", "answers": [{"prompt", "answer", "tokens", "finished"}]}, in the order of the prompts."""
    run = RunDir(args.run.resolve())
    found = find_model(run, args.stage, any_kind=False)
    folder = refuse_damage(found)
    tokenizer = load_tokenizer(folder)
    encoded = _encode(Chat(tokenizer), prompts)
    model = load_model(folder, found.model_kind).to(device())
    max_new_tokens = _refuse_too_long(model, encoded, args.max_new_tokens)
    told: list[dict[str, object]] = []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        rows = range(start, min(start + PROMPTS_AT_ONCE, len(prompts)))
        drawn = sample(
            model,
            [encoded[row] for row in rows],
            streams=[stream(args.seed, "generate", 0, row, model.device) for row in rows] if args.temperature else None,
            temperature=args.temperature or 1.0,
            max_new_tokens=max_new_tokens,
            end=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
        )
        for row, answer, mask, ended in zip(rows, drawn.answer_BT, drawn.mask_BT, drawn.ended_B, strict=True):
            kept = answer[mask.bool()].tolist()
            text = tokenizer.decode(kept, skip_special_tokens=True).strip()
            told.append({"prompt": prompts[row], "answer": text, "tokens": len(kept), "finished": bool(ended)})
    return {"schema": 1, "stage": found.stage, "answers": told}


def _encode(chat: Chat, prompts: Sequence[str]) -> list[list[int]]:
    encoded = chat.prompts([[Message(role="user", content=prompt)] for prompt in prompts])
    problems = [
        Problem(code="E542", where=f"prompt {number}", what=str(ids) or "it has no token", hint="write another prompt")
        for number, ids in enumerate(encoded, 1)
        if isinstance(ids, Unrenderable) or not ids
    ]
    if problems:
        raise LauncherError(problems)
    return [ids for ids in encoded if not isinstance(ids, Unrenderable)]


def _refuse_too_long(model: PreTrainedModel, encoded: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Tokens an answer may have: as asked, or what the model's positions leave behind the longest prompt."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return max_new_tokens
    problems = [
        Problem(
            code="E545",
            where=f"prompt {number}",
            what=f"{len(ids)} tokens leave no room for an answer, the model has {positions} positions",
            hint=f"use at most {positions - 1} tokens",
        )
        for number, ids in enumerate(encoded, 1)
        if len(ids) >= positions
    ]
    if problems:
        raise LauncherError(problems)
    room = positions - max(map(len, encoded))
    if room < max_new_tokens:
        sys.stderr.write(f"answers are cut at {room} tokens: the model has {positions} positions\n")
    return min(max_new_tokens, room)


def _text(answers: Sequence[dict[str, object]]) -> str:
    """The answer alone where there is one; else each under its prompt."""
    if len(answers) == 1:
        return printable(str(answers[0]["answer"])) + "\n"
    return "".join(printable(f"> {answer['prompt']}\n{answer['answer']}") + "\n\n" for answer in answers)
