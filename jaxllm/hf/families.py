"""Families of Llama's kind, which differ in few values: what each says, as `newer` reads and writes it.

What a family's keys say where they are absent is what its class in transformers 5.23 says.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jaxllm.hf import experts, layers

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
        capped: what may have a soft cap, beside the key `query_pre_attn_scalar`: `all`, attention and the head
            (Gemma 2); `head` alone (Gemma 3, whose attention has a key for it that transformers does not look at).
        windows: which layers have one.
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
    capped: Literal["", "head", "all"] = ""
    windows: layers.Windows = "none"
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
        capped="all",
        norm_placement="both",
        windows="alternating",
    ),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        defaults={
            **_GEMMA2,
            "sliding_window_pattern": 6,
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
            "final_logit_softcapping": None,
        },
        model_type="gemma3_text",
        bias="all",
        qk_norm="head",
        gemma=True,
        activation="hidden_activation",
        capped="head",
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
    "mixtral": Family(
        "MixtralForCausalLM",
        defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "sliding_window": None},
        windows="all",
        theta=(1e6,),
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        defaults={"num_key_value_heads": 4, "sliding_window": 4096, "use_sliding_window": False},
        bias="all",
        qk_norm="head",
        windows="used",
        harmless=frozenset({"max_window_layers"}),
    ),
    "olmoe": Family("OlmoeForCausalLM", defaults={"rms_norm_eps": 1e-5}, bias="all", qk_norm="projection"),
    "deepseek": Family("DeepseekForCausalLM", bias="all"),
}


def defaults(name: str) -> Mapping[str, Any]:
    """What absent keys of a family's file say."""
    mixture = experts.MIXTURES.get(name)
    return {**_DEFAULTS, **FAMILIES[name].defaults, **(mixture.defaults if mixture else {})}
