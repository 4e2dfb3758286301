"""What training carries from step to step: plain nested dicts of arrays and a few scalars."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxllm.config import LossScaleConfig, RulesConfig
from jaxllm.layers.param import Tree, leaves, tree_map
from jaxllm.models.decoder import Decoder, declarations, init
from jaxllm.train.guard.rules import Memory, forget
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
        guard: what its rules know of the steps before.
    """

    params: Tree
    optimizer: Any
    step: jax.Array
    optimizer_step: jax.Array
    learning_rate_scale: jax.Array
    loss_scale: LossScale
    guard: Memory


jax.tree_util.register_dataclass(TrainState)


NO_BASE: Tree = {}
"""The base where all parameters are trained."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What of a model is trained: what TrainState, gradients and the optimizer hold, and checkpoints.

    What is not trained is the base: a nested dict that the step takes beside the state, and never changes.

    Attributes:
        declared: declarations of the parameters that are trained.
        init: key -> their initial values.
        init_base: key -> an initial base, where no trained one is at hand; an empty dict where all is trained.
        attach: (parameters, base) -> what the decoder reads in the place of its declarations.
        whole: whether these are all of the model's parameters, and the base is empty.
    """

    declared: Tree
    init: Callable[[jax.Array], Tree]
    init_base: Callable[[jax.Array], Tree]
    attach: Callable[[Tree, Tree], Tree]
    whole: bool = False

    @property
    def num_adapters(self) -> int:
        """Parameters of adapters, 0 where the model's own are trained."""
        return 0 if self.whole else sum(leaf.size for _, leaf in leaves(self.declared))


def everything(decoder: Decoder) -> Trained:
    """All parameters of a model."""
    return Trained(
        declared=declarations(decoder),
        init=functools.partial(init, decoder),
        init_base=lambda key: NO_BASE,
        attach=lambda params, base: params,
        whole=True,
    )


def init_state(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    loss_scale: LossScaleConfig,
    key: jax.Array,
    trained: Trained | None = None,
    rules: RulesConfig | None = None,
) -> TrainState:
    """The state before the first step. Call under `jit`: arrays are made where they belong."""
    trained = trained or everything(decoder)
    params = trained.init(key)
    laid = tree_map(
        lambda value, leaf: jax.reshard(value, decoder.recipe.rules.optimizer(leaf.axes)), params, trained.declared
    )
    scaled = decoder.recipe.compute == "float16"
    return TrainState(
        params=params,
        optimizer=optimizer.init(laid),
        step=jnp.zeros((), jnp.int32),
        optimizer_step=jnp.zeros((), jnp.int32),
        learning_rate_scale=jnp.ones((), jnp.float32),
        loss_scale=init_loss_scale(loss_scale) if scaled else LossScale(jnp.ones(()), jnp.zeros((), jnp.int32)),
        guard=forget(rules or RulesConfig()),
    )
