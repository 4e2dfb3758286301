"""Dynamic loss scale for float16 compute (Micikevicius et al. 2018, section 3.2).

The loss is multiplied by a scale before the backward pass and the gradients divided by it behind, so that small
gradients stay within float16's range. A step that overflows halves the scale, a run of clean steps doubles it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.config import LossScaleConfig


class LossScale(NamedTuple):
    """The scale and what decides when it grows.

    Attributes:
        scale: float32 scalar.
        clean_steps: int32 scalar, finite steps since the scale last changed.
    """

    scale: jax.Array
    clean_steps: jax.Array


def init_loss_scale(config: LossScaleConfig) -> LossScale:
    """The scale of the first step."""
    return LossScale(jnp.full((), config.initial, jnp.float32), jnp.zeros((), jnp.int32))


def next_loss_scale(config: LossScaleConfig, state: LossScale, finite: jax.Array) -> LossScale:
    """The scale of the next step.

    Args:
        config: how it grows and how low it gets.
        state: of this step.
        finite: bool scalar, whether this step's loss and gradients were finite.
    """
    clean_steps = state.clean_steps + 1
    grows = clean_steps >= config.growth_interval
    after_clean = jnp.where(grows, 2.0 * state.scale, state.scale)
    after_overflow = jnp.maximum(0.5 * state.scale, config.minimum)
    return LossScale(
        scale=jnp.where(finite, after_clean, after_overflow),
        clean_steps=jnp.where(finite & ~grows, clean_steps, 0),
    )
