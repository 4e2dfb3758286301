"""The work of experts on a CPU or a GPU: block by block of the rows of each, all of an expert's products at once.

    x = rows of the block's tokens;  g = x G_e;  u = x U_e;  h = gate (a(g) * u);  y = h D_e
    dh = dy D_e^T;  dx = dg G_e^T + du U_e^T;  dG_e += x^T dg;  dU_e += x^T du;  dD_e += h^T dy

A loop over experts, and in it over blocks of an expert's rows, does each block once: the cost is the rows'. (XLA's
`ragged_dot` computes every row with every matrix there, and on a GPU it copies the rows once an expert.) A block stays
in the cache from its tokens to its results, and rows are gathered in it, so that of all rows only y, or dx, is written
as wide as the model: with small experts, and many for each token, the copies of tokens would take longer than the
products. g and u are kept for the backward pass.

The last block of an expert reaches into the next one's rows, which are written after it, or behind the last expert's,
where there must be a block's rows to spare. What those hold is not to be read.

N tokens, M rows, D model, F hidden units, E experts, Q rows of a block.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.layers.linear import physical_transpose
from jaxllm.layers.mlp import gated
from jaxllm.layers.order import Order, gather_sum
from jaxllm.sharding import platform

_BLOCKS = {"cpu": (16, 512), "gpu": (128, 1024)}
"""The fewest and the most rows of a block. Those of GPUs are reasoned, not measured: a product has to take longer than
the start of a turn of the loop, some ten microseconds."""
_NARROW, _MOST_OF_NARROW = 4, 256
"""On a CPU experts this many times narrower than the model, and the most rows of theirs: of more, turning the rows and
their gradients takes longer, and there are no more products to hide it (a tenth of the layer, measured)."""
_ROOM = 1.25
"""Rows of a block over those of a group of mean size, while these are few: most groups are then one block."""


class Weights(NamedTuple):
    """Matrices of experts: gate and up [E, D, F], down [E, F, D]."""

    gate: jax.Array
    up: jax.Array
    down: jax.Array


def scaled(x_MF: jax.Array, gates_M: jax.Array) -> jax.Array:
    """x times gates, in float32, in x's dtype."""
    return (x_MF.astype(jnp.float32) * gates_M[:, None]).astype(x_MF.dtype)


