"""Qwen's published shapes, as values of the config's `model` section.

Sources: Qwen Team 2024 (Qwen 2.5), section 2 and table 1; Yang et al. 2025 (Qwen 3), tables 1 and 2; the
released configs.
"""

from typing import Any

from jaxllm.models import names


def _qwen(
    family: str,
    shape: tuple[int, int, int, int, int],
    attention: dict[str, Any],
    *,
    vocab_size: int,
    epsilon: float,
    tied: bool,
) -> dict[str, Any]:
    d_model, num_layers, num_heads, num_kv_heads, d_ff = shape
    shared = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "rope": {"theta": 1e6}}
    return {
        "family": family,
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": shared | attention,
        "mlp": {"d_ff": d_ff},
        "norm": {"kind": "rms", "epsilon": epsilon},
        "tie_embeddings": tied,
    }


def _qwen25(*shape: int, small: bool = False, epsilon: float = 1e-6) -> dict[str, Any]:
    """The small ones are tied, and have fewer unused rows in their embedding."""
    d_model, num_layers, num_heads, num_kv_heads, d_ff = shape
    return _qwen(
        "qwen2",
        (d_model, num_layers, num_heads, num_kv_heads, d_ff),
        {"bias": "qkv"},
        vocab_size=151_936 if small else 152_064,
        epsilon=epsilon,
        tied=small,
    )


def _qwen3(*shape: int, tied: bool = False) -> dict[str, Any]:
    d_model, num_layers, num_heads, num_kv_heads, d_ff = shape
    return _qwen(
        "qwen3",
        (d_model, num_layers, num_heads, num_kv_heads, d_ff),
        {"head_dim": 128, "qk_norm": "head"},
        vocab_size=151_936,
        epsilon=1e-6,
        tied=tied,
    )


def _qwen3_moe(*shape: int) -> dict[str, Any]:
    """Of 128 experts a token goes through 8; d_ff is that of an expert."""
    dense = _qwen3(*shape)
    return dense | {
        "family": "qwen3_moe",
        "mlp": dense["mlp"] | {"experts": {"num_experts": 128, "experts_per_token": 8}},
    }


PRESETS: dict[str, dict[str, Any]] = {
    # name                  d_model  layers  heads  kv heads  d_ff
    "qwen2-0.5b": _qwen25(896, 24, 14, 2, 4864, small=True),
    "qwen2-1.5b": _qwen25(1536, 28, 12, 2, 8960, small=True),
    "qwen2-7b": _qwen25(3584, 28, 28, 4, 18_944),
    "qwen2-72b": _qwen25(8192, 80, 64, 8, 29_568, epsilon=1e-5),
    "qwen2.5-0.5b": _qwen25(896, 24, 14, 2, 4864, small=True),
    "qwen2.5-1.5b": _qwen25(1536, 28, 12, 2, 8960, small=True),
    "qwen2.5-3b": _qwen25(2048, 36, 16, 2, 11_008, small=True),
    "qwen2.5-7b": _qwen25(3584, 28, 28, 4, 18_944),
    "qwen2.5-14b": _qwen25(5120, 48, 40, 8, 13_824, epsilon=1e-5),
    "qwen2.5-32b": _qwen25(5120, 64, 40, 8, 27_648, epsilon=1e-5),
    "qwen2.5-72b": _qwen25(8192, 80, 64, 8, 29_568, epsilon=1e-5),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 8, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 8, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 8, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 8, 12_288),
    "qwen3-14b": _qwen3(5120, 40, 40, 8, 17_408),
    "qwen3-32b": _qwen3(5120, 64, 64, 8, 25_600),
    "qwen3-30b-a3b": _qwen3_moe(2048, 48, 32, 4, 768),
    "qwen3-235b-a22b": _qwen3_moe(4096, 94, 64, 4, 1536),
}

CONTEXT_LENGTHS: dict[str, int] = {
    name: 32_768 if name.startswith("qwen3") or name in ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b") else 131_072
    for name in PRESETS
}
"""Tokens that the published base weights attend over."""

CONTEXT_LENGTHS["qwen3-235b-a22b"] = 40_960  # released after training only

ALIASES: dict[str, str] = {}
"""Other names that people use."""

NAMES: dict[str, names.Names] = {
    "qwen2": names.LLAMA,
    "qwen3": {**names.LLAMA, **names.QK_NORM},
    "qwen3_moe": {**names.LLAMA, **names.QK_NORM, **names.EXPERTS},
}
"""Where parameters lie in Hugging Face's tensors, by family."""
