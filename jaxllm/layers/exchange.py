"""Tokens to experts that lie on other devices, and back, by all-to-all; none is ever dropped.

Of c devices each holds E / c experts. Shapes are static and loads are not, so rows travel in rounds: in each a device
sends every other up to C rows, C a little more than there would be if all were chosen alike. While loads are about
even one round is enough; the number of rounds is the largest load of one device for another over C, the same on all of
them, and memory is that of one round however uneven it gets. A round is: rows there, the experts' work, results back.

The backward pass runs the rounds again: rows and the gradients of their results there, the experts' gradients, the
rows' gradients back. It computes hidden units a second time, and so a device keeps its own tokens only.

N tokens of a device, K choices of each, M = N K rows, D model, E experts in all, R = c C rows of a round.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.layers.dispatch import run_experts
from jaxllm.layers.expert_blocks import Weights
from jaxllm.layers.order import Order, gather_sum, sort
from jaxllm.mesh_sizes import round_rows


class _Plan(NamedTuple):
    """Who sends what.

    Attributes:
        order: rows by expert, and so by device.
        start_c: the place of the first row for each device, int32.
        size_c: rows for each device, int32.
        num_rounds: int32.
    """

    order: Order
    start_c: jax.Array
    size_c: jax.Array
    num_rounds: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def exchange(
    x_ND: jax.Array, gates_NK: jax.Array, weights: Weights, experts_NK: jax.Array, activation: str, axis: str
) -> jax.Array:
    """What `dispatch.run_experts` returns, with the experts spread over a mesh axis. Call it inside a `shard_map`.

    All arrays vary over the same axes.

    Args:
        x_ND: this device's tokens.
        gates_NK: float32.
        weights: of this device's experts.
        experts_NK: int32, numbers among all experts.
        activation: as an MLP's.
        axis: that the experts lie over.
    """
    plan, lanes = _plan(experts_NK, weights, axis)

    def turn(index: jax.Array, made_MD: jax.Array) -> jax.Array:
        places_R = _places(plan, index, lanes)
        x_RD, gates_R1, experts_R1 = _send(plan, places_R, x_ND, gates_NK, experts_NK, weights, axis)
        back_RD = _swap(run_experts(x_RD, experts_R1, gates_R1, weights, activation), axis)
        return made_MD.at[places_R].set(back_RD, mode="drop")

    num_rows, dim = experts_NK.size, x_ND.shape[1]
    made_MD = jax.lax.fori_loop(0, plan.num_rounds, turn, jnp.zeros_like(x_ND, shape=(num_rows, dim)))
    return gather_sum(made_MD, plan.order, experts_NK.shape[1])


type _Saved = tuple[jax.Array, jax.Array, Weights, jax.Array]


def _forward(
    x_ND: jax.Array, gates_NK: jax.Array, weights: Weights, experts_NK: jax.Array, activation: str, axis: str
) -> tuple[jax.Array, _Saved]:
    return exchange(x_ND, gates_NK, weights, experts_NK, activation, axis), (x_ND, gates_NK, weights, experts_NK)


def _backward(
    activation: str, axis: str, saved: _Saved, dy_ND: jax.Array
) -> tuple[jax.Array, jax.Array, Weights, None]:
    x_ND, gates_NK, weights, experts_NK = saved
    num_choices = experts_NK.shape[1]
    plan, lanes = _plan(experts_NK, weights, axis)

    def turn(index: jax.Array, total: tuple[jax.Array, jax.Array, Weights]) -> tuple[jax.Array, jax.Array, Weights]:
        places_R = _places(plan, index, lanes)
        x_RD, gates_R1, experts_R1 = _send(plan, places_R, x_ND, gates_NK, experts_NK, weights, axis)
        dy_RD = _swap(_pick(dy_ND, places_R, plan, num_choices), axis)

        def run(x_RD: jax.Array, gates_R1: jax.Array, weights: Weights) -> jax.Array:
            return run_experts(x_RD, experts_R1, gates_R1, weights, activation)

        _, pull = jax.vjp(run, x_RD, gates_R1, weights)
        dx_RD, dgates_R1, dweights = pull(dy_RD)
        drows_MD, dgates_M, dtotal = total
        return (
            drows_MD.at[places_R].set(_swap(dx_RD, axis), mode="drop"),
            dgates_M.at[places_R].set(_swap(dgates_R1[:, 0], axis), mode="drop"),
            jax.tree.map(lambda a, b: a + b.astype(jnp.float32), dtotal, dweights),
        )

    zeros = (
        jnp.zeros_like(x_ND, shape=(experts_NK.size, x_ND.shape[1])),
        jnp.zeros_like(gates_NK, shape=(experts_NK.size,)),
        jax.tree.map(lambda w: jnp.zeros_like(w, jnp.float32), weights),
    )
    drows_MD, dgates_M, dweights = jax.lax.fori_loop(0, plan.num_rounds, turn, zeros)
    dx_ND = gather_sum(drows_MD, plan.order, num_choices)
    dgates_NK = dgates_M[plan.order.place_M].reshape(gates_NK.shape)
    return dx_ND, dgates_NK, jax.tree.map(lambda a, w: a.astype(w.dtype), dweights, weights), None


exchange.defvjp(_forward, _backward)


def _plan(experts_NK: jax.Array, weights: Weights, axis: str) -> tuple[_Plan, jax.Array]:
    """The plan, and the numbers 0..C-1 of the rows that a pair of devices exchanges in a round."""
    num_devices, num_own = jax.lax.axis_size(axis), weights.up.shape[0]
    lanes = jnp.arange(round_rows(experts_NK.size, num_devices))
    order = sort(experts_NK.reshape(-1), num_devices * num_own)
    size_c = jnp.sum(order.sizes_E.reshape(num_devices, num_own), axis=1)
    most = jax.lax.pmax(jnp.max(size_c), axis)
    return _Plan(order, jnp.cumsum(size_c) - size_c, size_c, -(-most // lanes.size)), lanes


def _places(plan: _Plan, index: jax.Array, lanes: jax.Array) -> jax.Array:
    """Of each row of a round, device by device, its place among all rows; that of none is behind the last."""
    lanes_cC = index * lanes.size + lanes[None, :]
    is_row_cC = lanes_cC < plan.size_c[:, None]
    return jnp.where(is_row_cC, plan.start_c[:, None] + lanes_cC, plan.order.row_M.size).reshape(-1)


def _pick(values_N: jax.Array, places_R: jax.Array, plan: _Plan, num: int) -> jax.Array:
    """Values [N, ...] of the rows of some places, `num` rows of each token; zeros for rows that are none."""
    numbers_R = plan.order.row_M.at[places_R].get(mode="clip") // num
    is_row_R = places_R < plan.order.row_M.size
    picked = values_N[numbers_R]
    return jnp.where(jnp.expand_dims(is_row_R, tuple(range(1, picked.ndim))), picked, jnp.zeros_like(picked))


def _send(
    plan: _Plan,
    places_R: jax.Array,
    x_ND: jax.Array,
    gates_NK: jax.Array,
    experts_NK: jax.Array,
    weights: Weights,
    axis: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What comes of a round's rows: x[R, D], gates[R, 1] and experts[R, 1], numbers among those of this device."""
    num_own = weights.up.shape[0]
    x_RD = _pick(x_ND, places_R, plan, experts_NK.shape[1])
    gates_R = _pick(gates_NK.reshape(-1), places_R, plan, 1)
    experts_R = _pick(experts_NK.reshape(-1), places_R, plan, 1) % num_own
    experts_R = jnp.where(places_R < experts_NK.size, experts_R, num_own)
    with jax.named_scope("exchange"):
        return _swap(x_RD, axis), _swap(gates_R, axis)[:, None], _swap(experts_R, axis)[:, None]


def _swap(rows_R: jax.Array, axis: str) -> jax.Array:
    """The rows for each device to that device, those from each in their place."""
    return jax.lax.all_to_all(rows_R, axis, 0, 0, tiled=True)
