"""What rests on the host, on a disk or twice on the node trains the same as what rests on one rank.

Against one process of plain PyTorch: losses 5e-6 (1e-6 seen), gradient norms 1e-5 (4e-7), weights 5e-5 (4e-6). Gradients are
clipped, and the rate changes in every step as a schedule changes it. What needs a compiled operator (minutes) is skipped, with
the command that builds it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.stages.harness import run_ranks

pytestmark = pytest.mark.ranks

STEPS, ROWS, CLIP = 6, 8, 0.5
CPU = {"device": "cpu", "pin_memory": True}


def make_model(hidden=64, vocab=256):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden, **sizes))


def batches(vocab=256):
    import torch

    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocab, (ROWS, 32), generator=generator) for _ in range(STEPS)]


def rate(step):
    return 1e-3 * (step + 1) / STEPS


def _plain(hidden=64, vocab=256):
    """Losses, norms and final weights of one process without DeepSpeed."""
    import torch

    from launcher.train.optimizer import decay_groups

    model = make_model(hidden, vocab)
    adam = torch.optim.AdamW(decay_groups(model.parameters(), 0.1), lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step, ids in enumerate(batches(vocab)):
        for group in adam.param_groups:
            group["lr"] = rate(step)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        adam.step()
        adam.zero_grad()
        losses.append(float(loss))
    return losses, norms, {name: weight.detach().clone() for name, weight in model.named_parameters()}


def _offloaded(zero, section, *, hidden=64, vocab=256, prepare=lambda engine: None, look=lambda engine: None):
    """The same with DeepSpeed on all ranks, and what `look` sees of the engine at the end."""
    import deepspeed
    import torch.distributed as dist
    from deepspeed.utils import safe_get_full_fp32_param

    from launcher.train.ops import needed_ops, prebuild
    from launcher.train.optimizer import decay_groups, make_optimizer

    config = {
        "train_batch_size": ROWS,
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": zero, **section},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    prebuild(needed_ops(config))
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    model = make_model(hidden, vocab)
    adam = make_optimizer(decay_groups(model.parameters(), 0.1), config, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    engine = deepspeed.initialize(model=model, optimizer=adam, config=config)[0]
    prepare(engine)
    losses, norms = [], []
    for step, ids in enumerate(batches(vocab)):
        for group in engine.optimizer.param_groups:
            group["lr"] = rate(step)
        mine = ids.chunk(dist.get_world_size())[dist.get_rank()]
        loss = engine(input_ids=mine, labels=mine).loss
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / dist.get_world_size())
        norms.append(float(engine.get_global_grad_norm()))
    weights = {name: safe_get_full_fp32_param(weight).clone() for name, weight in model.named_parameters()}
    return losses, norms, weights, look(engine)


def differences(got, wanted):
    """Largest differences of losses, relative norms and weights."""
    losses = max(abs(ours - theirs) for ours, theirs in zip(got[0], wanted[0], strict=True))
    norms = max(abs(ours - theirs) / theirs for ours, theirs in zip(got[1], wanted[1], strict=True))
    return losses, norms, max(float((got[2][name] - weight).abs().max()) for name, weight in wanted[2].items())


def assert_equal(got, wanted):
    losses, norms, weights = differences(got, wanted)
    assert losses < 5e-6
    assert norms < 1e-5
    assert weights < 5e-5


@pytest.fixture(scope="module")
def plain():
    [wanted] = run_ranks(_plain, world=1)
    assert min(wanted[1]) > CLIP, "clipping must have something to do"
    return wanted


# --- offload to the host, hpZ --------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_optimizer_states_on_the_host(plain, zero):
    def look(engine):
        return getattr(engine.optimizer, "offload_optimizer" if zero == 3 else "cpu_offload")

    got, _ = run_ranks(partial(_offloaded, look=look), zero, {"offload_optimizer": CPU})

    assert got[3] is True
    assert_equal(got, plain)


ZERO_3 = {
    "parameters": {"offload_param": CPU},
    "parameters and optimizer": {"offload_param": CPU, "offload_optimizer": CPU},
    "hpz": {"zero_hpz_partition_size": 2},
    "hpz and optimizer": {"zero_hpz_partition_size": 2, "offload_optimizer": CPU},
}


@pytest.mark.parametrize("section", ZERO_3.values(), ids=ZERO_3.keys())
def test_parameters_on_the_host_or_twice_on_the_node(plain, section):
    def look(engine):
        return engine.optimizer.offload_param, engine.optimizer.parameter_offload.zero_param_parallel_group is not None

    got, _ = run_ranks(partial(_offloaded, look=look), 3, {"stage3_param_persistence_threshold": 100, **section})

    assert got[3] == ("offload_param" in section, "zero_hpz_partition_size" in section)
    assert_equal(got, plain)


# --- offload with a ratio: two optimizers --------------------------------------------------------------------------

HALF = {"sub_group_size": 1, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}


def _twins(tied, *, compiled):
    """Half of the sub-groups on "cpu:0": for DeepSpeed another device than "cpu", and stepped by its second optimizer."""
    import deepspeed.runtime.zero.stage3
    import torch

    from launcher.train import ops, optimizer

    def prepare(engine):
        places = engine.optimizer.subgroup_to_device
        for number in list(places)[::2]:
            places[number] = "cpu:0"
        if tied:
            optimizer.tie_twins(engine)

    if not compiled:  # the trap is in DeepSpeed's Python: no operator is needed to show it
        ops.needed_ops = lambda config: ()
        deepspeed.runtime.zero.stage3.DeepSpeedCPUAdam = torch.optim.AdamW
        optimizer.twin_flow = lambda config: False
    return _offloaded(3, HALF, prepare=prepare, look=lambda engine: len(engine.optimizer.backup_optimizer.state))


def test_with_a_ratio_a_schedule_reaches_the_part_on_the_host_only(plain):
    """DeepSpeed's second optimizer keeps the first rate of its first group: the matrices on the GPU miss warm-up and decay."""
    losses, _, weights = differences(run_ranks(partial(_twins, compiled=False), False)[0], plain)

    assert losses > 1e-3
    assert weights > 1e-3


