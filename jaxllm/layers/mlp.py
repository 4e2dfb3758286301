"""The gated feed-forward layer: down(silu(gate(x)) * up(x)) (Shazeer 2020).

B batch, T sequence, D model, F feed-forward.
"""

import jax
import jax.numpy as jnp

from jaxllm.config import MLPConfig
from jaxllm.layers.linear import contract, enter, leave
from jaxllm.layers.param import Declaration, Layer, Recipe


class MLP(Layer):
    """SwiGLU."""

    def __init__(self, config: MLPConfig, dim: int, std: float, residual_std: float, recipe: Recipe) -> None:
        super().__init__(
            recipe,
            gate=Declaration((dim, config.d_ff), ("embed", "mlp"), "matrix", std=std),
            up=Declaration((dim, config.d_ff), ("embed", "mlp"), "matrix", std=std),
            down=Declaration((config.d_ff, dim), ("mlp", "embed"), "matrix", std=residual_std),
        )

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        with jax.named_scope("mlp"):
            x_BTD = enter(x_BTD, self.recipe)
            gate_BTF = contract(x_BTD, self.matrix("gate"), ("mlp",), self.recipe)
            up_BTF = contract(x_BTD, self.matrix("up"), ("mlp",), self.recipe)
            hidden_BTF = _gated(gate_BTF, up_BTF)
            return leave(contract(hidden_BTF, self.matrix("down"), (None,), self.recipe), self.recipe)


@jax.custom_vjp
def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, in float32; written out so that only gate and up are kept for the gradient."""
    wide = gate.astype(jnp.float32)
    return (wide * jax.nn.sigmoid(wide) * up.astype(jnp.float32)).astype(gate.dtype)


def _forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _gated(gate, up), (gate, up)


def _backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up = saved
    wide, dwide = gate.astype(jnp.float32), dy.astype(jnp.float32)
    share = jax.nn.sigmoid(wide)
    dgate = dwide * up.astype(jnp.float32) * share * (1 + wide * (1 - share))
    return dgate.astype(gate.dtype), (dwide * wide * share).astype(up.dtype)


_gated.defvjp(_forward, _backward)
