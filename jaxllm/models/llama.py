"""Llama's published shapes, as values of the config's `model` section.

Sources, by release:

- Llama 1: Touvron et al. 2023a, table 2, and the released params.json files. What the paper calls 33B was released
  as 30B and has 32.5 billion parameters. The files give a norm epsilon of 1e-6, but for 65B 1e-5.
- Llama 2: Touvron et al. 2023b, table 1 and appendix A.2.1, and the released config files.
- Llama 3, 3.1 and 3.3: Grattafiori et al. 2024, table 3, and the released config files.
- Llama 3.2 (text only): the released config files.

Feed-forward widths are those of the weights: in Llama 1 and 2 8/3 of d_model (1.3 times as much in 70B), rounded up.
"""

from typing import Any

from jaxllm.models import names

_LLAMA3_VOCAB = 128_256


def _llama(
    d_model: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    d_ff: int,
    *,
    vocab_size: int = 32_000,
    epsilon: float = 1e-5,
    rope: dict[str, Any] | None = None,
    tie_embeddings: bool = False,
) -> dict[str, Any]:
    return {
        "family": "llama",
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": {
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "rope": rope or {"theta": 10_000.0},
        },
        "mlp": {"d_ff": d_ff, "activation": "silu"},
        "norm": {"kind": "rms", "epsilon": epsilon},
        "tie_embeddings": tie_embeddings,
    }


def _llama3(*shape: int, tie_embeddings: bool = False, factor: float = 0.0) -> dict[str, Any]:
    """Llama 3 and after; `factor` is how far the rope of 8,192 positions is stretched, 0 for not at all."""
    rope: dict[str, Any] = {"theta": 500_000.0}
    if factor:
        rope["scaling"] = {
            "type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_positions": 8192,
        }
    return _llama(*shape, vocab_size=_LLAMA3_VOCAB, rope=rope, tie_embeddings=tie_embeddings)


PRESETS: dict[str, dict[str, Any]] = {
    # name                d_model  layers  heads  kv heads  d_ff
    "llama-7b": _llama(4096, 32, 32, 32, 11008, epsilon=1e-6),
    "llama-13b": _llama(5120, 40, 40, 40, 13824, epsilon=1e-6),
    "llama-30b": _llama(6656, 60, 52, 52, 17920, epsilon=1e-6),
    "llama-65b": _llama(8192, 80, 64, 64, 22016),
    "llama2-7b": _llama(4096, 32, 32, 32, 11008),
    "llama2-13b": _llama(5120, 40, 40, 40, 13824),
    "llama2-70b": _llama(8192, 80, 64, 8, 28672),
    "llama3-8b": _llama3(4096, 32, 32, 8, 14336),
    "llama3-70b": _llama3(8192, 80, 64, 8, 28672),
    "llama3.1-8b": _llama3(4096, 32, 32, 8, 14336, factor=8.0),
    "llama3.1-70b": _llama3(8192, 80, 64, 8, 28672, factor=8.0),
    "llama3.1-405b": _llama3(16384, 126, 128, 8, 53248, factor=8.0),
    "llama3.2-1b": _llama3(2048, 16, 32, 8, 8192, tie_embeddings=True, factor=32.0),
    "llama3.2-3b": _llama3(3072, 28, 24, 8, 8192, tie_embeddings=True, factor=32.0),
    "llama3.3-70b": _llama3(8192, 80, 64, 8, 28672, factor=8.0),
}

_RELEASES = {
    "llama": 2048,
    "llama2": 4096,
    "llama3": 8192,
    "llama3.1": 131_072,
    "llama3.2": 131_072,
    "llama3.3": 131_072,
}

CONTEXT_LENGTHS: dict[str, int] = {name: _RELEASES[name.partition("-")[0]] for name in PRESETS}
"""Tokens that the published weights were made to attend over (`max_position_embeddings` of the released configs)."""

ALIASES: dict[str, str] = {
    "llama-33b": "llama-30b",
    "llama1-7b": "llama-7b",
    "llama1-13b": "llama-13b",
    "llama1-30b": "llama-30b",
    "llama1-33b": "llama-30b",
    "llama1-65b": "llama-65b",
}
"""Other names that people use."""

NAMES: dict[str, names.Names] = {"llama": names.LLAMA}
"""Where parameters lie in Hugging Face's tensors, by family."""
