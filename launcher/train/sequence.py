"""Ulysses sequence parallelism (arXiv 2309.14509): a part of each sequence, and in attention some heads of all of it.

DeepSpeed puts itself between the model and its attention kernel. It drops every mask, so only what needs none may come here:
the plan refuses packed rows, eager attention and sliding windows; rows are padded on the right.
"""

from __future__ import annotations

import torch
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from launcher.train.families import heads_of
from launcher.train.mesh import Mesh


class _Ulysses(UlyssesSPAttentionHF):
    """DeepSpeed's exchange for any number of rows: it fixes the micro-batch when it is made, held-out rows come in others."""

    def for_rows(self, rows: int) -> None:
        self.batch_size = rows
        for name in ("required_query_shape", "required_key_value_shape", "required_context_shape"):
            length, _, *rest = getattr(self, name)
            setattr(self, name, torch.Size([length, rows, *rest]))


def share_sequences(model: PreTrainedModel, mesh: Mesh) -> None:
    """Route the model's attention kernel through the all-to-all of Ulysses. Before the first forward pass.

    What UlyssesSPAttentionHF.register_with_transformers does, with the mesh's group and with head counts of every family.
    """
    config, kernel = model.config.get_text_config(), model.config._attn_implementation
    heads, kv_heads, width = heads_of(config)
    exchange = _Ulysses(
        attn=ALL_ATTENTION_FUNCTIONS[kernel],
        batch_size=1,
        attn_head_count=heads,
        attn_head_size=width,
        kv_head_count=kv_heads,
        num_hidden_layers=config.num_hidden_layers,
        process_group=mesh.sp_group,
        seq_length_is_variable=True,
    )
    exchange.core_attn_implementation = kernel

    # transformers' table of kernels is for all models of the process: one that rank 0 looks at alone keeps its own.
    plain, own = ALL_ATTENTION_FUNCTIONS[kernel], set(model.modules())

    def attention(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        if module not in own:
            return plain(module, query, key, value, mask, *args, **kwargs)
        # The mask that the model made is for this rank's part of the sequence; whole sequences need only the causal one.
        exchange.for_rows(query.shape[0])
        out, weights = exchange(module, query, key, value, None, *args, **kwargs)
        return out.view(*out.shape[:2], heads, width), weights  # GPT-2 joins the heads itself

    ALL_ATTENTION_FUNCTIONS[kernel] = attention
