"""Families of Llama's kind, whose configs share their keys: `config.json` to a model and back."""

from typing import Any

import msgspec

from jaxllm.config import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, NormConfig, RopeConfig
from jaxllm.hf import experts, layers, rope
from jaxllm.hf.activations import ACTIVATIONS, WRITTEN, activation
from jaxllm.hf.families import FAMILIES, Family
from jaxllm.hf.keys import Keys


def read(name: str, keys: Keys, max_positions: int) -> ModelConfig:
    """The model that a file describes.

    Args:
        name: of the family.
        keys: of the file, with the family's `defaults`.
        max_positions: tokens that the model attends over.

    Raises:
        ValueError: naming the key.
    """
    with keys.naming(_FIELDS):
        return _read(name, keys, max_positions)


_FIELDS = {
    **rope.FIELDS,
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "window": "sliding_window",
    "query_scale": "query_pre_attn_scalar",
    "soft_cap": "attn_logit_softcapping",
    "final_soft_cap": "final_logit_softcapping",
    "d_ff": "intermediate_size",
    "epsilon": "rms_norm_eps",
    "initializer_std": "initializer_range",
}
"""Our fields that may hold what they must not, and the keys that they are read from."""


def _read(name: str, keys: Keys, max_positions: int) -> ModelConfig:
    family = FAMILIES[name]
    d_model, num_layers = keys.count("hidden_size"), layers.number(keys, "num_hidden_layers")
    attention = _attention(family, keys, d_model)
    norm = NormConfig(epsilon=keys.number("rms_norm_eps"), unit_offset=family.gemma)
    mlp = MLPConfig(
        d_ff=keys.count("intermediate_size"),
        activation=_activation(family, keys),  # type: ignore[arg-type]
        bias=family.mlp_bias and keys.take("mlp_bias"),
    )
    kinds = _layers(family, keys, num_layers, attention, max_positions)
    mixture = experts.MIXTURES.get(name)
    mlps = experts.read(mixture, keys, num_layers, mlp) if mixture else [mlp] * num_layers

    def block(attention: AttentionConfig, mlp: MLPConfig) -> BlockConfig:
        return BlockConfig(attention=attention, mlp=mlp, norm=norm, norm_placement=family.norm_placement)

    # what the model's own say: attention that turns by positions and sees all, experts, where a layer has them
    shared = min(kinds, key=lambda one: (one.positions != "rope", one.window > 0))
    return layers.stack(
        [block(*one) for one in zip(kinds, mlps, strict=True)],
        block(shared, min(mlps, key=lambda one: one.experts is None)),
        family=name,
        vocab_size=keys.count("vocab_size"),
        d_model=d_model,
        tie_embeddings=keys.take("tie_word_embeddings"),
        embedding_scale=d_model**0.5 if family.gemma else 1.0,
        final_soft_cap=_cap(keys, "final_logit_softcapping") if family.capped else 0.0,
        initializer_std=keys.number("initializer_range"),
    )


def _attention(family: Family, keys: Keys, d_model: int) -> AttentionConfig:
    """What all layers' attention shares."""
    heads, head_dim = keys.count("num_attention_heads"), keys.count_if_any("head_dim")
    bias = family.bias if family.always or (family.bias and keys.take("attention_bias")) else "none"
    scalar = keys.number("query_pre_attn_scalar") if family.capped else 0
    if family.capped and scalar <= 0:
        raise keys.refuse("query_pre_attn_scalar", scalar, "use a positive number")
    return AttentionConfig(
        num_heads=heads,
        num_kv_heads=keys.count_if_any("num_key_value_heads") or heads,
        head_dim=0 if head_dim is None or head_dim * heads == d_model else head_dim,
        query_scale=scalar**-0.5 if scalar else 0.0,
        bias=bias,  # type: ignore[arg-type]
        qk_norm=family.qk_norm,
        soft_cap=_cap(keys, "attn_logit_softcapping") if family.capped == "all" else 0.0,
    )


def _cap(keys: Keys, key: str) -> float:
    """A soft cap, 0 for none."""
    value = keys.number_if_any(key)
    if value is not None and value <= 0:
        raise keys.refuse(key, value, "use a number above 0, or null for none")
    return value or 0.0


