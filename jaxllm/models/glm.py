"""GLM-4's published dense shapes, as values of the config's `model` section.

Sources: Team GLM 2024 (ChatGLM), section 2, and the released config files of GLM-4-9B and of the 0414 release.
"""

from typing import Any

from jaxllm.models import names


def _glm(
    family: str, d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int, *, bias: str = "qkv"
) -> dict[str, Any]:
    return {
        "family": family,
        "vocab_size": 151_552,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": {
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": 128,
            "rope": {"theta": 10_000.0, "fraction": 0.5, "interleaved": True},
            "bias": bias,
        },
        "mlp": {"d_ff": d_ff},
        "norm": {"kind": "rms", "epsilon": 1e-5 if family == "glm4" else 1.5625e-7},
        "norm_placement": "both" if family == "glm4" else "pre",
    }


PRESETS: dict[str, dict[str, Any]] = {
    # name                            d_model  layers  heads  kv heads  d_ff
    "glm4-9b": _glm("glm", 4096, 40, 32, 2, 13_696),
    "glm4-9b-0414": _glm("glm4", 4096, 40, 32, 2, 13_696),
    "glm4-32b-0414": _glm("glm4", 6144, 61, 48, 2, 23_040, bias="none"),
}

CONTEXT_LENGTHS: dict[str, int] = {"glm4-9b": 8192, "glm4-9b-0414": 32_768, "glm4-32b-0414": 32_768}
"""Tokens that the published weights attend over."""

ALIASES: dict[str, str] = {"glm-4-9b-hf": "glm4-9b"}
"""Other names that people use."""

_GLM: names.Names = {**names.LLAMA, **names.GATE_UP}

NAMES: dict[str, names.Names] = {
    "glm": _GLM,
    "glm4": {
        **_GLM,
        "layers.attention_post_norm.scale": "model.layers.{}.post_self_attn_layernorm.weight",
        "layers.mlp_post_norm.scale": "model.layers.{}.post_mlp_layernorm.weight",
    },
}
"""Where parameters lie in Hugging Face's tensors, by family."""
