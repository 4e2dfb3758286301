"""Mistral's published shapes, as values of the config's `model` section.

Sources: Jiang et al. 2023 (7B; its window of 4,096 tokens is in version 0.1 only), Jiang et al. 2024 (Mixtral of 8
experts, of which a token goes through 2) and the released config files.
"""

from typing import Any

from jaxllm.models import names


def _mistral(
    d_model: int,
    num_layers: int,
    d_ff: int,
    *,
    vocab_size: int = 32_000,
    theta: float = 1e6,
    window: int = 0,
    num_heads: int = 32,
) -> dict[str, Any]:
    return {
        "family": "mistral",
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": {
            "num_heads": num_heads,
            "num_kv_heads": 8,
            "head_dim": 128,
            "rope": {"theta": theta},
            "window": window,
        },
        "mlp": {"d_ff": d_ff},
        "norm": {"kind": "rms", "epsilon": 1e-5},
    }


def _mixtral(d_model: int, num_layers: int, num_heads: int, d_ff: int) -> dict[str, Any]:
    dense = _mistral(d_model, num_layers, d_ff)
    return dense | {
        "family": "mixtral",
        "attention": dense["attention"] | {"num_heads": num_heads},
        "mlp": {"d_ff": d_ff, "experts": {"num_experts": 8, "experts_per_token": 2}},
    }


PRESETS: dict[str, dict[str, Any]] = {
    # name                       d_model  layers  d_ff
    "mistral-7b-v0.1": _mistral(4096, 32, 14_336, theta=10_000.0, window=4096),
    "mistral-7b-v0.2": _mistral(4096, 32, 14_336),
    "mistral-7b-v0.3": _mistral(4096, 32, 14_336, vocab_size=32_768),
    "mistral-nemo-12b": _mistral(5120, 40, 14_336, vocab_size=131_072),
    "mistral-small-22b": _mistral(6144, 56, 16_384, vocab_size=32_768, num_heads=48),
    "mistral-large-123b": _mistral(12_288, 88, 28_672, vocab_size=32_768, num_heads=96),
    "mistral-small-24b": _mistral(5120, 40, 32_768, vocab_size=131_072, theta=1e8),
    # name                    d_model  layers  heads  d_ff
    "mixtral-8x7b": _mixtral(4096, 32, 32, 14_336),
    "mixtral-8x22b": _mixtral(6144, 56, 48, 16_384),
}

CONTEXT_LENGTHS: dict[str, int] = {
    "mistral-7b-v0.1": 32_768,
    "mistral-7b-v0.2": 32_768,
    "mistral-7b-v0.3": 32_768,
    "mistral-nemo-12b": 131_072,
    "mistral-small-22b": 32_768,
    "mistral-large-123b": 131_072,
    "mistral-small-24b": 32_768,
    "mixtral-8x7b": 32_768,
    "mixtral-8x22b": 65_536,
}
"""Tokens that the published weights attend over (Nemo's config says more than its makers do)."""

ALIASES: dict[str, str] = {
    "mistral-7b": "mistral-7b-v0.1",
    "mistral-nemo-base-2407": "mistral-nemo-12b",
    "mistral-nemo-instruct-2407": "mistral-nemo-12b",
    "mistral-small-instruct-2409": "mistral-small-22b",
    "mistral-large-instruct-2407": "mistral-large-123b",
    "mistral-large-instruct-2411": "mistral-large-123b",
    "mistral-small-24b-base-2501": "mistral-small-24b",
    "mistral-small-24b-instruct-2501": "mistral-small-24b",
    "mixtral-8x7b-v0.1": "mixtral-8x7b",
}
"""Other names that people use."""

_SPARSE = "model.layers.{}.block_sparse_moe."

NAMES: dict[str, names.Names] = {
    "mistral": names.LLAMA,
    "mixtral": {
        **names.LLAMA,
        "layers.mlp.router.kernel": f"{_SPARSE}gate.weight",
        "layers.mlp.experts.gate": f"{_SPARSE}experts.{{}}.w1.weight",
        "layers.mlp.experts.up": f"{_SPARSE}experts.{{}}.w3.weight",
        "layers.mlp.experts.down": f"{_SPARSE}experts.{{}}.w2.weight",
    },
}
"""Where parameters lie in Hugging Face's tensors, by family."""
