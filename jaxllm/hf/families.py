"""Families of Llama's kind, which differ in few values: `config.json` to a model and back.

What a family's keys say where they are absent is what its class in transformers 5.23 says.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from jaxllm.config import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, NormConfig, RopeConfig
from jaxllm.hf import layers, rope
from jaxllm.hf.keys import Keys

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Hugging Face's names of activations, and ours."""

WRITTEN = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
"""Our names of activations, and Hugging Face's."""

_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of Llama's kind.

    Attributes:
        architecture: transformers' class.
        defaults: what absent keys say, where another thing than Llama's.
        model_type: as `config.json` has it, where it is not the family's name.
        bias: which projections `attention_bias` gives one; empty where there is no such key.
        always: whether they have one without being asked.
        mlp_bias: whether there is a key of this name.
        qk_norm: of queries and keys.
        norm_placement: of blocks.
        gemma: whether it is one of Gemma's: unit offsets of norms, a scaled embedding.
        activation: the key of the feed-forward layers' activation.
        capped: whether it has the keys of Gemma 2 and 3: soft caps and `query_pre_attn_scalar`.
        windows: `none`; `all` layers have that of `sliding_window`; `alternating`, `pattern` and `upper` layers, where
            no `layer_types` says it: every second (Gemma 2), all but every sixth (Gemma 3), those from
            `max_window_layers` on if `use_sliding_window` (Qwen); `unroped` ones likewise (SmolLM3).
        theta: of rope, where no key says it; of Gemma 3 of layers without a window and with one.
        fraction: of a head's dims that turn, where no key says it; None where no key may.
        interleaved: as in `RopeConfig`.
        harmless: further keys that say nothing of what is computed.
    """

    architecture: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_type: str = ""
    bias: Literal["", "qkv", "all"] = ""
    always: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["none", "head", "projection"] = "none"
    norm_placement: Literal["pre", "post", "both"] = "pre"
    gemma: bool = False
    activation: str = "hidden_act"
    capped: bool = False
    windows: Literal["none", "all", "alternating", "pattern", "upper", "unroped"] = "none"
    theta: tuple[float, ...] = (10_000.0,)
    fraction: float | None = None
    interleaved: bool = False
    harmless: frozenset[str] = frozenset()


_GEMMA: Mapping[str, Any] = {"hidden_act": "gelu_pytorch_tanh", "head_dim": 256, "tie_word_embeddings": True}
_GEMMA2: Mapping[str, Any] = {
    **_GEMMA,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_GLM: Mapping[str, Any] = {"rms_norm_eps": 1.5625e-7, "attention_bias": True, "head_dim": 128, "num_key_value_heads": 2}
_QWEN: Mapping[str, Any] = {"sliding_window": 4096, "max_window_layers": 28, "use_sliding_window": False}

FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", bias="all", mlp_bias=True),
    "mistral": Family("MistralForCausalLM", defaults={"num_key_value_heads": 8, "sliding_window": 4096}, windows="all"),
    "gemma": Family("GemmaForCausalLM", defaults=_GEMMA, bias="all", gemma=True),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        defaults={**_GEMMA2, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        bias="all",
        gemma=True,
        activation="hidden_activation",
        capped=True,
        norm_placement="both",
        windows="alternating",
    ),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        defaults={
            **_GEMMA2,
            "sliding_window_pattern": 6,
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
        },
        model_type="gemma3_text",
        bias="all",
        qk_norm="head",
        gemma=True,
        activation="hidden_activation",
        capped=True,
        norm_placement="both",
        windows="pattern",
        theta=(1e6, 10_000.0),
        harmless=frozenset({"_sliding_window_pattern"}),
    ),
    "qwen2": Family("Qwen2ForCausalLM", defaults=_QWEN, bias="qkv", always=True, windows="upper"),
    "qwen3": Family(
        "Qwen3ForCausalLM", defaults={**_QWEN, "head_dim": 128}, bias="all", qk_norm="head", windows="upper"
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        defaults={"rms_norm_eps": 1e-5},
        bias="all",
        qk_norm="projection",
        norm_placement="post",
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        defaults={"rms_norm_eps": 1e-5, "sliding_window": None, "original_max_position_embeddings": 4096},
        windows="all",
        fraction=1.0,
        harmless=frozenset({"full_attn_mod", "interpolate_factor"}),
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        defaults={
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "no_rope_layer_interval": 4,
            "use_sliding_window": False,
            "sliding_window": None,
        },
        bias="all",
        mlp_bias=True,
        windows="unroped",
        theta=(2e6,),
        harmless=frozenset({"max_window_layers"}),
    ),
    "glm": Family("GlmForCausalLM", defaults=_GLM, bias="qkv", fraction=0.5, interleaved=True),
    "glm4": Family("Glm4ForCausalLM", defaults=_GLM, bias="qkv", norm_placement="both", fraction=0.5, interleaved=True),
}


def defaults(name: str) -> Mapping[str, Any]:
    """What absent keys of a family's file say."""
    return {**_DEFAULTS, **FAMILIES[name].defaults}


