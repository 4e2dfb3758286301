"""SmolLM's published shapes, as values of the config's `model` section.

SmolLM 1 and 2 are of Llama's family. In SmolLM3 every fourth layer has no positions (NoPE, Yang et al. 2025, "RoPE to
NoPE and back again").

Sources: Allal et al. 2025 (SmolLM2), table 6; Hugging Face, "SmolLM3: smol, multilingual, long-context reasoner"
(2025); the released config files.
"""

from typing import Any

from jaxllm.models import names


def _smollm(
    d_model: int, num_layers: int, num_heads: int, num_kv_heads: int, d_ff: int, theta: float
) -> dict[str, Any]:
    return {
        "family": "llama",
        "vocab_size": 49_152,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "rope": {"theta": theta}},
        "mlp": {"d_ff": d_ff},
        "norm": {"kind": "rms", "epsilon": 1e-5},
        "tie_embeddings": True,
    }


PRESETS: dict[str, dict[str, Any]] = {
    # name                    d_model  layers  heads  kv heads  d_ff  theta
    "smollm-135m": _smollm(576, 30, 9, 3, 1536, 10_000.0),
    "smollm-360m": _smollm(960, 32, 15, 5, 2560, 10_000.0),
    "smollm-1.7b": _smollm(2048, 24, 32, 32, 8192, 10_000.0),
    "smollm2-135m": _smollm(576, 30, 9, 3, 1536, 100_000.0),
    "smollm2-360m": _smollm(960, 32, 15, 5, 2560, 100_000.0),
    "smollm2-1.7b": _smollm(2048, 24, 32, 32, 8192, 130_000.0),
    "smollm3-3b": {
        "family": "smollm3",
        "vocab_size": 128_256,
        "d_model": 2048,
        "num_layers": 36,
        "attention": {"num_heads": 16, "num_kv_heads": 4, "rope": {"theta": 5e6}},
        "mlp": {"d_ff": 11_008},
        "norm": {"kind": "rms", "epsilon": 1e-6},
        "period": [{}, {}, {}, {"attention": {"positions": "none"}}],
        "tie_embeddings": True,
    },
}

CONTEXT_LENGTHS: dict[str, int] = {
    name: {"smollm": 2048, "smollm2": 8192, "smollm3": 65_536}[name.partition("-")[0]] for name in PRESETS
}
"""Tokens that the published weights attend over."""

ALIASES: dict[str, str] = {}
"""Other names that people use."""

NAMES: dict[str, names.Names] = {"smollm3": names.LLAMA}
"""Where parameters lie in Hugging Face's tensors, by family."""
