"""The texts that `launcher init` writes. Each one loads and, but for its data files, is complete."""

from __future__ import annotations

HEADER = "# yaml-language-server: $schema=./job.schema.json\n"

_TINY = """\
# All five stages on documentation that every Python carries: no download, no GPU, minutes on two cores.
spec_version: 1
name: tiny

model:
  new: {family: llama, layers: 2, hidden: 64, heads: 4, ffn: 176, positions: 512}  # drawn at random
  tokenizer: {train: {vocab: 2048}}  # trained on the spot

stages:
  - kind: pretrain
    data: {source: python-docs, max_tokens: 128}
    batch: {global: 16}  # sequences per optimizer step, over all ranks; micro-batch and accumulation follow from it
    steps: 400
    lr: 6e-3

  - kind: sft  # starts from the stage before; `from: NAME` says another
    data: {source: python-docs, max_tokens: 128}
    steps: 300
    lr: 4e-3

  - kind: reward
    from: sft
    data: {source: python-docs, max_tokens: 128}
    steps: 200
    lr: 2e-3
    gate: {accuracy: 0.6}  # below it the chain stops

  - kind: dpo
    from: sft
    data: {source: python-docs, max_tokens: 128}
    steps: 80
    lr: 5e-4

  - kind: ppo
    from: sft
    reward: reward  # the stage that scores the answers
    data: {source: python-docs, max_tokens: 96}
    steps: 40  # rollouts
    lr: 1e-3
    critic_lr: 1e-3
    max_new_tokens: 32
"""

_SFT = """\
# Fine-tune one model on your question and answer pairs.
spec_version: 1
name: sft
seed: 42

model:
  source: Qwen/Qwen2.5-0.5B-Instruct  # Hugging Face id or local folder
  # adapter: {kind: lora, rank: 64, alpha: 16, dropout: 0.1}  # train an adapter instead of all weights
  # quantize: nf4                                             # on a 4-bit base (QLoRA)

batch: {global: 64}  # sequences per optimizer step, over all GPUs

stages:
  - kind: sft
    # jsonl, json, csv, parquet, arrow, or a hub id. Columns prompt/completion, instruction/input/output, or messages.
    data: {source: ./pairs.jsonl, max_tokens: 1024}
    epochs: 1
    lr: 2e-5
"""

_FULL = """\
# A 7B model through SFT, reward model, PPO and DPO with LoRA. One GPU of 80 GB or several.
spec_version: 1
name: full
seed: 42

model:
  source: meta-llama/Llama-2-7b-hf
  adapter: {kind: lora, rank: 64, alpha: 16, dropout: 0.1}

batch: {global: 64}

stages:
  - kind: sft
    data: {source: ./pairs.jsonl, max_tokens: 1024}  # prompt/completion, instruction or messages
    epochs: 1

  - kind: reward
    from: sft
    data: {source: Anthropic/hh-rlhf, max_tokens: 512}  # chosen/rejected; longer pairs are dropped and counted
    gate: {accuracy: 0.6}  # share of held-out pairs that it must order rightly, or the chain stops

  - kind: ppo
    from: sft
    reward: reward
    data: {source: ./prompts.jsonl, max_tokens: 512}
    steps: 200

  - kind: dpo
    from: sft
    data: {source: Anthropic/hh-rlhf, max_tokens: 512}
"""

TEMPLATES = {"tiny": _TINY, "sft": _SFT, "full": _FULL}
