"""GPT-2, BLOOM and Falcon, whose configs have keys of their own: `config.json` to a model and back."""

from collections.abc import Mapping
from typing import Any

from jaxllm.config import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, NormConfig, RopeConfig
from jaxllm.config.errors import show
from jaxllm.hf import layers, rope
from jaxllm.hf.activations import WRITTEN, activation
from jaxllm.hf.keys import Keys

_SHARED: Mapping[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {
        **_SHARED,
        "n_positions": 1024,
        "n_inner": None,
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    },
    "bloom": {**_SHARED, "apply_residual_connection_post_layernorm": False, "seq_length": None},
    "falcon": {
        **_SHARED,
        "activation": "gelu",
        "num_kv_heads": None,
        "ffn_hidden_size": None,
        "num_ln_in_parallel_attn": None,
        "alibi": False,
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "max_position_embeddings": 2048,
    },
}
"""What absent keys say, by family, as in transformers 5.23."""

HARMLESS: Mapping[str, frozenset[str]] = {
    "gpt2": frozenset(
        [
            "n_ctx",
            "reorder_and_upcast_attn",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ]
    ),
    "bloom": frozenset(
        [
            "slow_but_exact",
            "attention_softmax_in_fp32",
            "bias_dropout_fusion",
            "masked_softmax_fusion",
            "offset_alibi",
            "skip_bias_add",
            "skip_bias_add_qkv",
            "n_inner",
        ]
    ),
    "falcon": frozenset(),
}
"""Keys that say nothing of what is computed, by family."""

