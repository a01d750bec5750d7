"""The model of a job, as the user names it: a source or a new one, tokenizer, adapter, quantisation. ASK."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from launcher.spec.base import Auto, Block, Text

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "gpt2", "gpt_neox", "opt"]


class NewModel(Block):
    """A model that is drawn at random and trained from scratch."""

    family: Family = Field(description="architecture")
    layers: int = Field(ge=1, le=1000, description="transformer blocks")
    hidden: int = Field(ge=8, le=131_072, description="width of the residual stream")
    heads: int = Field(ge=1, le=1024, description="attention heads")
    kv_heads: int | None = Field(None, ge=1, le=1024, description="key/value heads; None: as many as heads")
    ffn: int | None = Field(None, ge=8, le=1_048_576, description="width inside the MLP; None: the family's usual ratio")
    positions: int = Field(2048, ge=16, le=16_777_216, description="longest sequence in tokens")
    tied: bool = Field(True, description="embedding and output head share one matrix")


class TrainTokenizer(Block):
    """A byte-level BPE tokenizer with a chat template, trained on the pretraining text."""

    vocab: int = Field(2048, ge=300, le=1_000_000, description="entries")


class NewTokenizer(Block):
    train: TrainTokenizer = Field(description="made on the spot, of `vocab` entries")


class Lora(Block):
    """Low-rank adapters, Hu et al. 2021, arXiv 2106.09685."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, le=4096, description="inner dimension r")
    alpha: float = Field(32, gt=0, le=65536, description="scale; the update is alpha / rank * BA")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")
    targets: Literal["all-linear"] | tuple[Text, ...] = Field(
        "all-linear", description="module names, or all linear layers but the head"
    )


class ModelSpec(Block):
    source: Text | None = Field(None, description="Hugging Face id or local folder; or give `new`")
    revision: Text | None = Field(None, description="hub revision; None: the newest, recorded in the run")
    new: NewModel | None = Field(None, description="a new model instead of a source")
    tokenizer: Text | NewTokenizer | None = Field(None, description="hub id, folder or {train: …}; None: the source's own")
    attention: Annotated[Literal["eager", "sdpa", "flash_attention_2"] | None, Auto] = Field(
        None, description="attention kernel"
    )
    adapter: Lora | None = Field(None, description="train an adapter instead of all weights (not in pretrain)")
    quantize: Literal["nf4"] | None = Field(None, description="4-bit base under an adapter (QLoRA); sft, reward and dpo")
