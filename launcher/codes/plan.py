"""E2xx: the plan."""

from __future__ import annotations

from launcher.codes.info import CodeInfo

CODES: dict[str, CodeInfo] = {
    "E201": CodeInfo(
        title="degrees do not fit the ranks",
        when="tensor x pipeline x sequence does not divide the number of ranks.",
        remedy="Use the degrees that are named, or another number of ranks.",
    ),
    "E202": CodeInfo(
        title="offload to NVMe not usable",
        when="Below ZeRO 3; parameters in fp32, of ppo, 4-bit, small or beside hpz; nvme_path missing, relative or without"
        " use.",
        remedy="Offload to NVMe at ZeRO 3, parameters in bf16, with an absolute nvme_path; or offload to cpu.",
    ),
    "E203": CodeInfo(
        title="offload without effect",
        when="DeepSpeed would ignore the offload, or change the optimizer without offloading, or nothing would leave the"
        " device.",
        remedy="Use what is named, or leave the offload out.",
    ),
    "E204": CodeInfo(
        title="batch arithmetic",
        when="global is not micro x accumulation x data-parallel for any whole accumulation, nor for any degrees that the"
        " plan may"
        " choose.",
        remedy="Use one of the nearest numbers that are named, or leave batch.micro out.",
    ),
    "E205": CodeInfo(
        title="precision not usable here",
        when="The device cannot train in it, DeepSpeed trains wrongly with it at this ZeRO stage, or tf32 has no effect.",
        remedy="Use the precision or ZeRO stage that is named, or leave it out.",
    ),
    "E206": CodeInfo(
        title="layer widths that nf4 gets wrong",
        when="A layer's input width is a multiple of 16 and not of 64: on a CPU bitsandbytes would compute with wrong weights.",
        remedy="Change model.new, or leave model.quantize out.",
    ),
    "E207": CodeInfo(
        title="longer than the model's positions",
        when="data.max_tokens is above the number of positions of the model.",
        remedy="Lower data.max_tokens.",
    ),
    "E208": CodeInfo(
        title="prompt and answer longer than the model's positions",
        when="data.max_tokens plus max_new_tokens of a ppo stage is above the positions of the model.",
        remedy="Lower one of the two.",
    ),
    "E209": CodeInfo(
        title="attention kernel not usable here",
        when="flash_attention_2 needs a CUDA device of Ampere or newer and 16-bit precision.",
        remedy="Leave model.attention out.",
    ),
    "E210": CodeInfo(
        title="no plan fits",
        when="No allowed combination of ZeRO stage, checkpointing, offload and micro-batch fits into the memory of a rank.",
        remedy="Make the smallest change that is named.",
    ),
    "E211": CodeInfo(
        title="disk too small for the plan",
        when="The planned checkpoints and artifacts are larger than what is free on the disk of the run folder.",
        remedy="Keep fewer checkpoints, free space, or choose another disk with --runs.",
    ),
    "E212": CodeInfo(
        title="model family not supported",
        when="model_type in config.json is missing, or is in no table and no decoder of alike attention blocks that the"
        " installed"
        " transformers builds: it has experts, layers of other kinds, an encoder, pictures, or code of its own (auto_map).",
        remedy="Use a model of a family that is listed, or a plain decoder.",
    ),
    "E213": CodeInfo(
        title="config.json broken",
        when="The model's config.json or its tokenizer.json is no JSON object, or a field is missing or cannot be what it is.",
        remedy="Use the file that belongs to the weights.",
    ),
    "E214": CodeInfo(
        title="adapter finds nothing",
        when="model.adapter.targets names a module that the model's blocks do not have.",
        remedy="Use the listed names, or all-linear.",
    ),
    "E215": CodeInfo(
        title="no gain",
        when="Only in `plan --all`: a candidate was not tried because a cheaper one does the same.",
        remedy="Ask for it in `parallel` to have it all the same.",
    ),
    "E216": CodeInfo(
        title="GPU to plan for",
        when="cluster.gpu names no GPU of the catalogue, comes without a number of ranks, or is not what this machine has.",
        remedy="Use a name that is listed, with cluster.slots; to run here, remove it.",
    ),
    "E217": CodeInfo(
        title="tensor degree does not fit the model",
        when="parallel.tensor does not divide the attention heads, the key/value heads or the columns of the MLP.",
        remedy="Use the nearest degree that is named.",
    ),
    "E218": CodeInfo(
        title="sequence degree not usable here",
        when="parallel.sequence does not suit the heads, or stands beside a tensor or pipeline degree, packing, eager attention"
        " or a sliding window.",
        remedy="Use what is named, or sequence: 1.",
    ),
    "E219": CodeInfo(
        title="pipeline not usable here",
        when="More pipeline stages than blocks, or a ZeRO stage other than 1.",
        remedy="Use what is named, or pipeline: 1.",
    ),
    "E220": CodeInfo(
        title="stage cannot be cut",
        when="A ppo stage or a 4-bit base is to run with a tensor, pipeline or sequence degree above 1.",
        remedy="Give the stage a `parallel` block of its own with degrees of 1.",
    ),
    "E221": CodeInfo(
        title="parallel setting without effect",
        when="hpz, quantized communication, an offload ratio or a balance is asked for where DeepSpeed does not read it.",
        remedy="Remove it, or use what is named.",
    ),
    "E222": CodeInfo(
        title="family for planning only",
        when="The model's family can be planned for and not trained yet, and the job is to run; an adapter is asked for on a"
        " model with experts; or rewards of a family for which there is no classifier.",
        remedy="Train a model of the family that is named, or `launcher plan` with cluster.gpu and cluster.slots.",
    ),
    "E223": CodeInfo(
        title="degree needs a known family",
        when="A tensor, pipeline or sequence degree is asked for with a model whose family is in no table.",
        remedy="Leave the degrees at 1: data parallelism with ZeRO trains it.",
    ),
}
