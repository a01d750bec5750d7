"""States: saved under one layout, a training goes on under any other, and under the same one bit for bit."""

from __future__ import annotations

import gc
import json
import math
import random
import shutil
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.stages.harness import run_ranks
from tests.stages.runs import FIRST, VOCAB, write_model

pytestmark = pytest.mark.ranks

SAVED_AT, STEPS, ROWS = 3, 6, 8


@dataclass(frozen=True)
class Layout:
    name: str
    ranks: int
    zero: int
    accum: int = 1
    precision: str = "fp32"
    offload: str = "none"
    grad_dtype: str | None = None  # fp32 with bf16 at ZeRO 1 makes DeepSpeed take its BF16_Optimizer
    frozen: bool = False


FP32 = [
    Layout("zero0-dp1", 1, 0),
    Layout("zero1-dp2", 2, 1),
    Layout("zero2-dp2-accumulated", 2, 2, accum=2),
    Layout("zero3-dp2", 2, 3),
    Layout("zero2-dp1-offload", 1, 2, offload="cpu"),
    Layout("zero3-dp2-offload", 2, 3, offload="cpu"),
]
BF16 = [
    Layout("bf16-zero1-dp1", 1, 1, precision="bf16"),
    Layout("bf16-zero2-dp2", 2, 2, precision="bf16"),
    Layout("bf16-zero3-dp2", 2, 3, precision="bf16"),
    Layout("bf16-zero1-dp2-fp32-gradients", 2, 1, precision="bf16", grad_dtype="fp32"),
]
FROZEN = [replace(one, name=f"{one.name}-frozen", frozen=True) for one in (FP32[0], FP32[1], FP32[3])]
GROUPS = {"fp32": (FP32, 5e-6), "bf16": (BF16, 3e-3), "partly frozen": (FROZEN, 5e-6)}
ALL = [layout for layouts, _ in GROUPS.values() for layout in layouts]