def read(name: str, keys: Keys, max_positions: int) -> ModelConfig:
    """The model that a file describes.

    Args:
        name: of the family.
        keys: of the file, with the family's `defaults`.
        max_positions: tokens that the model attends over.

    Raises:
        ValueError: naming the key.
    """
    family = FAMILIES[name]
    d_model, num_layers = keys.count("hidden_size"), keys.count("num_hidden_layers")
    attention = _attention(family, keys, d_model)
    norm = NormConfig(epsilon=keys.number("rms_norm_eps"), unit_offset=family.gemma)
    mlp = MLPConfig(
        d_ff=keys.whole("intermediate_size"),
        activation=_activation(family, keys),  # type: ignore[arg-type]
        bias=family.mlp_bias and keys.take("mlp_bias"),
    )
    kinds = _layers(family, keys, num_layers, attention, max_positions)

    def block(attention: AttentionConfig) -> BlockConfig:
        return BlockConfig(attention=attention, mlp=mlp, norm=norm, norm_placement=family.norm_placement)

    # what the model's own attention says: that of a layer that turns by positions and sees all, where there is one
    shared = min(kinds, key=lambda one: (one.positions != "rope", one.window > 0))
    return layers.stack(
        [block(kind) for kind in kinds],
        block(shared),
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
    heads, head_dim = keys.count("num_attention_heads"), keys.whole("head_dim")
    bias = family.bias if family.always or (family.bias and keys.take("attention_bias")) else "none"
    scalar = keys.number("query_pre_attn_scalar") if family.capped else 0
    if scalar < 0:
        raise keys.refuse("query_pre_attn_scalar", scalar, "use a positive number")
    return AttentionConfig(
        num_heads=heads,
        num_kv_heads=keys.whole("num_key_value_heads") or heads,
        head_dim=0 if head_dim is None or head_dim * heads == d_model else head_dim,
        query_scale=scalar**-0.5 if scalar else 0.0,
        bias=bias,  # type: ignore[arg-type]
        qk_norm=family.qk_norm,
        soft_cap=_cap(keys, "attn_logit_softcapping") if family.capped else 0.0,
    )


def _cap(keys: Keys, key: str) -> float:
    """A soft cap, 0 for none."""
    value = keys.take(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
        raise keys.refuse(key, value, "use a number above 0, or null for none")
    return float(value or 0.0)


def _activation(family: Family, keys: Keys) -> str:
    name = keys.take(family.activation)
    if family.gemma:
        # the first releases say gelu and mean its approximation; both keys are there, one of them is read
        name = "gelu_pytorch_tanh" if name == "gelu" and family.activation == "hidden_act" else name
        other = keys.optional("hidden_activation" if family.activation == "hidden_act" else "hidden_act", str)
        if other not in (None, "gelu") and ACTIVATIONS.get(other) != ACTIVATIONS.get(name):
            raise keys.refuse(family.activation, name, f"another key says {other!r}; leave one of them out")
    return activation(keys, family.activation, name)


def activation(keys: Keys, key: str, name: str) -> Any:
    """Our name of an activation.

    Raises:
        ValueError: jaxllm has no such activation.
    """
    if name not in ACTIVATIONS:
        raise keys.refuse(key, name, f"jaxllm knows {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _layers(
    family: Family, keys: Keys, num: int, attention: AttentionConfig, max_positions: int
) -> list[AttentionConfig]:
    """The attention of each layer."""
    if len(family.theta) == 2:
        far, near = rope.read_two(keys, max_positions, (family.theta[0], family.theta[1]))
    else:
        original = "original_max_position_embeddings"
        trained = keys.whole(original) if original in family.defaults else None
        far = near = rope.read(keys, max_positions, family.theta[0], family.fraction or 1.0, trained)
    if family.fraction is None and far.fraction != 1:
        raise keys.refuse("partial_rotary_factor", far.fraction, "all dims of a head turn in this family; use 1.0")
    turning = [True] * num
    if family.windows == "unroped":
        interval = keys.whole("no_rope_layer_interval")
        given = keys.listed("no_rope_layers", int, num)
        turning = [bool(one) for one in given] if given else [(layer + 1) % interval != 0 for layer in range(num)]
    replace, interleaved = msgspec.structs.replace, family.interleaved
    return [
        replace(attention, window=window, rope=replace(near if window else far, interleaved=interleaved))
        if turns
        else replace(attention, window=window, positions="none")
        for turns, window in zip(turning, _windows(family, keys, turning), strict=True)
    ]


def _windows(family: Family, keys: Keys, turning: list[bool]) -> list[int]:
    """The window of each layer."""
    num, size = len(turning), 0
    if family.windows == "none":
        return [0] * num
    size = keys.whole("sliding_window")
    if family.windows == "all":
        return [size or 0] * num
    numbers = range(1, num + 1)
    if family.windows == "alternating":
        return layers.windows(keys, [number % 2 == 1 for number in numbers], size)
    if family.windows == "pattern":
        pattern = keys.count("sliding_window_pattern")
        return layers.windows(keys, [number % pattern != 0 for number in numbers], size)
    used = bool(keys.take("use_sliding_window"))
    if family.windows == "upper":
        first = keys.whole("max_window_layers")
        if first is None:
            raise keys.refuse("max_window_layers", first, "use a whole number, 0 or more")
        return layers.windows(keys, [used and number > first for number in numbers], size if used else None)
    return layers.windows(keys, [used and bool(size) and not turns for turns in turning], size if used else None)


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
        keys["attn_logit_softcapping"] = attention.soft_cap or None
    return keys | _WINDOWS.get(family.windows, lambda model: {})(model) | _ropes(model, family)


_NO_HEAD_DIM = ("Qwen2", "Olmo2", "Phi3", "SmolLM3")
"""Architectures whose configs have no `head_dim`; they take one all the same."""


def _upper(model: ModelConfig) -> dict[str, Any]:
    """Qwen's keys: where no layers' types are read, windows begin at a layer."""
    keys = layers.layer_types(model)
    types = keys["layer_types"]
    first = {"max_window_layers": types.index(layers.SLIDING)} if layers.SLIDING in types else {}
    return {"use_sliding_window": layers.SLIDING in types, **first, **keys}


def _unroped(model: ModelConfig) -> dict[str, Any]:
    keys = layers.layer_types(model)
    turning = [int(block.attention.positions == "rope") for block in model.blocks]
    return {"use_sliding_window": layers.SLIDING in keys["layer_types"], "no_rope_layers": turning, **keys}


def _pattern(model: ModelConfig) -> dict[str, Any]:
    """Gemma 3's keys; versions of transformers that know no `layer_types` read the pattern."""
    return {"sliding_window_pattern": len(model.slots), **layers.layer_types(model)}


_WINDOWS: Mapping[str, Callable[[ModelConfig], dict[str, Any]]] = {
    "all": lambda model: {"sliding_window": model.blocks[0].attention.window or None},
    "alternating": layers.layer_types,
    "pattern": _pattern,
    "upper": _upper,
    "unroped": _unroped,
}
"""Keys of windows, and of layers without rope."""


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
