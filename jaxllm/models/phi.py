"""Phi-3's and Phi-4's published dense shapes, as values of the config's `model` section.

Those of long context are stretched by LongRoPE, with factors found by search.

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
    rope: dict[str, Any] | None = None,
    window: int = 2047,
    tied: bool = False,
) -> dict[str, Any]:
    return {
        "family": "phi3",
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention": {
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "rope": rope or {"theta": 10_000.0},
            "window": window,
        },
        "mlp": {"d_ff": d_ff},
        "norm": {"kind": "rms", "epsilon": 1e-5},
        "tie_embeddings": tied,
    }


def _long(short_factor: list[float], long_factor: list[float], fraction: float = 1.0) -> dict[str, Any]:
    """The rope of 131,072 positions, stretched from 4,096."""
    scaling = {
        "type": "longrope",
        "short_factor": short_factor,
        "long_factor": long_factor,
        "original_max_positions": 4096,
        "factor": 32.0,
    }
    return {"theta": 10_000.0, "fraction": fraction, "scaling": scaling}


# fmt: off
_MINI_SHORT = [
    1.1, 1.1, 1.1, 1.3000000000000003, 1.3500000000000003, 1.3500000000000003, 1.4000000000000004, 1.5500000000000005,
    *[2.000000000000001] * 17, *[2.0500000000000007] * 6, 2.1000000000000005, 2.1000000000000005, 2.1500000000000004,
    *[2.25] * 5, 2.3999999999999995, 2.4499999999999993, 2.499999999999999, 2.6999999999999984, 2.6999999999999984,
    2.7499999999999982, 2.799999999999998, 2.8999999999999977, 3.049999999999997,
]
_MINI_LONG = [
    1.0700000524520874, 1.1200000047683716, 1.149999976158142, 1.4199999570846558, 1.5699999332427979,
    1.7999999523162842, 2.129999876022339, 2.129999876022339, 3.009999990463257, 5.910000324249268, 6.950000286102295,
    9.070000648498535, 9.930000305175781, 10.710000038146973, 11.130000114440918, 14.609999656677246,
    15.409998893737793, 19.809999465942383, 37.279998779296875, 38.279998779296875, 38.599998474121094,
    40.12000274658203, 46.20000457763672, 50.940006256103516, 53.66000747680664, 54.9373893737793, 56.89738845825195,
    57.28738784790039, 59.98738479614258, 60.86738586425781, 60.887386322021484, 61.71739196777344, 62.91739273071289,
    62.957393646240234, 63.41739273071289, 63.8173942565918, 63.83739471435547, 63.897396087646484, 63.93739700317383,
    64.06739807128906, 64.11434936523438, 64.12435150146484, 64.15435028076172, 64.19435119628906, 64.24435424804688,
    64.57435607910156, 64.69000244140625, 64.76000213623047,
]
_PHI4_MINI_LONG = [
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898,
    2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424, 6.693110555,
    7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283,
    20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7,
    32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
]
# fmt: on

PRESETS: dict[str, dict[str, Any]] = {
    # name                 d_model  layers  heads  kv heads  d_ff
    "phi3-mini-4k": _phi(3072, 32, 32, 32, 8192),
    "phi3-medium-4k": _phi(5120, 40, 40, 10, 17_920),
    "phi3-mini-128k": _phi(3072, 32, 32, 32, 8192, rope=_long(_MINI_SHORT, _MINI_LONG), window=262_144),
    "phi4": _phi(5120, 40, 40, 10, 17_920, vocab_size=100_352, rope={"theta": 250_000.0}, window=0),
    "phi4-mini": _phi(
        3072,
        32,
        24,
        8,
        8192,
        vocab_size=200_064,
        rope=_long([1.0] * 48, _PHI4_MINI_LONG, fraction=0.75),
        window=262_144,
        tied=True,
    ),
}

CONTEXT_LENGTHS: dict[str, int] = {
    "phi3-mini-4k": 4096,
    "phi3-medium-4k": 4096,
    "phi3-mini-128k": 131_072,
    "phi4": 16_384,
    "phi4-mini": 131_072,
}
"""Tokens that the published weights attend over."""

ALIASES: dict[str, str] = {"phi-4-mini-instruct": "phi4-mini"}
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