def _activation(family: Family, keys: Keys) -> str:
    name = keys.take(family.activation)
    if family.gemma:
        # the first releases say gelu and mean its approximation; both keys are there, one of them is read
        name = "gelu_pytorch_tanh" if name == "gelu" and family.activation == "hidden_act" else name
        other = keys.optional("hidden_activation" if family.activation == "hidden_act" else "hidden_act", str)
        if other not in (None, "gelu") and ACTIVATIONS.get(other) != ACTIVATIONS.get(name):
            raise keys.refuse(family.activation, name, f"another key says {other!r}; leave one of them out")
    return activation(keys, family.activation, name)


def _layers(
    family: Family, keys: Keys, num: int, attention: AttentionConfig, max_positions: int
) -> list[AttentionConfig]:
    """The attention of each layer."""
    if len(family.theta) == 2:
        far, near = rope.read_two(keys, max_positions, (family.theta[0], family.theta[1]))
    else:
        original = "original_max_position_embeddings"
        trained = keys.count(original) if original in family.defaults else None
        far = near = rope.read(keys, max_positions, family.theta[0], family.fraction or 1.0, trained)
    if family.fraction is None and far.fraction != 1:
        raise keys.refuse("partial_rotary_factor", far.fraction, "all dims of a head turn in this family; use 1.0")
    turning = [True] * num
    if family.windows == "unroped":
        interval = keys.count("no_rope_layer_interval")
        given = keys.listed("no_rope_layers", int, num)
        turning = [bool(one) for one in given] if given else [(layer + 1) % interval != 0 for layer in range(num)]
    replace, interleaved = msgspec.structs.replace, family.interleaved
    return [
        replace(attention, window=window, rope=replace(near if window else far, interleaved=interleaved))
        if turns
        else replace(attention, window=window, positions="none")
        for turns, window in zip(turning, layers.windows(family.windows, keys, turning), strict=True)
    ]


def write(model: ModelConfig, max_positions: int) -> dict[str, Any]:
    """The keys of a model of Llama's kind.

    Args:
        model: of one of the `FAMILIES`.
        max_positions: tokens that it attends over.
    """
    family, attention = FAMILIES[model.family], model.attention
    head_dim = model.head_dim(attention)
    keys: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type or model.family,
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.mlp.d_ff,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": head_dim,
        family.activation: WRITTEN[model.mlp.activation],
        "max_position_embeddings": max_positions,
        "initializer_range": model.initializer_std,
        "rms_norm_eps": model.norm.epsilon,
        "tie_word_embeddings": model.tie_embeddings,
    }
    if head_dim * attention.num_heads == model.d_model and family.architecture.startswith(_NO_HEAD_DIM):
        del keys["head_dim"]
    if family.bias and not family.always:
        keys["attention_bias"] = attention.bias != "none"
    if family.mlp_bias:
        keys["mlp_bias"] = model.mlp.bias
    if family.capped:
        scalar = (attention.query_scale or head_dim**-0.5) ** -2
        keys["query_pre_attn_scalar"] = round(scalar) if round(scalar) ** -0.5 == attention.query_scale else scalar
        keys["final_logit_softcapping"] = model.final_soft_cap or None
    if family.capped == "all":
        keys["attn_logit_softcapping"] = attention.soft_cap or None
    if mixture := experts.MIXTURES.get(model.family):
        keys |= experts.write(mixture, model)
    return keys | layers.write_windows(family.windows, model) | _ropes(model, family)


_NO_HEAD_DIM = ("Qwen2", "Olmo", "Phi3", "SmolLM3", "Mixtral", "Deepseek")
"""Architectures whose configs have no `head_dim`; they take one all the same."""


def _ropes(model: ModelConfig, family: Family) -> dict[str, Any]:
    turning = [block.attention for block in model.blocks if block.attention.positions == "rope"]
    far = next((one.rope for one in turning if not one.window), None)
    near = next((one.rope for one in turning if one.window), None)
    if len(family.theta) == 2:
        own = RopeConfig(theta=family.theta[0]), RopeConfig(theta=family.theta[1])
        return rope.write_two(far or own[0], near or own[1])
    keys = rope.write(far or near or RopeConfig(theta=family.theta[0]), partial=family.fraction is not None)
    original = "original_max_position_embeddings"
    if original in family.defaults and original in (keys["rope_scaling"] or {}):
        keys[original] = keys["rope_scaling"][original]
    return keys
