"""Experts: what a family's keys say of its feed-forward layers, layer by layer, and back.

Layers are counted from 0. Those with experts are

    every one                                                               Mixtral, OLMoE
    (i + 1) % decoder_sparse_step = 0, and i is not in mlp_only_layers      Qwen 3 MoE
    i >= first_k_dense_replace, and i % moe_layer_freq = 0                  DeepSeekMoE

How others train a router (its losses, its noise) says nothing of what a model computes, and is passed over: here
`train.loss` and `optim.balancing_rate` say it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from jaxllm.config import ExpertsConfig, MLPConfig, ModelConfig
from jaxllm.hf.keys import Keys

HARMLESS = frozenset(
    ["router_aux_loss_coef", "output_router_logits", "router_jitter_noise", "aux_loss_alpha", "seq_aux"]
)
"""Keys of how others train a router."""

CHOICES = "num_experts_per_tok"


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A family's keys of experts.

    Attributes:
        defaults: what absent keys say.
        num: the key of their number.
        layers: which layers have them: `all`; `steps` as in Qwen 3; `behind` dense ones, as in DeepSeekMoE.
        width: the key of an expert's hidden units.
        renormalised: whether gates are divided by their sum without being asked; else `norm_topk_prob` says it.
        shared: whether there are `n_shared_experts`, all of which a token goes through, and a `scoring_func`.
    """

    defaults: Mapping[str, Any]
    num: str = "num_experts"
    layers: Literal["all", "steps", "behind"] = "all"
    width: str = "intermediate_size"
    renormalised: bool = False
    shared: bool = False


MIXTURES: Mapping[str, Mixture] = {
    "mixtral": Mixture({"num_local_experts": 8, CHOICES: 2}, num="num_local_experts", renormalised=True),
    "qwen3_moe": Mixture(
        {
            "num_experts": 128,
            CHOICES: 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
        },
        layers="steps",
        width="moe_intermediate_size",
    ),
    "olmoe": Mixture({"num_experts": 64, CHOICES: 8, "norm_topk_prob": False}),
    "deepseek": Mixture(
        {
            "n_routed_experts": None,
            "n_shared_experts": None,
            CHOICES: None,
            "moe_intermediate_size": 1407,
            "first_k_dense_replace": 0,
            "moe_layer_freq": 1,
            "norm_topk_prob": False,
            "scoring_func": "softmax",
        },
        num="n_routed_experts",
        layers="behind",
        width="moe_intermediate_size",
        shared=True,
    ),
}
"""Family -> its keys of experts; other families' layers are dense."""

ALIASES: Mapping[str, Mapping[str, str]] = {
    "mixtral": {"num_experts": "num_local_experts"},
    "qwen3_moe": {"num_local_experts": "num_experts"},
    "olmoe": {"num_local_experts": "num_experts"},
}
"""Other names of keys, by family: transformers 5 writes Qwen 3's number of experts by another name than 4 did."""


def read(mixture: Mixture, keys: Keys, num_layers: int, dense: MLPConfig) -> list[MLPConfig]:
    """The feed-forward layer of each layer.

    Args:
        mixture: the family's.
        keys: of the file; `intermediate_size` is taken.
        num_layers: of the model.
        dense: what a layer without experts has.

    Raises:
        ValueError: naming the key.
    """
    num = keys.count(mixture.num) if mixture.layers == "all" else keys.whole_if_any(mixture.num)
    chosen, sparse = keys.whole_if_any(CHOICES), _sparse(mixture, keys, num_layers)
    d_ff = dense.d_ff if mixture.width == "intermediate_size" else keys.count(mixture.width)
    renormalised = mixture.renormalised or keys.take("norm_topk_prob")
    num_shared = 0
    if mixture.shared:
        num_shared = keys.whole_if_any("n_shared_experts") or 0
        if (scores := keys.take("scoring_func")) != "softmax":
            raise keys.refuse("scoring_func", scores, 'jaxllm computes "softmax" in this family')
    if not num:
        return [dense] * num_layers
    if chosen is None:
        raise keys.refuse(CHOICES, chosen, "say how many experts a token goes through")
    with keys.naming({"num_experts": mixture.num, "experts_per_token": CHOICES}):
        experts = ExpertsConfig(
            num_experts=num, experts_per_token=chosen, shared_d_ff=num_shared * d_ff, renormalise=renormalised
        )
    wide = msgspec.structs.replace(dense, d_ff=d_ff, experts=experts)
    return [wide if one else dense for one in sparse]


def _sparse(mixture: Mixture, keys: Keys, num: int) -> list[bool]:
    """Which layers have experts."""
    if mixture.layers == "all":
        return [True] * num
    if mixture.layers == "steps":
        step, without = keys.count("decoder_sparse_step"), keys.listed("mlp_only_layers", int) or []
        return [one and layer not in without for layer, one in enumerate(_every(num, step))]
    first, every = keys.whole("first_k_dense_replace"), keys.count("moe_layer_freq")
    return _behind(num, first, every)


def _every(num: int, step: int) -> list[bool]:
    return [(layer + 1) % step == 0 for layer in range(num)]


def _behind(num: int, first: int, every: int) -> list[bool]:
    return [layer >= first and layer % every == 0 for layer in range(num)]


def write(mixture: Mixture, model: ModelConfig) -> dict[str, Any]:
    """The keys of a model's feed-forward layers.

    Raises:
        ValueError: a layer is dense in a family that knows none such.
    """
    layers = [block.mlp for block in model.blocks]
    sparse = [mlp.experts is not None for mlp in layers]
    if mixture.layers == "all" and not all(sparse):
        raise ValueError(
            f'model.layers.{sparse.index(False)}.mlp.experts = "none": all layers of Hugging Face\'s models of family '
            f"{model.family} have experts; name the family whose values these are"
        )
    dense = next((mlp.d_ff for mlp in layers if mlp.experts is None), 0)
    found = next(((mlp.d_ff, mlp.experts) for mlp in layers if mlp.experts is not None), None)
    if found is None:
        return {mixture.num: 0}
    d_ff, experts = found
    keys: dict[str, Any] = {mixture.num: experts.num_experts, CHOICES: experts.experts_per_token}
    if mixture.width != "intermediate_size":
        # where no layer is dense nobody reads its width; the published files have that of a token's experts there
        keys["intermediate_size"] = dense or experts.experts_per_token * d_ff
    keys[mixture.width] = d_ff
    if not mixture.renormalised:
        keys["norm_topk_prob"] = experts.renormalise
    if mixture.shared:
        keys |= {"n_shared_experts": experts.shared_d_ff // d_ff or None, "scoring_func": "softmax"}
    return keys | _write_sparse(mixture, sparse)


def _write_sparse(mixture: Mixture, sparse: Sequence[bool]) -> dict[str, Any]:
    """The keys of which layers have experts: by a rule, where one makes these."""
    num = len(sparse)
    if mixture.layers == "steps":
        step = next((step for step in range(1, num + 1) if _every(num, step) == sparse), None)
        without = [] if step else [layer for layer, one in enumerate(sparse) if not one]
        return {"decoder_sparse_step": step or 1, "mlp_only_layers": without}
    if mixture.layers == "behind":
        first = sparse.index(True)
        every = next((every for every in range(1, num + 1) if _behind(num, first, every) == sparse), 1)
        return {"first_k_dense_replace": first, "moe_layer_freq": every}
    return {}
