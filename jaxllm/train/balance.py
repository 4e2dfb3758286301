"""What keeps experts evenly loaded: losses, the balancing bias, and what is told of both.

Of a layer's router, with c_e the choices of expert e among k N of N tokens and s_te the share of expert e in token t's
scores, E experts:

    balance            E sum_e c_e / (k N)  mean_t s_te      over all tokens of a micro-batch
    sequence_balance   the same within each row
    router_z_loss      mean_t logsumexp(l_t)^2

Both balances are 1 where all experts are chosen alike (Fedus et al. 2021; DeepSeek-AI 2024, section 2.1.2); choices
have no gradient, shares have. Each is summed over layers. A row counts as its tokens' weights do, so that what
micro-batches and devices have adds up to the mean; padding counts nowhere.

The bias (Wang et al. 2024) is a parameter with no gradient and no moments: checkpoints and name tables know it like any
other, and the step moves it by the choices of the whole batch, where it accepts the update.

R repeats of a slot, B batch, T sequence, E experts.
"""

import jax
import jax.numpy as jnp

from jaxllm.config import LossConfig, ModelConfig
from jaxllm.layers.param import Tree, leaves, nest
from jaxllm.layers.router import Load, balanced
from jaxllm.models.decoder import Loads, layer_numbers

BY_LAYER = ("expert_load", "max_violation", "router_entropy", "bias_spread", "dropped_tokens")
"""Metrics that are lists with an entry a layer that has experts, first to last."""


def balance_loss(loads: Loads, weights_BT: jax.Array, segments_BT: jax.Array, config: LossConfig) -> jax.Array:
    """What is added to each row's part of the loss, weighted: float32[B].

    Args:
        loads: of every layer that has experts.
        weights_BT: how much each token counts.
        segments_BT: documents; 0 is padding.
        config: weights of the terms.
    """
    num_B = jnp.maximum(jnp.sum((segments_BT > 0).astype(jnp.float32), axis=1), 1.0)
    weight_B = jnp.sum(weights_BT, axis=1)
    total_B = jnp.zeros_like(weight_B)
    for load in loads.values():
        num_experts = load.choices_BE.shape[-1]
        if config.balance:
            choices_RE = jnp.sum(load.choices_BE, axis=1)
            shares_RE = choices_RE / jnp.maximum(jnp.sum(choices_RE, axis=-1, keepdims=True), 1.0)
            part_B = jnp.sum(shares_RE[:, None, :] * load.shares_BE, axis=(0, 2)) / jnp.sum(num_B)
            total_B += config.balance * num_experts * part_B * jnp.sum(weight_B)
        if config.sequence_balance:
            choices_RB1 = jnp.maximum(jnp.sum(load.choices_BE, axis=-1, keepdims=True), 1.0)
            part_B = jnp.sum(load.choices_BE / choices_RB1 * load.shares_BE, axis=(0, 2)) / num_B
            total_B += config.sequence_balance * num_experts * part_B * weight_B
        if config.router_z_loss:
            total_B += config.router_z_loss * jnp.sum(load.log_squares_B, axis=0) / num_B * weight_B
    return total_B


def rebalance(params: Tree, loads: Loads, rate: float) -> Tree:
    """Parameters with every balancing bias moved against the load of a whole batch; `loads` are summed over rows."""
    flat = dict(leaves(params))
    for slot, load in loads.items():
        name = f"{slot}.mlp.router.bias"
        if name in flat:
            flat[name] = balanced(flat[name], load.choices_BE, rate)
    return nest(flat)


def over_rows(loads: Loads, segments_BT: jax.Array) -> tuple[Loads, jax.Array]:
    """Loads summed over the rows of a batch, [R, E] and [R], and the number of tokens that they are of."""
    summed = {slot: Load(*(jnp.sum(x, axis=0) for x in load)) for slot, load in loads.items()}
    return summed, jnp.maximum(jnp.sum((segments_BT > 0).astype(jnp.float32)), 1.0)


def told(model: ModelConfig, loads: Loads, num_tokens: jax.Array, params: Tree) -> dict[str, jax.Array]:
    """The metrics of `BY_LAYER`: each expert's choices over the mean, the largest of them less 1, nats, the bias'
    largest value less its smallest, and the choices that tokens should have made and no expert counts: none.

    Args:
        model: whose layers are counted.
        loads: as `over_rows` gives them.
        num_tokens: likewise.
        params: with the biases that the next step chooses by.
    """
    found: dict[int, tuple[jax.Array, ...]] = {}
    blocks = model.blocks
    flat = dict(leaves(params))
    for slot, load in loads.items():
        mean_R1 = jnp.maximum(jnp.mean(load.choices_BE, axis=-1, keepdims=True), 1.0)
        relative_RE = load.choices_BE / mean_R1
        bias_RE = flat.get(f"{slot}.mlp.router.bias", jnp.zeros_like(relative_RE))
        numbers = layer_numbers(model, f"{slot}.")
        experts = blocks[numbers[0]].mlp.experts
        assert experts is not None, slot
        wanted = experts.experts_per_token * num_tokens.astype(jnp.int32)
        rows = (
            relative_RE,
            jnp.max(relative_RE, axis=-1) - 1,
            load.entropy_B / num_tokens,
            jnp.max(bias_RE, axis=-1) - jnp.min(bias_RE, axis=-1),
            wanted - jnp.sum(load.choices_BE.astype(jnp.int32), axis=-1),
        )
        for repeat, number in enumerate(numbers):
            found[number] = tuple(x[repeat] for x in rows)
    columns = zip(*(found[number] for number in sorted(found)), strict=True)
    return {name: jnp.stack(values) for name, values in zip(BY_LAYER, columns, strict=True)}
