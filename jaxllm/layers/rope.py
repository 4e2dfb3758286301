"""Rotary position embedding (Su et al. 2021).

Feature i of the first half of a head and feature i of the second half turn by position * theta^(-2i/H), the layout of
Llama's weights as published by Hugging Face. Scalings change the frequencies only.

B batch, T sequence, N heads, H width of a head.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import Llama3Scaling, RopeConfig


def frequencies(config: RopeConfig, head_dim: int) -> np.ndarray:
    """Radians a token of each pair of features: float64[head_dim / 2]."""
    base = config.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if config.scaling is None:
        return base
    return _llama3(base, config.scaling)


def _llama3(base: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    """Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between interpolated."""
    turns = scaling.original_max_positions * base / (2 * math.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(share, 0.0, 1.0)
    return base * kept + base / scaling.factor * (1 - kept)


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, config: RopeConfig) -> jax.Array:
    """Turn queries or keys by their positions; computed in float32, returned in x's dtype."""
    with jax.named_scope("rope"):
        inverse = jnp.asarray(frequencies(config, x_BTNH.shape[-1]), jnp.float32)
        angles = positions_BT[:, :, None, None].astype(jnp.float32) * inverse[None, None, None, :]
        # behind the barrier they are computed once, not again for every head
        cos, sin = jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))
        return _turn(x_BTNH, cos, sin)


@jax.custom_vjp
def _turn(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _forward(x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _turn(x, cos, sin), (cos, sin)


def _backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, None, None]:
    cos, sin = saved
    return _turn(dy, cos, -sin), None, None


_turn.defvjp(_forward, _backward)
