"""The `config.json` files of the published weights behind the presets, by name of the preset."""

from typing import Any

from published_bases import (
    BLOOM,
    FALCON,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GLM,
    GLM4,
    GPT2,
    LLAMA1,
    LLAMA2,
    LLAMA3,
    LLAMA31,
    MISTRAL,
    OLMO2,
    PHI3,
    QWEN3,
    QWEN25,
    QWEN25_SMALL,
    SMOLLM3,
)
from published_long import PHI3_LONG, PHI4_MINI, SMOLLM
from published_mixtures import DEEPSEEK_MOE, MIXTRAL, OLMOE, QWEN3_MOE

_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")


def _config(base: dict[str, Any], *shape: int, **more: Any) -> dict[str, Any]:
    return base | dict(zip(_NAMES, shape, strict=True)) | more


def _llama1(hidden: int, layers: int, heads: int, width: int, **more: Any) -> dict[str, Any]:
    config = _config(LLAMA1, hidden, layers, heads, heads, width, **more)
    del config["num_key_value_heads"]
    return config


def _scaled(factor: float) -> dict[str, Any]:
    return LLAMA31 | {"rope_scaling": LLAMA31["rope_scaling"] | {"factor": factor}}


def _gpt2(n_embd: int, n_layer: int, n_head: int, **more: Any) -> dict[str, Any]:
    return GPT2 | {"n_embd": n_embd, "n_layer": n_layer, "n_head": n_head} | more


def _qwen(base: dict[str, Any], *shape: int, **more: Any) -> dict[str, Any]:
    return _config(base, *shape, max_window_layers=shape[1], **more)


def _bloom(n_embed: int, n_layer: int, num_heads: int) -> dict[str, Any]:
    return BLOOM | {"n_embed": n_embed, "n_layer": n_layer, "num_attention_heads": num_heads}


