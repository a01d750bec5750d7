"""Every rule of the legality table: the whole message, and the hint taken at its word."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest

from launcher.errors import LauncherError
from launcher.plan.legality.rule import Case, spots_of
from launcher.plan.legality.table import SUBJECTS
from launcher.plan.shape import shape_from_config, shape_of_new

DATA = {"kind": "sft", "data": {"source": "python-docs", "max_tokens": 128}}
LARGE = {"model.new.hidden": 4096, "model.new.ffn": 12288}  # of which eight ranks have parts of 1 MiB
ON_NVME = {"parameters": "nvme", "nvme_path": "/scratch"}
# name -> (changes of the small job, machine, the message, changes that the hint names)
CASES = {
    "degrees that do not divide the ranks": (
        {"parallel": {"tensor": 2, "pipeline": 2}, "cluster.slots": 6},
        "gpus",
        "[E201] parallel.tensor: tensor 2 x pipeline 2 = 4 does not divide the 6 ranks\n"
        "  hint: use pipeline: 2, or another number of ranks (cluster.slots)",
        {"parallel": {"pipeline": 2}, "batch.global": 33},
    ),
    "tensor that does not divide the heads": (
        {"parallel.tensor": 8},
        "gpus",
        "[E217] parallel.tensor: 8 does not divide the 4 attention heads and the 4 key/value heads\n  hint: use 4",
        {"parallel.tensor": 4},
    ),
    "tensor that does not divide the key/value heads": (
        {"parallel.tensor": 4, "model.new.kv_heads": 2},
        "gpus",
        "[E217] parallel.tensor: 4 does not divide the 2 key/value heads\n  hint: use 2",
        {"parallel.tensor": 2},
    ),
    "tensor that does not divide the MLP": (
        {"parallel.tensor": 4, "model.new.ffn": 190},
        "gpus",
        "[E217] parallel.tensor: 4 does not divide the 190 columns of the MLP\n  hint: use 2",
        {"parallel.tensor": 2},
    ),
    "more pipeline stages than blocks": (
        {"parallel.pipeline": 4},
        "gpus",
        "[E219] parallel.pipeline: 4 pipeline stages, but the model has 2 blocks\n  hint: use 2",
        {"parallel.pipeline": 2},
    ),
    "pipeline at ZeRO 0": (
        {"parallel": {"pipeline": 2, "zero": 0}},
        "cpu",
        "[E219] parallel.zero: 0 with pipeline 2: DeepSpeed's ZeRO 0 clips by the norm of the first pipeline stage alone\n"
        "  hint: use zero: 1, or pipeline: 1",
        {"parallel.zero": 1},
    ),
    "pipeline at ZeRO 3": (
        {"parallel": {"pipeline": 2, "zero": 3}},
        "cpu",
        "[E219] parallel.zero: 3 with pipeline 2: DeepSpeed's ZeRO 3 is refused under a pipeline\n"
        "  hint: use zero: 1, or pipeline: 1",
        {"parallel.pipeline": 1},
    ),
    "sequence that does not divide the heads": (
        {"parallel.sequence": 8},
        "gpus",
        "[E218] parallel.sequence: 8 does not divide the 4 attention heads\n  hint: use 4",
        {"parallel.sequence": 4},
    ),
    "sequence beside key/value heads that it does not divide": (
        {"parallel.sequence": 2, "model.new.heads": 12, "model.new.kv_heads": 3, "model.new.hidden": 96},
        "gpus",
        "[E218] parallel.sequence: 2 and the 3 key/value heads: neither divides the other\n  hint: use 1",
        {"parallel.sequence": 1},
    ),
    "sequence beside tensor": (
        {"parallel": {"sequence": 2, "tensor": 2}},
        "gpus",
        "[E218] parallel.sequence: 2 with tensor 2: not together\n  hint: use sequence: 1, or sequence: 2 with tensor: 1",
        {"parallel.tensor": 1},
    ),
    "sequence with packing": (
        {"parallel.sequence": 2, "stages.0.packing": True},
        "gpus",
        "[E218] stages.sft.packing: true with sequence 2: packed rows would see each other\n"
        "  hint: use packing: false, or sequence: 1",
        {"stages.0.packing": False},
    ),
    "sequence with eager attention": (
        {"parallel.sequence": 2, "model.attention": "eager"},
        "gpus",
        "[E218] model.attention: eager with sequence 2: DeepSpeed refuses it\n  hint: use sdpa, or leave it out",
        {"model.attention": "sdpa"},
    ),
    "a 4-bit base that is to be cut": (
        {"parallel.tensor": 2, "model.adapter": {"kind": "lora"}, "model.quantize": "nf4"},
        "gpus",
        "[E220] model.quantize: nf4 with tensor: 2 in stage sft: packed weights cannot be cut\n"
        "  hint: leave the degrees at 1 in this stage (`parallel: {zero: 1}`), or leave quantize out",
        {"stages.0.parallel": {"zero": 1}},
    ),
    "balance without a pipeline": (
        {"parallel.balance": "time"},
        "gpus",
        "[E221] parallel.balance: time has no effect: there is no pipeline\n  hint: remove it, or ask for a pipeline degree",
        {"parallel.pipeline": 2},
    ),
    "parameters on nvme below ZeRO 3": (
        {**LARGE, "parallel": {"zero": 2, "offload": ON_NVME}},
        "gpus",
        "[E202] parallel.offload.parameters: nvme with parallel.zero 2: DeepSpeed would ignore it without a word\n"
        "  hint: use zero: 3, or parameters: cpu",
        {"parallel.zero": 3},
    ),
    "parameters on nvme under a pipeline": (
        {**LARGE, "parallel": {"pipeline": 2, "offload": ON_NVME}},
        "gpus",
        "[E202] parallel.offload.parameters: nvme with pipeline 2: a pipeline runs at ZeRO 1, where DeepSpeed ignores it\n"
        "  hint: use parameters: none",
        {"parallel.offload": {"parameters": "none"}},
    ),
    "parameters on nvme in fp32": (
        {**LARGE, "precision": "fp32", "parallel": {"offload": ON_NVME}},
        "gpus",
        "[E202] parallel.offload.parameters: nvme in fp32: only bf16 was seen to come back from a disk as it was\n"
        "  hint: use precision: bf16, or parameters: cpu",
        {"precision": "bf16"},
    ),
    "parameters on nvme in a CPU's own precision": (
        {"model.new.hidden": 1024, "model.new.ffn": 2048, "parallel": {"offload": ON_NVME}},
        "cpu",
        "[E202] parallel.offload.parameters: nvme in fp32: only bf16 was seen to come back from a disk as it was\n"
        "  hint: use precision: bf16, or parameters: none",
        {"precision": "bf16"},
    ),
    "parameters on nvme with a 4-bit base": (
        {**LARGE, "model.adapter": {"kind": "lora"}, "model.quantize": "nf4", "parallel": {"offload": ON_NVME}},
        "gpus",
        "[E202] parallel.offload.parameters: nvme with a 4-bit base in stage sft: its packed bytes do not fit buffers of bf16\n"
        "  hint: use parameters: cpu, or leave quantize out",
        {"parallel.offload": {"parameters": "cpu"}},
    ),
    "parameters on nvme beside a secondary partition": (
        {**LARGE, "parallel": {"hpz": 2, "offload": ON_NVME}},
        "gpus",
        "[E202] parallel.hpz: 2 with parameters on nvme: DeepSpeed has no place for the second partition\n"
        "  hint: remove it, or use parameters: cpu",
        {"parallel.offload": {"parameters": "cpu"}},
    ),
    "parameters on nvme that are too small": (
        {"parallel": {"offload": ON_NVME}},
        "gpus",
        "[E202] parallel.offload.parameters: nvme has no effect: each of 8 ranks has 32.0 KiB of the largest tensor, and below"
        " 1 MiB it stays in memory\n  hint: use parameters: cpu",
        {"parallel.offload": {"parameters": "cpu"}},
    ),
    "the optimizer on nvme below ZeRO 3": (
        {"parallel": {"zero": 2, "offload": {"optimizer": "nvme", "nvme_path": "/scratch"}}},
        "gpus",
        "[E202] parallel.offload.optimizer: nvme with parallel.zero 2: DeepSpeed would keep it in host memory without a word\n"
        "  hint: use zero: 3, or optimizer: cpu",
        {"parallel.zero": 3},
    ),
    "the optimizer on nvme under a pipeline": (
        {"parallel": {"pipeline": 2, "offload": {"optimizer": "nvme", "nvme_path": "/scratch"}}},
        "gpus",
        "[E202] parallel.offload.optimizer: nvme with pipeline 2: a pipeline runs at ZeRO 1, where nothing is swapped\n"
        "  hint: use optimizer: cpu",
        {"parallel.offload": {"optimizer": "cpu"}},
    ),
    "nvme without a path": (
        {"parallel": {"offload": {"optimizer": "nvme"}}},
        "cpu",
        "[E202] parallel.offload.nvme_path: is missing: nvme does not say which disk\n"
        "  hint: add `nvme_path: /local_nvme`, a folder on a fast local disk of every node",
        {"parallel.offload.nvme_path": "/local_nvme"},
    ),
    "nvme with a relative path": (
        {"parallel": {"offload": {"optimizer": "nvme", "nvme_path": "./scratch"}}},
        "gpus",
        "[E202] parallel.offload.nvme_path: ./scratch is relative, but every rank reads it\n"
        "  hint: write it from the root: /scratch",
        {"parallel.offload.nvme_path": "/scratch"},
    ),
    "a path without nvme": (
        {"parallel": {"offload": {"optimizer": "cpu", "nvme_path": "/scratch"}}},
        "gpus",
        "[E202] parallel.offload.nvme_path: has no effect: nothing is offloaded to nvme\n"
        "  hint: remove it, or use optimizer: nvme",
        {"parallel.offload.optimizer": "nvme"},
    ),
    "offload of parameters under a pipeline": (
        {"parallel": {"pipeline": 2, "offload": {"parameters": "cpu"}}},
        "gpus",
        "[E203] parallel.offload.parameters: cpu with pipeline 2: a pipeline runs at ZeRO 1, and DeepSpeed would ignore it"
        " without a word\n  hint: use parameters: none, or zero: 3 with pipeline: 1",
        {"parallel.offload.parameters": "none"},
    ),
    "hpz below ZeRO 3": (
        {"parallel": {"hpz": 4, "zero": 2}},
        "gpus",
        "[E221] parallel.hpz: has no effect: parallel.zero is 2, and only ZeRO 3 reads it\n  hint: remove it, or use zero: 3",
        {"parallel.zero": 3},
    ),
    "quantized weights under a pipeline": (
        {"parallel": {"pipeline": 2, "quantized_weights": True}},
        "gpus",
        "[E221] parallel.quantized_weights: has no effect: pipeline 2 runs at ZeRO 1, and only ZeRO 3 reads it\n"
        "  hint: remove it, or use zero: 3 with pipeline: 1",
        {"parallel": {"quantized_weights": True, "zero": 3}},
    ),
    "a ratio below ZeRO 3": (
        {"parallel": {"zero": 1, "offload": {"optimizer": "cpu", "ratio": 0.5}}},
        "gpus",
        "[E221] parallel.offload.ratio: has no effect: parallel.zero is 1, and only ZeRO 3 reads it\n"
        "  hint: remove it, or use zero: 3",
        {"parallel.zero": 3},
    ),
    "a ratio of nothing": (
        {"parallel": {"zero": 3, "offload": {"ratio": 0.5}}},
        "gpus",
        "[E221] parallel.offload.ratio: has no effect with offload.optimizer none: it divides one that is on cpu\n"
        "  hint: use optimizer: cpu, or remove it",
        {"parallel.offload.optimizer": "cpu"},
    ),
    "hpz of all ranks": (
        {"parallel.hpz": 8},
        "gpus",
        "[E221] parallel.hpz: 8 of 8 data-parallel ranks: is no smaller than the whole group, which is the first partition\n"
        "  hint: use 4, or remove it",
        {"parallel.hpz": 4},
    ),
    "hpz that does not divide": (
        {"parallel.hpz": 3},
        "gpus",
        "[E221] parallel.hpz: 3 of 8 data-parallel ranks: does not divide it\n  hint: use 2, or remove it",
        {"parallel.hpz": 2},
    ),
    "hpz beside tensor": (
        {"parallel": {"hpz": 2, "tensor": 2}},
        "gpus",
        "[E221] parallel.hpz: 2 with a degree above 1: neighbouring ranks hold parts of different weights\n"
        "  hint: leave the degrees at 1, or remove it",
        {"parallel.tensor": 1},
    ),
    "quantized weights on a CPU": (
        {"parallel": {"quantized_weights": True, "zero": 3}},
        "cpu",
        "[E221] parallel.quantized_weights: DeepSpeed has no quantizer for CPU processes\n  hint: remove it",
        {"parallel.quantized_weights": False},
    ),
    "quantized gradients on one node": (
        {"parallel.quantized_gradients": True},
        "gpus",
        "[E221] parallel.quantized_gradients: has no effect: DeepSpeed quantizes gradients between nodes only, and this"
        " is one\n  hint: remove it",
        {"parallel.quantized_gradients": False},
    ),
    "tf32 on a CPU": (
        {"tf32": True},
        "cpu",
        "[E205] tf32: true has no effect: the ranks are CPU processes\n  hint: remove it",
        {"tf32": False},
    ),
    "tf32 on an old GPU": (
        {"tf32": True, "precision": "fp32"},
        "v100",
        "[E205] tf32: true has no effect: v100-32gb is older than Ampere\n  hint: remove it",
        {"tf32": False},
    ),
    "tf32 without fp32": (
        {"tf32": True},
        "gpus",
        "[E205] tf32: true has no effect: the precision is bf16\n  hint: remove it, or use precision: fp32",
        {"precision": "fp32"},
    ),
    "offload of parameters below ZeRO 3": (
        {"parallel": {"zero": 2, "offload": {"parameters": "cpu"}}},
        "gpus",
        "[E203] parallel.offload.parameters: cpu with parallel.zero 2: DeepSpeed would ignore it without a word\n"
        "  hint: use zero: 3, or parameters: none",
        {"parallel.zero": 3},
    ),
    "offload of the optimizer at ZeRO 0": (
        {"parallel": {"zero": 0, "offload": {"optimizer": "cpu"}}},
        "gpus",
        "[E203] parallel.offload.optimizer: cpu with parallel.zero 0: DeepSpeed would change the optimizer and offload"
        " nothing\n  hint: use zero: 1 or higher, or optimizer: none",
        {"parallel.zero": 1},
    ),
    "offload on a CPU": (
        {"parallel": {"zero": 3, "offload": {"optimizer": "cpu"}}},
        "cpu",
        "[E203] parallel.offload.optimizer: cpu: the ranks are CPU processes, everything is in host memory already\n"
        "  hint: use optimizer: none",
        {"parallel.offload.optimizer": "none"},
    ),
    "offloaded checkpoints on a CPU": (
        {"parallel.checkpointing": "offload"},
        "cpu",
        "[E203] parallel.checkpointing: offload: the ranks are CPU processes, everything is in host memory already\n"
        "  hint: use checkpointing: full",
        {"parallel.checkpointing": "full"},
    ),
    "fp16 on a CPU": (
        {"precision": "fp16"},
        "cpu",
        "[E205] precision: fp16 cannot be trained on a CPU\n  hint: use fp32, or leave it out",
        {"precision": "fp32"},
    ),
    "bf16 on an old GPU": (
        {"precision": "bf16"},
        "v100",
        "[E205] precision: bf16 cannot be trained on v100-32gb\n  hint: use fp16, or leave it out",
        {"precision": "fp16"},
    ),
    "bf16 at ZeRO 0": (
        {"precision": "bf16", "parallel.zero": 0},
        "gpus",
        "[E205] parallel.zero: bf16 with parallel.zero 0: DeepSpeed runs Adam one step ahead, and the loss curve does not"
        " show it\n  hint: use zero: 1, which computes the same and is right",
        {"parallel.zero": 1},
    ),
    "fp16 at ZeRO 0": (
        {"precision": "fp16", "parallel.zero": 0},
        "gpus",
        "[E205] parallel.zero: fp16 with parallel.zero 0: DeepSpeed divides the gradients by the loss scale, and the loss curve"
        " does not show it\n  hint: use zero: 1, which computes the same and is right",
        {"parallel.zero": 1},
    ),
    "widths under nf4 on a CPU": (
        {"model.new.ffn": 176, "model.adapter": {"kind": "lora"}, "model.quantize": "nf4"},
        "cpu",
        "[E206] model.quantize: nf4 on a CPU is wrong for layer inputs that are a multiple of 16 and not of 64, got 176\n"
        "  hint: change model.new (176 -> 192), or leave quantize out",
        {"model.new.ffn": 192},
    ),
    "flash attention on a CPU": (
        {"model.attention": "flash_attention_2"},
        "cpu",
        "[E209] model.attention: flash_attention_2 needs a CUDA device, the ranks are CPU processes\n"
        "  hint: use sdpa, or leave it out",
        {"model.attention": "sdpa"},
    ),
    "flash attention on an old GPU": (
        {"model.attention": "flash_attention_2"},
        "v100",
        "[E209] model.attention: flash_attention_2 needs a GPU of Ampere or newer, v100-32gb is older\n"
        "  hint: use sdpa, or leave it out",
        {"model.attention": "sdpa"},
    ),
    "flash attention in fp32": (
        {"model.attention": "flash_attention_2", "precision": "fp32"},
        "gpus",
        "[E209] model.attention: flash_attention_2 computes in 16 bit only, precision is fp32\n"
        "  hint: use sdpa, or leave it out",
        {"model.attention": "sdpa"},
    ),
    "adapter on a module that is not there": (
        {"model.adapter": {"kind": "lora", "targets": ["q_proj", "c_attn"]}},
        "cpu",
        "[E214] model.adapter.targets: c_attn is no matrix of a llama block\n"
        "  hint: use all-linear, or some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        {"model.adapter.targets": "all-linear"},
    ),
    "rows longer than the positions": (
        {"stages.0.data.max_tokens": 600},
        "cpu",
        "[E207] stages.sft.data.max_tokens: 600 is more than the model's 512 positions\n  hint: use at most 512",
        {"stages.0.data.max_tokens": 512},
    ),
    "global that is no multiple of the ranks": (
        {"batch.global": 33, "parallel.zero": 1},
        "gpus",
        "[E204] batch.global: 33 is not a multiple of data-parallel = 8\n  hint: use 32 (nearest) or 40",
        {"batch.global": 32},
    ),
    "global that is no multiple of micro x ranks": (
        {"batch": {"global": 500, "micro": 4}, "cluster.slots": 32},
        "gpus",
        "[E204] batch.global: 500 is not a multiple of micro x data-parallel = 4 x 32 = 128, and no tensor,"
        " pipeline or sequence degree makes replicas that share it\n  hint: use 512 (nearest) or 384",
        {"batch.global": 512},
    ),
    "micro that does not divide": (
        {"batch": {"global": 32, "micro": 5}},
        "cpu",
        "[E204] batch.global: 32 is not a multiple of micro x data-parallel = 5 x 2 = 10, and no tensor, pipeline"
        " or sequence degree makes replicas that share it\n"
        "  hint: use 30 (nearest) or 40, or micro 4, or leave batch.micro out and let the plan choose",
        {"batch.micro": 4},
    ),
}


def machine_named(name, cpu, gpus):
    v100 = replace(gpus, gpu="v100-32gb", bf16=False)
    return {"cpu": cpu, "gpus": gpus, "v100": v100}[name]


@pytest.mark.parametrize("name", CASES)
def test_the_rule_speaks_in_full(name, make_job, plan, cpu, gpus):
    changes, machine, message, _ = CASES[name]
    with pytest.raises(LauncherError) as caught:
        plan(make_job(changes), machine=machine_named(machine, cpu, gpus))
    assert caught.value.text() == re.sub(r"^job\.yaml (\[E\d+\] stages)", r"job.yaml:9:1 \1", f"job.yaml {message}")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", CASES)
def test_the_hint_works(name, make_job, plan, cpu, gpus):
    changes, machine, _, mended = CASES[name]
    assert plan(make_job(changes | mended), machine=machine_named(machine, cpu, gpus)).stages


def test_every_problem_is_reported_at_once(make_job, plan):
    job = make_job(
        {"parallel": {"tensor": 4}, "precision": "fp16", "stages.0.batch": {"global": 3}, "stages.0.data.max_tokens": 999},
        stages=[copy.deepcopy(DATA), DATA | {"name": "again", "batch": {"global": 3}, "parallel": {}}],
    )
    with pytest.raises(LauncherError) as caught:
        plan(job)
    assert sorted(problem.code for problem in caught.value.problems) == ["E201", "E204", "E205", "E207"]


def test_a_batch_of_the_job_is_reported_once_and_not_for_each_stage(make_job, plan, ppo_chain):
    with pytest.raises(LauncherError) as caught:
        plan(make_job({"batch.global": 31}, stages=ppo_chain))
    assert [problem.what.split(":")[0] for problem in caught.value.problems if "batch.global:" in problem.what] == [
        "batch.global"
    ]


def test_a_batch_of_one_stage_is_reported_there(make_job, plan):
    with pytest.raises(LauncherError) as caught:
        plan(make_job({"stages.0.batch": {"global": 7}, "parallel.zero": 1}))
    assert caught.value.problems[0].what == "stages.sft.batch.global: 7 is not a multiple of data-parallel = 2"


def test_prompt_and_answer_must_fit_the_positions(make_job, plan, ppo_chain):
    ppo_chain[2]["data"]["max_tokens"] = 500
    with pytest.raises(LauncherError) as caught:
        plan(make_job(stages=ppo_chain))
    assert caught.value.text() == (
        "job.yaml:9:1 [E208] stages.ppo.max_new_tokens: prompt 500 + answer 32 = 532 tokens is more than the model's 512"
        " positions\n  hint: use max_new_tokens 12 or data.max_tokens 480"
    )
    ppo_chain[2]["data"]["max_tokens"] = 480
    assert plan(make_job(stages=ppo_chain)).stage("ppo").max_tokens == 480


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused(make_job, plan, ppo_chain):
    del ppo_chain[2]["data"]["max_tokens"]
    ppo_chain[2]["max_new_tokens"] = 512
    with pytest.raises(LauncherError) as caught:
        plan(make_job(stages=ppo_chain))
    assert "512 leaves no room for a prompt in the model's 512 positions" in caught.value.text()


def test_a_rollout_must_be_whole_batches(make_job, plan, ppo_chain):
    ppo_chain[2]["rollout"] = 50
    with pytest.raises(LauncherError) as caught:
        plan(make_job(stages=ppo_chain))
    assert caught.value.text() == (
        "job.yaml:9:1 [E204] stages.ppo.rollout: 50 is not a multiple of batch.global = 32\n"
        "  hint: use 64 or 32, or leave it out"
    )


def test_nf4_widths_do_not_matter_on_a_gpu(make_job, plan, gpus):
    job = make_job({"model.new.ffn": 176, "model.adapter": {"kind": "lora"}, "model.quantize": "nf4"})
    assert plan(job, machine=gpus).stages


def test_nf4_on_a_cpu_takes_widths_of_no_multiple_of_16(make_job, plan):
    job = make_job({"model.new.ffn": 172, "model.adapter": {"kind": "lora"}, "model.quantize": "nf4"})
    assert plan(job).stages


def test_widths_of_a_published_model_are_named_without_a_new_width(make_job, plan):
    config = {"model_type": "gpt2", "vocab_size": 100, "n_embd": 48, "n_layer": 1, "n_head": 4}
    job = make_job({"model": {"source": "owner/name", "adapter": {"kind": "lora"}, "quantize": "nf4"}})
    with pytest.raises(LauncherError) as caught:
        plan(job, shape=shape_from_config(config, file="config.json"))
    assert caught.value.problems[0].hint == "leave quantize out, or use a GPU"


def test_degrees_of_the_job_that_one_stage_cannot_have_are_refused_at_that_stage(make_job, plan, gpus, ppo_chain):
    with pytest.raises(LauncherError) as caught:
        plan(make_job({"parallel": {"tensor": 2, "zero": 1}}, stages=ppo_chain), machine=gpus)
    assert caught.value.text() == (
        "job.yaml:9:1 [E220] stages.ppo: ppo with tensor: 2: every rank samples answers with the whole model\n"
        "  hint: give this stage a layout of its own: `parallel: {zero: 3}`"
    )
    ppo_chain[2]["parallel"] = {"zero": 3}
    sft, _, ppo = plan(make_job({"parallel": {"tensor": 2, "zero": 1}}, stages=ppo_chain), machine=gpus).stages
    assert [(stage.dp, stage.tp, stage.zero) for stage in (sft, ppo)] == [(4, 2, 1), (8, 1, 3)]


def test_a_wrong_layout_of_one_stage_is_reported_there(make_job, plan, gpus):
    with pytest.raises(LauncherError) as caught:
        plan(make_job({"stages.0.parallel": {"tensor": 8}}), machine=gpus)
    assert caught.value.problems[0].what.startswith("stages.sft.parallel.tensor: 8 does not divide")


def test_a_layout_written_once_is_reported_once(make_job, plan, gpus):
    stages = [DATA, DATA | {"name": "again"}]
    with pytest.raises(LauncherError) as caught:
        plan(make_job({"parallel": {"pipeline": 2, "zero": 2}}, stages=stages), machine=gpus)
    assert [problem.code for problem in caught.value.problems] == ["E219"]


def test_parameters_of_ppo_do_not_go_to_nvme(make_job, plan, gpus, ppo_chain):
    """Its engines share a folder; the stages before it have one each."""
    job = make_job({**LARGE, "parallel": {"offload": ON_NVME}}, stages=ppo_chain)
    with pytest.raises(LauncherError) as error:
        plan(job, machine=gpus)
    [problem] = error.value.problems
    assert (problem.code, problem.hint) == ("E202", "use parameters: cpu in this stage")
    assert problem.what.endswith("nvme in stage ppo: each of ppo's engines empties the folder of those before it")


def test_checkpoints_of_ppo_are_not_offloaded(make_job, plan, gpus, ppo_chain):
    with pytest.raises(LauncherError) as caught:
        plan(make_job({"parallel": {"checkpointing": "offload", "zero": 1}}, stages=ppo_chain), machine=gpus)
    assert caught.value.text() == (
        "job.yaml [E203] parallel.checkpointing: offload in stage ppo: ppo keeps its checkpoints on the GPU\n"
        "  hint: use checkpointing: full in this stage, which has short rows"
    )
    ppo_chain[2]["parallel"] = {"checkpointing": "full"}
    kept = plan(make_job({"parallel": {"checkpointing": "offload", "zero": 1}}, stages=ppo_chain), machine=gpus).stages
    assert [stage.checkpointing for stage in kept] == ["offload", "offload", "full"]


def test_a_sliding_window_and_sequence_parallelism_go_together_in_short_rows_only(make_job, plan, gpus):
    job, short = (make_job({"parallel.sequence": 2, "stages.0.data.max_tokens": tokens}) for tokens in (128, 96))
    sliding = replace(shape_of_new(job.model.new, 2048), window=96)
    with pytest.raises(LauncherError) as caught:
        plan(job, machine=gpus, shape=sliding)
    assert caught.value.text() == (
        "job.yaml [E218] parallel.sequence: 2 with a sliding window of 96 in rows of 128 tokens: Ulysses would show all of a"
        " row\n  hint: use data.max_tokens: 96, or tensor: 2 with sequence: 1"
    )
    assert plan(short, machine=gpus, shape=sliding).stages[0].sp == 2
    assert plan(make_job({"parallel.tensor": 2}), machine=gpus, shape=sliding).stages[0].tp == 2


def test_a_sliding_window_whose_model_has_no_tensor_degree_leaves_shorter_rows(make_job, plan, gpus):
    job = make_job({"parallel.sequence": 2, "model.new.kv_heads": 1})
    with pytest.raises(LauncherError) as caught:
        plan(job, machine=gpus, shape=replace(shape_of_new(job.model.new, 2048), window=64))
    assert [problem.hint for problem in caught.value.problems] == ["use data.max_tokens: 64"]


def test_a_pipeline_trains_adapters(make_job, plan, gpus):
    stage = plan(make_job({"parallel": {"pipeline": 2}, "model.adapter": {"kind": "lora"}}), machine=gpus).stages[0]
    assert (stage.pp, stage.zero) == (2, 1)
    assert stage.num_trainable < stage.num_params


def test_the_nearest_tensor_degrees_lie_on_both_sides(make_job, plan, gpus):
    thirty_two = {"model.new.heads": 32, "model.new.hidden": 256, "parallel.tensor": 3}
    with pytest.raises(LauncherError) as caught:
        plan(make_job(thirty_two | {"batch.global": 24, "cluster.slots": 12}), machine=gpus)
    assert [(problem.code, problem.hint) for problem in caught.value.problems] == [("E217", "use 2 or 4")]


def test_quantized_gradients_have_an_effect_between_nodes(make_job, plan, gpus):
    job = make_job({"parallel.quantized_gradients": True, "cluster.slots": 16})
    assert plan(job, machine=gpus).stages[0].zero == 3


@pytest.mark.parametrize("name", CASES)
def test_no_other_rule_speaks_than_the_one_that_is_meant(name, make_job, cpu, gpus):
    """The table may hold no two rules for one thing."""
    changes, machine, message, _ = CASES[name]
    job = make_job(changes)
    case = Case(job=job, machine=machine_named(machine, cpu, gpus), shape=shape_of_new(job.model.new, 2048))
    speaking = [rule.code for rules in SUBJECTS.values() for rule in rules for spot in spots_of(case) for _ in rule.find(spot)]
    assert speaking == [message[1:5]]


def test_every_rule_tells_the_docs_what_it_refuses_why_and_what_instead():
    rules = [rule for rules in SUBJECTS.values() for rule in rules]
    assert all(rule.refuses and rule.because and rule.instead for rule in rules)
    assert len({rule.find for rule in rules}) == len(rules)
    shown = {message[1:5] for _, _, message, _ in CASES.values()}
    assert {rule.code for rule in rules} - shown == {
        "E208",
        "E222",
        "E223",
    }  # of ppo, below; test_planned_only.py; test_drafting.py
