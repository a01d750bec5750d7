"""A rank that loads its part of a model never holds the whole: its memory grows by its shard and about one module."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.rundir.folder import RunDir
from launcher.rundir.order import read_order
from tests.stages.harness import run_ranks
from tests.stages.runs import make_run, write_model

pytestmark = pytest.mark.ranks

# 63 M parameters, 252 MB in fp32; the largest module, the embedding, 13 MB.
WIDE = {"vocab_size": 4096, "hidden_size": 768, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8}
LAYOUTS = {"zero 3": {"zero": 3}, "tensor 2": {"zero": 1, "tp": 2}, "pipeline 2": {"zero": 1, "pp": 2}}


@pytest.fixture(scope="module")
def wide(world) -> Path:
    run_ranks(lambda: write_model(world / "wide", tied=False, ffn=2048, **WIDE), world=1)
    return world / "wide"


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _load(run: RunDir) -> tuple[int, int, int]:
    """Bytes of the whole model, of this rank's weights, and by how much the rank has grown at its highest."""
    import json
    import threading

    from launcher.spec.model import ModelSpec
    from launcher.train.balance import stage_blocks
    from launcher.train.building import fill, make_skeleton
    from launcher.train.mesh import make_mesh
    from launcher.train.pipeline import build_stages
    from launcher.train.ranks import leave, meet

    order = read_order(run.order("pretrain"))
    mesh = make_mesh(order, meet(order))
    config = json.loads(run.ds_config("pretrain").read_text())
    before, highest, done = _anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            highest[0] = max(highest[0], _anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    skeleton = make_skeleton(run.path / order.model, order, ModelSpec(source="x"), mesh, config, seed=0, adapter=None)
    if mesh.pp > 1:
        _, pieces = build_stages(skeleton, stage_blocks(skeleton, order, tiles=1), score=lambda x: x, loss=lambda *_: None)
    else:
        pieces = fill(skeleton, [skeleton.model])
    done.set()
    watcher.join()
    leave()
    own = sum(getattr(piece.weight, "ds_tensor", piece.weight).nbytes for piece in pieces)
    return 4 * skeleton.num_parameters, own, highest[0]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_rank_grows_by_its_shard_not_by_the_model(world, wide, layout):
    run = make_run(world, kind="pretrain", ranks=2, micro=4, start=wide, **layout)

    for whole, own, grown in run_ranks(_load, run, world=2):
        assert own < 0.62 * whole
        assert grown < own + 0.2 * whole, f"{grown / 1e6:.0f} MB for a shard of {own / 1e6:.0f} of {whole / 1e6:.0f}"


def test_the_measure_sees_a_rank_that_holds_the_whole_model(world, wide):
    """Plain data parallelism does: what the test above would look like without the loading by parts."""
    [(whole, own, grown)] = run_ranks(_load, make_run(world, kind="pretrain", ranks=1, start=wide), world=1)

    assert own == whole
    assert grown > 0.85 * whole
