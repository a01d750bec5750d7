"""Adapters, also on a 4-bit base: equal across layouts, merged by the export rule, nothing of it silently skipped."""

from __future__ import annotations

import json

import pytest

from launcher.errors import LauncherError
from launcher.plan.legality.model import AVX512_STEP, NF4_BLOCK
from launcher.rundir.folder import read_json
from launcher.spec.model import Lora
from tests.stages import runs
from tests.stages.harness import run_ranks
from tests.stages.look import curve, held_out, largest_difference, notes, train, weights
from tests.stages.runs import make_run

pytestmark = pytest.mark.ranks

LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}
QLORA = {**LORA, "quantize": "nf4"}
STAGE = {"steps": 8, "lr": 2e-2}


@pytest.fixture(scope="module", autouse=True)
def wide(world):
    """The base of the 4-bit runs: the world's own is 32 wide, which E206 keeps away from nf4 on a CPU."""
    run_ranks(_write_wide, world, world=1)


def _write_wide(world):
    runs.write_model(world / "wide", hidden_size=64)
    runs.write_model(world / "odd", hidden_size=64, ffn=40)


def _base(world, model):
    return world / ("wide" if "quantize" in model else "model")


@pytest.fixture(scope="module")
def trained(world):
    """Runs by (kind, 4 bit?), trained once at ZeRO 2 on one rank."""
    kept = {}

    def get(kind, model):
        key = kind, "quantize" in model
        if key not in kept:
            kept[key] = make_run(world, kind=kind, zero=2, micro=8, model=model, start=_base(world, model), stage=STAGE)
            train(kept[key], kind)
        return kept[key]

    return get


@pytest.mark.parametrize("model", [LORA, QLORA], ids=["lora", "nf4"])
@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_an_adapter_trains_the_same_at_zero_3_on_two_ranks(world, trained, kind, model):
    """4-bit kernels work in bf16: there the tolerance is that of bf16."""
    run = make_run(world, kind=kind, ranks=2, zero=3, micro=4, model=model, start=_base(world, model), stage=STAGE)
    train(run, kind, ranks=2)
    tolerance = 5e-3 if "quantize" in model else 1e-4

    assert curve(run, kind) == pytest.approx(curve(trained(kind, model), kind), abs=tolerance)
    assert held_out(run, kind)["after/" + ("loss" if kind != "reward" else "margin")] == pytest.approx(
        held_out(trained(kind, model), kind)["after/" + ("loss" if kind != "reward" else "margin")], abs=10 * tolerance
    )


@pytest.mark.parametrize("model", [LORA, QLORA], ids=["lora", "nf4"])
def test_an_adapter_learns(trained, model):
    figures = held_out(trained("dpo", model), "dpo")

    assert figures["after/margin"] > 0.05
    assert figures["after/accuracy"] > 0.8