def _falcon(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return FALCON | {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads} | more


_GEMMA3_SMALL: dict[str, Any] = {
    "max_position_embeddings": 32_768,
    "rope_scaling": None,
    "sliding_window": 512,
    "vocab_size": 262_144,
}
_PHI4: dict[str, Any] = {
    "bos_token_id": 100_257,
    "eos_token_id": 100_265,
    "max_position_embeddings": 16_384,
    "original_max_position_embeddings": 16_384,
    "pad_token_id": 100_351,
    "rope_theta": 250_000,
    "sliding_window": None,
    "vocab_size": 100_352,
}
_FALCON_RW: dict[str, Any] = {
    "alibi": True,
    "bias": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "multi_query": False,
    "parallel_attn": False,
    "vocab_size": 50_304,
}
_FALCON2: dict[str, Any] = {
    "ffn_hidden_size": 16_384,
    "max_position_embeddings": 8192,
    "new_decoder_architecture": True,
    "num_kv_heads": 8,
    "num_ln_in_parallel_attn": 1,
    "rope_scaling": None,
    "rope_theta": 500_042.0,
    "tie_word_embeddings": False,
}
_QWEN2_SMALL: dict[str, Any] = QWEN25_SMALL | {"max_position_embeddings": 131_072, "sliding_window": 131_072}
_SMOLLM2: dict[str, Any] = {"max_position_embeddings": 8192, "rope_theta": 100_000}
_FALCON_NEW: dict[str, Any] = {"new_decoder_architecture": True, "num_kv_heads": 8}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama-7b": _llama1(4096, 32, 32, 11_008),
    "llama-13b": _llama1(5120, 40, 40, 13_824),
    "llama-30b": _llama1(6656, 60, 52, 17_920),
    "llama-65b": _llama1(8192, 80, 64, 22_016, rms_norm_eps=1e-5),
    "llama2-7b": _config(LLAMA2, 4096, 32, 32, 32, 11_008),
    "llama2-13b": _config(LLAMA2, 5120, 40, 40, 40, 13_824),
    "llama2-70b": _config(LLAMA2, 8192, 80, 64, 8, 28_672),
    "llama3-8b": _config(LLAMA3, 4096, 32, 32, 8, 14_336),
    "llama3-70b": _config(LLAMA3, 8192, 80, 64, 8, 28_672),
    "llama3.1-8b": _config(LLAMA31, 4096, 32, 32, 8, 14_336),
    "llama3.1-70b": _config(LLAMA31, 8192, 80, 64, 8, 28_672),
    "llama3.1-405b": _config(LLAMA31, 16_384, 126, 128, 8, 53_248),
    "llama3.2-1b": _config(_scaled(32.0), 2048, 16, 32, 8, 8192, head_dim=64, tie_word_embeddings=True),
    "llama3.2-3b": _config(_scaled(32.0), 3072, 28, 24, 8, 8192, head_dim=128, tie_word_embeddings=True),
    "llama3.3-70b": _config(LLAMA31, 8192, 80, 64, 8, 28_672, head_dim=128),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16, n_special=0, predict_special_tokens=True),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25, output_past=True),
    "mistral-7b-v0.1": _config(MISTRAL, 4096, 32, 32, 8, 14_336, rope_theta=10_000.0, sliding_window=4096),
    "mistral-7b-v0.2": _config(MISTRAL, 4096, 32, 32, 8, 14_336),
    "mistral-7b-v0.3": _config(MISTRAL, 4096, 32, 32, 8, 14_336, vocab_size=32_768),
    "mistral-nemo-12b": _config(
        MISTRAL, 5120, 40, 32, 8, 14_336, head_dim=128, max_position_embeddings=131_072, vocab_size=131_072
    ),
    "mistral-small-22b": _config(MISTRAL, 6144, 56, 48, 8, 16_384, head_dim=128, vocab_size=32_768),
    "mistral-large-123b": _config(
        MISTRAL, 12_288, 88, 96, 8, 28_672, head_dim=128, max_position_embeddings=131_072, vocab_size=32_768
    ),
    "mistral-small-24b": _config(
        MISTRAL, 5120, 40, 32, 8, 32_768, head_dim=128, rope_theta=100_000_000.0, vocab_size=131_072
    ),
    "gemma-2b": _config(GEMMA, 2048, 18, 8, 1, 16_384),
    "gemma-7b": _config(GEMMA, 3072, 28, 16, 16, 24_576),
    "gemma2-2b": _config(GEMMA2, 2304, 26, 8, 4, 9216),
    "gemma2-9b": _config(GEMMA2, 3584, 42, 16, 8, 14_336),
    "gemma2-27b": _config(GEMMA2, 4608, 46, 32, 16, 36_864, head_dim=128, query_pre_attn_scalar=144),
    "gemma3-270m": _config(GEMMA3, 640, 18, 4, 1, 2048, **_GEMMA3_SMALL),
    "gemma3-1b": _config(GEMMA3, 1152, 26, 4, 1, 6912, **_GEMMA3_SMALL),
    "gemma3-4b": _config(GEMMA3, 2560, 34, 8, 4, 10_240),
    "gemma3-12b": _config(GEMMA3, 3840, 48, 16, 8, 15_360),
    "gemma3-27b": _config(GEMMA3, 5376, 62, 32, 16, 21_504, head_dim=128, query_pre_attn_scalar=168),
    "qwen2-0.5b": _qwen(_QWEN2_SMALL, 896, 24, 14, 2, 4864),
    "qwen2-1.5b": _qwen(_QWEN2_SMALL, 1536, 28, 12, 2, 8960),
    "qwen2-7b": _qwen(QWEN25, 3584, 28, 28, 4, 18_944),
    "qwen2-72b": _qwen(QWEN25, 8192, 80, 64, 8, 29_568, rms_norm_eps=1e-5),
    "qwen2.5-0.5b": _qwen(QWEN25_SMALL, 896, 24, 14, 2, 4864),
    "qwen2.5-1.5b": _qwen(QWEN25_SMALL, 1536, 28, 12, 2, 8960),
    "qwen2.5-3b": _qwen(QWEN25_SMALL, 2048, 36, 16, 2, 11_008),
    "qwen2.5-7b": _qwen(QWEN25, 3584, 28, 28, 4, 18_944),
    "qwen2.5-14b": _qwen(QWEN25, 5120, 48, 40, 8, 13_824, rms_norm_eps=1e-5),
    "qwen2.5-32b": _qwen(QWEN25, 5120, 64, 40, 8, 27_648, rms_norm_eps=1e-5),
    "qwen2.5-72b": _qwen(QWEN25, 8192, 80, 64, 8, 29_568, rms_norm_eps=1e-5),
    "qwen3-0.6b": _qwen(QWEN3, 1024, 28, 16, 8, 3072, tie_word_embeddings=True),
    "qwen3-1.7b": _qwen(QWEN3, 2048, 28, 16, 8, 6144, tie_word_embeddings=True),
    "qwen3-4b": _qwen(QWEN3, 2560, 36, 32, 8, 9728, tie_word_embeddings=True),
    "qwen3-8b": _qwen(QWEN3, 4096, 36, 32, 8, 12_288),
    "qwen3-14b": _qwen(QWEN3, 5120, 40, 40, 8, 17_408),
    "qwen3-32b": _qwen(QWEN3, 5120, 64, 64, 8, 25_600),
    "olmo2-1b": _config(OLMO2, 2048, 16, 16, 16, 8192),
    "olmo2-7b": _config(OLMO2, 4096, 32, 32, 32, 11_008),
    "olmo2-13b": _config(OLMO2, 5120, 40, 40, 40, 13_824),
    "olmo2-32b": _config(OLMO2, 5120, 64, 40, 8, 27_648),
    "phi3-mini-4k": _config(PHI3, 3072, 32, 32, 32, 8192),
    "phi3-medium-4k": _config(PHI3, 5120, 40, 40, 10, 17_920),
    "phi3-mini-128k": _config(PHI3_LONG, 3072, 32, 32, 32, 8192),
    "phi4": _config(PHI3, 5120, 40, 40, 10, 17_920, **_PHI4),
    "phi4-mini": _config(PHI4_MINI, 3072, 32, 24, 8, 8192),
    "smollm-135m": _config(SMOLLM, 576, 30, 9, 3, 1536),
    "smollm-360m": _config(SMOLLM, 960, 32, 15, 5, 2560),
    "smollm-1.7b": _config(SMOLLM, 2048, 24, 32, 32, 8192),
    "smollm2-135m": _config(SMOLLM, 576, 30, 9, 3, 1536, **_SMOLLM2),
    "smollm2-360m": _config(SMOLLM, 960, 32, 15, 5, 2560, **_SMOLLM2),
    "smollm2-1.7b": _config(SMOLLM, 2048, 24, 32, 32, 8192, **_SMOLLM2 | {"rope_theta": 130_000}),
    "smollm3-3b": _config(SMOLLM3, 2048, 36, 16, 4, 11_008),
    "bloom-560m": _bloom(1024, 24, 16),
    "bloom-1b1": _bloom(1536, 24, 16),
    "bloom-1b7": _bloom(2048, 24, 16),
    "bloom-3b": _bloom(2560, 30, 32),
    "bloom-7b1": _bloom(4096, 30, 32),
    "bloom-176b": _bloom(14_336, 70, 112),
    "falcon-rw-1b": _falcon(2048, 24, 32, **_FALCON_RW),
    "falcon-7b": _falcon(4544, 32, 71),
    "falcon2-11b": _falcon(4096, 60, 32, **_FALCON2),
    "falcon-40b": _falcon(8192, 60, 128, **_FALCON_NEW),
    "falcon-180b": _falcon(14_848, 80, 232, **_FALCON_NEW),
    "glm4-9b": _config(GLM, 4096, 40, 32, 2, 13_696),
    "glm4-9b-0414": _config(GLM4, 4096, 40, 32, 2, 13_696),
    "glm4-32b-0414": _config(GLM4, 6144, 61, 48, 2, 23_040, attention_bias=False),
    "mixtral-8x7b": _config(MIXTRAL, 4096, 32, 32, 8, 14_336),
    "mixtral-8x22b": _config(
        MIXTRAL, 6144, 56, 48, 8, 16_384, max_position_embeddings=65_536, router_aux_loss_coef=0.001
    ),
    "qwen3-30b-a3b": _qwen(QWEN3_MOE, 2048, 48, 32, 4, 6144, moe_intermediate_size=768),
    "qwen3-235b-a22b": _qwen(
        QWEN3_MOE, 4096, 94, 64, 4, 12_288, moe_intermediate_size=1536, max_position_embeddings=40_960
    ),
    "olmoe-1b-7b": _config(OLMOE, 2048, 16, 16, 16, 1024),
    "deepseek-moe-16b": _config(DEEPSEEK_MOE, 2048, 28, 16, 16, 10_944),
}
"""Name of the preset -> its config.json."""