def test_tied_both_parts_follow_the_schedule_and_keep_their_moments_in_one_place(plain):
    got, _ = run_ranks(partial(_twins, compiled=False), True)

    assert got[3] == len(plain[2])  # the moments of both parts
    assert_equal(got, plain)


# --- the optimizer -------------------------------------------------------------------------------------------------


def _groups():
    import torch

    from launcher.train.optimizer import decay_groups

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2, bias=False))
    model[2].weight.requires_grad_(False)
    partitioned = torch.nn.Parameter(torch.empty(0))
    partitioned.ds_shape = (4, 4)
    groups = decay_groups([*model.parameters(), partitioned], 0.1)
    shapes = [[tuple(getattr(p, "ds_shape", p.shape)) for p in group["params"]] for group in groups]
    return shapes, [group["weight_decay"] for group in groups], len(decay_groups([model[0].bias], 0.1))


def test_matrices_decay_and_nothing_else_does():
    shapes, decays, alone = run_ranks(_groups, world=1)[0]

    assert shapes == [[(4, 4), (4, 4)], [(4,), (4,), (4,)]]
    assert decays == [0.1, 0.0]
    assert alone == 1  # an empty group is left out


def skip_unless_built(op):
    from torch.utils import cpp_extension

    folder = Path(cpp_extension._get_build_directory(op, verbose=False))
    recipe = (folder / "build.ninja").read_text() if (folder / f"{op}.so").exists() else ""
    if str(Path(cpp_extension.__file__).parents[1]) not in recipe:  # another environment's would be built anew, for minutes
        command = f"""DS_ACCELERATOR=cpu python -c 'from launcher.train.ops import prebuild; prebuild(["{op}"])'"""
        pytest.skip(f"{op} is not built, it takes minutes: {command}")


def _ten_steps():
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    from launcher.train.ops import prebuild
    from launcher.train.optimizer import make_optimizer

    prebuild(["cpu_adam"])
    config = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    ends = []
    for twin in (config, {"zero_optimization": {"stage": 3}}):
        torch.manual_seed(0)
        matrix, bias = torch.nn.Parameter(torch.randn(33, 7)), torch.nn.Parameter(torch.randn(7))
        groups = [{"params": [matrix], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
        adam = make_optimizer(groups, twin, **settings)
        assert isinstance(adam, DeepSpeedCPUAdam) is (twin is config)
        for step in range(10):
            adam.param_groups[0]["lr"] = 1e-2 / (step + 1)
            matrix.grad, bias.grad = torch.randn(33, 7), torch.randn(7)
            adam.step()
        ends.append((matrix.detach(), bias.detach(), adam.state[matrix]["exp_avg"], adam.state[matrix]["exp_avg_sq"]))
    return max(float((ours - theirs).abs().max()) for ours, theirs in zip(*ends, strict=True))


def test_cpu_adam_is_torchs_adamw():
    skip_unless_built("cpu_adam")
    assert run_ranks(_ten_steps, world=1)[0] < 1e-6


def test_a_ratio_with_deepspeeds_own_adam(plain):
    skip_unless_built("cpu_adam")
    got, _ = run_ranks(partial(_twins, compiled=True), True)

    assert got[3] == len(plain[2])
    assert_equal(got, plain)


def test_optimizer_states_on_a_disk(tmp_path):
    """The same as in host memory, bit for bit. Small tensors stay in memory: this model is large enough for swap files."""
    skip_unless_built("async_io")
    sizes = {"hidden": 256, "vocab": 4096}
    in_memory, _ = run_ranks(
        partial(_offloaded, **sizes), 3, {"sub_group_size": 1_000_000, "offload_optimizer": {"device": "cpu"}}
    )
    disk = {"device": "nvme", "nvme_path": str(tmp_path), "pin_memory": True, "buffer_count": 4}
    [wanted] = run_ranks(partial(_plain, **sizes), world=1)
    got, _ = run_ranks(partial(_offloaded, **sizes), 3, {"sub_group_size": 1_000_000, "offload_optimizer": disk})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    losses, norms, _ = differences(got, wanted)

    assert sum(path.stat().st_size for path in files) > 30e6
    assert differences(got, in_memory) == (0.0, 0.0, 0.0)
    # Weights apart from those of plain PyTorch by 3e-5 to 8e-5, by the kind of CPU, as in memory: Adam's first steps are signs.
    assert (losses < 5e-6, norms < 1e-4) == (True, True)
