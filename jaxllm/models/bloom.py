"""BLOOM's published shapes, as values of the config's `model` section.

Source: BigScience Workshop 2022 (BLOOM), section 3.2 and table 3, and the released config files.
"""

from typing import Any

from jaxllm.models.names import Names, Place


def _bloom(d_model: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    return {
        "family": "bloom",
        "vocab_size": 250_880,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": {"num_heads": num_heads, "positions": "alibi", "bias": "all"},
        "mlp": {"d_ff": 4 * d_model, "gated": False, "activation": "gelu_tanh", "bias": True},
        "norm": {"kind": "layer", "epsilon": 1e-5},
        "embedding_norm": True,
        "tie_embeddings": True,
    }


PRESETS: dict[str, dict[str, Any]] = {
    # name              d_model  layers  heads
    "bloom-560m": _bloom(1024, 24, 16),
    "bloom-1b1": _bloom(1536, 24, 16),
    "bloom-1b7": _bloom(2048, 24, 16),
    "bloom-3b": _bloom(2560, 30, 32),
    "bloom-7b1": _bloom(4096, 30, 32),
    "bloom-176b": _bloom(14_336, 70, 112),
}

CONTEXT_LENGTHS: dict[str, int] = dict.fromkeys(PRESETS, 2048)
"""Tokens that the weights were trained over; ALiBi sets no limit."""

ALIASES: dict[str, str] = {"bloom": "bloom-176b"}
"""Other names that people use."""

_QKV = Place("transformer.h.{}.self_attention.query_key_value.weight", by_head=True)
_QKV_BIAS = Place("transformer.h.{}.self_attention.query_key_value.bias", by_head=True)

NAMES: dict[str, Names] = {
    "bloom": {
        "embedding.table": "transformer.word_embeddings.weight",
        "embedding_norm.scale": "transformer.word_embeddings_layernorm.weight",
        "embedding_norm.bias": "transformer.word_embeddings_layernorm.bias",
        "layers.attention_norm.scale": "transformer.h.{}.input_layernorm.weight",
        "layers.attention_norm.bias": "transformer.h.{}.input_layernorm.bias",
        "layers.attention.query": _QKV,
        "layers.attention.key": _QKV,
        "layers.attention.value": _QKV,
        "layers.attention.query_bias": _QKV_BIAS,
        "layers.attention.key_bias": _QKV_BIAS,
        "layers.attention.value_bias": _QKV_BIAS,
        "layers.attention.output": "transformer.h.{}.self_attention.dense.weight",
        "layers.attention.output_bias": "transformer.h.{}.self_attention.dense.bias",
        "layers.mlp_norm.scale": "transformer.h.{}.post_attention_layernorm.weight",
        "layers.mlp_norm.bias": "transformer.h.{}.post_attention_layernorm.bias",
        "layers.mlp.up": "transformer.h.{}.mlp.dense_h_to_4h.weight",
        "layers.mlp.up_bias": "transformer.h.{}.mlp.dense_h_to_4h.bias",
        "layers.mlp.down": "transformer.h.{}.mlp.dense_4h_to_h.weight",
        "layers.mlp.down_bias": "transformer.h.{}.mlp.dense_4h_to_h.bias",
        "norm.scale": "transformer.ln_f.weight",
        "norm.bias": "transformer.ln_f.bias",
        "head.kernel": "lm_head.weight",
    }
}
"""Where parameters lie in Hugging Face's tensors, by family."""
