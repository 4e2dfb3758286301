"""What training carries from step to step: plain nested dicts of arrays and a few scalars."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxllm.config import LossScaleConfig
from jaxllm.layers.param import Tree, tree_map
from jaxllm.models.decoder import Decoder, declarations, init
from jaxllm.train.loss_scale import LossScale, init_loss_scale


@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and returns.

    Attributes:
        params: nested dict of parameters, laid as the storage table says.
        optimizer: optax's state, moments laid as the optimizer table says.
        step: int32, attempts so far.
        optimizer_step: int32, accepted updates so far; drives the schedule.
        learning_rate_scale: float32, multiplies the schedule.
        loss_scale: of float16 compute; stays 1 with other dtypes.
    """

    params: Tree
    optimizer: Any
    step: jax.Array
    optimizer_step: jax.Array
    learning_rate_scale: jax.Array
    loss_scale: LossScale


jax.tree_util.register_dataclass(TrainState)


def init_state(
    decoder: Decoder, optimizer: optax.GradientTransformation, loss_scale: LossScaleConfig, key: jax.Array
) -> TrainState:
    """The state before the first step. Call under `jit`: arrays are made where they belong."""
    params = init(decoder, key)
    laid = tree_map(
        lambda value, leaf: jax.reshard(value, decoder.recipe.rules.optimizer(leaf.axes)), params, declarations(decoder)
    )
    scaled = decoder.recipe.compute == "float16"
    return TrainState(
        params=params,
        optimizer=optimizer.init(laid),
        step=jnp.zeros((), jnp.int32),
        optimizer_step=jnp.zeros((), jnp.int32),
        learning_rate_scale=jnp.ones((), jnp.float32),
        loss_scale=init_loss_scale(loss_scale) if scaled else LossScale(jnp.ones(()), jnp.zeros((), jnp.int32)),
    )
