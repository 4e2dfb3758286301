"""The feed-forward layer: down(a(gate(x)) * up(x)) (Shazeer 2020), or without a gate down(a(up(x))).

Every activation a is its input times a share of it between 0 and 1:

    silu        a(x) = x s(x),  s the logistic function (Elfwing et al. 2017)
    gelu        a(x) = x P(x),  P the normal distribution's cumulative function (Hendrycks and Gimpel 2016)
    gelu_tanh   a(x) = x (1 + tanh(u)) / 2,  u = sqrt(2 / pi) (x + 0.044715 x^3),  the same paper's approximation

    a'(x) = share(x) + x share'(x)

B batch, T sequence, D model, F feed-forward.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.config import MLPConfig
from jaxllm.layers.linear import add_bias, contract, enter, leave
from jaxllm.layers.param import Declaration, Layer, Recipe


class MLP(Layer):
    """Feed-forward layer, gated or not; its biases, if any, are `up_bias`, `gate_bias` and `down_bias`."""

    def __init__(self, config: MLPConfig, dim: int, std: float, residual_std: float, recipe: Recipe) -> None:
        inner = {"gate": config.gated, "up": True}
        declared = {
            name: Declaration((dim, config.d_ff), ("embed", "mlp"), "matrix", std=std)
            for name, there in inner.items()
            if there
        }
        biases = {f"{name}_bias": Declaration((config.d_ff,), ("mlp",), "bias", num_inputs=0) for name in declared}
        biases["down_bias"] = Declaration((dim,), ("norm",), "bias", num_inputs=0)
        declared["down"] = Declaration((config.d_ff, dim), ("mlp", "embed"), "matrix", std=residual_std)
        super().__init__(recipe, **declared, **(biases if config.bias else {}))
        self.config = config

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        with jax.named_scope("mlp"):
            y_BTD = leave(self.partial(enter(x_BTD, self.recipe)), self.recipe)
            return add_bias(y_BTD, self.use("down_bias")) if self.config.bias else y_BTD

    def partial(self, x_BTD: jax.Array) -> jax.Array:
        """Of what has been entered, what is to `leave`, without the last bias: [B, T, D] -> [B, T, D]."""
        config = self.config
        if config.gated:
            gate_BTF = self._inner(x_BTD, "gate")
            hidden_BTF = gated(gate_BTF, self._inner(x_BTD, "up"), config.activation)
        else:
            hidden_BTF = _activated(self._inner(x_BTD, "up"), config.activation)
        return contract(hidden_BTF, self.matrix("down"), (None,), self.recipe)

    def _inner(self, x_BTD: jax.Array, name: str) -> jax.Array:
        """A product that lies over tensor by hidden units: [B, T, F]."""
        y_BTF = contract(x_BTD, self.matrix(name), ("mlp",), self.recipe)
        return add_bias(y_BTF, self.use(f"{name}_bias")) if self.config.bias else y_BTF


class _Activation(NamedTuple):
    """An activation in float32.

    Attributes:
        share: x -> what x is multiplied by.
        pull: (dy, x, share of x) -> dy times the derivative.
    """

    share: Callable[[jax.Array], jax.Array]
    pull: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _silu_pull(dy: jax.Array, x: jax.Array, share: jax.Array) -> jax.Array:
    return dy * share * (1 + x * (1 - share))


def _gelu_share(x: jax.Array) -> jax.Array:
    return 0.5 * jax.lax.erfc(-math.sqrt(0.5) * x)


def _gelu_pull(dy: jax.Array, x: jax.Array, share: jax.Array) -> jax.Array:
    return dy * (share + x * (jnp.exp(-0.5 * jnp.square(x)) / math.sqrt(2 * math.pi)))


_INNER, _CUBIC = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh_share(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jnp.tanh(_INNER * (x + _CUBIC * x * x * x)))


def _gelu_tanh_pull(dy: jax.Array, x: jax.Array, share: jax.Array) -> jax.Array:
    # the derivative of (1 + tanh(u)) / 2 is 2 share (1 - share) u'
    return dy * (share + x * 2 * share * (1 - share) * _INNER * (1 + 3 * _CUBIC * x * x))


_ACTIVATIONS = {
    "silu": _Activation(jax.nn.sigmoid, _silu_pull),
    "gelu": _Activation(_gelu_share, _gelu_pull),
    "gelu_tanh": _Activation(_gelu_tanh_share, _gelu_tanh_pull),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gated(gate: jax.Array, up: jax.Array, activation: str) -> jax.Array:
    """a(gate) * up, in float32; written out so that only gate and up are kept for the gradient."""
    wide = gate.astype(jnp.float32)
    return (wide * _ACTIVATIONS[activation].share(wide) * up.astype(jnp.float32)).astype(gate.dtype)


def _forward(gate: jax.Array, up: jax.Array, activation: str) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return gated(gate, up, activation), (gate, up)


def _backward(activation: str, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up = saved
    wide, dwide = gate.astype(jnp.float32), dy.astype(jnp.float32)
    share = _ACTIVATIONS[activation].share(wide)
    dgate = _ACTIVATIONS[activation].pull(dwide * up.astype(jnp.float32), wide, share)
    return dgate.astype(gate.dtype), (dwide * wide * share).astype(up.dtype)


gated.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _activated(x: jax.Array, activation: str) -> jax.Array:
    """a(x), in float32; only x is kept for the gradient."""
    wide = x.astype(jnp.float32)
    return (wide * _ACTIVATIONS[activation].share(wide)).astype(x.dtype)


def _activated_forward(x: jax.Array, activation: str) -> tuple[jax.Array, jax.Array]:
    return _activated(x, activation), x


def _activated_backward(activation: str, x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    share = _ACTIVATIONS[activation].share(wide)
    return (_ACTIVATIONS[activation].pull(dy.astype(jnp.float32), wide, share).astype(x.dtype),)


_activated.defvjp(_activated_forward, _activated_backward)
