"""BLOOM's published shapes, as values of the config's `model` section.

Source: BigScience Workshop 2022 (BLOOM), section 3.2 and table 3, and the released config files.
"""

from typing import Any


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
