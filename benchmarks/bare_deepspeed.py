"""What a user would write by hand: a plain DeepSpeed script for the pretraining stage of a prepared run folder.

Started by `deepspeed` in first_step.py. It reads the same rows, the same model and the same DeepSpeed config, and notes when
its first optimizer step is done. Nothing of `launcher` is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import deepspeed
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM


def main() -> None:
    run, stage, mark = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    config = json.loads((run / "rendered" / f"{stage}.ds.json").read_text())
    prepared = json.loads((run / "stages" / stage / "prepared.json").read_text())
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else this script would first compile for minutes
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = AutoModelForCausalLM.from_pretrained(run / "base/model", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    rows = load_from_disk(str(run / prepared["train"])).with_format("torch")
    micro = engine.train_micro_batch_size_per_gpu()
    for step in range(engine.gradient_accumulation_steps()):
        first = (step * world + rank) * micro
        ids = rows[first : first + micro]["input_ids"].to(engine.device)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    if rank == 0:
        mark.write_text(str(time.time()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
