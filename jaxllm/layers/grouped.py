"""Grouped matrix products: rows that lie expert by expert, each times its expert's matrix. The cost is the rows'.

    y_m = x_m W_e   for the rows m of group e;      dx_m = dy_m W_e^T;      dW_e = sum over its rows of x_m^T dy_m

TPUs and GPUs have kernels for this (`ragged_dot`; Gale et al. 2023, MegaBlocks, section 5). XLA:CPU's computes every
row times every matrix, E times the work; there a loop over groups, and in it over blocks of the group's rows, does each
block once. The last block of a group reaches into the next one's rows, which are written after it, or behind the last
group's, where there must be a block's rows to spare. What those hold is not to be read.

M rows, D inputs, F outputs, E groups, Q rows of a block.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxllm.layers.linear import physical_transpose
from jaxllm.sharding import platform

_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 256
_ROOM = 1.25
"""Rows of a block over those of a group of mean size, while these are few: most groups are then one block."""


def block_rows(num_rows: int, num_groups: int) -> int:
    """Rows that are multiplied at a time, and that must be to spare behind the groups'; 0 where a kernel needs none.

    Args:
        num_rows: of all groups together, at most.
        num_groups: that share them.
    """
    if platform() != "cpu":
        return 0
    wanted = int(_ROOM * num_rows / num_groups)
    return min(-(-wanted // _SMALLEST_BLOCK) * _SMALLEST_BLOCK, _LARGEST_BLOCK)


def grouped_matmul(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, block: int) -> jax.Array:
    """Rows of groups one behind the other, each times its group's matrix: [M, F] in x's dtype.

    Differentiable in x and w. Inside a `shard_map` all three vary over the same axes.

    Args:
        x_MD: the groups' rows, and `block` more at least.
        w_EDF: a matrix a group, of x's dtype.
        sizes_E: int32, rows of each group.
        block: of `block_rows`.
    """
    if not block:
        return jax.lax.ragged_dot(x_MD, w_EDF, sizes_E)
    return _grouped(x_MD, w_EDF, sizes_E, block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, block: int) -> jax.Array:
    return _rows_times(x_MD, w_EDF, sizes_E, block, 0)


def _forward(
    x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, block: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return _grouped(x_MD, w_EDF, sizes_E, block), (x_MD, w_EDF, sizes_E)


def _backward(
    block: int, saved: tuple[jax.Array, jax.Array, jax.Array], dy_MF: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    x_MD, w_EDF, sizes_E = saved
    dx_MD = _rows_times(dy_MF, w_EDF, sizes_E, block, 1)
    return dx_MD, _rows_by_rows(x_MD, dy_MF, sizes_E, block, w_EDF), None


_grouped.defvjp(_forward, _backward)


def _rows_times(x_MI: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, block: int, dim: int) -> jax.Array:
    """Each row times its group's matrix, of which it contracts dim 0 or 1: [M, O] in x's dtype."""

    def group(y_MO: jax.Array, of_group: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        w_DF, start, size = of_group

        def product(index: jax.Array, y_MO: jax.Array) -> jax.Array:
            at = start + index * block
            x_QI = jax.lax.dynamic_slice_in_dim(x_MI, at, block)
            y_QO = jax.lax.dot_general(x_QI, w_DF, (((1,), (dim,)), ((), ())), preferred_element_type=jnp.float32)
            return jax.lax.dynamic_update_slice_in_dim(y_MO, y_QO.astype(y_MO.dtype), at, 0)

        return jax.lax.fori_loop(0, -(-size // block), product, y_MO), None

    y_MO = jnp.zeros_like(x_MI, shape=(x_MI.shape[0], w_EDF.shape[2 - dim]))
    return jax.lax.scan(group, y_MO, (w_EDF, jnp.cumsum(sizes_E) - sizes_E, sizes_E))[0]


def _rows_by_rows(x_MD: jax.Array, dy_MF: jax.Array, sizes_E: jax.Array, block: int, w_EDF: jax.Array) -> jax.Array:
    """The sum over each group's rows of x^T dy, in float32 until it is whole: [E, D, F] in the weights' dtype."""
    places_Q1 = jnp.arange(block)[:, None]
    # bf16 matrix units take the left operand only as it lies in memory (see `linear`)
    turn: Callable[[jax.Array], jax.Array] = physical_transpose if x_MD.dtype == jnp.bfloat16 else jnp.transpose

    def group(_: None, of_group: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        start, size = of_group

        def product(index: jax.Array | int) -> jax.Array:
            at = start + index * block
            x_QD, dy_QF = (jax.lax.dynamic_slice_in_dim(rows, at, block) for rows in (x_MD, dy_MF))
            own_QF = jnp.where(index * block + places_Q1 < size, dy_QF, jnp.zeros((), dy_QF.dtype))
            dims = (((1,), (0,)), ((), ()))
            return jax.lax.dot_general(turn(x_QD), own_QF, dims, preferred_element_type=jnp.float32)

        total_DF = jax.lax.fori_loop(1, -(-size // block), lambda index, total: total + product(index), product(0))
        return None, total_DF.astype(w_EDF.dtype)

    return jax.lax.scan(group, None, (jnp.cumsum(sizes_E) - sizes_E, sizes_E))[1]
