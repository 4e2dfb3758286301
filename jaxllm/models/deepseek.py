"""DeepSeekMoE's published shape, as values of the config's `model` section.

Source: Dai et al. 2024 (DeepSeekMoE), section 5.1.2 and appendix A, and the released config file. The first layer is
dense; of 64 experts a token goes through 6, and through both shared ones, which are one of twice the width.
"""

from typing import Any

from jaxllm.models import names

_EXPERTS = {"num_experts": 64, "experts_per_token": 6, "shared_d_ff": 2 * 1408, "renormalise": False}

PRESETS: dict[str, dict[str, Any]] = {
    "deepseek-moe-16b": {
        "family": "deepseek",
        "vocab_size": 102_400,
        "d_model": 2048,
        "num_layers": 28,
        "attention": {"num_heads": 16, "num_kv_heads": 16, "rope": {"theta": 10_000.0}},
        "mlp": {"d_ff": 1408, "experts": _EXPERTS},
        "norm": {"kind": "rms", "epsilon": 1e-6},
        "prefix": [{"mlp": {"d_ff": 10_944, "experts": None}}],
    }
}

CONTEXT_LENGTHS: dict[str, int] = {"deepseek-moe-16b": 4096}
"""Tokens that the published weights attend over."""

ALIASES: dict[str, str] = {}
"""Other names that people use."""

NAMES: dict[str, names.Names] = {"deepseek": {**names.LLAMA, **names.EXPERTS, **names.SHARED}}
"""Where parameters lie in Hugging Face's tensors, by family."""
