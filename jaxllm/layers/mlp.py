"""The gated feed-forward layer: down(silu(gate(x)) * up(x)) (Shazeer 2020).

B batch, T sequence, D model, F feed-forward.
"""

import jax

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
            gate_BTF = contract(x_BTD, self.use("gate"), ("mlp",), self.recipe)
            up_BTF = contract(x_BTD, self.use("up"), ("mlp",), self.recipe)
            hidden_BTF = jax.nn.silu(gate_BTF) * up_BTF
            return leave(contract(hidden_BTF, self.use("down"), (None,), self.recipe), self.recipe)
