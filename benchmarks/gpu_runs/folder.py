"""Case -> a run folder as `render` and `prepare` leave it: job, plan, DeepSpeed config, order, tokens; and the command.

Two things differ. The model folder holds a config.json without weights, which the child draws on the device; rows are random
tokens. The plan is made for a machine without limits: a case that should not fit is run all the same.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset, disable_progress_bars
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from gpu_runs.cases import CONFIGS, Case
from launcher.backends.registry import load_backend
from launcher.plan.make import make_plan
from launcher.plan.plan import Machine
from launcher.plan.shape import shape_from_config
from launcher.rundir.folder import RunDir, write_json
from launcher.spec.load import open_job
from launcher.supervise.create import Planned, make_folder, write_run

ROOT = Path(__file__).resolve().parents[2]
BOUNDLESS = 10**15
SPECIAL = ("<pad>", "<end>", "<unknown>")
TRAIN_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One rank, as the `deepspeed` launcher would start it."""

    run: RunDir
    stage: str
    argv: list[str]
    env: dict[str, str]


def job_text(case: Case, model: Path, *, steps: int) -> str:
    parallel: dict[str, object] = {"zero": case.zero, "checkpointing": case.checkpointing}
    if "cpu" in (case.offload_optimizer, case.offload_parameters):
        parallel["offload"] = {"optimizer": case.offload_optimizer, "parameters": case.offload_parameters}
    adapter = {"adapter": {"kind": "lora", "rank": case.lora}} if case.lora else {}
    stage = {"kind": case.kind, "data": {"source": "python-docs", "max_tokens": case.seq}, "steps": steps, "lr": 1e-5}
    job = {
        "name": "gpu-run",
        "seed": 0,
        "model": {"source": str(model), **adapter},
        "cluster": {"slots": 1},
        "precision": case.precision,
        "parallel": parallel,
        "batch": {"global": case.micro * case.accum, "micro": case.micro},
        "tensorboard": False,
        "stages": [{**stage, "log_every": 1, "eval_rows": 2 * case.micro}],
    }
    return yaml.safe_dump(job, sort_keys=False)


def make_command(case: Case, machine: Machine, folder: Path, *, steps: int) -> Command:
    """Write the run folder `folder`/run, and say how its only rank is started."""
    model = folder / "model"
    model.mkdir(parents=True)
    write_json(model / "config.json", CONFIGS[case.model])
    job_file = folder / "job.yaml"
    job_file.write_text(job_text(case, model, steps=steps), encoding="utf-8")
    loaded, run = open_job(job_file), RunDir(folder / "run")
    boundless = replace(machine, memory_bytes=BOUNDLESS, host_memory_bytes=BOUNDLESS, disk_free_bytes=None)
    shape = shape_from_config(CONFIGS[case.model], file=case.model)
    plan = make_plan(loaded.job, machine=boundless, shape=shape, places=loaded.places)
    make_folder(run)
    write_run(run, Planned(job=loaded.job, job_text=loaded.text, plan=plan))
    [stage] = [stage.name for stage in plan.stages]
    _write_base(run, model)
    _write_rows(run, stage, case, vocab=shape.vocab)
    port = _free_port()
    request = load_backend("local").stage_request(loaded.job, plan, run, stage, port=port)
    env = {**os.environ, **dict(request.env), **_rank_env(machine, port)}
    return Command(run=run, stage=stage, argv=[sys.executable, "-m", "gpu_runs.child", str(run.path), stage], env=env)


def _rank_env(machine: Machine, port: int) -> dict[str, str]:
    """What the `deepspeed` launcher sets for a single rank, and where the child finds its modules."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    given = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    places = [str(ROOT), str(ROOT / "benchmarks"), *given]
    return ranks | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, machine.devices)),
        "PYTHONPATH": os.pathsep.join(places),
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _write_base(run: RunDir, model: Path) -> None:
    """base/model without weights, and a tokenizer that is only asked for its special tokens."""
    folder = run.base / "tokenizer"
    folder.mkdir(parents=True)
    (run.base / "model").symlink_to(model, target_is_directory=True)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(SPECIAL)}, unk_token=SPECIAL[2]))
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**9, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _write_rows(run: RunDir, stage: str, case: Case, *, vocab: int) -> None:
    """Random tokens in full rows, tokenised as prepare leaves them."""
    disable_progress_bars()
    random = np.random.default_rng(0)
    counts = {"train": TRAIN_ROWS, "held_out": 2 * case.micro}
    for side, count in counts.items():
        ids = random.integers(len(SPECIAL), vocab, size=(count, case.seq), dtype=np.int32).tolist()
        Dataset.from_dict({"input_ids": ids, "labels": ids}).save_to_disk(str(run.path / "rows" / side))
    sides = {side: f"rows/{side}" for side in counts}
    write_json(run.stage(stage).prepared, {"schema": 1, **sides, "rows": counts, "fingerprint": "random tokens"})
