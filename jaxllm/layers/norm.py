"""Root mean square normalisation (Zhang and Sennrich 2019), in float32.

    y = n * scale,  n = x r,  r = 1 / sqrt(mean(x^2) + epsilon)
    dx = r (g - n mean(g n)),  g = dy * scale;   dscale = sum over tokens of dy * n

The gradient is written out for two reasons: only x and scale are kept for it, and the sum over tokens stays a partial
sum on each device, typed `unreduced` (see `param.use`), which elementwise products cannot express.

B batch, T sequence, D normalised dim.
"""

import functools

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


def _statistics(x_BTD: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    wide_BTD = x_BTD.astype(jnp.float32)
    inverse_BT1 = jax.lax.rsqrt(jnp.mean(jnp.square(wide_BTD), axis=-1, keepdims=True) + epsilon)
    return wide_BTD * inverse_BT1, inverse_BT1


def _whole(scale_D: jax.Array) -> jax.Array:
    """The scale as elementwise products read it: float32[1, 1, D], without the type's note on its gradient."""
    plain = jax.reshard(scale_D, PartitionSpec(*jax.typeof(scale_D).sharding.spec.partitions))
    return plain.astype(jnp.float32)[None, None, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _normalise(x_BTD: jax.Array, scale_D: jax.Array, epsilon: float) -> jax.Array:
    normal_BTD, _ = _statistics(x_BTD, epsilon)
    return (normal_BTD * _whole(scale_D)).astype(x_BTD.dtype)


def _forward(x_BTD: jax.Array, scale_D: jax.Array, epsilon: float) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _normalise(x_BTD, scale_D, epsilon), (x_BTD, scale_D)


def _backward(epsilon: float, saved: tuple[jax.Array, jax.Array], dy_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BTD, scale_D = saved
    normal_BTD, inverse_BT1 = _statistics(x_BTD, epsilon)
    wide_BTD = dy_BTD.astype(jnp.float32)
    g_BTD = wide_BTD * _whole(scale_D)
    dx_BTD = inverse_BT1 * (g_BTD - normal_BTD * jnp.mean(g_BTD * normal_BTD, axis=-1, keepdims=True))
    partial = jax.typeof(scale_D).sharding.spec.reduced
    dscale_D = jnp.einsum("btd,btd->d", wide_BTD, normal_BTD, out_sharding=PartitionSpec(None, unreduced=partial))
    return dx_BTD.astype(x_BTD.dtype), dscale_D.astype(scale_D.dtype)


_normalise.defvjp(_forward, _backward)