def block_rows(num_rows: int, num_experts: int, width: int, num_hidden: int) -> int:
    """Rows that are multiplied at a time, 0 where a kernel takes them all (see `dispatch`).

    Args:
        num_rows: of all experts together, at most.
        num_experts: that share them.
        width: of the model.
        num_hidden: units of an expert.
    """
    if platform() not in _BLOCKS:
        return 0
    smallest, largest = _BLOCKS[platform()]
    if platform() == "cpu" and _NARROW * num_hidden <= width:
        largest = _MOST_OF_NARROW
    wanted = int(_ROOM * num_rows / num_experts)
    return min(-(-wanted // smallest) * smallest, largest)


_Arrays = tuple[jax.Array, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def run_blocks(
    x_ND: jax.Array,
    gates_M: jax.Array,
    weights: Weights,
    order: Order,
    num_choices: int,
    block: int,
    activation: str,
) -> jax.Array:
    """The gated sum of what a token's experts make of it: [N, D].

    Args:
        x_ND: tokens.
        gates_M: float32, of each row, sorted.
        weights: of x's dtype.
        order: of rows by expert.
        num_choices: rows of a token.
        block: of `block_rows`.
        activation: as an MLP's.
    """
    return _forward(x_ND, gates_M, weights, order, num_choices, block, activation)[0]


class _Saved(NamedTuple):
    x_ND: jax.Array
    gates_M: jax.Array
    weights: Weights
    order: Order
    gate_MF: jax.Array
    up_MF: jax.Array


def _forward(
    x_ND: jax.Array,
    gates_M: jax.Array,
    weights: Weights,
    order: Order,
    num_choices: int,
    block: int,
    activation: str,
) -> tuple[jax.Array, _Saved]:
    token_M, spare_M = jnp.pad(order.row_M // num_choices, (0, block)), jnp.pad(gates_M, (0, block))

    def expert(whole: _Arrays, of_expert: tuple[Weights, jax.Array, jax.Array]) -> tuple[_Arrays, None]:
        w, start, size = of_expert

        def turn(index: jax.Array, whole: _Arrays) -> _Arrays:
            at = start + index * block
            x_QD, gates_Q = x_ND[_cut(token_M, at, block)], _cut(spare_M, at, block)
            gate_QF, up_QF = (_dot(x_QD, one, 0).astype(x_QD.dtype) for one in (w.gate, w.up))
            hidden_QF = scaled(gated(gate_QF, up_QF, activation), gates_Q)
            return _put(whole, (_dot(hidden_QF, w.down, 0), gate_QF, up_QF), at)

        return jax.lax.fori_loop(0, -(-size // block), turn, whole), None

    num_hidden, rows = weights.up.shape[2], token_M.shape[0]
    empty = tuple(jnp.zeros_like(x_ND, shape=(rows, num)) for num in (x_ND.shape[1], num_hidden, num_hidden))
    (made_MD, gate_MF, up_MF), _ = jax.lax.scan(expert, empty, (weights, _starts(order), order.sizes_E))
    y_ND = gather_sum(made_MD, order, num_choices)
    return y_ND, _Saved(x_ND, gates_M, weights, order, gate_MF, up_MF)


def _backward(
    num_choices: int, block: int, activation: str, saved: _Saved, dy_ND: jax.Array
) -> tuple[jax.Array, jax.Array, Weights, None]:
    x_ND, gates_M, weights, order, gate_MF, up_MF = saved
    token_M, spare_M = jnp.pad(order.row_M // num_choices, (0, block)), jnp.pad(gates_M, (0, block))
    places_Q1 = jnp.arange(block)[:, None]

    def expert(whole: _Arrays, of_expert: tuple[Weights, jax.Array, jax.Array]) -> tuple[_Arrays, Weights]:
        w, start, size = of_expert

        def turn(index: jax.Array | int, whole: _Arrays) -> tuple[_Arrays, Weights]:
            at = start + index * block
            x_QD, dy_QD = (rows[_cut(token_M, at, block)] for rows in (x_ND, dy_ND))
            kept = (_cut(gate_MF, at, block), _cut(up_MF, at, block), _cut(spare_M, at, block))
            hidden_QF, pull = jax.vjp(lambda gate, up, gates: scaled(gated(gate, up, activation), gates), *kept)
            dgate_QF, dup_QF, dgates_Q = pull(_dot(dy_QD, w.down, 1).astype(x_QD.dtype))
            dx_QD = _dot(dgate_QF, w.gate, 1) + _dot(dup_QF, w.up, 1)
            is_own_Q1 = index * block + places_Q1 < size
            hidden_QF, dgate_QF, dup_QF = (_only(x, is_own_Q1) for x in (hidden_QF, dgate_QF, dup_QF))
            turned_DQ = _turn(x_QD)
            sums = Weights(_dot(turned_DQ, dgate_QF, 0), _dot(turned_DQ, dup_QF, 0), _dot(_turn(hidden_QF), dy_QD, 0))
            return _put(whole, (dx_QD, dgates_Q), at), sums

        def more(index: jax.Array, total: tuple[_Arrays, Weights]) -> tuple[_Arrays, Weights]:
            whole, sums = turn(index, total[0])
            return whole, jax.tree.map(jnp.add, total[1], sums)

        # the first block apart: sums of one block, as most are, are not added to zeros
        whole, sums = jax.lax.fori_loop(1, -(-size // block), more, turn(0, whole))
        return whole, jax.tree.map(lambda total, one: total.astype(one.dtype), sums, w)

    rows = token_M.shape[0]
    empty = jnp.zeros_like(x_ND, shape=(rows, x_ND.shape[1])), jnp.zeros_like(spare_M)
    (drows_MD, dgates_M), dweights = jax.lax.scan(expert, empty, (weights, _starts(order), order.sizes_E))
    dx_ND = gather_sum(drows_MD, order, num_choices)
    return dx_ND, dgates_M[: gates_M.shape[0]], dweights, None


run_blocks.defvjp(_forward, _backward)


def _starts(order: Order) -> jax.Array:
    """The place of each expert's first row."""
    return jnp.cumsum(order.sizes_E) - order.sizes_E


def _cut(rows: jax.Array, at: jax.Array, block: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(rows, at, block)


def _put(whole: _Arrays, parts: _Arrays, at: jax.Array) -> _Arrays:
    """Arrays of all rows with a block's written into them."""
    return tuple(
        jax.lax.dynamic_update_slice_in_dim(rows, part.astype(rows.dtype), at, 0)
        for rows, part in zip(whole, parts, strict=True)
    )


def _only(x_QF: jax.Array, is_own_Q1: jax.Array) -> jax.Array:
    """x with zeros in rows of other experts."""
    return jnp.where(is_own_Q1, x_QF, jnp.zeros((), x_QF.dtype))


def _turn(x_QD: jax.Array) -> jax.Array:
    """x^T; bf16 units of CPUs take the left operand only as it lies in memory (see `linear`)."""
    return physical_transpose(x_QD) if x_QD.dtype == jnp.bfloat16 and platform() == "cpu" else x_QD.T


def _dot(x: jax.Array, w: jax.Array, dim: int) -> jax.Array:
    """Contract x's last dim with w's given dim, in float32."""
    return jax.lax.dot_general(x, w, (((1,), (dim,)), ((), ())), preferred_element_type=jnp.float32)
