"""Rotary position embedding (Su et al. 2021).

Feature i of the first half of a head and feature i of the second half turn by position * theta^(-2i/R), the layout of
Llama's weights as published by Hugging Face; interleaved, features 2i and 2i + 1 do (GLM's). R is the width of a head,
or of its first dims where only a fraction turns.

A scaling changes the frequencies f_i = theta^(-2i/R), and may multiply sines and cosines by a constant m. With s its
factor and L the sequence length of pretraining:

    linear     f_i / s  (Chen et al. 2023)
    llama3     f_i / s for long wavelengths, f_i for short ones, between the two interpolated
    yarn       f_i / s for features that turn less than beta_slow times within L, f_i for those that turn more than
               beta_fast times, on a ramp over i between; m = 0.1 ln(s) + 1  (Peng et al. 2023, sections 3.2 and 3.4)
    longrope   f_i / short_i, or f_i / long_i for sequences longer than L; m = sqrt(1 + ln(s) / ln(L))  (Ding et al.
               2024)
    dynamic    theta' = theta (s T / L - (s - 1))^(R / (R - 2)) for T > L  (bloc97 and emozilla 2023)

The last two depend on T, the largest position of a call and one more: of all rows of a (micro-)batch, as in Hugging
Face's code, so that the same document may be turned otherwise in other company.

B batch, T sequence, N heads, H width of a head, R dims of it that turn.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
)


def frequencies(config: RopeConfig, num_dims: int, length: int = 0) -> np.ndarray:
    """Radians a token of each pair of features: float64[R / 2].

    Args:
        config: theta and scaling.
        num_dims: R.
        length: the largest position of the call and one more, for scalings that depend on it.
    """
    base = _plain(config.theta, num_dims)
    match config.scaling:
        case None:
            return base
        case Llama3Scaling() as scaling:
            return _llama3(base, scaling)
        case LinearScaling(factor=factor):
            return base / factor
        case YarnScaling() as scaling:
            return _yarn(base, config.theta, scaling)
        case LongRopeScaling() as scaling:
            long = length > scaling.original_max_positions
            return base / np.asarray(scaling.long_factor if long else scaling.short_factor)
        case DynamicScaling() as scaling:
            longer = max(length / scaling.original_max_positions, 1.0)
            return _plain(config.theta * _dynamic_growth(scaling, num_dims, longer), num_dims)


def magnitude(config: RopeConfig) -> float:
    """What sines and cosines are multiplied by."""
    match config.scaling:
        case YarnScaling() as scaling if not scaling.attention_factor:
            if scaling.mscale and scaling.mscale_all_dim:
                return _yarn_magnitude(scaling, scaling.mscale) / _yarn_magnitude(scaling, scaling.mscale_all_dim)
            return _yarn_magnitude(scaling, 1.0)
        case LongRopeScaling() as scaling if not scaling.attention_factor:
            return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_positions))
        case YarnScaling(attention_factor=factor) | LongRopeScaling(attention_factor=factor):
            return factor
    return 1.0


def _plain(theta: float, num_dims: int) -> np.ndarray:
    return theta ** (-np.arange(0, num_dims, 2, dtype=np.float64) / num_dims)


def _llama3(base: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    """Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between interpolated."""
    turns = scaling.original_max_positions * base / (2 * math.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(share, 0.0, 1.0)
    return base * kept + base / scaling.factor * (1 - kept)


def _yarn(base: np.ndarray, theta: float, scaling: YarnScaling) -> np.ndarray:
    """A ramp over the pairs, from the one that turns beta_fast times to the one that turns beta_slow times."""
    num_dims = 2 * len(base)

    def feature(turns: float) -> float:
        """The number, not a whole one, of the pair that turns so often within the original length."""
        return num_dims * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = feature(scaling.beta_fast), feature(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, num_dims - 1)
    if first == last:
        last += 0.001  # as everybody does, so that the ramp has a width
    divided = np.clip((np.arange(len(base)) - first) / (last - first), 0.0, 1.0)
    return base / scaling.factor * divided + base * (1 - divided)


def _yarn_magnitude(scaling: YarnScaling, weight: float) -> float:
    return 0.1 * weight * math.log(scaling.factor) + 1.0


def _dynamic_growth(scaling: DynamicScaling, num_dims: int, longer: Any) -> Any:
    """What theta is multiplied by, where a sequence is so many times, 1 or more, as long as in pretraining."""
    return (scaling.factor * longer - (scaling.factor - 1)) ** (num_dims / (num_dims - 2))


def changes(config: RopeConfig, before: int, after: int) -> bool:
    """Whether positions turn otherwise in a sequence of `after` tokens than in its first `before` ones alone."""
    match config.scaling:
        case DynamicScaling(original_max_positions=original):
            return after > max(before, original)
        case LongRopeScaling(original_max_positions=original):
            return before <= original < after
    return False


def _at_length(config: RopeConfig, num_dims: int, positions_BT: jax.Array) -> jax.Array:
    """`frequencies` as an array, of a length that is traced: float32[R / 2]."""
    match config.scaling:
        case DynamicScaling() as scaling:
            longer = jnp.maximum((jnp.max(positions_BT) + 1) / scaling.original_max_positions, 1.0)
            growth = _dynamic_growth(scaling, num_dims, longer)
            exponents = jnp.asarray(-np.arange(0, num_dims, 2) / num_dims, jnp.float32)
            return jnp.asarray(_plain(config.theta, num_dims), jnp.float32) * growth**exponents
        case LongRopeScaling() as scaling:
            is_long = jnp.max(positions_BT) + 1 > scaling.original_max_positions
            short, long = (frequencies(config, num_dims, length) for length in (0, scaling.original_max_positions + 1))
            return jnp.where(is_long, jnp.asarray(long, jnp.float32), jnp.asarray(short, jnp.float32))
    return jnp.asarray(frequencies(config, num_dims), jnp.float32)


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, config: RopeConfig) -> jax.Array:
    """Turn queries or keys by their positions; computed in float32, returned in x's dtype."""
    with jax.named_scope("rope"):
        num_dims, factor = config.num_dims(x_BTNH.shape[-1]), magnitude(config)
        inverse = _at_length(config, num_dims, positions_BT)
        angles = positions_BT[:, :, None, None].astype(jnp.float32) * inverse[None, None, None, :]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        if factor != 1:
            cos, sin = factor * cos, factor * sin
        # behind the barrier they are computed once, not again for every head
        cos, sin = jax.lax.optimization_barrier((cos, sin))
        turned = _turn(x_BTNH[..., :num_dims], cos, sin, config.interleaved)
        return turned if num_dims == x_BTNH.shape[-1] else jnp.concatenate([turned, x_BTNH[..., num_dims:]], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _turn(x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool) -> jax.Array:
    wide = x.astype(jnp.float32)
    first, second = (wide[..., 0::2], wide[..., 1::2]) if interleaved else jnp.split(wide, 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        return jnp.stack(turned, axis=-1).reshape(x.shape).astype(x.dtype)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _forward(
    x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _turn(x, cos, sin, interleaved), (cos, sin)


def _backward(interleaved: bool, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, None, None]:
    cos, sin = saved
    return _turn(dy, cos, -sin, interleaved), None, None


_turn.defvjp(_forward, _backward)
