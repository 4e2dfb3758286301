"""Attention over a sequence that several devices share: keys and values travel around a ring (Liu et al. 2023).

Device i of c holds chunks i, its head, and 2c - 1 - i, its tail (see `context`). First it attends to its own keys, in
plain causal order. Then c - 1 times it passes on the keys and values that it holds and gets those of the device before;
after s steps they are those of device j = i - s mod c, and of the four pairs of chunks two are seen, both whole:

    its tail x j's head,   and   its head x j's head where j < i,   its tail x j's tail where j > i

So every device does the same work at every step. Results over parts of the keys are merged by their log-sum-exps l,

    l = log(exp(l1) + exp(l2)),  o = exp(l1 - l) o1 + exp(l2 - l) o2,

and the gradient, as flash attention's (see `kernels`), needs only those of all keys: P = exp(scale * q k^T - l) is
right part by part. For it the ring is run once more, and the gradients of keys and values travel with them, in float32.
A device keeps its own q, k, v, o and l, nothing of the others.

A window is a mask here: all keys go all the way around, whoever sees them. With it the places of the keys travel too,
and with ALiBi the keys' tilts (see `alibi`).

What is sent next is sent before the products that do not need it, so that the two overlap. Between kernels, head and
tail lie as a dim of their own before all others, and what belongs to one of them is added with the other one masked:
all that happens there is elementwise, in few passes over memory; slices at a place that the step decides take more.

B batch, T and S a device's share of the sequence, C = T / 2, N query heads, K key and value heads, H width of a head;
2 head and tail.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.layers.context import places
from jaxllm.layers.kernels import Pairs, Scoring
from jaxllm.layers.parts import PARTS, Part

_HEAD, _TAIL = 0, 1


def ring_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segments_BT: jax.Array,
    tilts_BTN: jax.Array | None,
    scoring: Scoring,
    kernel: str,
    axis: str,
) -> jax.Array:
    """Causal attention within segments of one device's share of a sequence in head-tail order: [B, T, N, H].

    Call it inside a `shard_map`.

    Args:
        q_BTNH: queries.
        k_BSKH: keys.
        v_BSKH: values.
        segments_BT: document of each position.
        tilts_BTN: of ALiBi; None without.
        scoring: how products become scores.
        kernel: name of one of `PARTS`.
        axis: mesh axis of the ring.
    """
    q_BNTH, k_BKSH, v_BKSH = (x.swapaxes(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    tilts_BNT = None if tilts_BTN is None else tilts_BTN.swapaxes(1, 2)
    return _ring(q_BNTH, k_BKSH, v_BKSH, segments_BT, tilts_BNT, scoring, PARTS[kernel], axis).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _ring(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    segments_BT: jax.Array,
    tilts_BNT: jax.Array | None,
    scoring: Scoring,
    part: Part,
    axis: str,
) -> jax.Array:
    return _forward(q_BNTH, k_BKSH, v_BKSH, segments_BT, tilts_BNT, scoring, part, axis)[0]


def _forward(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    segments_BT: jax.Array,
    tilts_BNT: jax.Array | None,
    scoring: Scoring,
    part: Part,
    axis: str,
) -> tuple[jax.Array, tuple[Pairs, jax.Array, jax.Array]]:
    places_BT = jnp.broadcast_to(places(q_BNTH.shape[2], axis), segments_BT.shape) if scoring.window else None
    own = Pairs(q_BNTH, k_BKSH, v_BKSH, segments_BT, segments_BT, tilts_BNT, tilts_BNT, places_BT, places_BT)
    queries, held = _queries(own), _held(own)

    def add(done: tuple[jax.Array, jax.Array], held: _Held, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Merge in what the device's queries see of the keys held."""
        return _merge(done, row, *part.attend(_seen(queries, held, row), scoring, causal=False))

    held = _pass_on(held, axis)
    o_BNTH, normaliser_BNT = part.attend(own, scoring, causal=True)

    def step(carry: tuple[_Held, tuple[jax.Array, jax.Array]], row: jax.Array) -> tuple[tuple[Any, ...], None]:
        held, done = carry
        return (_pass_on(held, axis), add(done, held, row)), None

    rows = _rows(axis)
    begun = _chunks(o_BNTH.astype(jnp.float32)), _chunks(normaliser_BNT)
    with jax.named_scope("ring"):
        (held, done), _ = jax.lax.scan(step, (held, begun), rows[:-1])
    o_2BNCH, normaliser_2BNC = add(done, held, rows[-1])
    o_BNTH = _whole(o_2BNCH.astype(q_BNTH.dtype))
    return o_BNTH, (own, o_BNTH, _whole(normaliser_2BNC))


