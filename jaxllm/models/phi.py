"""Phi-3's and Phi-4's published dense shapes of short context, as values of the config's `model` section.

Those of long context are the same with a `longrope` scaling, whose numbers come with the weights.

Sources: Abdin et al. 2024a (Phi-3), section 2; Abdin et al. 2024b (Phi-4), section 3; the released config files.
"""

from typing import Any

from jaxllm.models import names


def _phi(
    d_model: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    d_ff: int,
    *,
    vocab_size: int = 32_064,
    theta: float = 10_000.0,
    window: int = 2047,
) -> dict[str, Any]:
    return {
        "family": "phi3",
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": {
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "rope": {"theta": theta},
            "window": window,
        },
        "mlp": {"d_ff": d_ff},
        "norm": {"kind": "rms", "epsilon": 1e-5},
    }


PRESETS: dict[str, dict[str, Any]] = {
    # name                 d_model  layers  heads  kv heads  d_ff
    "phi3-mini-4k": _phi(3072, 32, 32, 32, 8192),
    "phi3-medium-4k": _phi(5120, 40, 40, 10, 17_920),
    "phi4": _phi(5120, 40, 40, 10, 17_920, vocab_size=100_352, theta=250_000.0, window=0),
}

CONTEXT_LENGTHS: dict[str, int] = {"phi3-mini-4k": 4096, "phi3-medium-4k": 4096, "phi4": 16_384}
"""Tokens that the published weights attend over."""

ALIASES: dict[str, str] = {}
"""Other names that people use."""

_QKV = names.Place("model.layers.{}.self_attn.qkv_proj.weight")

NAMES: dict[str, names.Names] = {
    "phi3": {
        **names.LLAMA,
        **names.GATE_UP,
        **dict.fromkeys(("layers.attention.query", "layers.attention.key", "layers.attention.value"), _QKV),
    }
}
"""Where parameters lie in Hugging Face's tensors, by family."""
