"""QK-clip (Kimi Team 2025, Kimi K2, section 2.1): weights of queries and keys scaled down where logits grow too large.

With S the largest logit of a head in a step's batch (see `layers.largest_logits`), before the step's update, and
c = min(1, threshold / S), behind the update

    query weights c^(1/2),  key weights c^(1/2)     of a head with keys of its own
    query weights c                                 of heads that share keys (grouped queries)

and likewise their biases. Logits are products of the two, so either way S becomes the threshold. A shared key stays as
it is: scaled for one head it would change the logits of all heads of its group. (The paper does so with the one key
that the heads of its latent attention share.) Moments stay too. An S that is not finite tells nothing, and clips
nothing.

R repeats of a slot, N query heads.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.config import ModelConfig, QKClipConfig
from jaxllm.layers.param import leaves, nest
from jaxllm.models.decoder import layer_numbers
from jaxllm.train.state import TrainState
from jaxllm.train.watch import Logits

QK_CLIPPED = "qk_clipped"
"""The metric: heads that were clipped, over all layers."""


def make_qk_clip(
    config: QKClipConfig, model: ModelConfig
) -> Callable[[TrainState, Logits], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, largest logits by slot, layer and head) -> (state, metrics)."""

    def clip(state: TrainState, logits: Logits) -> tuple[TrainState, dict[str, jax.Array]]:
        params = dict(leaves(state.params))
        num_clipped = jnp.zeros(())
        for slot, largest_RN in logits.items():
            too_large_RN = jnp.isfinite(largest_RN) & (largest_RN > config.threshold)
            factor_RN = jnp.where(too_large_RN, config.threshold / largest_RN, 1.0)
            num_clipped += jnp.sum(too_large_RN)
            attention = model.blocks[layer_numbers(model, f"{slot}.")[0]].attention
            shared = attention.kv_heads < attention.num_heads
            clipped = ("query",) if shared else ("query", "key")
            for name in (*clipped, *(f"{matrix}_bias" for matrix in clipped if attention.bias != "none")):
                path = f"{slot}.attention.{name}"
                params[path] = _scale_heads(params[path], factor_RN if shared else jnp.sqrt(factor_RN))
        return dataclasses.replace(state, params=nest(params)), {QK_CLIPPED: num_clipped}

    return clip


def _scale_heads(weight: jax.Array, factor_RN: jax.Array) -> jax.Array:
    """A weight [R, D, N, H] or a bias [R, N, H], head by head."""
    partitions = jax.typeof(weight).sharding.spec.partitions
    between = tuple(range(1, weight.ndim - 2))
    factor = jnp.expand_dims(factor_RN, (*between, weight.ndim - 1))
    laid = PartitionSpec(partitions[0], *(None for _ in between), partitions[-2], None)
    return (weight * jax.reshard(factor, laid)).astype(weight.dtype)
