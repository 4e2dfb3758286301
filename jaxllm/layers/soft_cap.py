"""Soft caps of logits: y = c tanh(x / c), which keeps them between -c and c (Gemma 2, Gemma Team 2024, section 2).

dy/dx = 1 - tanh(x / c)^2 = 1 - (y / c)^2,  written with y because that is what is at hand where gradients are
"""

import jax
import jax.numpy as jnp


def soft_cap(logits: jax.Array, cap: float) -> jax.Array:
    """The logits, any shape, capped; as they are where the cap is 0."""
    return cap * jnp.tanh(logits / cap) if cap else logits


def slope(capped: jax.Array, cap: float) -> jax.Array:
    """The derivative at logits that became `capped`, by a cap above 0."""
    return 1.0 - jnp.square(capped / cap)
