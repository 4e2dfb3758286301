"""Tokens to their experts and back, on one device: rows sorted by expert, each expert's work, and the sum of a token's.

    y_t = sum over its choices k of  g_tk E_e(x_t),   E_e(x) = (a(x G_e) * (x U_e)) D_e,   e = the expert of choice k

No token is dropped, whatever the load. The gate multiplies the hidden units, not the result: its gradient then needs
none of the results, which are not kept.

N tokens, K choices of each, M = N K rows (and some to spare, see `grouped`), D model, F hidden units, E experts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.layers.grouped import block_rows, grouped_matmul
from jaxllm.layers.mlp import gated


class Weights(NamedTuple):
    """Matrices of experts: gate and up [E, D, F], down [E, F, D]."""

    gate: jax.Array
    up: jax.Array
    down: jax.Array


class Order(NamedTuple):
    """Rows sorted by group.

    Attributes:
        row_M: which row comes at each place, int32.
        place_M: at which place each row comes, its inverse.
        sizes_E: rows of each group.
    """

    row_M: jax.Array
    place_M: jax.Array
    sizes_E: jax.Array


def sort(groups_M: jax.Array, num_groups: int) -> Order:
    """Rows in the order of their groups, and of their places in each; those of no group (`num_groups`) come last."""
    numbers_M = jax.lax.broadcasted_iota(jnp.int32, groups_M.shape, 0)
    _, row_M = jax.lax.sort_key_val(groups_M, numbers_M, is_stable=True)
    place_M = jnp.zeros_like(groups_M).at[row_M].set(numbers_M, unique_indices=True)
    is_of_ME = groups_M[:, None] == jnp.arange(num_groups)[None, :]
    return Order(row_M, place_M, jnp.sum(is_of_ME, axis=0, dtype=jnp.int32))


def run_experts(
    x_ND: jax.Array, experts_NK: jax.Array, gates_NK: jax.Array, weights: Weights, activation: str
) -> jax.Array:
    """What a token's experts make of it, in sum: [N, D].

    Args:
        x_ND: tokens.
        experts_NK: int32; the number of experts means none.
        gates_NK: float32.
        weights: of x's dtype.
        activation: as an MLP's.
    """
    num_experts, num_choices = weights.up.shape[0], experts_NK.shape[1]
    order = sort(experts_NK.reshape(-1), num_experts)
    block = block_rows(order.row_M.shape[0], num_experts)
    rows_MD = spread(x_ND, order, num_choices, block)
    gates_M = jnp.pad(gates_NK.reshape(-1)[order.row_M], (0, block))
    with jax.named_scope("experts"):
        gate_MF = grouped_matmul(rows_MD, weights.gate, order.sizes_E, block)
        up_MF = grouped_matmul(rows_MD, weights.up, order.sizes_E, block)
        hidden_MF = scaled(gated(gate_MF, up_MF, activation), gates_M)
        made_MD = grouped_matmul(hidden_MF, weights.down, order.sizes_E, block)
    return gather_sum(made_MD, order, num_choices, block)


def scaled(x_MF: jax.Array, gates_M: jax.Array) -> jax.Array:
    """x times gates, in float32, in x's dtype."""
    return (x_MF.astype(jnp.float32) * gates_M[:, None]).astype(x_MF.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def spread(x_ND: jax.Array, order: Order, num_choices: int, spare: int) -> jax.Array:
    """A row for each choice of each token, in order, and `spare` more: [M + spare, D]."""
    return x_ND[jnp.pad(order.row_M // num_choices, (0, spare))]


def _spread_forward(x_ND: jax.Array, order: Order, num_choices: int, spare: int) -> tuple[jax.Array, Order]:
    return spread(x_ND, order, num_choices, spare), order


def _spread_backward(num_choices: int, spare: int, order: Order, drows_MD: jax.Array) -> tuple[jax.Array, None]:
    return gather_sum(drows_MD, order, num_choices, spare), None


spread.defvjp(_spread_forward, _spread_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def gather_sum(rows_MD: jax.Array, order: Order, num_choices: int, spare: int) -> jax.Array:
    """The sum, in float32, of each token's rows: [N, D] in their dtype; the transpose of `spread`."""
    places_NK = order.place_M.reshape(-1, num_choices)
    total_ND = rows_MD[places_NK[:, 0]].astype(jnp.float32)
    for choice in range(1, num_choices):
        total_ND += rows_MD[places_NK[:, choice]].astype(jnp.float32)
    return total_ND.astype(rows_MD.dtype)


def _gather_sum_forward(rows_MD: jax.Array, order: Order, num_choices: int, spare: int) -> tuple[jax.Array, Order]:
    return gather_sum(rows_MD, order, num_choices, spare), order


def _gather_sum_backward(num_choices: int, spare: int, order: Order, dy_ND: jax.Array) -> tuple[jax.Array, None]:
    return spread(dy_ND, order, num_choices, spare), None


gather_sum.defvjp(_gather_sum_forward, _gather_sum_backward)
