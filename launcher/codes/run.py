"""E5xx: a run: launch, ranks, artifacts, data, training."""

from __future__ import annotations

from launcher.codes.info import CodeInfo

CODES: dict[str, CodeInfo] = {
    "E501": CodeInfo(
        title="rank killed by a signal",
        when="A rank ended by a signal, such as SIGKILL of the kernel when memory runs out.",
        remedy="Read the log that is named; `launcher resume` goes on from the last checkpoint.",
    ),
    "E502": CodeInfo(
        title="rank failed",
        when="A rank ended with an error and left no description of its own.",
        remedy="Read the log that is named.",
    ),
    "E503": CodeInfo(
        title="launcher process ended early",
        when="The deepspeed launcher ended, but not every rank left its success marker.",
        remedy="`launcher resume` goes on from the last checkpoint.",
    ),
    "E504": CodeInfo(
        title="world size differs",
        when="A rank saw another number of ranks than the plan has.",
        remedy="Do not start ranks by other means into the same run; resume.",
    ),
    "E505": CodeInfo(
        title="artifact damaged",
        when="A file of a finished stage is missing, added or changed against its manifest.",
        remedy="Restore the file, or remove the artifact folder and resume: the stage is then redone.",
    ),
    "E506": CodeInfo(
        title="gate not held",
        when="A stage finished below the figure that its gate demands.",
        remedy="Improve the stage, or lower the gate if the figure is good enough.",
    ),
    "E507": CodeInfo(
        title="run is in use",
        when="Another process of this or another host controls the run.",
        remedy="Wait for it, or end it with `launcher stop`.",
    ),
    "E508": CodeInfo(
        title="prepare failed",
        when="The process that prepares data and models ended without saying why.",
        remedy="Read the log that is named.",
    ),
    "E509": CodeInfo(
        title="parent stage has not finished",
        when="A stage cannot start because the stage that it starts from has handed on nothing.",
        remedy="Run the parent stage first.",
    ),
    "E510": CodeInfo(
        title="run folder not readable",
        when="A file of the run folder is missing, damaged or was written by another version.",
        remedy="Start a new run, or use the version that wrote it.",
    ),
    "E511": CodeInfo(
        title="processes would not end",
        when="Processes of the run are alive although they were told to stop and then killed.",
        remedy="Look at the processes that are named; a driver or file system may hold them.",
    ),
    "E513": CodeInfo(
        title="run folder failed under the run",
        when="A file of the run folder could not be read or written while the run went on: a full, read-only or removed disk.",
        remedy="Free space or mend the folder, then resume.",
    ),
    "E514": CodeInfo(
        title="nodes ended at once",
        when="What `--detach` had started or submitted ended before any node held the run.",
        remedy="Read the controller.log that is named.",
    ),
    "E520": CodeInfo(
        title="node did not come, or is lost",
        when="Of the nodes that a scheduler starts one did not come in time, fell silent or was started anew, or node 0's"
        " name did"
        " not appear.",
        remedy="Look at its pod or machine. A new attempt goes on from the last checkpoint.",
    ),
    "E521": CodeInfo(
        title="no node said how the run ended",
        when="What had the nodes started is over, a job of SLURM or mpirun, and the run folder does not tell how the run ended:"
        " the job was cancelled or ran out of time, or no node could start the program.",
        remedy="Read controller.log in the run folder; then resume.",
    ),
    "E530": CodeInfo(
        title="data not found",
        when="A data file, folder or hub dataset does not exist or may not be read.",
        remedy="Check data.source; local paths are relative to the job file.",
    ),
    "E531": CodeInfo(
        title="data file not readable",
        when="A data file is of no known kind, is damaged, or has changed while it was read.",
        remedy="Write the file again as JSONL, JSON, CSV, Parquet, Arrow or text.",
    ),
    "E532": CodeInfo(
        title="columns do not fit",
        when="A column is missing, stands twice, or data.columns names one that is not there.",
        remedy="Map the names with data.columns: {ours: theirs}.",
    ),
    "E533": CodeInfo(
        title="shape not clear",
        when="The columns fit several shapes or none, or rows of this shape cannot serve the stage.",
        remedy="Write data.shape, or use data of another shape.",
    ),
    "E534": CodeInfo(
        title="bad row",
        when="A row cannot be used: broken JSON or UTF-8, a missing, empty or wrongly typed value, a prompt that holds its"
        " answer.",
        remedy="Mend the row that is named, or write data.bad_rows: skip.",
    ),
    "E535": CodeInfo(
        title="too many bad rows",
        when="bad_rows is skip, but more than one row in ten, or every row, is bad.",
        remedy="Mend the data; the first reasons are listed.",
    ),
    "E536": CodeInfo(
        title="no rows",
        when="A data file, split or side of the held-out split has no row.",
        remedy="Use data with rows, or change data.split or data.held_out.",
    ),
    "E537": CodeInfo(
        title="every row is too long",
        when="No row is left after those longer than data.max_tokens are dropped.",
        remedy="Raise data.max_tokens; the longest lengths are listed.",
    ),
    "E538": CodeInfo(
        title="too few rows for a step",
        when="There are fewer training rows than one optimizer step uses.",
        remedy="Lower batch.global (ppo: rollout), or use more data.",
    ),
    "E539": CodeInfo(
        title="data option does not apply",
        when="A data option has no effect on this kind of source, such as split on a plain file.",
        remedy="Remove the option.",
    ),
    "E540": CodeInfo(
        title="tokenizer not usable",
        when="The tokenizer cannot be loaded, is not a fast one, or has no end token.",
        remedy="Name another tokenizer in model.tokenizer.",
    ),
    "E541": CodeInfo(
        title="chat template missing",
        when="The data are dialogues, and the tokenizer has no chat template.",
        remedy="Use data of shape prompt_completion, or a tokenizer with a chat template.",
    ),
    "E542": CodeInfo(
        title="chat template does not fit",
        when="The template hides where answers stand, or answers would be trained without their end token.",
        remedy="Use a tokenizer whose template marks answers and ends them with the end token.",
    ),
    "E543": CodeInfo(
        title="no padding token",
        when="The tokenizer has no padding token apart from its end token, and the model has no spare row for one.",
        remedy="Use a tokenizer with its own padding token.",
    ),
    "E544": CodeInfo(
        title="vocabulary larger than the model",
        when="The tokenizer has more entries than the model has embedding rows.",
        remedy="Use the tokenizer that belongs to the model.",
    ),
    "E545": CodeInfo(
        title="longer than the model's positions",
        when="data.max_tokens, or prompt plus answer in ppo, exceeds the positions of the model.",
        remedy="Lower data.max_tokens or max_new_tokens.",
    ),
    "E546": CodeInfo(
        title="model not usable",
        when="The model's folder is missing or has no readable config.json or no safetensors weights.",
        remedy="Name a Hugging Face folder with config.json and *.safetensors.",
    ),
    "E547": CodeInfo(
        title="hub not reachable",
        when="A model, tokenizer or dataset cannot be fetched from the Hugging Face hub.",
        remedy="Check the id, the network and the access rights, or use a local folder.",
    ),
    "E550": CodeInfo(
        title="ranks do not meet",
        when="The number of ranks that were started is not the number that the plan asks for.",
        remedy="Start the stage with the rendered command and hostfile, or plan again for the ranks there are.",
    ),
    "E551": CodeInfo(
        title="another rank was lost",
        when="A rank waited for another one whose process had ended.",
        remedy="Look at the rank that failed first; this rank only noticed it.",
    ),
    "E552": CodeInfo(
        title="engine differs from the plan",
        when="DeepSpeed or the trainer would work with other numbers than the plan: batch sizes, ZeRO stage, precision,"
        " clipping.",
        remedy="Render the run folder again; a hand-edited DeepSpeed config must agree with the stage order.",
    ),
    "E553": CodeInfo(
        title="combination trains wrongly",
        when="A combination that DeepSpeed or a library accepts but trains wrongly, such as bf16 or fp16 at ZeRO 0.",
        remedy="Use the named setting instead.",
    ),
    "E554": CodeInfo(
        title="loss is not a number",
        when="The loss or a gradient norm became NaN or infinite.",
        remedy="Lower the learning rate, raise the warm-up, or look at the rows of the named step.",
    ),
    "E555": CodeInfo(
        title="out of memory",
        when="A rank found no memory left on its device: the plan's estimate was too low, or somebody else uses the device.",
        remedy="Lower batch.micro or data.max_tokens, or set parallel.checkpointing: full; then resume.",
    ),
    "E556": CodeInfo(
        title="model does not fit its use",
        when="Weights are missing or left over beyond the expected head, or the pad token equals the end token.",
        remedy="Start from a causal language model of the same architecture with a tokenizer that has its own pad token.",
    ),
    "E557": CodeInfo(
        title="quantised base not possible",
        when="The 4-bit base cannot be made: bitsandbytes is missing, or no layer was quantised.",
        remedy="Install zerolaunch[qlora], or train without quantize.",
    ),
    "E558": CodeInfo(
        title="artifact does not verify",
        when="What a stage wrote to hand on has missing, empty or non-finite tensors, or does not give the same logits.",
        remedy="Nothing was handed on; the last checkpoint is kept. Resume the run.",
    ),
    "E559": CodeInfo(
        title="packed rows see each other",
        when="The attention kernel of this model lets a packed row see the row before it.",
        remedy="Set packing: false, or another model.attention.",
    ),
    "E560": CodeInfo(
        title="too few rows",
        when="A split is empty, so that nothing can be trained or measured.",
        remedy="Give more data, or another held_out.",
    ),
    "E561": CodeInfo(
        title="checkpoint does not fit",
        when="A checkpoint verifies, but holds other weights than the stage trains, has gaps, or was written by another"
        " version.",
        remedy="Remove the checkpoint folder that is named and resume: the stage goes on from the one before, or starts again.",
    ),
    "E564": CodeInfo(
        title="policy left the reference",
        when="In ppo the KL divergence to the reference passed kl_stop: the reward model has never seen such answers.",
        remedy="Raise kl_coef, give kl_target, or lower lr; resume goes on from the last checkpoint.",
    ),
    "E565": CodeInfo(
        title="tokenizers differ",
        when="The reward model reads token numbers otherwise than the policy that it scores.",
        remedy="Train the reward model from the same model as the policy.",
    ),
    "E566": CodeInfo(
        title="no such model to try or export",
        when="No stage of the run has finished and hands on a language model, or the stage named does not.",
        remedy="Name a finished stage with --stage, or resume the run first.",
    ),
    "E567": CodeInfo(
        title="ranks that share a replica hold different rows",
        when="Two ranks of one replica (same tensor, pipeline or sequence group) were given other rows for the same step.",
        remedy="Check that all hosts see the same run folder and cache; resume from the last checkpoint.",
    ),
    "E568": CodeInfo(
        title="operator not built",
        when="An operator of DeepSpeed in C++ (for NVMe, offload with a ratio, ZeRO++ quantisation) cannot be compiled here.",
        remedy="Install what the message names, or use a setting that needs no operator, such as offload.optimizer: cpu.",
    ),
    "E569": CodeInfo(
        title="loss scale collapsed",
        when="In fp16 the loss scale fell to its minimum, and gradients still did not fit into 16 bits.",
        remedy="Use precision: bf16 or fp32; or lower lr, raise the warm-up, give clip a value.",
    ),
    "E570": CodeInfo(
        title="environment did not arrive",
        when="A rank has another value of a variable of cluster.env than the job, or a secret is not set there.",
        remedy="Look for what sets or drops it on that host: a module, a profile, an image, an edited command.",
    ),
}
