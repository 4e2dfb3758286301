"""The tiny models of the golden files: config values for transformers, and the changes that their logits must show.

Sizes are small and no two of a shape's dims are alike where the family allows it, so that an exchanged or transposed
dim fails instead of passing. Windows and original lengths are well below the sequences' length.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Shape:
    """One tiny model.

    Attributes:
        config: arguments of `AutoConfig.for_model`, model_type among them.
        matters: dotted key of the config -> another value with which the logits must move.
        length: T, tokens of a sequence.
        gradients: whether the gradient of every weight is kept.
        dtype: of the weights on disk; the logits are float32 all the same.
        shard_size: largest file of weights as `save_pretrained` takes it, empty for one file.
    """

    config: dict[str, Any]
    matters: dict[str, Any] = field(default_factory=dict)
    length: int = 24
    gradients: bool = False
    dtype: str = "float32"
    shard_size: str = ""


SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": False,
}
"""Names that most families share. The epsilon is large enough to show."""


def rope(theta: float = 100.0, kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **more}


SHAPES: dict[str, Shape] = {}
"""FAMILY/SHAPE -> the model."""


def _add(name: str, config: dict[str, Any], matters: dict[str, Any] | None = None, **more: Any) -> None:
    SHAPES[name] = Shape(config, matters or {}, **more)


# --- Llama ---

_LLAMA = SMALL | {"model_type": "llama", "rope_parameters": rope()}
_LLAMA_MATTERS: dict[str, Any] = {"rms_norm_eps": 1e-5, "hidden_act": "gelu", "rope_parameters.rope_theta": 50.0}
_TINY = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 1}

_add("llama/mha", _LLAMA | {"num_key_value_heads": 4}, _LLAMA_MATTERS, gradients=True)
_add(
    "llama/gqa_biased",
    _LLAMA | {"vocab_size": 67, "num_attention_heads": 6, "head_dim": 6, "attention_bias": True, "mlp_bias": True},
    _LLAMA_MATTERS | {"attention_bias": False, "mlp_bias": False},
)
_add(
    "llama/llama3_scaling_tied",
    _LLAMA
    | {
        "tie_word_embeddings": True,
        "num_hidden_layers": 3,
        "rope_parameters": rope(
            kind="llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    },
    {
        "rope_parameters.factor": 8.0,
        "rope_parameters.low_freq_factor": 0.7,
        "rope_parameters.high_freq_factor": 3.0,
        "rope_parameters.original_max_position_embeddings": 12,
        "tie_word_embeddings": False,
    },
)
_add(
    "llama/linear_scaling",
    _LLAMA | _TINY | {"rope_parameters": rope(kind="linear", factor=2.5)},
    {"rope_parameters.factor": 2.0, "rope_parameters.rope_theta": 50.0},
)
_add(
    "llama/dynamic_scaling",
    _LLAMA | _TINY | {"max_position_embeddings": 12, "rope_parameters": rope(kind="dynamic", factor=2.5)},
    {"rope_parameters.factor": 2.0, "rope_parameters.rope_theta": 50.0, "max_position_embeddings": 14},
)
_YARN = {"factor": 4.0, "original_max_position_embeddings": 12, "beta_fast": 2.0, "beta_slow": 0.2}
_add(
    "llama/yarn_scaling",
    _LLAMA | _TINY | {"max_position_embeddings": 48, "rope_parameters": rope(kind="yarn", **_YARN)},
    {
        "rope_parameters.factor": 2.0,
        "rope_parameters.original_max_position_embeddings": 20,
        "rope_parameters.attention_factor": 1.0,
        "rope_parameters.beta_fast": 0.5,
        "rope_parameters.beta_slow": 0.05,
        "rope_parameters.truncate": False,
    },
)

# --- GPT-2 ---

_GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 61,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 30,
    "layer_norm_epsilon": 1e-3,
}
_add("gpt2/four_fold", _GPT2, {"layer_norm_epsilon": 1e-5, "activation_function": "gelu"})
_add("gpt2/inner", _GPT2 | {"n_inner": 40, "n_head": 3, "vocab_size": 67, "activation_function": "gelu"}, {"n_head": 4})

# --- Gemma 2 ---

_GEMMA2 = SMALL | {
    "model_type": "gemma2",
    "head_dim": 10,
    "query_pre_attn_scalar": 7,
    "sliding_window": 7,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
    "rope_parameters": rope(),
}
_GEMMA2_MATTERS: dict[str, Any] = {
    "rms_norm_eps": 1e-5,
    "hidden_activation": "silu",
    "query_pre_attn_scalar": 9,
    "sliding_window": 8,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 4.0,
    "rope_parameters.rope_theta": 50.0,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}
_add("gemma2/gqa", _GEMMA2 | {"num_hidden_layers": 3}, _GEMMA2_MATTERS, gradients=True)
_add(
    "gemma2/mha_uncapped",
    _GEMMA2
    | {
        "vocab_size": 67,
        "num_key_value_heads": 4,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
)

# --- Qwen 3 ---

_QWEN3 = SMALL | {"model_type": "qwen3", "head_dim": 10, "rope_parameters": rope()}
_add("qwen3/gqa", _QWEN3, _LLAMA_MATTERS, gradients=True)
_add(
    "qwen3/mha_tied_biased",
    _QWEN3 | {"vocab_size": 67, "num_key_value_heads": 4, "tie_word_embeddings": True, "attention_bias": True},
    {"attention_bias": False, "tie_word_embeddings": False},
)
