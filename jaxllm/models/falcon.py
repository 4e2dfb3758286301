"""Falcon's published shapes, as values of the config's `model` section.

Sources: Almazrouei et al. 2023 (The Falcon Series), section 4; Penedo et al. 2023 (RefinedWeb) for the RW model; the
released config files.
"""

from typing import Any

from jaxllm.models import bloom
from jaxllm.models.names import Names, Place


def _falcon(
    d_model: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    branches: str,
    *,
    vocab_size: int = 65_024,
    theta: float = 10_000.0,
    tied: bool = True,
) -> dict[str, Any]:
    return {
        "family": "falcon",
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "rope": {"theta": theta}},
        "mlp": {"d_ff": 4 * d_model, "gated": False, "activation": "gelu"},
        "norm": {"kind": "layer", "epsilon": 1e-5},
        "branches": branches,
        "tie_embeddings": tied,
    }


def _falcon_rw(d_model: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    plain = _falcon(d_model, num_layers, num_heads, num_heads, "sequential", vocab_size=50_304)
    return plain | {
        "attention": {"num_heads": num_heads, "positions": "falcon_alibi", "bias": "all"},
        "mlp": plain["mlp"] | {"bias": True},
    }


PRESETS: dict[str, dict[str, Any]] = {
    # name                  d_model  layers  heads  kv heads
    "falcon-rw-1b": _falcon_rw(2048, 24, 32),
    "falcon-7b": _falcon(4544, 32, 71, 1, "parallel_shared_norm"),
    "falcon2-11b": _falcon(4096, 60, 32, 8, "parallel_shared_norm", theta=500_042.0, tied=False),
    "falcon-40b": _falcon(8192, 60, 128, 8, "parallel"),
    "falcon-180b": _falcon(14_848, 80, 232, 8, "parallel"),
}

CONTEXT_LENGTHS: dict[str, int] = dict.fromkeys(PRESETS, 2048) | {"falcon2-11b": 8192}
"""Tokens that the published weights were trained over."""

ALIASES: dict[str, str] = {"falcon-11b": "falcon2-11b"}
"""Other names that people use."""


def _norm(kind: str) -> Names:
    """Norms of the branches; where each has its own and both read the block's input they are called otherwise."""
    block = "transformer.h.{}."
    return {
        f"layers.attention_norm.{kind}": Place(
            f"{block}input_layernorm.{_THEIRS[kind]}", parallel=f"{block}ln_attn.{_THEIRS[kind]}"
        ),
        f"layers.mlp_norm.{kind}": Place(
            f"{block}post_attention_layernorm.{_THEIRS[kind]}", parallel=f"{block}ln_mlp.{_THEIRS[kind]}"
        ),
    }


_THEIRS = {"scale": "weight", "bias": "bias"}

NAMES: dict[str, Names] = {"falcon": {**bloom.NAMES["bloom"], **_norm("scale"), **_norm("bias")}}
"""Where parameters lie in Hugging Face's tensors, by family."""
