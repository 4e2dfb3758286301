"""The tiny models of the golden files that have experts; see `golden_shapes.py`."""

from typing import Any

from golden_shapes import SMALL, Shape, rope

MIXTURES: dict[str, Shape] = {}
"""FAMILY/SHAPE -> the model."""


def _add(name: str, config: dict[str, Any], matters: dict[str, Any] | None = None, **more: Any) -> None:
    MIXTURES[name] = Shape(config, matters or {}, **more)


_DENSE_MATTERS: dict[str, Any] = {"rms_norm_eps": 1e-5, "hidden_act": "gelu", "rope_parameters.rope_theta": 50.0}

# --- Mixtral ---

_MIXTRAL = SMALL | {
    "model_type": "mixtral",
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "rope_parameters": rope(),
}
_EXPERTS_MATTER: dict[str, Any] = {"num_experts_per_tok": 3}
_add("mixtral/gqa", _MIXTRAL, _DENSE_MATTERS | _EXPERTS_MATTER)
_add(
    "mixtral/mha_window_tied",
    _MIXTRAL
    | {
        "vocab_size": 67,
        "num_key_value_heads": 4,
        "head_dim": 6,
        "sliding_window": 7,
        "tie_word_embeddings": True,
        "num_local_experts": 4,
        "num_experts_per_tok": 3,
    },
    {"sliding_window": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False},
)

# --- Qwen 3 with experts ---

_QWEN3_MOE = SMALL | {
    "model_type": "qwen3_moe",
    "hidden_size": 16,
    "intermediate_size": 20,
    "moe_intermediate_size": 6,
    "head_dim": 6,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "rope_parameters": rope(),
}
_add(
    "qwen3_moe/every_second_layer_plain_gates",
    _QWEN3_MOE
    | {
        "vocab_size": 67,
        "num_hidden_layers": 4,
        "decoder_sparse_step": 2,
        "norm_topk_prob": False,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "attention_bias": True,
    },
    {"norm_topk_prob": True, "attention_bias": False, "tie_word_embeddings": False},
)
_add(
    "qwen3_moe/first_layer_dense_and_a_window",
    _QWEN3_MOE
    | {
        "num_hidden_layers": 3,
        "mlp_only_layers": [0],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "use_sliding_window": True,
        "sliding_window": 7,
    },
    _DENSE_MATTERS
    | {"num_experts_per_tok": 3, "norm_topk_prob": False, "sliding_window": 8, "use_sliding_window": False},
)

# --- OLMoE ---

_OLMOE = SMALL | {
    "model_type": "olmoe",
    "hidden_size": 16,
    "intermediate_size": 6,
    "num_experts": 7,
    "num_experts_per_tok": 2,
    "norm_topk_prob": False,
    "rope_parameters": rope(),
}
_add("olmoe/mha", _OLMOE | {"num_key_value_heads": 4}, _DENSE_MATTERS | _EXPERTS_MATTER | {"norm_topk_prob": True})
_add(
    "olmoe/gqa_renormalised_tied",
    _OLMOE
    | {
        "vocab_size": 67,
        "num_experts": 4,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "tie_word_embeddings": True,
        "attention_bias": True,
    },
    {"norm_topk_prob": False, "attention_bias": False, "tie_word_embeddings": False},
)

# --- DeepSeekMoE ---

_DEEPSEEK = SMALL | {
    "model_type": "deepseek",
    "hidden_size": 16,
    "intermediate_size": 20,
    "moe_intermediate_size": 6,
    "num_key_value_heads": 4,
    "n_routed_experts": 7,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "norm_topk_prob": False,
    "num_hidden_layers": 3,
    "rope_parameters": rope(),
}
_add(
    "deepseek/first_layer_dense",
    _DEEPSEEK,
    _DENSE_MATTERS | {"num_experts_per_tok": 2, "norm_topk_prob": True},
)
_add(
    "deepseek/every_second_layer_renormalised",
    _DEEPSEEK
    | {
        "vocab_size": 67,
        "num_hidden_layers": 4,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 2,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "num_key_value_heads": 2,
        "norm_topk_prob": True,
        "attention_bias": True,
    },
    {"norm_topk_prob": False, "num_experts_per_tok": 2, "attention_bias": False},
    dtype="bfloat16",
    shard_size="8KB",
)
