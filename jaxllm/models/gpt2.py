"""GPT-2's published shapes, as values of the config's `model` section.

Source: Radford et al. 2019, table 2, and the released hparams.json files; parameter counts are those of the weights:
the paper's own are known to be off.
"""

from typing import Any

from jaxllm.models.names import Names, Place


def _gpt2(d_model: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    return {
        "family": "gpt2",
        "vocab_size": 50_257,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": {"num_heads": num_heads, "positions": "none", "bias": "all"},
        "mlp": {"d_ff": 4 * d_model, "gated": False, "activation": "gelu_tanh", "bias": True},
        "norm": {"kind": "layer", "epsilon": 1e-5},
        "learned_positions": 1024,
        "tie_embeddings": True,
    }


PRESETS: dict[str, dict[str, Any]] = {
    # name                  d_model  layers  heads
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
}

CONTEXT_LENGTHS: dict[str, int] = dict.fromkeys(PRESETS, 1024)
"""Tokens that the published weights attend over."""

ALIASES: dict[str, str] = {"gpt2-small": "gpt2"}
"""Other names that people use."""

_QKV = Place("transformer.h.{}.attn.c_attn.weight", plain=True)
_QKV_BIAS = Place("transformer.h.{}.attn.c_attn.bias")

NAMES: dict[str, Names] = {
    "gpt2": {
        "embedding.table": "transformer.wte.weight",
        "positions.table": "transformer.wpe.weight",
        "layers.attention_norm.scale": "transformer.h.{}.ln_1.weight",
        "layers.attention_norm.bias": "transformer.h.{}.ln_1.bias",
        "layers.attention.query": _QKV,
        "layers.attention.key": _QKV,
        "layers.attention.value": _QKV,
        "layers.attention.query_bias": _QKV_BIAS,
        "layers.attention.key_bias": _QKV_BIAS,
        "layers.attention.value_bias": _QKV_BIAS,
        "layers.attention.output": Place("transformer.h.{}.attn.c_proj.weight", plain=True),
        "layers.attention.output_bias": "transformer.h.{}.attn.c_proj.bias",
        "layers.mlp_norm.scale": "transformer.h.{}.ln_2.weight",
        "layers.mlp_norm.bias": "transformer.h.{}.ln_2.bias",
        "layers.mlp.up": Place("transformer.h.{}.mlp.c_fc.weight", plain=True),
        "layers.mlp.up_bias": "transformer.h.{}.mlp.c_fc.bias",
        "layers.mlp.down": Place("transformer.h.{}.mlp.c_proj.weight", plain=True),
        "layers.mlp.down_bias": "transformer.h.{}.mlp.c_proj.bias",
        "norm.scale": "transformer.ln_f.weight",
        "norm.bias": "transformer.ln_f.bias",
        "head.kernel": "lm_head.weight",
    }
}
"""Where parameters lie in Hugging Face's tensors, by family."""
