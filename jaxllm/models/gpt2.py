"""GPT-2's published shapes, as values of the config's `model` section.

Source: Radford et al. 2019, table 2, and the released hparams.json files; parameter counts are those of the weights:
the paper's own are known to be off.
"""

from typing import Any


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
