"""Rows in the order of their groups: there, and the sum of a token's rows back.

N tokens, K rows of each, M = N K rows, D model, E groups.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def spread(x_ND: jax.Array, order: Order, num_choices: int) -> jax.Array:
    """A row for each choice of each token, in order: [M, D]."""
    return x_ND[order.row_M // num_choices]


def _spread_forward(x_ND: jax.Array, order: Order, num_choices: int) -> tuple[jax.Array, Order]:
    return spread(x_ND, order, num_choices), order


def _spread_backward(num_choices: int, order: Order, drows_MD: jax.Array) -> tuple[jax.Array, None]:
    return gather_sum(drows_MD, order, num_choices), None


spread.defvjp(_spread_forward, _spread_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gather_sum(rows_MD: jax.Array, order: Order, num_choices: int) -> jax.Array:
    """The sum, in float32, of each token's rows: [N, D] in their dtype; the transpose of `spread`."""
    places_NK = order.place_M.reshape(-1, num_choices)
    total_ND = rows_MD[places_NK[:, 0]].astype(jnp.float32)
    for choice in range(1, num_choices):
        total_ND += rows_MD[places_NK[:, choice]].astype(jnp.float32)
    return total_ND.astype(rows_MD.dtype)


def _gather_sum_forward(rows_MD: jax.Array, order: Order, num_choices: int) -> tuple[jax.Array, Order]:
    return gather_sum(rows_MD, order, num_choices), order


def _gather_sum_backward(num_choices: int, order: Order, dy_ND: jax.Array) -> tuple[jax.Array, None]:
    return spread(dy_ND, order, num_choices), None


gather_sum.defvjp(_gather_sum_forward, _gather_sum_backward)
