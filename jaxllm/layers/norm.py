"""Root mean square normalisation (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016), in float32.

    y = n * scale,  n = x r,  r = 1 / sqrt(mean(x^2) + epsilon)
    dx = r (g - n mean(g n)),  g = dy * scale;   dscale = sum over tokens of dy * n

LayerNorm takes the mean away first, c = x - mean(x), and adds a bias:

    y = n * scale + bias,  n = c r,  r = 1 / sqrt(mean(c^2) + epsilon)
    dx = r (g - mean(g) - n mean(g n));   dbias = sum over tokens of dy

With a unit offset (Gemma Team 2024) 1 + scale stands in the place of scale; the scale's gradient is the same.

The gradient is written out for two reasons: only x and scale are kept for it, and the sums over tokens stay partial
sums on each device, typed `unreduced` (see `param.use`), which elementwise products cannot express.

The mean is over as many last dims as the scale has; the scale's gradient is summed over all others.

B batch, T sequence, D normalised dim, N heads, H width of a head.
"""

import functools
import string

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.config import NormConfig
from jaxllm.layers.linear import pinned, sum_over_tokens
from jaxllm.layers.param import Declaration, Layer, Recipe


class Norm(Layer):
    """RMSNorm or LayerNorm over the last dim."""

    def __init__(self, config: NormConfig, dim: int, recipe: Recipe) -> None:
        scale = Declaration((dim,), ("norm",), "norm", num_inputs=0, fill=_first_scale(config))
        bias = {"bias": Declaration((dim,), ("norm",), "bias", num_inputs=0)} if config.kind == "layer" else {}
        super().__init__(recipe, scale=scale, **bias)
        self.config = config

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D], same dtype."""
        config = self.config
        with jax.named_scope("norm"):
            if config.kind == "layer":
                return _standardise(x_BTD, self.use("scale"), self.use("bias"), config.epsilon, config.unit_offset)
            return _normalise(x_BTD, self.use("scale"), config.epsilon, config.unit_offset)


class HeadNorm(Layer):
    """RMSNorm of queries or keys (Henry et al. 2020; Dehghani et al. 2023, section 2).

    Args:
        config: epsilon and offset; the kind is RMSNorm, whatever the residual stream's is.
        kind: `head`, over each head's width, with one scale for all heads, or `projection`, over all heads together.
        shape: heads and width of a head.
        heads: logical axis of the heads.
        recipe: rules and dtypes.
    """

    def __init__(self, config: NormConfig, kind: str, shape: tuple[int, int], heads: str, recipe: Recipe) -> None:
        # not the residual stream's axis `norm`: over tensor each device has other heads, so gradients are partial sums
        first = _first_scale(config)
        one = Declaration(shape[1:], ("head_norm",), "norm", num_inputs=0, fill=first)
        all_heads = Declaration(shape, (heads, "head_dim"), "norm", num_inputs=0, fill=first)
        super().__init__(recipe, scale=one if kind == "head" else all_heads)
        self.config = config

    def __call__(self, x_BTNH: jax.Array) -> jax.Array:
        """[B, T, N, H] -> [B, T, N, H], same dtype."""
        with jax.named_scope("norm"):
            return _normalise(x_BTNH, self.use("scale"), self.config.epsilon, self.config.unit_offset)


def _first_scale(config: NormConfig) -> float:
    return 0.0 if config.unit_offset else 1.0


def _statistics(x: jax.Array, num_dims: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """x over its root mean square of the last dims, and one over that."""
    wide = x.astype(jnp.float32)
    dims = tuple(range(x.ndim - num_dims, x.ndim))
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=dims, keepdims=True) + epsilon)
    return wide * inverse, inverse


def _factor(scale: jax.Array, num_dims: int, unit_offset: bool) -> jax.Array:
    """What a normal is multiplied by: the scale, or 1 + scale."""
    return 1.0 + _whole(scale, num_dims) if unit_offset else _whole(scale, num_dims)


def _whole(scale: jax.Array, num_dims: int) -> jax.Array:
    """A scale as elementwise products read it: float32, of so many dims, without the type's note on its gradient."""
    plain = jax.reshard(scale, PartitionSpec(*jax.typeof(scale).sharding.spec.partitions))
    return jnp.expand_dims(plain.astype(jnp.float32), tuple(range(num_dims - scale.ndim)))


def _over_tokens(x: jax.Array, y: jax.Array, scale: jax.Array) -> jax.Array:
    """x * y summed over the dims that the scale has not, in its dtype; partial sums as its type asks for."""
    spec = jax.typeof(scale).sharding.spec
    letters = string.ascii_lowercase[: x.ndim]
    total = jnp.einsum(
        f"{letters},{letters}->{letters[-scale.ndim :]}",
        pinned(x),
        y,
        out_sharding=PartitionSpec(*spec.partitions, unreduced=spec.reduced),
    )
    return total.astype(scale.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _normalise(x: jax.Array, scale: jax.Array, epsilon: float, unit_offset: bool) -> jax.Array:
    normal, _ = _statistics(x, scale.ndim, epsilon)
    return (normal * _factor(scale, x.ndim, unit_offset)).astype(x.dtype)


def _forward(
    x: jax.Array, scale: jax.Array, epsilon: float, unit_offset: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _normalise(x, scale, epsilon, unit_offset), (x, scale)


def _backward(
    epsilon: float, unit_offset: bool, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, scale = saved
    normal, inverse = _statistics(x, scale.ndim, epsilon)
    wide = dy.astype(jnp.float32)
    g = wide * _factor(scale, x.ndim, unit_offset)
    dims = tuple(range(x.ndim - scale.ndim, x.ndim))
    dx = inverse * (g - normal * jnp.mean(g * normal, axis=dims, keepdims=True))
    return dx.astype(x.dtype), _over_tokens(wide, normal, scale)


_normalise.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _standardise(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, unit_offset: bool) -> jax.Array:
    normal, _ = _statistics(_centred(x), 1, epsilon)
    return (normal * _factor(scale, x.ndim, unit_offset) + _whole(bias, x.ndim)).astype(x.dtype)


def _standardise_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, unit_offset: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return _standardise(x, scale, bias, epsilon, unit_offset), (x, scale, bias)


def _standardise_backward(
    epsilon: float, unit_offset: bool, saved: tuple[jax.Array, jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias = saved
    normal, inverse = _statistics(_centred(x), 1, epsilon)
    wide = dy.astype(jnp.float32)
    g = wide * _factor(scale, x.ndim, unit_offset)
    along_normal = normal * jnp.mean(g * normal, axis=-1, keepdims=True)
    dx = inverse * (g - jnp.mean(g, axis=-1, keepdims=True) - along_normal)
    return dx.astype(x.dtype), _over_tokens(wide, normal, scale), sum_over_tokens(wide, bias)


_standardise.defvjp(_standardise_forward, _standardise_backward)


def _centred(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return wide - jnp.mean(wide, axis=-1, keepdims=True)