def _backward(
    scoring: Scoring, part: Part, axis: str, saved: tuple[Pairs, jax.Array, jax.Array], do_BNTH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, None]:
    own, *results = saved
    results = (*results, do_BNTH)
    queries, held, by_chunk = _queries(own), _held(own), [_chunks(x) for x in results]

    def add(dq_2BNCH: jax.Array, dkv: tuple[jax.Array, ...], held: _Held, row: jax.Array) -> tuple[Any, ...]:
        """Add the gradients of what the device's queries saw of the keys held."""
        of_queries = [_two(x, _TAIL, row) for x in by_chunk]
        dq, dk, dv = part.differentiate(_seen(queries, held, row), *of_queries, scoring, causal=False)
        dk_2BKCH, dv_2BKCH = dkv
        return _add(dq_2BNCH, _TAIL, row, dq), (_add(dk_2BKCH, _HEAD, row, dk), _add(dv_2BKCH, _HEAD, row, dv))

    held = _pass_on(held, axis)
    gradients = part.differentiate(own, *results, scoring, causal=True)
    dq_2BNCH, *dkv = (_chunks(x.astype(jnp.float32)) for x in gradients)

    def step(carry: tuple[Any, ...], row: jax.Array) -> tuple[tuple[Any, ...], None]:
        held, dq_2BNCH, dkv = carry
        return (_pass_on(held, axis), *add(dq_2BNCH, _pass_on(dkv, axis), held, row)), None

    rows = _rows(axis)
    with jax.named_scope("ring"):
        (held, dq_2BNCH, dkv), _ = jax.lax.scan(step, (held, dq_2BNCH, tuple(dkv)), rows[:-1])
    dq_2BNCH, dkv = add(dq_2BNCH, _pass_on(dkv, axis), held, rows[-1])
    dk_2BKCH, dv_2BKCH = _pass_on(dkv, axis)  # home
    gradients = zip((dq_2BNCH, dk_2BKCH, dv_2BKCH), own[:3], strict=True)
    dq_BNTH, dk_BKSH, dv_BKSH = (_whole(gradient.astype(x.dtype)) for gradient, x in gradients)
    return dq_BNTH, dk_BKSH, dv_BKSH, None, None


_ring.defvjp(_forward, _backward)

type _Held = tuple[jax.Array | None, ...]
"""Keys, values, their segments, tilts and places that a device holds at a step, by chunks."""


def _held(own: Pairs) -> _Held:
    keys = own.k_BKSH, own.v_BKSH, own.key_tilts
    k_2BKCH, v_2BKCH, tilts_2BNC = (_chunks(x) for x in keys)
    return k_2BKCH, v_2BKCH, _chunks(own.key_segments_BS, 1), tilts_2BNC, _chunks(own.key_places_BS, 1)


def _queries(own: Pairs) -> _Held:
    """The same of queries: they, their segments, tilts and places, by chunks."""
    q_2BNCH, tilts_2BNC = _chunks(own.q), _chunks(own.query_tilts)
    return q_2BNCH, _chunks(own.query_segments_BT, 1), tilts_2BNC, _chunks(own.query_places_BT, 1)


def _pass_on(arrays: Any, axis: str) -> Any:
    """Give to the next device of the ring, get from the one before."""
    num = jax.lax.axis_size(axis)
    return jax.lax.ppermute(arrays, axis, [(i, (i + 1) % num) for i in range(num)])


def _rows(axis: str) -> jax.Array:
    """The chunk, of queries as of keys, that is seen beside tail x head, at each step behind the first: int32[c - 1].

    The heads while the keys held come from devices before this one, then the tails.
    """
    steps = jnp.arange(1, jax.lax.axis_size(axis))
    return jnp.where(steps <= jax.lax.axis_index(axis), _HEAD, _TAIL)


def _seen(queries: _Held, held: _Held, row: jax.Array) -> Pairs:
    """The two pairs of chunks that are seen, as twice the rows for one call of a kernel: [2B, ., C, ...]."""
    q, query_segments, query_tilts, query_places = (_two(x, _TAIL, row) for x in queries)
    k, v, key_segments, key_tilts, key_places = (_two(x, _HEAD, row) for x in held)
    return Pairs(q, k, v, query_segments, key_segments, query_tilts, key_tilts, query_places, key_places)


def _chunks(x: Any, dim: int = 2) -> Any:
    """Head and tail as a dim of their own: [B, N, T, ...] -> [2, B, N, C, ...]; None stays None."""
    return None if x is None else jnp.moveaxis(x.reshape(*x.shape[:dim], 2, -1, *x.shape[dim + 1 :]), dim, 0)


def _whole(x_2BNC: jax.Array) -> jax.Array:
    """The inverse: [2, B, N, C, ...] -> [B, N, T, ...]."""
    x_BN2C = jnp.moveaxis(x_2BNC, 0, 2)
    return x_BN2C.reshape(*x_BN2C.shape[:2], -1, *x_BN2C.shape[4:])


def _two(x: Any, first: int, second: jax.Array) -> Any:
    """Two chunks, by rows one behind the other: [2, B, N, C, ...] -> [2B, N, C, ...]; None stays None."""
    if x is None:
        return None
    return jnp.concatenate([x[first], jnp.where(second == _HEAD, x[_HEAD], x[_TAIL])])


def _of(chunk: int | jax.Array, values: jax.Array, other: float) -> jax.Array:
    """Values [B, ...] of one chunk as [2, B, ...], with something else for the other chunk."""
    mine = (jnp.arange(2) == chunk).reshape(2, *(1 for _ in values.shape))
    return jnp.where(mine, values[None], other)


def _add(total_2BNCH: jax.Array, first: int, second: jax.Array, added: jax.Array) -> jax.Array:
    """Add [2B, N, C, H] to the chunks that it belongs to."""
    one, other = jnp.split(added, 2)
    return total_2BNCH + _of(first, one, 0.0) + _of(second, other, 0.0)


def _merge(
    done: tuple[jax.Array, jax.Array], row: jax.Array, o: jax.Array, normaliser: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Results and log-sum-exps so far, [2, B, N, C, H] and [2, B, N, C], with [2B, ...] over more keys merged in."""
    chunks = _TAIL, row
    more = [_of(chunk, part, -jnp.inf) for chunk, part in zip(chunks, jnp.split(normaliser, 2), strict=True)]
    before_2BNCH, before_2BNC = done
    after_2BNC = functools.reduce(jnp.logaddexp, more, before_2BNC)
    shares = (jnp.exp(part - after_2BNC)[..., None] for part in (before_2BNC, *more))
    parts = (before_2BNCH, *(part[None].astype(jnp.float32) for part in jnp.split(o, 2)))
    return functools.reduce(jnp.add, (share * x for share, x in zip(shares, parts, strict=True))), after_2BNC
