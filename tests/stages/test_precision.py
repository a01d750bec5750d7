"""fp16's loss scale is told, watched and stopped at its minimum; bf16 sums micro-batches in fp32; TF32 is never left to chance.

DeepSpeed refuses fp16 on most CPUs: its mechanics are shown here with that check patched out, its numbers on a GPU (tests/gpu).
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest

from tests.stages.harness import run_ranks

pytestmark = pytest.mark.ranks

NEVER = 2**31 - 1


def make_model(dtype):
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Embedding(64, 32), torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 64)]
    return torch.nn.Sequential(*layers).to(dtype)


def rows(count):
    import torch

    return torch.randint(0, 64, (count, 16), generator=torch.Generator().manual_seed(1))


def loss_of(model, ids):
    import torch

    return torch.nn.functional.cross_entropy(model(ids).float().flatten(0, 1), ids.flatten())


def make_engine(model, optimizer, *, zero, precision, accum=1, rows=8, **sections):
    import deepspeed
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    CPU_Accelerator.is_fp16_supported = lambda self: True
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    config = {
        "train_batch_size": rows,
        "gradient_accumulation_steps": accum,
        "zero_optimization": {"stage": zero},
        "bf16": {"enabled": precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        **sections,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def fp16(power):
    scale = {"initial_scale_power": power, "loss_scale_window": NEVER, "hysteresis": 1, "min_loss_scale": 1}
    return {"enabled": True, **scale}


# --- the loss scale of fp16 ----------------------------------------------------------------------------------------


def _watched(zero, power, steps, *, factor=1.0, precision="fp16", skipped=0, check=True):
    """Figures behind each step, the weights' movement in it, and how it ended. Each rank has its own row."""
    import torch
    import torch.distributed as dist

    from launcher.errors import LauncherError
    from launcher.train.precision import LossScale

    model = make_model({"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision])
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sections = {"fp16": fp16(power)} if precision == "fp16" else {}
    engine = make_engine(model, adam, zero=zero, precision=precision, rows=2, **sections)
    watch, told = LossScale(engine, skipped=skipped), []
    ids = rows(2)[dist.get_rank() :: 2]
    try:
        for step in range(steps):
            engine.backward(loss_of(engine, ids) * factor)
            engine.step()
            told.append(watch.figures())
            if check:
                watch.check(f"step {step + 1}")
    except LauncherError as error:
        return told, error.text()
    except Exception as error:  # what DeepSpeed says of it
        return told, f"{type(error)} {error}"
    return told, float(loss_of(engine, ids))


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_skipped_step_is_counted_and_halves_the_scale(zero):
    """2^24 is too much for these gradients, 2^18 or so is not."""
    told, loss = run_ranks(_watched, zero, 24, 14)[0]
    scales, skipped = [each["loss_scale"] for each in told], [each["skipped_steps"] for each in told]
    last = int(skipped[-1])

    assert 2 <= last <= 10
    assert skipped == [min(step + 1, last) for step in range(14)]
    assert scales == [2.0 ** (24 - min(step + 1, last)) for step in range(14)]
    assert loss < 4.1  # it was 4.17: the steps that were not skipped have trained


def test_steps_that_were_skipped_before_a_resume_go_on_counting():
    told, _ = run_ranks(partial(_watched, skipped=5), 1, 24, 2)[0]

    assert [each["skipped_steps"] for each in told] == [6, 7]


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_scale_at_its_minimum_stops_the_stage_with_a_diagnosis(zero):
    ends = run_ranks(partial(_watched, factor=1e30), zero, 2, 9)

    assert [told[-1] for told, _ in ends] == [{"loss_scale": 1.0, "skipped_steps": 2.0}] * 2
    for _, text in ends:
        assert text.startswith("step 2 [E569] the loss scale has fallen to its minimum 1, 2 steps were skipped")
        assert "precision: bf16" in text


def test_unwatched_deepspeed_stops_one_step_later_with_a_bare_exception():
    told, text = run_ranks(partial(_watched, factor=1e30, check=False), 1, 2, 9)[0]

    assert len(told) == 2
    assert text.startswith("<class 'Exception'> Current loss scale already at minimum")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_other_precisions_have_no_scale(precision):
    told, loss = run_ranks(partial(_watched, precision=precision), 1, 0, 2)[0]

    assert told == [{}, {}]
    assert loss < 4.17


# --- gradients of bf16 ---------------------------------------------------------------------------------------------

MICRO_BATCHES = 64


def _gradient_error(zero, sections):
    """Relative L2 distance of the summed gradient from fp32's at the same weights, seen in one step of SGD at rate 1."""
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    exact = make_model(torch.bfloat16).float()
    ids = rows(MICRO_BATCHES)
    loss_of(exact, ids).backward()
    model = make_model(torch.bfloat16)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    engine = make_engine(model, sgd, zero=zero, precision="bf16", accum=MICRO_BATCHES, rows=MICRO_BATCHES, **sections)
    for row in ids:
        engine.backward(loss_of(engine, row[None]))
        engine.step()
    pairs = [
        (old.detach() - safe_get_full_fp32_param(new), old.grad)
        for old, new in zip(exact.parameters(), model.parameters(), strict=True)
    ]
    wrong = sum(float((ours - theirs).square().sum()) for ours, theirs in pairs)
    return (wrong / sum(float(theirs.square().sum()) for _, theirs in pairs)) ** 0.5


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_sums_of_many_micro_batches_keep_the_error_of_one_in_fp32_and_not_in_bf16(zero):
    [in_bf16], [in_fp32] = (
        run_ranks(_gradient_error, zero, sections, world=1) for sections in ({}, {"data_types": {"grad_accum_dtype": "fp32"}})
    )

    assert in_fp32 < 0.005 < 0.007 < in_bf16


# --- TF32 ----------------------------------------------------------------------------------------------------------


def _tf32(allowed):
    import torch

    from launcher.train.ranks import meet

    meet(SimpleNamespace(device="cpu", tf32=allowed))  # the first line of every story
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_every_rank_has_tf32_on_or_off_as_its_order_says():
    assert run_ranks(_tf32, True, world=1) == [("high", True, True)]
    assert run_ranks(_tf32, False, world=1) == [("highest", False, False)]
