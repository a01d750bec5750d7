"""(JobSpec, StagePlan) -> the DeepSpeed config of one stage, with every value written out and nothing left "auto".

DERIVE, pure. There is no "optimizer" and no "scheduler" section: the stage makes a torch AdamW, and where both are given
DeepSpeed takes the stage's without a word. There is no "tensor_parallel" section either: the ranks cut their weights before
`deepspeed.initialize`, and with it DeepSpeed would look for whole ones to cut. Written for DeepSpeed 0.19.8.
"""

from __future__ import annotations

from launcher.plan.asked import Asked, parallel_of
from launcher.plan.layout import sums_in_fp32
from launcher.plan.plan import StagePlan
from launcher.plan.states import (
    LIVE_PARAMETERS,
    NVME_BUFFERS,
    NVME_PARAMETER_BUFFERS,
    SUB_GROUP_ELEMENTS,
    reduce_bucket_elements,
)
from launcher.spec.job import JobSpec

DsConfig = dict[str, object]

NEVER = 2**31 - 1  # more steps than any run has: neither steps_per_print nor the growth of the loss scale has an "off"
WHOLE_MODEL = 2**63 - 1  # DeepSpeed's own default of stage3_model_persistence_threshold: no limit
TWIN_SUB_GROUPS = 32  # of each rank, where a ratio of them stays on the GPU
ALLGATHER_ELEMENTS = 500_000_000


def ds_config(job: JobSpec, stage: StagePlan) -> DsConfig:
    """The whole config of one stage, as DeepSpeed reads it from JSON."""
    spec = next(spec for spec in job.stages if spec.stage_name == stage.name)
    asked = parallel_of(job, spec)
    config: DsConfig = {
        # global = micro x accumulation x replicas: the ranks tell DeepSpeed by an mpu that a replica is not one process
        "train_batch_size": stage.global_batch,
        "train_micro_batch_size_per_gpu": stage.micro_batch,
        "gradient_accumulation_steps": stage.grad_accum,
        "gradient_clipping": spec.clip,
        "zero_optimization": zero_section(stage, asked),
        "bf16": {"enabled": stage.precision == "bf16"},
        "fp16": fp16_section(stage),
        # torch's AdamW is not on DeepSpeed's list of tested optimizers; it is element-wise, so flat pieces are right
        "zero_allow_untested_optimizer": True,
        # the stage's own optimizer is kept under offload too: torch's AdamW is as fast on the host and needs no compiler
        "zero_force_ds_cpu_optimizer": False,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "steps_per_print": NEVER,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False, "synchronized": False}},  # the default waits for the device at each step
    }
    if sums_in_fp32(stage):
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if stage.pp > 1:
        config["pipeline"] = pipeline_section()
    return config


def pipeline_section() -> DsConfig:
    """The keys that DeepSpeed's pipeline engine reads; `stages` and `partition` it does not."""
    return {
        # blocks are checkpointed inside the stage by transformers' own code, as in every other layout
        "activation_checkpoint_interval": 0,
        "use_reentrant": False,
        # a partitioned activation is put together by the shape of the first one (runtime/pipe/engine.py:709): ours vary
        "pipe_partitioned": False,
        "grad_partitioned": False,
    }


def fp16_section(stage: StagePlan) -> DsConfig:
    """Dynamic loss scale that falls at an overflow and never grows: decision 004."""
    if stage.precision != "fp16":
        return {"enabled": False}
    return {
        "enabled": True,
        "auto_cast": False,
        "loss_scale": 0,
        "initial_scale_power": 16,
        "loss_scale_window": NEVER,
        "hysteresis": 2,
        "min_loss_scale": 1,
    }


def zero_section(stage: StagePlan, asked: Asked) -> DsConfig:
    """zero_optimization. Bucket sizes from hidden^2, as transformers fills in its "auto", but never of a few matrices."""
    if stage.zero == 0:
        return {"stage": 0}
    shared: DsConfig = {
        "stage": stage.zero,
        "contiguous_gradients": True,
        "overlap_comm": False,
        "reduce_scatter": True,
        "reduce_bucket_size": reduce_bucket_elements(stage.hidden, num_trainable=stage.num_trainable),
        "allgather_partitions": True,
        "allgather_bucket_size": ALLGATHER_ELEMENTS,
        "round_robin_gradients": False,
        "sub_group_size": _sub_group_elements(stage, asked),
        "offload_optimizer": _offload(stage.offload_optimizer) | _optimizer_offload(stage, asked),
    }
    return shared | (_stage3(stage, asked) if stage.zero == 3 else {})


def _sub_group_elements(stage: StagePlan, asked: Asked) -> int:
    """A ratio is counted in sub-groups (trap 48): each rank gets some tens of them, else as few as possible."""
    if not asked.ratio or asked.ratio == 1 or stage.offload_optimizer != "cpu":
        return SUB_GROUP_ELEMENTS
    return max(1, stage.num_trainable // stage.dp // TWIN_SUB_GROUPS)


def _stage3(stage: StagePlan, asked: Asked) -> DsConfig:
    swapped = stage.offload_parameters == "nvme"
    return {
        "overlap_comm": True,
        "offload_param": _offload(stage.offload_parameters) | (_parameters_on_nvme(stage, asked) if swapped else {}),
        # what is read ahead from NVMe when a step begins stops with "already assigned swap buffer"
        # (runtime/swap_tensor/partitioned_param_swapper.py:185)
        "stage3_prefetch_bucket_size": 0 if swapped else max(1, 9 * stage.hidden**2 // 10),
        "stage3_param_persistence_threshold": 10 * stage.hidden,
        "stage3_model_persistence_threshold": WHOLE_MODEL,
        "stage3_max_live_parameters": LIVE_PARAMETERS,
        # a weight that stays gathered for its next use keeps a buffer of NVMe, and they run out
        "stage3_max_reuse_distance": 0 if swapped else LIVE_PARAMETERS,
        # for another program that runs with this file: without it DeepSpeed and the Trainer save no weights
        "stage3_gather_16bit_weights_on_model_save": True,
        "zero_hpz_partition_size": asked.hpz or 1,
        "zero_quantized_weights": asked.quantized_weights,
        "zero_quantized_gradients": asked.quantized_gradients,
    }


def _parameters_on_nvme(stage: StagePlan, asked: Asked) -> DsConfig:
    """Every part of a tensor fits a buffer. Without max_in_cpu the first 1e9 parameters would stay in host memory for good."""
    buffers: DsConfig = {"buffer_count": NVME_PARAMETER_BUFFERS, "buffer_size": stage.largest_shard}
    return {"nvme_path": asked.nvme_path, "max_in_cpu": 0} | buffers


def _offload(place: str) -> DsConfig:
    return {"device": place, "pin_memory": place != "none"}


def _optimizer_offload(stage: StagePlan, asked: Asked) -> DsConfig:
    """What only the place that is named reads."""
    if stage.offload_optimizer == "nvme":
        # overlapped reading and writing stops with an empty AssertionError at small sub-groups
        # (runtime/swap_tensor/pipelined_optimizer_swapper.py:219)
        swap: DsConfig = {"nvme_path": asked.nvme_path, "buffer_count": NVME_BUFFERS}
        return swap | {"pipeline_read": False, "pipeline_write": False, "fast_init": False}
    return {"ratio": asked.ratio or 1.0} if stage.offload_optimizer == "cpu" and stage.zero == 3 else {}
