"""Tokenizers: trained on the job's own rows or loaded, then checked and repaired until every stage can rely on them.

What stages rely on: a fast tokenizer, an end token, a padding token that is another one, right padding. Repairs are notes
that prepare prints and records. Chat templates are used in train/chat.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from launcher.errors import LauncherError, Problem

PAD, END = "<|pad|>", "<|end|>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
# The end token is inside the generation tags: outside of them a model never learns to stop.
CHAT_TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}{%- generation -%}{{- m['content'] + eos_token -}}{%- endgeneration -%}"
    "{%- else -%}{{- '<|' + m['role'] + '|>' + m['content'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
# Entries that published vocabularies reserve for padding or never use; the first that is there becomes the padding token.
PAD_CANDIDATES = (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<unk>", "[UNK]")
# What loading leaves in the settings and saving would hand on: code that nobody runs, and how the folder was found here.
NOT_HANDED_ON = ("auto_map", "is_local", "local_files_only")
# What a chat template can raise: it refuses, or it is a program with a mistake.
TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
UNLIMITED = 10**9  # transformers would warn about every text longer than the model; rows are measured and dropped here


@dataclass(frozen=True, slots=True)
class ReadyTokenizer:
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...]


def train_tokenizer(texts: Iterable[str], *, vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab` entries: every text can be written in it. pad is 0, end is 1."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        padding_side="right",
        model_max_length=UNLIMITED,
        additional_special_tokens=ROLES,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """OSError or ValueError where the folder holds no tokenizer. No code of the folder is run."""
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)


def make_ready(
    tokenizer: PreTrainedTokenizerBase, *, where: str, embedding_rows: int | None, end_ids: set[int]
) -> ReadyTokenizer:
    """Check a loaded tokenizer and repair what can be repaired. LauncherError with everything that cannot.

    `embedding_rows`: of a model that exists; None where the model is drawn to fit. `end_ids`: the model's own stop tokens.
    """
    notes = _drop_pad_without_row(tokenizer, embedding_rows)
    problems = _basic_problems(tokenizer, where, embedding_rows)
    if problems:
        raise LauncherError(problems)
    notes += _repair_end(tokenizer, end_ids)
    notes += _repair_pad(tokenizer, where, embedding_rows)
    tokenizer.padding_side, tokenizer.truncation_side = "right", "right"
    tokenizer.model_max_length = UNLIMITED
    for name in NOT_HANDED_ON:
        tokenizer.init_kwargs.pop(name, None)
    return ReadyTokenizer(tokenizer, tuple(notes))


def content_hash(folder: Path) -> str:
    """Names a tokenizer by the files that decide what it does."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in {".json", ".jinja", ".model", ".txt"}:
            digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _drop_pad_without_row(tokenizer: PreTrainedTokenizerBase, embedding_rows: int | None) -> list[str]:
    """Copies of Llama-2 and many of its children add a padding token behind the model's last embedding row, where looking it
    up is an index error. Nothing but padding is ever dropped: any other entry without a row is for _basic_problems."""
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    beyond = [added[number] for number in added if embedding_rows is not None and number >= embedding_rows]
    if not beyond or not tokenizer.is_fast or set(beyond) - {tokenizer.pad_token, *PAD_CANDIDATES}:
        return []
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [entry for entry in backend["added_tokens"] if entry["content"] not in beyond]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
    if tokenizer.pad_token in beyond:
        tokenizer.pad_token = None
    tokenizer.init_kwargs.pop("added_tokens_decoder", None)
    return [f"entry {', '.join(beyond)} was dropped: the model has only {embedding_rows} embedding rows"]


def _basic_problems(tokenizer: PreTrainedTokenizerBase, where: str, embedding_rows: int | None) -> list[Problem]:
    problems = []
    if not tokenizer.is_fast:
        what = "the tokenizer has no fast version (tokenizer.json), which tells where each token stands in the text"
        problems.append(
            Problem(code="E540", where=where, what=what, hint="convert it, or name a tokenizer with a tokenizer.json")
        )
    if tokenizer.eos_token_id is None:
        what = "the tokenizer has no end token (eos_token), so answers could never stop"
        problems.append(Problem(code="E540", where=where, what=what, hint="set eos_token in tokenizer_config.json"))
    if embedding_rows is not None and len(tokenizer) > embedding_rows:
        what = f"the tokenizer has {len(tokenizer)} entries, the model only {embedding_rows} embedding rows"
        problems.append(Problem(code="E544", where=where, what=what, hint="use the tokenizer that belongs to the model"))
    return problems


def _repair_end(tokenizer: PreTrainedTokenizerBase, end_ids: set[int]) -> list[str]:
    """Some models end a turn with another token than eos_token (their generation_config lists both): that one is the end."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or tokenizer.eos_token_id in _ends_of_answer(tokenizer):
        return []
    for candidate in _ends_of_answer(tokenizer):
        if candidate in end_ids:
            old, tokenizer.eos_token = tokenizer.eos_token, tokenizer.convert_ids_to_tokens(candidate)
            return [f"end token is {tokenizer.eos_token}, with which the chat template ends an answer, instead of {old}"]
    return []


def _ends_of_answer(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens after the answer of a small dialogue, in the order the template writes them; none where it refuses it."""
    dialogue = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}]
    try:
        text = tokenizer.apply_chat_template(dialogue, tokenize=False)
    except TEMPLATE_ERRORS:  # it may want a system turn first; if it is broken, the rows will tell
        return []
    ids = tokenizer(text[text.rfind("ANSWER") + len("ANSWER") :], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return [token for token in ids if token in special]


def _repair_pad(tokenizer: PreTrainedTokenizerBase, where: str, embedding_rows: int | None) -> list[str]:
    """A padding token that is not the end token: where they are one, the reward model skips the end as padding."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return []
    was = "missing" if tokenizer.pad_token_id is None else "the end token"
    vocabulary = tokenizer.get_vocab()
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    for candidate in PAD_CANDIDATES:
        if candidate in vocabulary and candidate not in taken:
            tokenizer.pad_token = candidate
            return [f"padding token was {was}; now {candidate}, which the vocabulary already has"]
    if embedding_rows is not None and len(tokenizer) >= embedding_rows:
        what = f"padding token is {was}, the vocabulary reserves none, and the model has no spare embedding row for one"
        hint = "give the tokenizer a padding token of its own and resize the model's embeddings, or use another model"
        raise LauncherError(Problem(code="E543", where=where, what=what, hint=hint))
    tokenizer.add_special_tokens({"pad_token": PAD})
    return [f"padding token was {was}; {PAD} was added at {tokenizer.pad_token_id}"]
