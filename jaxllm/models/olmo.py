"""OLMo's published shapes, as values of the config's `model` section.

Sources: OLMo et al. 2024 (2 OLMo 2 Furious), section 3 and table 1; Muennighoff et al. 2024 (OLMoE), section 2 and
appendix B; and the released config files.
"""

from typing import Any

from jaxllm.models import names


def _olmo2(d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int) -> dict[str, Any]:
    return {
        "family": "olmo2",
        "vocab_size": 100_352,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": {
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "rope": {"theta": 500_000.0},
            "qk_norm": "projection",
        },
        "mlp": {"d_ff": d_ff},
        "norm": {"kind": "rms", "epsilon": 1e-6},
        "norm_placement": "post",
    }


_OLMOE: dict[str, Any] = {
    "family": "olmoe",
    "vocab_size": 50_304,
    "d_model": 2048,
    "num_layers": 16,
    "attention": {"num_heads": 16, "num_kv_heads": 16, "rope": {"theta": 10_000.0}, "qk_norm": "projection"},
    "mlp": {"d_ff": 1024, "experts": {"num_experts": 64, "experts_per_token": 8, "renormalise": False}},
    "norm": {"kind": "rms", "epsilon": 1e-5},
}

PRESETS: dict[str, dict[str, Any]] = {
    # name              d_model  layers  heads  kv heads  d_ff
    "olmo2-1b": _olmo2(2048, 16, 16, 16, 8192),
    "olmo2-7b": _olmo2(4096, 32, 32, 32, 11_008),
    "olmo2-13b": _olmo2(5120, 40, 40, 40, 13_824),
    "olmo2-32b": _olmo2(5120, 64, 40, 8, 27_648),
    "olmoe-1b-7b": _OLMOE,
}

CONTEXT_LENGTHS: dict[str, int] = dict.fromkeys(PRESETS, 4096)
"""Tokens that the published weights attend over."""

ALIASES: dict[str, str] = {
    "olmo-2-0425-1b": "olmo2-1b",
    "olmo-2-1124-7b": "olmo2-7b",
    "olmo-2-1124-13b": "olmo2-13b",
    "olmo-2-0325-32b": "olmo2-32b",
    "olmoe-1b-7b-0924": "olmoe-1b-7b",
}
"""Other names that people use."""

NAMES: dict[str, names.Names] = {
    "olmo2": {
        **names.LLAMA,
        **names.QK_NORM,
        "layers.attention_post_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
        "layers.mlp_post_norm.scale": "model.layers.{}.post_feedforward_layernorm.weight",
    },
    "olmoe": {**names.LLAMA, **names.QK_NORM, **names.EXPERTS},
}
"""Where parameters lie in Hugging Face's tensors, by family."""
