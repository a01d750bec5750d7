"""LoRA and the 4-bit base: the adapter's settings, the checks that it is what was asked, and the merge that is shipped.

Export rule: the adapter is merged into the unquantised base, checked by equal logits. A merge into 4-bit weights rounds them
again.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig, PreTrainedModel

from launcher.errors import LauncherError, Problem
from launcher.spec.model import Lora

Task = Literal["causal", "reward"]
TASKS = {"causal": "CAUSAL_LM", "reward": "SEQ_CLS"}

# Largest difference of a logit between merged and unmerged that counts as equal, relative to the largest logit (at least 1).
MERGE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def lora_config(lora: Lora, task: Task) -> LoraConfig:
    """peft's settings. A reward model's new head is trained and saved beside the adapter, or it would stay random."""
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    _refuse_head(targets)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type=TASKS[task],
        modules_to_save=["score"] if task == "reward" else None,
        bias="none",
    )


def attach_lora(model: PreTrainedModel, lora: Lora, task: Task, *, zero: int) -> PeftModel:
    """A loaded model with a fresh adapter, its own weights frozen: a 4-bit base or PPO's actor (the others: building.py)."""
    # Under ZeRO-3 all persistent parameters must share one dtype: peft would make the adapter fp32 on a bf16 base.
    return get_peft_model(model, lora_config(lora, task), autocast_adapter_dtype=zero != 3)


def quantization_config(compute: torch.dtype) -> BitsAndBytesConfig:
    """nf4 with double quantisation, computing in the stage's own dtype: bf16 is not there on GPUs that train in fp16."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise LauncherError(
            Problem(
                code="E557",
                where="model.quantize",
                what="nf4 needs bitsandbytes, which is not installed",
                hint="pip install 'zerolaunch[qlora]', or leave model.quantize out",
            )
        )
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def restore_dtype(model: PeftModel, dtype: torch.dtype) -> None:
    """Trainable weights in the stage's dtype, whatever peft chose on a 4-bit base: in bf16 without fp32 masters small updates
    would be lost, and a reward head would not fit its input. Call before deepspeed.initialize.
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(dtype)
            if hasattr(weight, "ds_tensor"):  # ZeRO-3 keeps the values here, .data is empty
                weight.ds_tensor.data = weight.ds_tensor.data.to(dtype)


def refuse_unquantized(model: PreTrainedModel, where: str) -> None:
    """A model that stayed unquantised would train, only with another memory."""
    if not _linears_4bit(model):
        problem = Problem(code="E557", where=where, what="no layer was quantised", hint="leave model.quantize out")
        raise LauncherError(problem)


def forbid_repacking(model: PreTrainedModel) -> None:
    """4-bit weights stay as they were loaded, so that every CPU computes the same and training goes on after an evaluation.

    On CPUs with AVX512-BF16 bitsandbytes 0.50 repacks them in place at the first evaluation (nn/modules.py:613). That fails
    where the columns are no multiple of 64 or the rows none of 32, rounds the scales to bf16, and the kernel for repacked
    weights has no backward: later training steps lose the gradient that goes through the layer, without an error.
    """
    for linear in _linears_4bit(model):
        linear.support_avx512bf16_for_cpu = False


def _linears_4bit(model: PreTrainedModel) -> list[torch.nn.Linear]:
    from bitsandbytes.nn import Linear4bit  # optional package

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def merge(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The plain model: `adapter` merged into the unquantised `base`, with logits equal to the unmerged ones on a probe."""
    peft_model = PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False).eval()
    probe = torch.arange(1, 17).remainder(base.config.get_text_config().vocab_size).unsqueeze(0)
    with torch.no_grad():
        apart = peft_model(input_ids=probe).logits.float()
        merged = peft_model.merge_and_unload(safe_merge=True)
        together = merged(input_ids=probe).logits.float()
    difference = (apart - together).abs().max().item() / max(1.0, apart.abs().max().item())
    if not difference <= MERGE_TOLERANCE[merged.dtype]:  # also refuses NaN
        raise LauncherError(
            Problem(
                code="E558",
                where=str(adapter),
                what=f"the merged model's logits differ by {difference:.2g} from base plus adapter",
                hint="nothing was handed on; the adapter folder can be merged by hand to look at it",
            )
        )
    return merged


def name_base(adapter: Path, base: str) -> None:
    """Replace the local path that peft writes into adapter_config.json: it means nothing on another machine."""
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _refuse_head(targets: str | list[str]) -> None:
    heads = [name for name in targets if name in ("lm_head", "embed_out")] if isinstance(targets, list) else []
    if heads:
        raise LauncherError(
            Problem(
                code="E553",
                where="model.adapter.targets",
                what=f"an adapter on {heads[0]} would never be trained: the loss multiplies by the head's own weight",
                hint=f"leave {heads[0]} out of targets, or use all-linear",
            )
        )
