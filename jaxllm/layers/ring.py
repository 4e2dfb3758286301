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

What is sent next is sent before the products that do not need it, so that the two overlap.

B batch, T and S a device's share of the sequence, C = T / 2, N query heads, K key and value heads, H width of a head.
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

    def add(done: tuple[jax.Array, ...], held: _Held, row: jax.Array) -> tuple[jax.Array, ...]:
        """Merge in what the device's queries see of the keys held."""
        more = part.attend(_seen(own, held, row), scoring, causal=False)
        for chunk, values in zip((_TAIL, row), zip(*map(_halves, more), strict=True), strict=True):
            done = _merge(done, chunk, *values)
        return done

    held = _pass_on(_held(own), axis)
    o_BNTH, normaliser_BNT = part.attend(own, scoring, causal=True)

    def step(carry: tuple[_Held, tuple[jax.Array, ...]], row: jax.Array) -> tuple[tuple[Any, ...], None]:
        held, done = carry
        return (_pass_on(held, axis), add(done, held, row)), None

    rows = _rows(axis)
    with jax.named_scope("ring"):
        (held, done), _ = jax.lax.scan(step, (held, (o_BNTH.astype(jnp.float32), normaliser_BNT)), rows[:-1])
    o_BNTH, normaliser_BNT = add(done, held, rows[-1])
    o_BNTH = o_BNTH.astype(q_BNTH.dtype)
    return o_BNTH, (own, o_BNTH, normaliser_BNT)


def _backward(
    scoring: Scoring, part: Part, axis: str, saved: tuple[Pairs, jax.Array, jax.Array], do_BNTH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, None]:
    own, *results = saved
    results = (*results, do_BNTH)

    def add(dq_BNTH: jax.Array, dkv: tuple[jax.Array, ...], held: _Held, row: jax.Array) -> tuple[Any, ...]:
        """Add the gradients of what the device's queries saw of the keys held."""
        of_queries = [_two(x, 2, _TAIL, row) for x in results]
        dq, dk, dv = part.differentiate(_seen(own, held, row), *of_queries, scoring, causal=False)
        dk_BKSH, dv_BKSH = dkv
        return _add(dq_BNTH, _TAIL, row, dq), (_add(dk_BKSH, _HEAD, row, dk), _add(dv_BKSH, _HEAD, row, dv))

    held = _pass_on(_held(own), axis)
    gradients = part.differentiate(own, *results, scoring, causal=True)
    dq_BNTH, *dkv = (x.astype(jnp.float32) for x in gradients)

    def step(carry: tuple[Any, ...], row: jax.Array) -> tuple[tuple[Any, ...], None]:
        held, dq_BNTH, dkv = carry
        return (_pass_on(held, axis), *add(dq_BNTH, _pass_on(dkv, axis), held, row)), None

    rows = _rows(axis)
    with jax.named_scope("ring"):
        (held, dq_BNTH, dkv), _ = jax.lax.scan(step, (held, dq_BNTH, tuple(dkv)), rows[:-1])
    dq_BNTH, dkv = add(dq_BNTH, _pass_on(dkv, axis), held, rows[-1])
    dk_BKSH, dv_BKSH = _pass_on(dkv, axis)  # home
    wanted = zip((dq_BNTH, dk_BKSH, dv_BKSH), own[:3], strict=True)
    return *(gradient.astype(x.dtype) for gradient, x in wanted), None, None


_ring.defvjp(_forward, _backward)

type _Held = tuple[jax.Array | None, ...]
"""Keys, values, their segments, tilts and places that a device holds at a step."""


def _held(own: Pairs) -> _Held:
    return own.k_BKSH, own.v_BKSH, own.key_segments_BS, own.key_tilts, own.key_places_BS


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


def _seen(own: Pairs, held: _Held, row: jax.Array) -> Pairs:
    """The two pairs of chunks that are seen, as twice the rows for one call of a kernel: [2B, ., C, ...]."""
    k_BKSH, v_BKSH, key_segments_BS, key_tilts_BNS, key_places_BS = held
    return Pairs(
        q=_two(own.q, 2, _TAIL, row),
        k_BKSH=_two(k_BKSH, 2, _HEAD, row),
        v_BKSH=_two(v_BKSH, 2, _HEAD, row),
        query_segments_BT=_two(own.query_segments_BT, 1, _TAIL, row),
        key_segments_BS=_two(key_segments_BS, 1, _HEAD, row),
        query_tilts=_two(own.query_tilts, 2, _TAIL, row),
        key_tilts=_two(key_tilts_BNS, 2, _HEAD, row),
        query_places_BT=_two(own.query_places_BT, 1, _TAIL, row),
        key_places_BS=_two(key_places_BS, 1, _HEAD, row),
    )


def _chunks(x: jax.Array, dim: int = 2) -> jax.Array:
    """Head and tail as a dim of their own before the sequence's: [B, N, T, ...] -> [B, N, 2, C, ...]."""
    return x.reshape(*x.shape[:dim], 2, -1, *x.shape[dim + 1 :])


def _two(x: Any, dim: int, first: int, second: jax.Array) -> Any:
    """Two chunks, by rows one behind the other: [B, N, T, ...] -> [2B, N, C, ...]; None stays None."""
    if x is None:
        return None
    chunks = _chunks(x, dim)
    return jnp.concatenate([jax.lax.dynamic_index_in_dim(chunks, i, dim, keepdims=False) for i in (first, second)])


def _halves(x: jax.Array) -> list[jax.Array]:
    return jnp.split(x, 2)


def _add(total_BNTH: jax.Array, first: int, second: jax.Array, added: jax.Array) -> jax.Array:
    """Add [2B, N, C, H] to the chunks that it belongs to."""
    chunks = _chunks(total_BNTH)
    for chunk, values_BNCH in zip((first, second), _halves(added), strict=True):
        chunks = chunks.at[:, :, chunk].add(values_BNCH)
    return chunks.reshape(total_BNTH.shape)


def _merge(
    done: tuple[jax.Array, ...], chunk: int | jax.Array, o_BNCH: jax.Array, normaliser_BNC: jax.Array
) -> tuple[jax.Array, ...]:
    """Result and log-sum-exps so far, those over more keys merged into one of their chunks."""
    chunks = [_chunks(x) for x in done]
    before_BNCH, before_BNC = (jax.lax.dynamic_index_in_dim(x, chunk, 2, keepdims=False) for x in chunks)
    after_BNC = jnp.logaddexp(before_BNC, normaliser_BNC)
    shares = (jnp.exp(part - after_BNC)[..., None] for part in (before_BNC, normaliser_BNC))
    after_BNCH = sum(share * x for share, x in zip(shares, (before_BNCH, o_BNCH), strict=True))
    after = (x.at[:, :, chunk].set(y) for x, y in zip(chunks, (after_BNCH, after_BNC), strict=True))
    return tuple(x.reshape(whole.shape) for x, whole in zip(after, done, strict=True))