def config(layout: Layout) -> dict:
    """As rendered, but for what the layout is about. Small weights are kept gathered under ZeRO-3, larger ones are not."""
    zero: dict = {"stage": layout.zero}
    if layout.zero:
        place = {"device": layout.offload, "pin_memory": False}
        zero |= {"contiguous_gradients": True, "reduce_bucket_size": 50_000, "offload_optimizer": place}
    if layout.zero == 3:
        zero |= {"stage3_param_persistence_threshold": 100, "stage3_prefetch_bucket_size": 1000, "sub_group_size": 5000}
    scale = {"loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 2**31 - 1, "hysteresis": 2, "min_loss_scale": 1}
    made = {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": ROWS // layout.ranks // layout.accum,
        "gradient_accumulation_steps": layout.accum,
        "gradient_clipping": 0.5,
        "zero_optimization": zero,
        "bf16": {"enabled": layout.precision == "bf16"},
        "fp16": {"enabled": layout.precision == "fp16", **scale},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return made | ({"data_types": {"grad_accum_dtype": layout.grad_dtype}} if layout.grad_dtype else {})


def make_engine(layout: Layout, model_folder: Path, *, seed: int | None = None):
    """(engine, pieces, mesh). With a seed, other weights than those in the folder: what was not loaded would show."""
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM

    from launcher.train.pieces import whole_pieces

    dtype = torch.bfloat16 if layout.precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
    for name, weight in model.named_parameters():
        weight.requires_grad_(not (layout.frozen and "mlp" in name))
    if seed is not None:
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.normal_()
    groups = [
        {
            "params": [weight for weight in model.parameters() if weight.requires_grad and (weight.ndim >= 2) == matrices],
            **decay,
        }
        for matrices, decay in ((True, {"weight_decay": 0.01}), (False, {"weight_decay": 0.0}))
    ]
    adam = torch.optim.AdamW(groups, lr=3e-3, fused=layout.offload == "none")
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config(layout))
    return engine, whole_pieces(engine.module), mesh_of(layout.ranks)


def mesh_of(ranks: int, *, tp: int = 1):
    import torch
    import torch.distributed as dist

    from launcher.train.mesh import make_mesh
    from launcher.train.ranks import Ranks

    order = SimpleNamespace(dp=ranks // tp, tp=tp, pp=1, sp=1, world=ranks)
    return make_mesh(order, Ranks(rank=dist.get_rank(), local_rank=dist.get_rank(), world=ranks, device=torch.device("cpu")))


def meet() -> None:
    import deepspeed

    gc.freeze()  # DeepSpeed collects garbage whenever it tells its memory: what the parent has imported is none
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


def train(engine, layout: Layout, steps: range) -> list[float]:
    """Losses of the steps, means over the global batch; rows follow from the step alone."""
    import torch
    import torch.distributed as dist

    losses = []
    for step in steps:
        rows = torch.randint(FIRST, VOCAB, (ROWS, 12), generator=torch.Generator().manual_seed(step))
        mine = rows.chunk(layout.ranks)[dist.get_rank()]
        total = torch.zeros(())
        for micro in mine.chunk(layout.accum):
            loss = engine(input_ids=micro, labels=micro, use_cache=False).loss
            engine.backward(loss)
            engine.step()
            total += loss.detach().float() / layout.accum
        dist.all_reduce(total)
        losses.append(total.item() / layout.ranks)
    return losses


def run_straight(layout: Layout, model_folder: Path, folder: Path) -> list[float]:
    from launcher.train.states import save_states

    meet()
    engine, pieces, mesh = make_engine(layout, model_folder)
    losses = train(engine, layout, range(SAVED_AT))
    save_states(folder, engine, pieces, mesh, step=SAVED_AT, extra={"told": [1.5, "a"]})
    return losses + train(engine, layout, range(SAVED_AT, STEPS))


def go_on(layout: Layout, model_folder: Path, folders: dict[str, Path], used: bool = False) -> dict[str, list[float]]:
    """The steps after the save, from each folder in an engine with other weights: a fresh one, or one that has trained them."""
    from launcher.train.states import load_states

    meet()
    losses = {}
    for name, folder in folders.items():
        engine, pieces, mesh = make_engine(layout, model_folder, seed=9)
        if used:
            train(engine, layout, range(2))
        assert load_states(folder, engine, pieces, mesh) == {"told": [1.5, "a"]}
        losses[name] = train(engine, layout, range(SAVED_AT, STEPS))
        engine.destroy()
    return losses


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """Its width gives tensors that two ranks cannot halve between weights, and its heads are not tied."""
    folder = tmp_path_factory.mktemp("states") / "model"
    run_ranks(write_odd_model, folder, world=1)
    return folder


def write_odd_model(folder: Path) -> None:
    write_model(folder, tied=False, ffn=51, hidden_size=30, num_attention_heads=3, num_key_value_heads=3)


@pytest.fixture(scope="module")
def straight(model_folder, tmp_path_factory):
    """Layout name -> (losses of the straight run, folder saved after step 3), each made when first asked for."""
    made: dict[str, tuple[list[float], Path]] = {}

    def of(layout: Layout) -> tuple[list[float], Path]:
        if layout.name not in made:
            folder = tmp_path_factory.mktemp("saved") / layout.name
            made[layout.name] = run_ranks(run_straight, layout, model_folder, folder, world=layout.ranks)[0], folder
        return made[layout.name]

    return of


@pytest.mark.parametrize("target", ALL, ids=[layout.name for layout in ALL])
def test_a_training_goes_on_under_any_layout_from_any_other(target, straight, model_folder):
    sources, tolerance = next((layouts, tolerance) for layouts, tolerance in GROUPS.values() if target in layouts)
    runs = {source.name: straight(source) for source in sources}
    folders = {name: folder for name, (_, folder) in runs.items()}
    continued = run_ranks(go_on, target, model_folder, folders, world=target.ranks)[0]

    assert continued.keys() == runs.keys()
    for name, (losses, _) in runs.items():
        assert continued[name] == pytest.approx(losses[SAVED_AT:], abs=tolerance), name
    same = [loss.hex() for loss in runs[target.name][0][SAVED_AT:]]
    assert [loss.hex() for loss in continued[target.name]] == same


@pytest.mark.parametrize("layout", [FP32[0], FP32[1], FP32[3]], ids=lambda layout: layout.name)
def test_an_engine_that_has_trained_other_weights_forgets_them(layout, straight, model_folder):
    """Moments are there already, and under ZeRO-3 small weights are kept gathered: nothing of it may stay."""
    losses, folder = straight(layout)
    continued = run_ranks(go_on, layout, model_folder, {"it": folder}, True, world=layout.ranks)[0]["it"]
    assert [loss.hex() for loss in continued] == [loss.hex() for loss in losses[SAVED_AT:]]


def test_only_trained_weights_are_saved_each_element_once(straight):
    _, folder = straight(FROZEN[1])
    index = json.loads((folder / "index.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "rank0.safetensors", "rank1.safetensors"]
    assert (index["step"], index["scale"]) == (SAVED_AT, {})
    assert not [name for name in index["weights"] if "mlp" in name]
    told = index["weights"]["model.embed_tokens.weight"]
    assert told["shape"] == [VOCAB, 30]
    assert {one["step"] for entry in index["weights"].values() for one in entry["fragments"]} == {SAVED_AT}
    numels = {name: sum(one["numel"] for one in entry["fragments"]) for name, entry in index["weights"].items()}
    assert numels == {name: math.prod(entry["shape"]) for name, entry in index["weights"].items()}
    sizes = [(folder / f"rank{rank}.safetensors").stat().st_size for rank in range(2)]
    assert sum(sizes) == pytest.approx(3 * 4 * sum(numels.values()), rel=0.1)


# --- tensor parallel -----------------------------------------------------------------------------------------------

WIDTHS = {"column": (6, 4), "row": (4, 6), "fused": (8, 3), "bias": (6,), "norm": (5,)}


def cuts_of(tp_rank: int, *, turned: bool) -> dict:
    """Halves of each weight; `fused` holds two matrices behind each other, `norm` is on both ranks."""
    from launcher.train.pieces import Cut

    low, mid = 3 * tp_rank, 2 * tp_rank
    column, row = Cut(dim=0, ranges=((low, low + 3),)), Cut(dim=1, ranges=((low, low + 3),))
    fused = Cut(dim=0, ranges=((mid, mid + 2), (4 + mid, 6 + mid)))
    if turned:  # the same weights cut along the other dimension
        column, row = Cut(dim=1, ranges=((mid, mid + 2),)), Cut(dim=0, ranges=((mid, mid + 2),))
    return {"column": column, "row": row, "fused": fused, "bias": Cut(dim=0, ranges=((low, low + 3),)), "norm": None}


def hand_trained(zero: int, tp: int, steps: range, folder: Path, *, load: Path | None = None, turned: bool = False):
    """Masters and moments, whole, after steps whose gradients are written by hand. Adam is element-wise: any cut is equal."""
    import deepspeed
    import torch
    import torch.distributed as dist

    from launcher.train.pieces import Piece
    from launcher.train.states import load_states, save_states

    meet()
    mesh = mesh_of(dist.get_world_size(), tp=tp)
    cuts = cuts_of(mesh.tp_rank, turned=turned) if tp > 1 else dict.fromkeys(WIDTHS)
    generator = torch.Generator().manual_seed(0)
    starts = {name: torch.randn(shape, generator=generator) for name, shape in WIDTHS.items()}
    module = torch.nn.ParameterDict()
    for name, cut in cuts.items():
        whole = torch.zeros_like(starts[name]) if load else starts[name]
        module[name] = torch.nn.Parameter(cut.of(whole) if cut else whole.clone())
    layout = Layout("by hand", mesh.dp, zero)
    settings = config(layout) | {"gradient_clipping": 0.0}
    adam = torch.optim.AdamW(module.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=module, optimizer=adam, config=settings, mpu=mesh.mpu)
    pieces = [
        Piece(name=name, weight=weight, shape=WIDTHS[name], cut=cuts[name], tells=mesh.tp_rank == 0 or cuts[name] is not None)
        for name, weight in engine.module.named_parameters()
    ]
    if load:
        load_states(load, engine, pieces, mesh)
    for step in steps:
        slopes = {
            name: torch.sin(torch.arange(1, math.prod(shape) + 1) * (step + 1.0)).view(shape) for name, shape in WIDTHS.items()
        }
        parts = {name: cut.of(slopes[name]) if cut else slopes[name] for name, cut in cuts.items()}
        engine.backward(sum((weight * parts[name]).sum() for name, weight in engine.module.items()))
        engine.step()
    save_states(folder, engine, pieces, mesh, step=steps.stop, extra={})
    now = {name: weight.detach().tolist() for name, weight in engine.module.items()} if tp == 1 and zero < 3 else {}
    return whole_states(folder), now


def whole_states(folder: Path) -> dict[str, list[float]]:
    from launcher.train.fragments import STATES, Reader, fragments_of

    told = fragments_of(json.loads((folder / "index.json").read_text())["weights"])
    reader = Reader(folder, told)
    return {
        f"{state} {name}": reader.read(name, state, cut=None, start=0, numel=math.prod(shape)).tolist()
        for name, shape in WIDTHS.items()
        for state in STATES
    }


def test_halves_of_tensor_parallel_ranks_are_put_together_and_cut_anew(tmp_path):
    straight = run_ranks(hand_trained, 0, 1, range(4), tmp_path / "straight", world=1)[0]
    halves = tmp_path / "halves"
    run_ranks(hand_trained, 1, 2, range(2), halves, world=2)

    def go_on_from(folder: Path, zero: int, tp: int, world: int, *, turned: bool = False, steps: range = range(2, 4)):
        target = tmp_path / f"{folder.name}-{zero}-{tp}-{world}-{turned}"
        return run_ranks(hand_go_on, zero, tp, steps, target, folder, turned, world=world)[0], target

    (whole, now), _ = go_on_from(halves, 0, 1, 1)
    assert {name: pytest.approx(values, abs=1e-6) for name, values in straight[0].items()} == whole
    assert now["column"] == [pytest.approx(row, abs=1e-6) for row in straight[1]["column"]]
    (turned, _), third = go_on_from(halves, 1, 2, 2, turned=True, steps=range(2, 3))
    (again, _), _ = go_on_from(third, 3, 1, 2, steps=range(3, 4))
    assert {name: pytest.approx(values, abs=1e-6) for name, values in straight[0].items()} == again
    assert turned != whole


def hand_go_on(zero: int, tp: int, steps: range, folder: Path, load: Path, turned: bool):
    return hand_trained(zero, tp, steps, folder, load=load, turned=turned)


def read_random_layouts(folder: Path) -> int:
    """Weights of random shapes, saved in random cuts and stretches, read in others; how many reads were compared."""
    import torch

    from launcher.train.fragments import Fragment, Reader, flaw, key, write_tensors
    from launcher.train.pieces import Cut

    dice, reads = random.Random(1), 0

    def random_cuts(shape: tuple[int, ...]) -> list[Cut | None]:
        if dice.random() < 0.3:
            return [None]
        dim = dice.randrange(len(shape))
        edges = sorted({0, shape[dim], *(dice.randint(0, shape[dim]) for _ in range(dice.randint(1, 5)))})
        ranges = list(pairwise(edges))
        owners = [dice.randrange(2) for _ in ranges]
        mine = [tuple(one for one, owner in zip(ranges, owners, strict=True) if owner == who) for who in range(2)]
        if dice.random() < 0.2:
            mine = [part[::-1] for part in mine]
        return [Cut(dim=dim, ranges=part) for part in mine if part]

    for case in range(150):
        shape = tuple(dice.randint(1, 7) for _ in range(dice.randint(1, 3)))
        whole, fragments, tensors = torch.randn(shape), [], {}
        for number, cut in enumerate(random_cuts(shape)):
            local = (cut.of(whole) if cut else whole).flatten()
            edges = sorted({0, local.numel(), *(dice.randint(0, local.numel()) for _ in range(3))})
            for start, stop in pairwise(edges):
                file = f"{case}-{number}-{start}.safetensors"
                fragment = {"name": "w", "shape": shape, "cut": cut, "start": start, "numel": stop - start}
                fragments.append(Fragment(**fragment, step=1, file=file))
                tensors[file] = local[start:stop]
        for file, tensor in tensors.items():
            write_tensors(folder / file, {key("master", "w"): tensor.numel()}, [tensor])
        assert flaw(fragments, shape) is None
        assert flaw(fragments[1:], shape) is not None
        assert flaw([*fragments, fragments[0]], shape) is not None
        reader = Reader(folder, {"w": fragments})
        for cut in random_cuts(shape):
            local = (cut.of(whole) if cut else whole).flatten()
            start = dice.randint(0, local.numel() - 1)
            numel = dice.randint(1, local.numel() - start)
            got = reader.read("w", "master", cut=cut, start=start, numel=numel)
            assert torch.equal(got, local[start : start + numel]), (shape, fragments, cut, start, numel)
            reads += 1
    return reads


def test_any_stretch_of_any_cut_is_read_from_any_other(tmp_path):
    assert run_ranks(read_random_layouts, tmp_path, world=1)[0] > 150


# --- fp16 ----------------------------------------------------------------------------------------------------------

FP16 = Layout("fp16-zero1-dp2", 2, 1, precision="fp16")


def fp16_scale(model_folder: Path, folder: Path, zero: int):
    """Loss scale and losses after overflows, straight and in a fresh engine. The CPU's refusal of fp16 is switched off."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    from launcher.train.states import load_states, save_states

    CPU_Accelerator.is_fp16_supported = lambda self: True
    meet()
    layout = replace(FP16, zero=zero)
    engine, pieces, mesh = make_engine(FP16, model_folder)
    engine.optimizer.loss_scaler.cur_scale = 2.0**24
    train(engine, FP16, range(4))
    save_states(folder, engine, pieces, mesh, step=4, extra={})
    scale = vars(engine.optimizer.loss_scaler).copy()
    straight = train(engine, FP16, range(4, 6))
    fresh, pieces, mesh = make_engine(layout, model_folder, seed=9)
    assert load_states(folder, fresh, pieces, mesh) == {}
    return scale, vars(fresh.optimizer.loss_scaler).copy(), straight, train(fresh, layout, range(4, 6))


@pytest.mark.parametrize("zero", [1, 3])
def test_the_loss_scale_goes_on_where_it_was(zero, model_folder, tmp_path):
    scale, loaded, straight, continued = run_ranks(fp16_scale, model_folder, tmp_path / "states", zero, world=2)[0]
    assert scale["cur_scale"] < 2.0**24
    assert loaded == scale
    assert continued == (straight if zero == 1 else pytest.approx(straight, abs=3e-3))


# --- dead ends -----------------------------------------------------------------------------------------------------


def drop_a_fragment(folder: Path, index: dict) -> None:
    index["weights"]["lm_head.weight"]["fragments"].pop()


def drop_a_rank(folder: Path, index: dict) -> None:
    for entry in index["weights"].values():
        entry["fragments"] = [one for one in entry["fragments"] if one["file"] == "rank0.safetensors"]


def count_a_fragment_twice(folder: Path, index: dict) -> None:
    fragments = index["weights"]["lm_head.weight"]["fragments"]
    fragments.append(fragments[0])


def rename_a_weight(folder: Path, index: dict) -> None:
    index["weights"]["other"] = index["weights"].pop("lm_head.weight")


def reshape_a_weight(folder: Path, index: dict) -> None:
    index["weights"]["lm_head.weight"]["shape"] = [30, VOCAB]


def claim_another_version(folder: Path, index: dict) -> None:
    index["schema"] = 99


def remove_a_file(folder: Path, index: dict) -> None:
    (folder / "rank1.safetensors").unlink()


def truncate_a_file(folder: Path, index: dict) -> None:
    path = folder / "rank1.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def shorten_a_fragment(folder: Path, index: dict) -> None:
    import struct

    path = folder / "rank1.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    last = max(header.values(), key=lambda entry: entry["data_offsets"][1])
    last["data_offsets"][1] -= 4
    last["shape"][0] -= 1
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length : -4])


DEAD_ENDS = {
    drop_a_fragment: "lm_head.weight has no fragments",
    drop_a_rank: "lm_head.weight has no fragments; ",
    count_a_fragment_twice: "lm_head.weight has gaps or doubles in its",
    rename_a_weight: "lm_head.weight is missing; other is not trained here",
    reshape_a_weight: "lm_head.weight has shape (30, 64) instead of (64, 30)",
    claim_another_version: "index.json cannot be read: ValueError schema 99 instead of 1",
    remove_a_file: "cannot be read: ",
    truncate_a_file: "cannot be read: ",
    shorten_a_fragment: "cannot be read: ",
}


def refused(layout: Layout, model_folder: Path, folder: Path) -> str:
    from launcher.errors import LauncherError
    from launcher.train.states import load_states

    meet()
    engine, pieces, mesh = make_engine(layout, model_folder)
    with pytest.raises(LauncherError) as raised:
        load_states(folder, engine, pieces, mesh)
    [problem] = raised.value.problems
    assert (problem.code, problem.where) == ("E561", str(folder))
    return problem.what


@pytest.mark.parametrize("damage", DEAD_ENDS, ids=lambda damage: damage.__name__)
def test_states_that_are_not_whole_are_refused_by_name(damage, straight, model_folder, tmp_path):
    folder = tmp_path / "states"
    shutil.copytree(straight(FP32[1])[1], folder)
    index = json.loads((folder / "index.json").read_text())
    damage(folder, index)
    (folder / "index.json").write_text(json.dumps(index))
    assert DEAD_ENDS[damage] in run_ranks(refused, FP32[0], model_folder, folder, world=1)[0]


def test_a_checkpoint_of_another_model_is_refused_on_every_rank(straight, tmp_path):
    run_ranks(write_model, tmp_path / "model", world=1)
    whats = run_ranks(refused, FP32[3], tmp_path / "model", straight(FP32[1])[1], world=2)
    assert whats[0] == whats[1]
    assert whats[0].startswith("lm_head.weight is not trained here; model.embed_tokens.weight has shape (64, 30) instead")
    assert whats[0].endswith(" more")