ALIASES: Mapping[str, Mapping[str, str]] = {
    "gpt2": {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    "bloom": {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"},
    "falcon": {
        "n_embed": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_head_kv": "num_kv_heads",
    },
}
"""Other names of keys."""

LENGTHS: Mapping[str, str] = {"gpt2": "n_positions", "bloom": "seq_length", "falcon": "max_position_embeddings"}
"""Keys of the tokens that a model attends over."""

_FIELDS = {
    **rope.FIELDS,
    "epsilon": "layer_norm_epsilon",
    "initializer_std": "initializer_range",
}
"""Our fields that may hold what they must not, and the keys that they are read from."""


def read_gpt2(keys: Keys, max_positions: int) -> ModelConfig:
    """The model that a file of GPT-2's describes."""
    d_model, heads = _width(keys, "n_embd", "n_head")
    name = keys.take("activation_function")
    for key, plain in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if keys.take(key) != plain:
            fix = f"jaxllm divides all products of queries and keys by the root of a head's width; use {show(plain)}"
            raise keys.refuse(key, not plain, fix)
    attention = AttentionConfig(num_heads=heads, positions="none", bias="all")
    mlp = MLPConfig(
        d_ff=keys.count_if_any("n_inner") or 4 * d_model,
        gated=False,
        activation=activation(keys, "activation_function", name),
        bias=True,
    )
    return _model("gpt2", keys, d_model, "n_layer", attention, mlp, learned=max_positions)


def read_bloom(keys: Keys, max_positions: int) -> ModelConfig:
    """The model that a file of BLOOM's describes."""
    d_model, heads = _width(keys, "hidden_size", "n_head")
    if keys.take("apply_residual_connection_post_layernorm"):
        raise keys.refuse("apply_residual_connection_post_layernorm", True, "jaxllm does not compute such models")
    attention = AttentionConfig(num_heads=heads, positions="alibi", bias="all")
    mlp = MLPConfig(d_ff=4 * d_model, gated=False, activation="gelu_tanh", bias=True)
    return _model("bloom", keys, d_model, "n_layer", attention, mlp, embedding_norm=True)


def read_falcon(keys: Keys, max_positions: int) -> ModelConfig:
    """The model that a file of Falcon's describes."""
    alibi = keys.take("alibi")
    d_model, heads = _width(keys, "hidden_size", "num_attention_heads", even=not alibi)
    new, parallel, bias = keys.take("new_decoder_architecture"), keys.take("parallel_attn"), keys.take("bias")
    kv_heads, norms = keys.count_if_any("num_kv_heads"), keys.count_if_any("num_ln_in_parallel_attn")
    multi_query = keys.take("multi_query")
    if new and kv_heads and heads % kv_heads:
        raise keys.refuse("num_kv_heads", kv_heads, f"it must divide num_attention_heads = {heads}")
    if new and not parallel:
        raise keys.refuse("parallel_attn", parallel, "new_decoder_architecture has parallel branches; use true")
    norms = (2 if new else 1) if norms is None else norms
    if norms not in (1, 2) or (norms == 2 and not (new and parallel)):
        fix = "use 1, or with new_decoder_architecture 2"
        raise keys.refuse("num_ln_in_parallel_attn", norms, fix)
    with keys.naming(_FIELDS):
        turned = rope.read(keys, max_positions, 10_000.0, 1.0)
    if turned.fraction != 1:
        raise keys.refuse("partial_rotary_factor", turned.fraction, "all dims of a head turn in this family; use 1.0")
    attention = AttentionConfig(
        num_heads=heads,
        num_kv_heads=(kv_heads or heads) if new else 1 if multi_query else heads,
        positions="falcon_alibi" if alibi else "rope",
        rope=RopeConfig() if alibi else turned,
        bias="all" if bias else "none",
    )
    name = keys.take("activation")
    mlp = MLPConfig(
        d_ff=keys.count_if_any("ffn_hidden_size") or 4 * d_model,
        gated=False,
        activation=activation(keys, "activation", name),
        bias=bias,
    )
    branches = "sequential" if not parallel else "parallel" if norms == 2 else "parallel_shared_norm"
    return _model("falcon", keys, d_model, "num_hidden_layers", attention, mlp, branches)


def _width(keys: Keys, width: str, heads: str, even: bool = False) -> tuple[int, int]:
    """d_model and the number of heads that it splits into, of an even width where they are to turn."""
    d_model, num_heads = keys.count(width), keys.count(heads)
    if d_model % (num_heads * (1 + even)):
        fix = f"{width} = {d_model} does not split into heads of {'an even' if even else 'one'} width"
        raise keys.refuse(heads, num_heads, f"{fix}; take both from the same model")
    return d_model, num_heads


def _model(
    family: str,
    keys: Keys,
    d_model: int,
    layers_key: str,
    attention: AttentionConfig,
    mlp: MLPConfig,
    branches: Any = "sequential",
    learned: int = 0,
    embedding_norm: bool = False,
) -> ModelConfig:
    """A model of equal layers with LayerNorm."""
    with keys.naming(_FIELDS):
        norm = NormConfig(kind="layer", epsilon=keys.number("layer_norm_epsilon"))
        block = BlockConfig(attention=attention, mlp=mlp, norm=norm, branches=branches)
        return layers.stack(
            [block] * layers.number(keys, layers_key),
            block,
            family=family,
            vocab_size=keys.count("vocab_size"),
            d_model=d_model,
            tie_embeddings=keys.take("tie_word_embeddings"),
            learned_positions=learned,
            embedding_norm=embedding_norm,
            initializer_std=keys.number("initializer_range"),
        )


def _shared(model: ModelConfig, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model.family,
        "vocab_size": model.vocab_size,
        "layer_norm_epsilon": model.norm.epsilon,
        "initializer_range": model.initializer_std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def write_gpt2(model: ModelConfig, max_positions: int) -> dict[str, Any]:
    """The keys of a GPT-2; its positions are the table's."""
    return {
        **_shared(model, "GPT2LMHeadModel"),
        "n_embd": model.d_model,
        "n_layer": model.num_layers,
        "n_head": model.attention.num_heads,
        "n_inner": None if model.mlp.d_ff == 4 * model.d_model else model.mlp.d_ff,
        "n_positions": model.learned_positions,
        "activation_function": "gelu_new" if model.mlp.activation == "gelu_tanh" else WRITTEN[model.mlp.activation],
    }


def write_bloom(model: ModelConfig, max_positions: int) -> dict[str, Any]:
    """The keys of a BLOOM, which knows no longest sequence."""
    return {
        **_shared(model, "BloomForCausalLM"),
        "hidden_size": model.d_model,
        "n_layer": model.num_layers,
        "n_head": model.attention.num_heads,
    }


def write_falcon(model: ModelConfig, max_positions: int) -> dict[str, Any]:
    """The keys of a Falcon: of the old architecture where it has one key head or all, and shares norms."""
    attention = model.attention
    new = model.branches == "parallel" or attention.kv_heads not in (1, attention.num_heads)
    alibi = attention.positions == "falcon_alibi"
    return {
        **_shared(model, "FalconForCausalLM"),
        "hidden_size": model.d_model,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_kv_heads": attention.kv_heads if new else attention.num_heads,
        "multi_query": new or attention.kv_heads == 1,
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": (2 if model.branches == "parallel" else 1) if new else None,
        "parallel_attn": model.branches != "sequential",
        "alibi": alibi,
        "bias": attention.bias == "all",
        "ffn_hidden_size": model.mlp.d_ff,
        "activation": WRITTEN[model.mlp.activation],
        "max_position_embeddings": max_positions,
        **({} if alibi else rope.write(attention.rope, partial=False)),
    }
