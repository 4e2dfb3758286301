"""The router: which experts a token goes through, and what each one's result is multiplied by. All in float32.

    l = x W;   s = softmax(l)  or  sigmoid(l)                              scores, E of them
    chosen = the k experts with the largest s + b                          b the balancing bias, or 0
    gates = c s_chosen / sum(s_chosen)   or, not renormalised,  c s_chosen

Softmax: Mixtral (Jiang et al. 2024), OLMoE (Muennighoff et al. 2024). Sigmoid: DeepSeek-V3 (DeepSeek-AI 2024, section
2.1.2). There the experts may lie in groups: a token chooses among the experts of its best groups only, a group's worth
the sum of its two best s + b.

**Balance without a loss** (Wang et al. 2024; DeepSeek-V3). The bias takes part in the choice and in nothing else: it is
neither in a gate nor in a gradient. After a step it is moved by `balanced`,

    b_e += rate sign(mean load - load of e)

**What is told** of each row are sums over its tokens, so that a block moves nothing between devices for them; padding
does not count. `train/balance` makes losses and metrics of these.

B batch, T sequence, D model, E experts, G groups, J experts of a group, K choices of a token.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.config import ExpertsConfig
from jaxllm.layers.linear import contract
from jaxllm.layers.param import Declaration, Layer, Recipe

_TINY = 1e-20
"""Added to the sum that gates are divided by: sigmoid scores may all be zero."""


class Load(NamedTuple):
    """What a router did with each row: sums over its tokens, float32.

    Attributes:
        choices_BE: times that each expert was chosen.
        shares_BE: of the scores, each token's divided by their sum; differentiable.
        log_squares_B: squares of the log of the softmax's denominator; differentiable.
        entropy_B: entropy of the same shares, in nats.
    """

    choices_BE: jax.Array
    shares_BE: jax.Array
    log_squares_B: jax.Array
    entropy_B: jax.Array


class Routing(NamedTuple):
    """Attributes: the experts of each token, int32; their gates, float32; what the rows' tokens sum up to."""

    experts_BTK: jax.Array
    gates_BTK: jax.Array
    load: Load


class Router(Layer):
    """Chooses experts.

    Args:
        config: of the mixture.
        dim: width of the residual stream.
        std: standard deviation of the initial weight.
        recipe: rules and dtypes; the router computes in float32 whatever they say.
    """

    def __init__(self, config: ExpertsConfig, dim: int, std: float, recipe: Recipe) -> None:
        kernel = Declaration((dim, config.num_experts), ("embed", "choices"), "router", std=std)
        bias = Declaration((config.num_experts,), ("choices",), "balance", num_inputs=0)
        declared = {"kernel": kernel} | ({"bias": bias} if config.balancing_bias else {})
        super().__init__(dataclasses.replace(recipe, compute="float32"), **declared)
        self.config = config

    def __call__(self, x_BTD: jax.Array, segments_BT: jax.Array) -> Routing:
        """[B, T, D], the whole sequence on every device of tensor; documents, of which 0 is padding."""
        config = self.config
        with jax.named_scope("router"):
            logits_BTE = contract(x_BTD.astype(jnp.float32), self.use("kernel"), (None,), self.recipe)
            scores_BTE = _scores(logits_BTE, config)
            ranks_BTE = jax.lax.stop_gradient(scores_BTE)
            if config.balancing_bias:
                bias_E = jax.lax.stop_gradient(self.use("bias"))
                bias_E = jax.reshard(bias_E, PartitionSpec(None))  # no gradient, no note on how it is summed
                ranks_BTE = ranks_BTE + bias_E[None, None, :]
            experts_BTK = choose(ranks_BTE, config)
            return Routing(
                experts_BTK,
                gates(scores_BTE, experts_BTK, config),
                _load(logits_BTE, scores_BTE, experts_BTK, segments_BT > 0),
            )


def _scores(logits_BTE: jax.Array, config: ExpertsConfig) -> jax.Array:
    return jax.nn.softmax(logits_BTE) if config.scores == "softmax" else jax.nn.sigmoid(logits_BTE)


def choose(ranks_BTE: jax.Array, config: ExpertsConfig) -> jax.Array:
    """The experts of each token, int32[B, T, K]; of equals the first."""
    if config.num_groups > 1:
        ranks_BTGJ = ranks_BTE.reshape(*ranks_BTE.shape[:2], config.num_groups, -1)
        worth_BTG = jnp.sum(jax.lax.top_k(ranks_BTGJ, 2)[0], axis=-1)
        is_best_BTG = _is_among(jax.lax.top_k(worth_BTG, config.groups_per_token)[1], config.num_groups)
        ranks_BTE = jnp.where(is_best_BTG[..., None], ranks_BTGJ, -jnp.inf).reshape(ranks_BTE.shape)
    return jax.lax.top_k(ranks_BTE, config.experts_per_token)[1]


def gates(scores_BTE: jax.Array, experts_BTK: jax.Array, config: ExpertsConfig) -> jax.Array:
    """What the results of a token's experts are multiplied by, float32[B, T, K]."""
    picked_BTKE = jnp.where(_is_one(experts_BTK, scores_BTE.shape[-1]), scores_BTE[:, :, None, :], 0.0)
    gates_BTK = jnp.sum(picked_BTKE, axis=-1)
    if config.renormalise:
        gates_BTK = gates_BTK / (jnp.sum(gates_BTK, axis=-1, keepdims=True) + _TINY)
    return config.gate_scale * gates_BTK


def balanced(bias: jax.Array, choices: jax.Array, rate: float) -> jax.Array:
    """A balancing bias [..., E] moved against the load: by how often each expert was chosen, of the same shape."""
    error = jnp.mean(choices, axis=-1, keepdims=True) - choices
    return (bias.astype(jnp.float32) + rate * jnp.sign(error)).astype(bias.dtype)


def _is_one(chosen: jax.Array, num: int) -> jax.Array:
    """Numbers [B, T, K] -> bool[B, T, K, num]: which one each is."""
    return chosen[..., None] == jnp.arange(num)[None, None, None, :]


def _is_among(chosen_BTK: jax.Array, num: int) -> jax.Array:
    """Numbers [B, T, K] -> bool[B, T, num]: which ones they are."""
    return jnp.any(_is_one(chosen_BTK, num), axis=2)


def _load(logits_BTE: jax.Array, scores_BTE: jax.Array, experts_BTK: jax.Array, counts_BT: jax.Array) -> Load:
    """Sums over the tokens that count."""
    shares_BTE = scores_BTE / (jnp.sum(scores_BTE, axis=-1, keepdims=True) + _TINY)
    entropy_BT = jax.lax.stop_gradient(jnp.sum(jax.scipy.special.entr(shares_BTE), axis=-1))
    is_chosen_BTE = _is_among(experts_BTK, scores_BTE.shape[-1])
    return Load(
        choices_BE=jnp.sum((is_chosen_BTE & counts_BT[..., None]).astype(jnp.float32), axis=1),
        shares_BE=jnp.sum(jnp.where(counts_BT[..., None], shares_BTE, 0.0), axis=1),
        log_squares_B=jnp.sum(jnp.where(counts_BT, jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1)), 0.0), axis=1),
        entropy_B=jnp.sum(jnp.where(counts_BT, entropy_BT, 0.0), axis=1),
    )
