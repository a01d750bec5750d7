"""prepare: job.json -> base/tokenizer, base/model and every stage's prepared.json, in one CPU process before any rank starts.

Run it with `python -m launcher.stages prepare RUN_DIR`. What is there already and still fits its inputs is kept. Everything
that is wrong with the model, the tokenizer or the data of any stage is reported at once.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import datasets
from transformers import PreTrainedTokenizerBase

from launcher.errors import LauncherError, Problem
from launcher.rundir.artifact import read_manifest
from launcher.rundir.folder import RunDir
from launcher.spec.chain import effective_batch
from launcher.spec.data import DEFAULT_MAX_TOKENS, PYTHON_DOCS
from launcher.spec.job import JobSpec
from launcher.spec.model import NewTokenizer
from launcher.spec.stages import DEFAULT_GLOBAL_SEQS, Ppo, Sft, StageBase
from launcher.train.base import BaseFacts, draw_model, link_model, new_model_facts, source_facts
from launcher.train.cache import cached
from launcher.train.canonical import BadRow, RowSource
from launcher.train.chat import Chat
from launcher.train.corpus import Corpus, CorpusRows
from launcher.train.hub import model_folder, tokenizer_folder
from launcher.train.prepared import Recipe, check_rows, prepare_rows, write_prepared
from launcher.train.sources import FileRows
from launcher.train.tokenizers import content_hash, load_tokenizer, make_ready, train_tokenizer
from launcher.units import count_text

TOKENIZER_FORMAT = 1
TOKENIZER_CHARS = 200_000_000  # a vocabulary gets no better by more text, only slower

Result = TypeVar("Result")


class Problems:
    """Collects what is wrong, so that one broken file does not hide another."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def attempt(self, step: Callable[[], Result]) -> Result | None:
        try:
            return step()
        except LauncherError as error:
            self.found += [problem for problem in error.problems if problem not in self.found]
            return None

    def raise_if_any(self) -> None:
        if self.found:
            raise LauncherError(self.found)


def run(run: RunDir, job: JobSpec) -> None:
    """The whole chain. LauncherError with all problems of all stages."""
    datasets.disable_progress_bars()
    with _few_collections():
        _prepare(run, job)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Token lists are millions of objects without cycles: the default thresholds cost a fifth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _prepare(run: RunDir, job: JobSpec) -> None:
    started, problems = time.monotonic(), Problems()
    corpus = Corpus(job.seed)
    opened = {stage.stage_name: problems.attempt(partial(_open, stage, corpus)) for stage in job.stages}
    sources = {name: source for name, source in opened.items() if source is not None}
    facts = problems.attempt(lambda: _base_facts(job))
    tokenizer = problems.attempt(lambda: _tokenizer(run, job, facts, sources)) if facts and not problems.found else None
    if facts is None or tokenizer is None:
        _read_without_tokens(job, sources, problems)
        problems.raise_if_any()
    assert facts is not None
    assert tokenizer is not None
    problems.attempt(lambda: _model(run, job, facts, tokenizer))
    chat, tokenizer_hash = Chat(tokenizer), content_hash(run.base / "tokenizer")
    for stage in job.stages:
        recipe = problems.attempt(partial(_recipe, job, stage, facts))
        if recipe is not None:
            problems.attempt(partial(_stage, run, stage, recipe, sources[stage.stage_name], chat, tokenizer_hash))
    problems.raise_if_any()
    _say(f"{len(job.stages)} stages prepared in {time.monotonic() - started:.1f} s")


def _open(stage: StageBase, corpus: Corpus) -> RowSource:
    if stage.data.source == PYTHON_DOCS:
        return CorpusRows(corpus, stage.kind, stage.data.limit)
    return FileRows(stage)


def _base_facts(job: JobSpec) -> BaseFacts:
    if job.model.new is not None:
        return new_model_facts(job.model.new)
    return source_facts(model_folder(str(job.model.source), job.model.revision))


def _tokenizer(run: RunDir, job: JobSpec, facts: BaseFacts, sources: dict[str, RowSource]) -> PreTrainedTokenizerBase:
    """base/tokenizer, as every rank will load it."""
    folder, wanted = run.base / "tokenizer", job.model.tokenizer
    if isinstance(wanted, NewTokenizer):
        chosen = _tokenizer_sources(job, sources)
        parts = [TOKENIZER_FORMAT, wanted.train.vocab, [source.fingerprint() for source in chosen]]
        kept = cached(folder, _sha256(parts), lambda empty: _train_tokenizer(chosen, wanted.train.vocab, facts, empty))
    else:
        origin = tokenizer_folder(job.model)
        parts = [TOKENIZER_FORMAT, content_hash(origin), facts.embedding_rows, sorted(facts.end_ids)]
        kept = cached(folder, _sha256(parts), lambda empty: _load_tokenizer(origin, facts, empty))
    tokenizer = load_tokenizer(folder)
    made = "kept" if kept else "made"
    _say(f"tokenizer {made}: {len(tokenizer)} entries, end {tokenizer.eos_token!r}, padding {tokenizer.pad_token!r}")
    for note in [*facts.notes, *(read_manifest(folder) or {}).get("notes", ())]:
        _say(f"  note: {note}")
    return tokenizer


def _tokenizer_sources(job: JobSpec, sources: dict[str, RowSource]) -> list[RowSource]:
    """Pretraining text and SFT rows; all stages where there is neither."""
    names = [stage.stage_name for stage in job.stages if stage.kind in ("pretrain", "sft")]
    return [sources[name] for name in names or sources]


