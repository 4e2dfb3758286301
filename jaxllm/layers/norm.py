"""Root mean square normalisation (Zhang and Sennrich 2019), in float32.

    y = n * scale,  n = x r,  r = 1 / sqrt(mean(x^2) + epsilon)
    dx = r (g - n mean(g n)),  g = dy * scale;   dscale = sum over tokens of dy * n

The gradient is written out for two reasons: only x and scale are kept for it, and the sum over tokens stays a partial
sum on each device, typed `unreduced` (see `param.use`), which elementwise products cannot express.

The mean is over as many last dims as the scale has; the scale's gradient is summed over all others.

B batch, T sequence, D normalised dim, N heads, H width of a head.
"""

import functools
import string

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.config import NormConfig
from jaxllm.layers.param import Declaration, Layer, Recipe


class Norm(Layer):
    """RMSNorm over the last dim."""

    def __init__(self, config: NormConfig, dim: int, recipe: Recipe) -> None:
        super().__init__(recipe, scale=Declaration((dim,), ("norm",), "norm", num_inputs=0, fill=1.0))
        self.epsilon = config.epsilon

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D], same dtype."""
        with jax.named_scope("norm"):
            return _normalise(x_BTD, self.use("scale"), self.epsilon)


class HeadNorm(Layer):
    """RMSNorm of queries or keys (Henry et al. 2020; Dehghani et al. 2023, section 2).

    Args:
        config: epsilon.
        kind: `head`, over each head's width, with one scale for all heads, or `projection`, over all heads together.
        shape: heads and width of a head.
        heads: logical axis of the heads.
        recipe: rules and dtypes.
    """

    def __init__(self, config: NormConfig, kind: str, shape: tuple[int, int], heads: str, recipe: Recipe) -> None:
        # not the residual stream's axis `norm`: over tensor each device has other heads, so gradients are partial sums
        one = Declaration(shape[1:], ("head_norm",), "norm", num_inputs=0, fill=1.0)
        all_heads = Declaration(shape, (heads, "head_dim"), "norm", num_inputs=0, fill=1.0)
        super().__init__(recipe, scale=one if kind == "head" else all_heads)
        self.epsilon = config.epsilon

    def __call__(self, x_BTNH: jax.Array) -> jax.Array:
        """[B, T, N, H] -> [B, T, N, H], same dtype."""
        with jax.named_scope("norm"):
            return _normalise(x_BTNH, self.use("scale"), self.epsilon)


def _statistics(x: jax.Array, num_dims: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """x over its root mean square of the last dims, and one over that."""
    wide = x.astype(jnp.float32)
    dims = tuple(range(x.ndim - num_dims, x.ndim))
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=dims, keepdims=True) + epsilon)
    return wide * inverse, inverse


def _whole(scale: jax.Array, num_dims: int) -> jax.Array:
    """The scale as elementwise products read it: float32, of so many dims, without the type's note on its gradient."""
    plain = jax.reshard(scale, PartitionSpec(*jax.typeof(scale).sharding.spec.partitions))
    return jnp.expand_dims(plain.astype(jnp.float32), tuple(range(num_dims - scale.ndim)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _normalise(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    normal, _ = _statistics(x, scale.ndim, epsilon)
    return (normal * _whole(scale, x.ndim)).astype(x.dtype)


def _forward(x: jax.Array, scale: jax.Array, epsilon: float) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _normalise(x, scale, epsilon), (x, scale)


def _backward(epsilon: float, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale = saved
    normal, inverse = _statistics(x, scale.ndim, epsilon)
    wide = dy.astype(jnp.float32)
    g = wide * _whole(scale, x.ndim)
    dims = tuple(range(x.ndim - scale.ndim, x.ndim))
    dx = inverse * (g - normal * jnp.mean(g * normal, axis=dims, keepdims=True))
    spec = jax.typeof(scale).sharding.spec
    letters = string.ascii_lowercase[: x.ndim]
    dscale = jnp.einsum(
        f"{letters},{letters}->{letters[-scale.ndim :]}",
        wide,
        normal,
        out_sharding=PartitionSpec(*spec.partitions, unreduced=spec.reduced),
    )
    return dx.astype(x.dtype), dscale.astype(scale.dtype)


_normalise.defvjp(_forward, _backward)