def _logits(base, artifact, kind):
    """Base plus adapter, and the merged folder, on the same rows."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    reward = kind == "reward"
    auto, labels = (AutoModelForSequenceClassification, {"num_labels": 1}) if reward else (AutoModelForCausalLM, {})
    ids = torch.tensor([[10, 11, 12, 13, 14, 1], [30, 29, 28, 27, 26, 1]])
    with torch.no_grad():
        plain = auto.from_pretrained(base, dtype=torch.float32, **labels)(input_ids=ids).logits
        apart = PeftModel.from_pretrained(auto.from_pretrained(base, dtype=torch.float32, **labels), artifact / "adapter")
        merged = auto.from_pretrained(artifact, dtype=torch.float32)
        apart, together = apart(input_ids=ids).logits, merged(input_ids=ids).logits
    return (apart - together).abs().max().item(), (plain - together).abs().max().item()


@pytest.mark.parametrize("model", [LORA, QLORA], ids=["lora", "nf4"])
@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_the_merged_folder_is_the_unquantised_base_with_its_adapter(world, trained, kind, model):
    artifact = trained(kind, model).stage(kind).artifact
    [(difference, effect)] = run_ranks(_logits, _base(world, model), artifact, kind, world=1)

    assert difference < 1e-4
    assert effect > 1e-2, "an adapter without effect would pass any comparison"
    assert "quantization_config" not in read_json(artifact / "config.json")
    assert {str(weight.dtype) for weight in weights(artifact).values()} == {"float32"}


def test_the_head_of_a_reward_model_is_trained_beside_its_adapter(world, trained):
    artifact = trained("reward", LORA).stage("reward").artifact
    adapter = weights(artifact / "adapter", "adapter_model.safetensors")
    frozen = make_run(world, kind="reward", zero=2, micro=8, stage={"steps": 1, "lr": 1e-12})
    train(frozen, "reward")

    head = weights(artifact)["score.weight"]
    assert [name for name in adapter if name.endswith("score.weight")]
    assert abs(head - weights(frozen.stage("reward").artifact)["score.weight"]).max() > 1e-3
    assert read_json(artifact / "adapter" / "adapter_config.json")["task_type"] == "SEQ_CLS"


def test_only_the_adapter_changes_the_base_stays(world, trained):
    artifact = trained("sft", LORA).stage("sft").artifact
    ours, base = weights(artifact), weights(world / "model")
    changed = {name for name in ours if abs(ours[name] - base[name]).max() > 0}

    assert changed == {name for name in ours if name.endswith("_proj.weight")}


def test_the_adapter_folder_names_its_base_by_what_the_user_gave(trained):
    config = read_json(trained("sft", QLORA).stage("sft").artifact / "adapter" / "adapter_config.json")

    assert config["base_model_name_or_path"] == "somewhere/base"
    assert config["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_the_adapter_on_a_4_bit_base_keeps_the_dtype_of_the_stage(trained, kind):
    """The base computes in another dtype. In bf16 without masters an AdamW update of 1e-3 of a weight would be rounded away."""
    adapter = weights(trained(kind, QLORA).stage(kind).artifact / "adapter", "adapter_model.safetensors")

    assert {str(weight.dtype) for weight in adapter.values()} == {"float32"}


def _load_4_bit(run):
    from launcher.rundir.order import read_order
    from launcher.spec.job import JobSpec
    from launcher.train.models import load_causal, load_tokenizer

    order, job = read_order(run.order("sft")), JobSpec.model_validate_json(run.job_json.read_text())
    return load_causal(run.path / order.model, order, job.model, load_tokenizer(run, order), quantize=True)


def _count_quantised(run):
    return sum(type(module).__name__ == "Linear4bit" for module in _load_4_bit(run).modules())


def test_the_base_is_really_4_bit(world):
    run = make_run(world, kind="sft", model=QLORA, start=world / "wide")

    assert run_ranks(_count_quantised, run, world=1) == [14]


def _gradients_around_an_evaluation(run):
    import torch

    model = _load_4_bit(run)
    embedded = model.get_input_embeddings()(torch.tensor([[10, 11, 12, 13]])).detach()

    def gradient():
        inputs = embedded.clone().requires_grad_()
        model.train()(inputs_embeds=inputs).logits.sum().backward()
        return inputs.grad

    before = gradient()
    with torch.no_grad():
        model.eval()(inputs_embeds=embedded)
    return (gradient() - before).abs().max().item(), before.abs().max().item()


def test_an_evaluation_leaves_the_gradient_through_a_4_bit_base_as_it_was(world):
    """bitsandbytes would repack the weights on some CPUs, for a kernel without a backward."""
    run = make_run(world, kind="sft", model=QLORA, start=world / "wide")
    [(difference, size)] = run_ranks(_gradients_around_an_evaluation, run, world=1)

    assert difference == 0
    assert size > 0


def _widths_read_wrongly(widths):
    """Those whose matrix reads otherwise row by row than as one long row, in which a block's scale cannot be mistaken."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    wrong = []
    for width in widths:
        packed, state = quantize_4bit(torch.randn(32, width), quant_type="nf4")
        by_row, state.shape = dequantize_4bit(packed, state), torch.Size([1, 32 * width])
        if not torch.equal(by_row.flatten(), dequantize_4bit(packed, state).flatten()):
            wrong.append(width)
    return torch.backends.cpu.get_cpu_capability() == "AVX512", wrong


