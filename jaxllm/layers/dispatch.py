"""Tokens to their experts and back, on one device: rows sorted by expert, each expert's work, and the sum of a token's.

    y_t = sum over its choices k of  g_tk E_e(x_t),   E_e(x) = (a(x G_e) * (x U_e)) D_e,   e = the expert of choice k

No token is dropped, whatever the load, and the cost is the rows'. TPUs have a kernel for products of sorted rows with a
matrix a group (`ragged_dot`; Gale et al. 2023, MegaBlocks, section 5); elsewhere see `expert_blocks`.
The gate multiplies the hidden units, not the result: its gradient then needs none of the results, which are not kept.

N tokens, K choices of each, M = N K rows, D model, F hidden units, E experts.
"""

import jax

from jaxllm.layers.expert_blocks import Weights, block_rows, run_blocks, scaled
from jaxllm.layers.mlp import gated
from jaxllm.layers.order import gather_sum, sort, spread


def run_experts(
    x_ND: jax.Array, experts_NK: jax.Array, gates_NK: jax.Array, weights: Weights, activation: str
) -> jax.Array:
    """What a token's experts make of it, in sum: [N, D].

    Args:
        x_ND: tokens.
        experts_NK: int32; the number of experts means none, and what then comes out is not to be read.
        gates_NK: float32.
        weights: of x's dtype.
        activation: as an MLP's.
    """
    (num_experts, width, num_hidden), num_choices = weights.up.shape, experts_NK.shape[1]
    order = sort(experts_NK.reshape(-1), num_experts)
    gates_M = gates_NK.reshape(-1)[order.row_M]
    with jax.named_scope("experts"):
        if block := block_rows(order.row_M.shape[0], num_experts, width, num_hidden):
            return run_blocks(x_ND, gates_M, weights, order, num_choices, block, activation)
        rows_MD = spread(x_ND, order, num_choices)
        gate_MF, up_MF = (jax.lax.ragged_dot(rows_MD, w, order.sizes_E) for w in (weights.gate, weights.up))
        hidden_MF = scaled(gated(gate_MF, up_MF, activation), gates_M)
        return gather_sum(jax.lax.ragged_dot(hidden_MF, weights.down, order.sizes_E), order, num_choices)
