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
        still: weights that move nothing: a bias of keys that no rope turns adds the same to all scores of a query.
        length: T, tokens of a sequence.
        gradients: whether the gradient of every weight is kept.
        dtype: of the weights on disk; the logits are float32 all the same.
        shard_size: largest file of weights as `save_pretrained` takes it, empty for one file.
    """

    config: dict[str, Any]
    matters: dict[str, Any] = field(default_factory=dict)
    still: tuple[str, ...] = ()
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
_add("gpt2/four_fold", _GPT2 | {"n_layer": 3}, {"layer_norm_epsilon": 1e-5, "activation_function": "gelu"})
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
_add(
    "qwen3/windows_from_a_layer",
    _QWEN3
    | {
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    {"sliding_window": 8, "max_window_layers": 2, "use_sliding_window": False},
)

# --- Llama, several files of half precision ---

_add("llama/sharded_bfloat16", _LLAMA | _TINY, dtype="bfloat16", shard_size="4KB")

# --- Mistral ---

_MISTRAL = SMALL | {"model_type": "mistral", "rope_parameters": rope()}
_add("mistral/window", _MISTRAL | {"sliding_window": 7}, _LLAMA_MATTERS | {"sliding_window": 8})
_add(
    "mistral/head_dim_float16",
    _MISTRAL | {"vocab_size": 67, "sliding_window": None, "head_dim": 10, "num_key_value_heads": 1},
    {"sliding_window": 7},
    dtype="float16",
)

# --- Gemma 1 and 3 ---

_GEMMA = SMALL | {"model_type": "gemma", "head_dim": 10, "tie_word_embeddings": True, "rope_parameters": rope()}
_add("gemma/mqa", _GEMMA | {"num_key_value_heads": 1}, _LLAMA_MATTERS | {"hidden_act": "silu"})
_add("gemma/mha", _GEMMA | {"vocab_size": 67, "num_key_value_heads": 4, "head_dim": 8})

_GEMMA3 = SMALL | {
    "model_type": "gemma3_text",
    "head_dim": 10,
    "query_pre_attn_scalar": 7,
    "sliding_window": 7,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": rope(1000.0, "linear", factor=4.0),
        "sliding_attention": rope(),
    },
}
_add(
    "gemma3/windows_and_two_ropes",
    _GEMMA3
    | {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
    {
        "rms_norm_eps": 1e-5,
        "hidden_activation": "silu",
        "query_pre_attn_scalar": 9,
        "sliding_window": 8,
        "rope_parameters.full_attention.rope_theta": 500.0,
        "rope_parameters.full_attention.factor": 3.0,
        "rope_parameters.sliding_attention.rope_theta": 50.0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
    },
)
_add(
    "gemma3/six_layers_and_one",
    _GEMMA3
    | _TINY
    | {
        "num_hidden_layers": 7,
        "head_dim": 6,
        "query_pre_attn_scalar": 30,
        "rope_parameters": {"full_attention": rope(1000.0), "sliding_attention": rope()},
    },
    {"sliding_window": 8},
)

# --- Qwen 2 ---

_QWEN2 = SMALL | {"model_type": "qwen2", "rope_parameters": rope()}
_add("qwen2/gqa_tied", _QWEN2 | {"tie_word_embeddings": True}, _LLAMA_MATTERS)
_add(
    "qwen2/mha_some_windows",
    _QWEN2
    | {
        "vocab_size": 67,
        "num_key_value_heads": 4,
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 2,
    },
    {"sliding_window": 8, "max_window_layers": 1, "use_sliding_window": False},
)

# --- OLMo 2 ---

_OLMO2 = SMALL | {"model_type": "olmo2", "rope_parameters": rope()}
_add("olmo2/mha", _OLMO2 | {"num_key_value_heads": 4}, _LLAMA_MATTERS)
_add("olmo2/gqa_tied", _OLMO2 | {"vocab_size": 67, "tie_word_embeddings": True}, {"tie_word_embeddings": False})

# --- Phi-3 ---

_PHI3 = SMALL | {"model_type": "phi3", "rope_parameters": rope()}
_LONGROPE = _PHI3 | {
    "hidden_size": 32,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 16,
    "rope_parameters": rope(
        kind="longrope",
        partial_rotary_factor=0.75,
        short_factor=[1.0, 1.2, 1.5],
        long_factor=[1.1, 2.0, 4.0],
    ),
}
_add("phi3/window_mha", _PHI3 | {"num_key_value_heads": 4, "sliding_window": 7}, _LLAMA_MATTERS | {"sliding_window": 8})
_add(
    "phi3/longrope_within",
    _LONGROPE | {"tie_word_embeddings": True},
    {
        "rope_parameters.short_factor": [1.0, 1.2, 2.0],
        "rope_parameters.attention_factor": 1.0,
        "rope_parameters.factor": 2.0,
        "max_position_embeddings": 48,
    },
    length=14,
)
_add(
    "phi3/longrope_past",
    _LONGROPE | {"vocab_size": 67},
    {"rope_parameters.long_factor": [1.1, 2.0, 3.0], "original_max_position_embeddings": 20},
)

# --- SmolLM3 ---

_SMOLLM3 = SMALL | {"model_type": "smollm3", "rope_parameters": rope()}
_add(
    "smollm3/every_fourth_without_rope",
    _SMOLLM3 | {"num_hidden_layers": 5, "tie_word_embeddings": True},
    _LLAMA_MATTERS | {"no_rope_layers": [1, 1, 1, 1, 1], "no_rope_layer_interval": 3},
)
_add(
    "smollm3/some_without_rope_biased",
    _SMOLLM3
    | {"vocab_size": 67, "num_hidden_layers": 3, "no_rope_layers": [0, 1, 0], "attention_bias": True, "mlp_bias": True},
    {"no_rope_layers": [0, 1, 1], "attention_bias": False, "mlp_bias": False},
    still=("model.layers.0.self_attn.k_proj.bias", "model.layers.2.self_attn.k_proj.bias"),
)

# --- BLOOM ---

_BLOOM = {"model_type": "bloom", "vocab_size": 61, "hidden_size": 24, "n_layer": 2, "layer_norm_epsilon": 1e-3}
_add("bloom/four_heads", _BLOOM | {"n_head": 4}, {"layer_norm_epsilon": 1e-5, "n_head": 3})
_add("bloom/six_heads", _BLOOM | {"n_head": 6, "vocab_size": 67})

# --- Falcon ---

_FALCON = {
    "model_type": "falcon",
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "layer_norm_epsilon": 1e-3,
    "max_position_embeddings": 64,
    "rope_parameters": rope(),
}
_FALCON_MATTERS: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "activation": "silu",
    "rope_parameters.rope_theta": 50.0,
    "alibi": True,
}
_NEW_FALCON = _FALCON | {
    "num_attention_heads": 6,
    "num_kv_heads": 2,
    "new_decoder_architecture": True,
    "ffn_hidden_size": 40,
}
_add("falcon/multi_query", _FALCON, _FALCON_MATTERS | {"parallel_attn": False})
_add("falcon/grouped_two_norms", _NEW_FALCON | {"vocab_size": 67}, _FALCON_MATTERS)
_add("falcon/grouped_one_norm", _NEW_FALCON | {"num_ln_in_parallel_attn": 1, "tie_word_embeddings": False})
_FALCON_RW = {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True, "ffn_hidden_size": 40}
_add("falcon/alibi_biased", _FALCON | _FALCON_RW, {"alibi": False, "bias": False, "layer_norm_epsilon": 1e-5})

# --- GLM ---

_GLM = SMALL | {"head_dim": 8, "attention_bias": True, "rope_parameters": rope(partial_rotary_factor=0.5)}
_GLM_MATTERS = _LLAMA_MATTERS | {"attention_bias": False, "rope_parameters.partial_rotary_factor": 1.0}
_add("glm/gqa", _GLM | {"model_type": "glm"}, _GLM_MATTERS)
_add(
    "glm/mha_unbiased_tied",
    _GLM
    | {
        "model_type": "glm",
        "vocab_size": 67,
        "num_key_value_heads": 4,
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
)
_add("glm4/gqa", _GLM | {"model_type": "glm4"}, _GLM_MATTERS)
_add(
    "glm4/unbiased", _GLM | {"model_type": "glm4", "vocab_size": 67, "num_key_value_heads": 1, "attention_bias": False}
)
