"""A mixture of experts in the place of a feed-forward layer (Shazeer et al. 2017; DeepSeekMoE, Dai et al. 2024).

    y = sum over the chosen experts of gate * expert(x)  +  shared(x)

Experts and the shared one are gated feed-forward layers (see `mlp`); `router` chooses and makes the gates, `dispatch`
is the work on one device, `exchange` that of experts on other devices. These two are in one `shard_map`: over the
batch's axes and context each device has its tokens, over the expert axis its experts, over tensor its hidden units.

B batch, T sequence, D model, F hidden units of an expert, E experts, K choices of a token.
"""

import jax
import msgspec
from jax.sharding import PartitionSpec

from jaxllm.config import ExpertsConfig, MLPConfig
from jaxllm.layers.dispatch import run_experts
from jaxllm.layers.exchange import exchange
from jaxllm.layers.expert_blocks import Weights
from jaxllm.layers.linear import enter, leave, plain
from jaxllm.layers.mlp import MLP
from jaxllm.layers.param import Declaration, Layer, Recipe
from jaxllm.layers.router import Load, Router, Routing
from jaxllm.sharding import Rules, axes_of


class MoE(Layer):
    """Router, experts, and the expert that all tokens share, if there is one.

    Args:
        config: of one expert.
        experts: of the mixture.
        dim: width of the residual stream.
        std: standard deviation of the initial weights.
        residual_std: of those that lead back into the residual stream.
        recipe: rules and dtypes.
    """

    def __init__(
        self, config: MLPConfig, experts: ExpertsConfig, dim: int, std: float, residual_std: float, recipe: Recipe
    ) -> None:
        super().__init__(recipe)
        self.router = Router(experts, dim, std, recipe)
        self.experts = Experts(config, experts.num_experts, dim, std, residual_std, recipe)
        self.has_shared = experts.shared_d_ff > 0
        if self.has_shared:
            wide = msgspec.structs.replace(config, d_ff=experts.shared_d_ff)
            self.shared = MLP(wide, dim, std, residual_std, recipe)

    def __call__(self, x_BTD: jax.Array, segments_BT: jax.Array) -> tuple[jax.Array, Load]:
        """[B, T, D], documents -> [B, T, D], and what the router did."""
        with jax.named_scope("moe"):
            x_BTD = enter(x_BTD, self.recipe)
            routing = self.router(plain(x_BTD), segments_BT)
            y_BTD = self.experts(x_BTD, routing)
            if self.has_shared:
                y_BTD = y_BTD + self.shared.partial(x_BTD)
            return leave(y_BTD, self.recipe), routing.load


class Experts(Layer):
    """The matrices of all experts, each one of a stack."""

    def __init__(self, config: MLPConfig, num: int, dim: int, std: float, residual_std: float, recipe: Recipe) -> None:
        inner = Declaration((num, dim, config.d_ff), ("experts", "expert_embed", "mlp"), "matrix", std=std, stacked=1)
        axes = ("experts", "mlp", "expert_embed")
        outer = Declaration((num, config.d_ff, dim), axes, "matrix", std=residual_std, stacked=1)
        super().__init__(recipe, gate=inner, up=inner, down=outer)
        self.activation = config.activation

    def __call__(self, x_BTD: jax.Array, routing: Routing) -> jax.Array:
        """The gated sum of each token's experts, [B, T, D]: partial sums where hidden units lie over tensor."""
        weights = Weights(*(self.use(name) for name in Weights._fields))
        rules = self.recipe.rules
        spec = rules.activation("batch", "sequence", None)
        # each device of tensor sees a part of the hidden units, and makes a part of the gates' gradient
        gates_BTK = jax.reshard(routing.gates_BTK, PartitionSpec(*spec.partitions, reduced=rules.tensor))
        laid = PartitionSpec(*spec.partitions, unreduced=rules.tensor)
        return jax.shard_map(self._on_device, out_specs=laid)(x_BTD, gates_BTK, routing.experts_BTK, weights)

    def _on_device(self, x_BTD: jax.Array, gates_BTK: jax.Array, experts_BTK: jax.Array, weights: Weights) -> jax.Array:
        """As `__call__`, of a device's tokens and its share of the weights."""
        rules, shape = self.recipe.rules, x_BTD.shape
        tokens = rules.activation("batch", "sequence", None)
        x_BTD, gates_BTK, experts_BTK = (_vary(x, tokens, rules) for x in (x_BTD, gates_BTK, experts_BTK))
        axes = dict(self.declared)
        weights = Weights(*(_vary(w, rules.compute(axes[name].axes), rules) for name, w in weights._asdict().items()))
        x_ND, gates_NK, experts_NK = (x.reshape(-1, x.shape[-1]) for x in (x_BTD, gates_BTK, experts_BTK))
        if rules.experts:
            y_ND = exchange(x_ND, gates_NK, weights, experts_NK, self.activation, rules.experts)
        else:
            y_ND = run_experts(x_ND, experts_NK, gates_NK, weights, self.activation)
        y_BTD = y_ND.reshape(shape)
        return jax.lax.pcast(y_BTD, tuple(rules.tensor), to="unreduced") if rules.tensor else y_BTD


def _vary(x: jax.Array, spec: PartitionSpec, rules: Rules) -> jax.Array:
    """An array of a spec typed as different on all devices, as loops and written-out gradients want it."""
    same = tuple(rules.of_a_stage.live - axes_of(spec))
    return jax.lax.pcast(x, same, to="varying") if same else x
