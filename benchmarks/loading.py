"""Host memory while a model of 1B parameters is loaded: what a rank holds at its peak against its shard, and against the plan.

python benchmarks/loading.py [--layers 20] [--json]

A random checkpoint (Llama shape, bf16, several safetensors files) is written, then loaded by two ranks under each layout,
through the code that the stages use. Counted is anonymous memory (RssAnon, sampled every 2 ms) above what the rank had before:
the files are mapped, and their pages belong to the page cache. `transformers` is from_pretrained under the same ZeRO-3 config.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MIB = 2**20
LAYOUTS: dict[str, dict[str, int]] = {
    "transformers, zero 3": {"zero": 3, "dp": 2, "transformers": 1},
    "zero 1, dp 2": {"zero": 1, "dp": 2},
    "zero 3, dp 2": {"zero": 3, "dp": 2},
    "tp 2": {"zero": 1, "tp": 2},
    "pp 2": {"zero": 1, "pp": 2},
}


def shape(layers: int) -> dict[str, int]:
    """20 layers make 1.01 B parameters."""
    return {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    }


def write_checkpoint(folder: Path, layers: int) -> None:
    """In a process of its own, so that its memory is gone afterwards."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(**shape(layers), tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="500MB")


class Peak:
    """Largest anonymous memory of this process above its start."""

    def __init__(self) -> None:
        self._done, self._start, self.bytes = threading.Event(), self._now(), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @staticmethod
    def _now() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        raise OSError("/proc/self/status tells no RssAnon: this benchmark runs on Linux")

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, self._now() - self._start)

    def stop(self) -> tuple[int, int]:
        """(peak, what is still held)."""
        self._done.set()
        self._thread.join()
        return self.bytes, self._now() - self._start


def load(folder: Path, layout: dict[str, int]) -> dict[str, float]:
    """One rank: this process loads its part and tells."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    from launcher.spec.model import ModelSpec
    from launcher.train.balance import stage_blocks
    from launcher.train.building import fill, make_skeleton
    from launcher.train.mesh import make_mesh
    from launcher.train.pipeline import build_stages
    from launcher.train.ranks import meet

    order = _order(layout)
    mesh = make_mesh(order, meet(order))
    started, peak = time.monotonic(), Peak()
    config = {"train_batch_size": order.dp, "zero_optimization": {"stage": order.zero}, "bf16": {"enabled": True}}
    if layout.get("transformers"):
        registered = HfDeepSpeedConfig(config)
        kept = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        local = sum(weight.ds_tensor.nbytes for weight in kept.parameters())
        del registered
    else:
        skeleton = make_skeleton(folder, order, ModelSpec(source="random"), mesh, config, seed=0, adapter=None)
        if mesh.pp > 1:
            blocks = stage_blocks(skeleton, order, tiles=1)
            kept, pieces = build_stages(skeleton, blocks, score=lambda hidden: hidden, loss=lambda *_: None)
        else:
            kept, pieces = skeleton, fill(skeleton, [skeleton.model])
        local = sum(getattr(piece.weight, "ds_tensor", piece.weight).nbytes for piece in pieces)
    seconds = time.monotonic() - started
    highest, held = peak.stop()
    return {"peak_bytes": highest, "held_bytes": held, "shard_bytes": local, "seconds": seconds}


def _order(layout: dict[str, int]):
    from launcher.rundir.order import StageOrder

    degrees = {name: layout.get(name, 1) for name in ("tp", "pp", "sp")}
    return StageOrder(
        stage="pretrain",
        kind="pretrain",
        world=2,
        dp=2 // (degrees["tp"] * degrees["pp"]),
        **degrees,
        balance="parameters",
        device="cpu",
        precision="bf16",
        tf32=False,
        checkpointing="none",
        zero=layout.get("zero", 1),
        micro_batch=1,
        grad_accum=1,
        max_tokens=2048,
        checkpoint_every=0,
        model="",
        tokenizer="",
        reward_model=None,
        model_kind="causal",
    )


def run_layout(folder: Path, name: str) -> list[dict[str, float]]:
    """Two ranks, started as processes; what each told."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    ranks = []
    for rank in range(2):
        env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, __file__, "--rank", name, "--folder", str(folder)]
        ranks.append(subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    told = [process.communicate(timeout=600) for process in ranks]
    for process, (_, error) in zip(ranks, told, strict=True):
        if process.returncode:
            sys.exit(f"{name}: {error.strip()}")
    return [json.loads(output.splitlines()[-1]) for output, _ in told]


def predicted(layers: int, layout: dict[str, int]) -> list[int]:
    """Bytes of each rank while it loads, as the plan has them."""
    from launcher.plan.layout import Layout
    from launcher.plan.memory import loading_bytes
    from launcher.plan.shape import shape_from_config
    from launcher.plan.share import shares_of

    model = shape_from_config({"model_type": "llama", **shape(layers)}, file="config.json")
    order = _order(layout)
    plan = Layout(
        dp=order.dp,
        tp=order.tp,
        pp=order.pp,
        zero=order.zero,
        precision="bf16",
        checkpointing="none",
        offload_optimizer="none",
        offload_parameters="none",
        micro_batch=1,
        grad_accum=1,
        cuda=False,
    )
    shares = shares_of(model, "pretrain", None, tp=plan.tp, pp=plan.pp)
    return [round(loading_bytes(plan, shares[rank if plan.pp > 1 else 0])) for rank in range(2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank == "write":
        write_checkpoint(asked.folder, asked.layers)
        return
    if asked.rank:
        print(json.dumps(load(asked.folder, LAYOUTS[asked.rank])), flush=True)
        os._exit(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = [sys.executable, __file__, "--rank", "write", "--folder", name, "--layers", str(asked.layers)]
        subprocess.run(writer, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        results = {layout: run_layout(folder, layout) for layout in LAYOUTS}
    for layout, ranks in results.items():
        for told, planned in zip(ranks, predicted(asked.layers, LAYOUTS[layout]), strict=True):
            told["planned_bytes"] = planned
    if asked.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{'layout':20} {'rank':>4} {'shard MiB':>10} {'planned':>9} {'peak MiB':>9} {'peak / planned':>14} {'seconds':>8}")
    for layout, ranks in results.items():
        for rank, told in enumerate(ranks):
            shard, planned, peak = (told[f"{name}_bytes"] / MIB for name in ("shard", "planned", "peak"))
            print(
                f"{layout:20} {rank:4} {shard:10.0f} {planned:9.0f} {peak:9.0f} {peak / planned:14.2f} {told['seconds']:8.1f}"
            )


if __name__ == "__main__":
    main()