def _train_tokenizer(chosen: list[RowSource], vocab: int, facts: BaseFacts, folder: Path) -> dict[str, object]:
    trained = train_tokenizer(_training_texts(chosen), vocab=vocab)
    ready = make_ready(trained, where="model.tokenizer", embedding_rows=facts.embedding_rows, end_ids=facts.end_ids)
    ready.tokenizer.save_pretrained(folder)
    short = f"the text gives only {len(trained)} of the {vocab} entries asked; the model keeps {vocab} rows"
    return {"notes": [*ready.notes, *([short] if len(trained) < vocab else [])]}


def _training_texts(chosen: list[RowSource]) -> Iterator[str]:
    """Never a held-out row. Bad rows are reported when the stages are prepared."""
    chars = 0
    for item in chain.from_iterable(source.rows() for source in chosen):
        if isinstance(item, BadRow) or item[0] != "train":
            continue
        for text in item[1].texts():
            yield text
            chars += len(text)
        if chars > TOKENIZER_CHARS:
            return


def _load_tokenizer(origin: Path, facts: BaseFacts, folder: Path) -> dict[str, object]:
    tokenizer = _loaded_tokenizer(origin)
    ready = make_ready(tokenizer, where="model.tokenizer", embedding_rows=facts.embedding_rows, end_ids=facts.end_ids)
    ready.tokenizer.save_pretrained(folder)
    return {"notes": list(ready.notes)}


def _loaded_tokenizer(origin: Path) -> PreTrainedTokenizerBase:
    """LauncherError E540 where the folder that the user names holds none, or a broken one."""
    try:
        return load_tokenizer(origin)
    except Exception as error:  # the tokenizers library raises plain Exception for a file that it cannot read
        what = f"{origin} holds no tokenizer that can be loaded ({type(error).__name__}: {error})".splitlines()[0][:300]
        hint = "name a folder with tokenizer.json and tokenizer_config.json, as save_pretrained writes it"
        raise LauncherError(Problem(code="E540", where="model.tokenizer", what=what, hint=hint)) from error


def _model(run: RunDir, job: JobSpec, facts: BaseFacts, tokenizer: PreTrainedTokenizerBase) -> None:
    """base/model: what the first stage starts from."""
    if job.model.new is None:
        link_model(model_folder(str(job.model.source), job.model.revision), run.base / "model")
        return
    wanted = job.model.tokenizer
    vocab = wanted.train.vocab if isinstance(wanted, NewTokenizer) else len(tokenizer)
    kept = draw_model(job.model.new, tokenizer, vocab=vocab, seed=job.seed, folder=run.base / "model")
    parameters = (read_manifest(run.base / "model") or {})["parameters"]
    _say(f"model {'kept' if kept else 'drawn'}: {parameters} parameters, {vocab} embedding rows")


def _recipe(job: JobSpec, stage: StageBase, facts: BaseFacts) -> Recipe:
    where, data = f"stage {stage.stage_name}", stage.data
    answer = stage.max_new_tokens if isinstance(stage, Ppo) else 0
    room = facts.positions - answer if facts.positions is not None else None
    max_tokens = data.max_tokens or min(DEFAULT_MAX_TOKENS, room if room is not None else DEFAULT_MAX_TOKENS)
    if room is not None and (max_tokens > room or room < 1):
        behind = f" and the answer {answer}" if answer else ""
        what = f"data.max_tokens is {max_tokens}{behind}, the model has {facts.positions} positions"
        hint = f"data.max_tokens: {room}, or a model with more positions" if room >= 8 else "lower max_new_tokens"
        raise LauncherError(Problem(code="E545", where=where, what=what, hint=hint))
    batch = effective_batch(job, stage).global_seqs or DEFAULT_GLOBAL_SEQS
    return Recipe(
        where=where,
        kind=stage.kind,
        max_tokens=max_tokens,
        min_rows=(stage.rollout or 2 * batch) if isinstance(stage, Ppo) else batch,
        loss_on=stage.loss_on if isinstance(stage, Sft) else "answers",
        packing=stage.packing if isinstance(stage, Sft) else False,
        bad_rows=data.bad_rows,
    )


def _stage(run: RunDir, stage: StageBase, recipe: Recipe, source: RowSource, chat: Chat, tokenizer_hash: str) -> None:
    entry, kept = prepare_rows(recipe, source, chat, tokenizer_hash, run.cache)
    prepared = write_prepared(run, run.stage(stage.stage_name), entry)
    rows, tokens, dropped = prepared["rows"], prepared["tokens"], prepared["dropped"]
    _say(
        f"{stage.stage_name} {'kept' if kept else 'tokenised'}: {rows['train']} rows ({count_text(tokens['train'])} tokens),"
        f" {rows['held_out']} held out; dropped {dropped['too_long']} too long, {dropped['bad']} bad"
    )


def _read_without_tokens(job: JobSpec, sources: dict[str, RowSource], problems: Problems) -> None:
    """The tokenizer or the model is missing; bad rows are still found in this run of prepare, not in the next one."""
    for stage in job.stages:
        if stage.stage_name in sources:
            where, source = f"stage {stage.stage_name}", sources[stage.stage_name]
            problems.attempt(partial(check_rows, source, where=where, bad_rows=stage.data.bad_rows))


def _sha256(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
