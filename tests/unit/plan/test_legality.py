"""Every rule of the legality table: the whole message, and the hint taken at its word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.errors import LauncherError
from launcher.plan.legality import JOB_RULES, STAGE_RULES
from launcher.plan.shape import shape_from_config

# name -> (changes of the small job, machine, the message, changes that the hint names)
CASES = {
    "tensor": (
        {"parallel.tensor": 2},
        "cpu",
        "[E201] parallel.tensor: 2: tensor parallelism is not built yet\n"
        "  hint: leave parallel.tensor at 1: all ranks are data parallel, and ZeRO 3 splits what does not fit",
        {"parallel.tensor": 1},
    ),
    "pipeline": (
        {"parallel.pipeline": 4},
        "gpus",
        "[E201] parallel.pipeline: 4: pipeline parallelism is not built yet\n"
        "  hint: leave parallel.pipeline at 1: all ranks are data parallel, and ZeRO 3 splits what does not fit",
        {"parallel.pipeline": 1},
    ),
    "sequence": (
        {"parallel.sequence": 2},
        "gpus",
        "[E201] parallel.sequence: 2: sequence parallelism is not built yet\n"
        "  hint: leave parallel.sequence at 1: all ranks are data parallel, and ZeRO 3 splits what does not fit",
        {"parallel.sequence": 1},
    ),
    "nvme": (
        {"parallel": {"zero": 3, "offload": {"optimizer": "nvme"}}},
        "gpus",
        "[E202] parallel.offload.optimizer: nvme: offload to NVMe is not built yet\n  hint: use cpu",
        {"parallel.offload.optimizer": "cpu"},
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
        "[E206] model.quantize: nf4 on a CPU needs layer widths that are multiples of 32, got 176\n"
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
        {"batch.global": 33},
        "gpus",
        "[E204] batch.global: 33 is not a multiple of data-parallel = 8\n  hint: use 32 (nearest) or 40",
        {"batch.global": 32},
    ),
    "global that is no multiple of micro x ranks": (
        {"batch": {"global": 500, "micro": 4}, "cluster.slots": 32},
        "gpus",
        "[E204] batch.global: 500 is not a multiple of micro x data-parallel = 4 x 32 = 128\n  hint: use 512 (nearest) or 384",
        {"batch.global": 512},
    ),
    "micro that does not divide": (
        {"batch": {"global": 32, "micro": 5}},
        "cpu",
        "[E204] batch.global: 32 is not a multiple of micro x data-parallel = 5 x 2 = 10\n"
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
    assert caught.value.text() == f"job.yaml {message}".replace("job.yaml [E207] stages", "job.yaml:9:1 [E207] stages")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", CASES)
def test_the_hint_works(name, make_job, plan, cpu, gpus):
    changes, machine, _, mended = CASES[name]
    assert plan(make_job(changes | mended), machine=machine_named(machine, cpu, gpus)).stages


def test_every_problem_is_reported_at_once(make_job, plan):
    job = make_job(
        {"parallel": {"tensor": 2, "pipeline": 2}, "precision": "fp16", "batch.global": 3, "stages.0.data.max_tokens": 999}
    )
    with pytest.raises(LauncherError) as caught:
        plan(job)
    assert sorted(problem.code for problem in caught.value.problems) == ["E201", "E201", "E204", "E205", "E207"]


def test_a_batch_of_the_job_is_reported_once_and_not_for_each_stage(make_job, plan, ppo_chain):
    with pytest.raises(LauncherError) as caught:
        plan(make_job({"batch.global": 31}, stages=ppo_chain))
    assert [problem.what.split(":")[0] for problem in caught.value.problems if "batch.global:" in problem.what] == [
        "batch.global"
    ]


def test_a_batch_of_one_stage_is_reported_there(make_job, plan):
    with pytest.raises(LauncherError) as caught:
        plan(make_job({"stages.0.batch": {"global": 7}}))
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


def test_widths_of_a_published_model_are_named_without_a_new_width(make_job, plan):
    config = {"model_type": "gpt2", "vocab_size": 100, "n_embd": 48, "n_layer": 1, "n_head": 4}
    job = make_job({"model": {"source": "owner/name", "adapter": {"kind": "lora"}, "quantize": "nf4"}})
    with pytest.raises(LauncherError) as caught:
        plan(job, shape=shape_from_config(config, file="config.json"))
    assert caught.value.problems[0].hint == "leave quantize out, or use a GPU"


def test_the_table_holds_every_rule_once():
    names = [rule.__name__ for rule in (*JOB_RULES, *STAGE_RULES)]
    assert len(names) == len(set(names)) == 11
