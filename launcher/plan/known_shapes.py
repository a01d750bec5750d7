"""Hub id -> the shape fields of its published config.json, for models that many jobs name: planned without asking the hub.

DERIVE, a table. Source: the config.json of each repository on huggingface.co; tests compare the parameter counts that follow
with the published ones. A job that names a revision asks the hub.
"""

from __future__ import annotations

from launcher.plan.shape import Config

_Row = tuple[int, int, int, int, int, int, int]  # vocab, hidden, layers, heads, kv_heads, ffn, positions


def _gated(family: str, row: _Row, *, tied: bool = False, head_dim: int | None = None) -> Config:
    vocab, hidden, layers, heads, kv_heads, ffn, positions = row
    config: dict[str, object] = {
        "model_type": family,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
    }
    return config | ({"head_dim": head_dim} if head_dim else {})


def _gpt2(hidden: int, layers: int, heads: int) -> Config:
    sizes = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": 1024}
    return {"model_type": "gpt2", "vocab_size": 50257, **sizes}


def _pythia(vocab: int, hidden: int, layers: int, heads: int) -> Config:
    return {
        "model_type": "gpt_neox",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def _phi(hidden: int, layers: int) -> Config:
    return {
        "model_type": "phi",
        "vocab_size": 51_200,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def _opt(hidden: int, layers: int, heads: int) -> Config:
    return {
        "model_type": "opt",
        "vocab_size": 50_272,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "max_position_embeddings": 2048,
    }


def _falcon(hidden: int, layers: int, heads: int, **more: object) -> Config:
    sizes = {"vocab_size": 65_024, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": "falcon", **sizes, "multi_query": True, "parallel_attn": True, **more}


_LLAMA_2_7B = _gated("llama", (32_000, 4096, 32, 32, 32, 11_008, 4096))
_LLAMA_2_13B = _gated("llama", (32_000, 5120, 40, 40, 40, 13_824, 4096))
_LLAMA_2_70B = _gated("llama", (32_000, 8192, 80, 64, 8, 28_672, 4096))
_LLAMA_31_8B = _gated("llama", (128_256, 4096, 32, 32, 8, 14_336, 131_072))
_LLAMA_31_70B = _gated("llama", (128_256, 8192, 80, 64, 8, 28_672, 131_072))
_LLAMA_31_405B = _gated("llama", (128_256, 16_384, 126, 128, 8, 53_248, 131_072))
_LLAMA_32_1B = _gated("llama", (128_256, 2048, 16, 32, 8, 8192, 131_072), tied=True, head_dim=64)
_LLAMA_32_3B = _gated("llama", (128_256, 3072, 28, 24, 8, 8192, 131_072), tied=True, head_dim=128)
_MISTRAL_7B = _gated("mistral", (32_000, 4096, 32, 32, 8, 14_336, 32_768))
_QWEN25_05B = _gated("qwen2", (151_936, 896, 24, 14, 2, 4864, 32_768), tied=True)
_QWEN25_15B = _gated("qwen2", (151_936, 1536, 28, 12, 2, 8960, 131_072), tied=True)
_QWEN25_7B = _gated("qwen2", (152_064, 3584, 28, 28, 4, 18_944, 131_072))
_QWEN3_06B = _gated("qwen3", (151_936, 1024, 28, 16, 8, 3072, 40_960), tied=True, head_dim=128)
_QWEN3_8B = _gated("qwen3", (151_936, 4096, 36, 32, 8, 12_288, 40_960), head_dim=128)
_GEMMA_2B = _gated("gemma", (256_000, 2048, 18, 8, 1, 16_384, 8192), tied=True, head_dim=256)
_GEMMA_7B = _gated("gemma", (256_000, 3072, 28, 16, 16, 24_576, 8192), tied=True, head_dim=256)
_PHI_3_MINI = {**_gated("phi3", (32_064, 3072, 32, 32, 32, 8192, 4096)), "sliding_window": 2047}
_MIXTRAL_8X7B = {
    **_gated("mixtral", (32_000, 4096, 32, 32, 8, 14_336, 32_768)),
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
_QWEN15_MOE = {
    **_gated("qwen2_moe", (151_936, 2048, 24, 16, 16, 5632, 8192)),
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
}
_QWEN3_30B_A3B = {
    **_gated("qwen3_moe", (151_936, 2048, 48, 32, 4, 6144, 40_960), head_dim=128),
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}

KNOWN_CONFIGS: dict[str, Config] = {
    "NousResearch/Llama-2-7b-hf": _LLAMA_2_7B,
    "NousResearch/Llama-2-7b-chat-hf": _LLAMA_2_7B,
    "NousResearch/Llama-2-13b-hf": _LLAMA_2_13B,
    "meta-llama/Llama-2-7b-hf": _LLAMA_2_7B,
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA_2_7B,
    "meta-llama/Llama-2-13b-hf": _LLAMA_2_13B,
    "meta-llama/Llama-2-13b-chat-hf": _LLAMA_2_13B,
    "meta-llama/Llama-2-70b-hf": _LLAMA_2_70B,
    "meta-llama/Llama-2-70b-chat-hf": _LLAMA_2_70B,
    "meta-llama/Llama-3.1-8B": _LLAMA_31_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_31_8B,
    "meta-llama/Llama-3.1-70B": _LLAMA_31_70B,
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA_31_70B,
    "meta-llama/Llama-3.1-405B": _LLAMA_31_405B,
    "meta-llama/Llama-3.1-405B-Instruct": _LLAMA_31_405B,
    "meta-llama/Llama-3.2-1B": _LLAMA_32_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_32_1B,
    "meta-llama/Llama-3.2-3B": _LLAMA_32_3B,
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA_32_3B,
    "mistralai/Mistral-7B-v0.1": _MISTRAL_7B,
    "mistralai/Mixtral-8x7B-v0.1": _MIXTRAL_8X7B,
    "Qwen/Qwen1.5-MoE-A2.7B": _QWEN15_MOE,
    "Qwen/Qwen2.5-0.5B": _QWEN25_05B,
    "Qwen/Qwen2.5-1.5B": _QWEN25_15B,
    "Qwen/Qwen2.5-7B": _QWEN25_7B,
    "Qwen/Qwen3-0.6B": _QWEN3_06B,
    "Qwen/Qwen3-8B": _QWEN3_8B,
    "Qwen/Qwen3-30B-A3B": _QWEN3_30B_A3B,
    "google/gemma-2b": _GEMMA_2B,
    "google/gemma-2b-it": _GEMMA_2B,
    "google/gemma-7b": _GEMMA_7B,
    "google/gemma-7b-it": _GEMMA_7B,
    "microsoft/phi-1_5": _phi(2048, 24),
    "microsoft/phi-2": _phi(2560, 32),
    "microsoft/Phi-3-mini-4k-instruct": _PHI_3_MINI,
    "openai-community/gpt2": _gpt2(768, 12, 12),
    "openai-community/gpt2-medium": _gpt2(1024, 24, 16),
    "openai-community/gpt2-large": _gpt2(1280, 36, 20),
    "openai-community/gpt2-xl": _gpt2(1600, 48, 25),
    "EleutherAI/pythia-70m": _pythia(50_304, 512, 6, 8),
    "EleutherAI/pythia-160m": _pythia(50_304, 768, 12, 12),
    "EleutherAI/pythia-410m": _pythia(50_304, 1024, 24, 16),
    "EleutherAI/pythia-1.4b": _pythia(50_304, 2048, 24, 16),
    "EleutherAI/pythia-6.9b": _pythia(50_432, 4096, 32, 32),
    "facebook/opt-125m": _opt(768, 12, 12),
    "facebook/opt-1.3b": _opt(2048, 24, 32),
    "facebook/opt-2.7b": _opt(2560, 32, 32),
    "facebook/opt-6.7b": _opt(4096, 32, 32),
    "tiiuae/falcon-7b": _falcon(4544, 32, 71),
    "tiiuae/falcon-40b": _falcon(8192, 60, 128, new_decoder_architecture=True, num_kv_heads=8),
}
