"""Gemma's published shapes, as values of the config's `model` section. Of Gemma 3 the text model.

Sources: Gemma Team 2024a (Gemma 1), table 1; Gemma Team 2024b (Gemma 2), table 1: layers with a window of 4,096 tokens
and without take turns; Gemma Team 2025 (Gemma 3), section 2: five layers with a window to one without, each kind with
its own rope; and the released config files.
"""

from typing import Any

from jaxllm.models import names


def _gemma(d_model: int, num_layers: int, d_ff: int, attention: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    return {
        "family": "gemma",
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": attention,
        "mlp": {"d_ff": d_ff, "activation": "gelu_tanh"},
        "norm": {"kind": "rms", "epsilon": 1e-6, "unit_offset": True},
        "embedding_scale": d_model**0.5,
        "tie_embeddings": True,
    }


def _gemma1(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int) -> dict[str, Any]:
    attention = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": 256}
    return _gemma(d_model, num_layers, d_ff, attention, 256_000)


def _gemma2(
    d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, d_ff: int, scalar: int
) -> dict[str, Any]:
    """`scalar` is query_pre_attn_scalar: the products of queries and keys are divided by its root."""
    attention = {
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "query_scale": scalar**-0.5,
        "soft_cap": 50.0,
    }
    return _gemma(d_model, num_layers, d_ff, attention, 256_000) | {
        "family": "gemma2",
        "norm_placement": "both",
        "period": [{"attention": {"window": 4096}}, {}],
        "final_soft_cap": 30.0,
    }


def _gemma3(
    shape: tuple[int, int, int, int, int, int],
    *,
    scalar: int = 256,
    window: int = 1024,
    vocab_size: int = 262_208,
    stretch: float = 8.0,
) -> dict[str, Any]:
    """`stretch` is how far the rope of layers without a window is stretched, 0 for not at all."""
    d_model, num_layers, num_heads, num_kv_heads, head_dim, d_ff = shape
    attention = {
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "query_scale": scalar**-0.5,
        "qk_norm": "head",
    }
    far: dict[str, Any] = {"theta": 1e6}
    if stretch:
        far["scaling"] = {"type": "linear", "factor": stretch}
    near = {"attention": {"window": window, "rope": {"theta": 10_000.0}}}
    return _gemma(d_model, num_layers, d_ff, attention, vocab_size) | {
        "family": "gemma3",
        "norm_placement": "both",
        "period": [near, near, near, near, near, {"attention": {"rope": far}}],
    }


_SMALL: dict[str, Any] = {"window": 512, "vocab_size": 262_144, "stretch": 0.0}

PRESETS: dict[str, dict[str, Any]] = {
    # name                 d_model  layers  heads  kv heads  d_ff
    "gemma-2b": _gemma1(2048, 18, 8, 1, 16_384),
    "gemma-7b": _gemma1(3072, 28, 16, 16, 24_576),
    # name                 d_model  layers  heads  kv heads  head_dim  d_ff  query_pre_attn_scalar
    "gemma2-2b": _gemma2(2304, 26, 8, 4, 256, 9216, 256),
    "gemma2-9b": _gemma2(3584, 42, 16, 8, 256, 14_336, 256),
    "gemma2-27b": _gemma2(4608, 46, 32, 16, 128, 36_864, 144),
    # name                  d_model  layers  heads  kv heads  head_dim  d_ff
    "gemma3-270m": _gemma3((640, 18, 4, 1, 256, 2048), **_SMALL),
    "gemma3-1b": _gemma3((1152, 26, 4, 1, 256, 6912), **_SMALL),
    "gemma3-4b": _gemma3((2560, 34, 8, 4, 256, 10_240)),
    "gemma3-12b": _gemma3((3840, 48, 16, 8, 256, 15_360)),
    "gemma3-27b": _gemma3((5376, 62, 32, 16, 128, 21_504), scalar=168),
}

CONTEXT_LENGTHS: dict[str, int] = {
    name: 8192 if not name.startswith("gemma3") else 32_768 if name in ("gemma3-270m", "gemma3-1b") else 131_072
    for name in PRESETS
}
"""Tokens that the published weights attend over."""

ALIASES: dict[str, str] = {
    f"{release}-{size}-{tuning}": f"{release.replace('gemma-', 'gemma')}-{size}"
    for release, sizes in (
        ("gemma-2", ("2b", "9b", "27b")),
        ("gemma-3", ("270m", "1b", "4b", "12b", "27b")),
    )
    for size in sizes
    for tuning in ("it", "pt")
} | {"gemma-2b-it": "gemma-2b", "gemma-7b-it": "gemma-7b"}
"""Other names that people use."""

_GEMMA2: names.Names = {
    **names.LLAMA,
    "layers.attention_post_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers.mlp_norm.scale": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layers.mlp_post_norm.scale": "model.layers.{}.post_feedforward_layernorm.weight",
}

NAMES: dict[str, names.Names] = {
    "gemma": names.LLAMA,
    "gemma2": _GEMMA2,
    "gemma3": {**_GEMMA2, **names.QK_NORM},
}
"""Where parameters lie in Hugging Face's tensors, by family."""