def test_the_widths_that_a_cpu_reads_wrongly_in_4_bit_are_those_of_e206(world):
    """Where this fails because nothing is wrong under AVX-512 any more, bitsandbytes is mended and E206 can go."""
    widths = range(2, 400, 2)
    [(avx512, wrong)] = run_ranks(_widths_read_wrongly, widths, world=1)

    assert wrong == ([width for width in widths if width % AVX512_STEP == 0 and width % NF4_BLOCK] if avx512 else [])


def test_any_other_width_trains_on_a_4_bit_base(world):
    """An MLP of 40: a repacked matrix would need multiples of 64 and 32."""
    run = make_run(world, kind="sft", zero=2, model=QLORA, start=world / "odd", stage=STAGE)
    train(run, "sft")
    again = make_run(world, kind="sft", start=run.stage("sft").artifact, stage={"steps": 1, "lr": 1e-12})
    train(again, "sft")

    assert held_out(run, "sft")["after/loss"] < held_out(run, "sft")["before/loss"] - 0.1
    assert held_out(run, "sft")["after/loss"] == pytest.approx(held_out(again, "sft")["before/loss"], abs=1e-6)


def test_the_figures_after_a_4_bit_stage_are_those_of_the_model_that_is_handed_on(world, trained):
    """An adapter trained on a 4-bit base scores differently on the unquantised one; what is shipped is what counts."""
    run = trained("sft", QLORA)
    again = make_run(world, kind="sft", start=run.stage("sft").artifact, stage={"steps": 1, "lr": 1e-12})
    train(again, "sft")

    assert held_out(run, "sft")["after/loss"] == pytest.approx(held_out(again, "sft")["before/loss"], abs=1e-6)
    assert "on its 4-bit base the adapter reached loss" in notes(run, "sft")


def test_an_adapter_on_the_output_head_is_refused(world):
    from launcher.train.adapters import lora_config

    with pytest.raises(LauncherError, match="would never be trained") as error:
        lora_config(Lora(rank=4, targets=("q_proj", "lm_head")), "causal")
    assert error.value.problems[0].code == "E553"


def _merge_garbage(world, artifact):
    import torch
    from peft.tuners.lora import LoraModel
    from transformers import AutoModelForCausalLM

    from launcher.train.adapters import merge

    real = LoraModel.merge_and_unload

    def garbled(self, *args, **kwargs):
        merged = real(self, *args, **kwargs)
        merged.model.layers[0].mlp.down_proj.weight.data += 0.05
        return merged

    LoraModel.merge_and_unload = garbled
    try:
        merge(AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32), artifact / "adapter")
    except LauncherError as error:
        return [problem.as_dict() for problem in error.problems]
    return []


def test_a_merge_that_changes_the_logits_is_not_handed_on(world, trained):
    [[problem]] = run_ranks(_merge_garbage, world, trained("sft", LORA).stage("sft").artifact, world=1)

    assert problem["code"] == "E558"
    assert "logits differ by" in problem["what"]


def test_a_later_stage_starts_from_the_merged_folder(world, trained):
    merged = trained("sft", LORA).stage("sft").artifact
    run = make_run(world, kind="dpo", zero=2, model=LORA, start=merged, stage=STAGE)
    train(run, "dpo")

    assert held_out(run, "dpo")["before/loss"] == pytest.approx(0.6931, abs=1e-4)
    assert json.loads((run.stage("dpo").artifact / "manifest.json").read_text())["tensors"] == len(weights(merged))
    assert largest_difference(weights(merged), weights(run.stage("dpo").artifact)) > 0
