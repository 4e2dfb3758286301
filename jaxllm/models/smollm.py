"""SmolLM3's published shape, as values of the config's `model` section.

Every fourth layer has no positions (NoPE, Yang et al. 2025, "RoPE to NoPE and back again").

Source: Hugging Face, "SmolLM3: smol, multilingual, long-context reasoner" (2025), and the released config file.
"""

from typing import Any

from jaxllm.models import names

PRESETS: dict[str, dict[str, Any]] = {
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

CONTEXT_LENGTHS: dict[str, int] = {"smollm3-3b": 65_536}
"""Tokens that the published weights attend over."""

ALIASES: dict[str, str] = {}
"""Other names that people use."""

NAMES: dict[str, names.Names] = {"smollm3": names.LLAMA}
"""Where parameters lie in Hugging Face's tensors, by family."""
