"""Attention of a call's queries over what earlier calls left behind: the layer's side of a key and value cache.

    softmax(scale * q k^T + mask) v,  a query at position p sees a key at position r iff r <= p and segments are equal

Keys come in any order: which of them a query sees, its window and ALiBi follow from the positions and segments that
are kept beside them, not from where they lie. So a layer asks nothing of a cache but `Cache.extend`, and whether that
is a ring, a table of pages or rows of different ages is its own affair.

B batch, T sequence of the call, S what a call sees, N query heads, K key and value heads, G query heads a key head,
H width of a head.
"""

from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp

from jaxllm.layers.kernels import MASKED, Scoring
from jaxllm.layers.param import Recipe


class Seen(NamedTuple):
    """What the queries of a call may see, their own keys included; which of it each does, positions and segments say.

    Attributes:
        k_BKSH: keys, as they were given to the cache.
        v_BKSH: values.
        positions_BS: int32, in their segment.
        segments_BS: int32; -1 where nothing lies.
    """

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    positions_BS: jax.Array
    segments_BS: jax.Array


class Cache(Protocol):
    """Keys and values of one layer."""

    def extend(
        self, k_BTKH: jax.Array, v_BTKH: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array
    ) -> tuple[Seen | None, Self]:
        """What a call's queries may see, and the cache that holds this call's keys and values too.

        None of a first call: that one sees its own keys only, so any kernel of training computes it.
        """
        ...


class StackedCache(Protocol):
    """Keys and values of the layers that a slot's repeats are; a scan over the repeats carries it."""

    def at(self, repeat: jax.Array) -> Cache:
        """The cache of one of the layers; whatever it holds of the others comes along."""
        ...

    def back(self, cache: Cache) -> Self:
        """The stack, with what a layer has added."""
        ...

    def advance(self, positions_BT: jax.Array, segments_BT: jax.Array) -> Self:
        """The stack behind a call that all its layers have added to."""
        ...


Caches = dict[str, list[Any]]
"""Of a decoder: by group of its blocks, a `StackedCache` a slot."""


class Query(NamedTuple):
    """The queries of a call.

    Attributes:
        q_BTNH: queries.
        positions_BT: int32, in their segment.
        segments_BT: int32.
        tilts_BTN: float32, of ALiBi; None without.
    """

    q_BTNH: jax.Array
    positions_BT: jax.Array
    segments_BT: jax.Array
    tilts_BTN: jax.Array | None = None


def attend_cached(
    query: Query, seen: Seen, key_tilts_BSN: jax.Array | None, scoring: Scoring, recipe: Recipe
) -> jax.Array:
    """Attention over what a cache holds, in plain jax.numpy on every platform: [B, T, N, H].

    Args:
        query: of the call.
        seen: keys and values.
        key_tilts_BSN: of ALiBi, of the keys; None without.
        scoring: how products become scores, and the window.
        recipe: rules of the mesh.
    """
    lay = recipe.rules.activation
    rows, tilts = lay("batch", None), lay("batch", None, "heads")
    heads, kept = lay("batch", None, "heads", None), lay("batch", "kv_heads", None, None)
    if query.tilts_BTN is not None and key_tilts_BSN is not None:
        query = query._replace(tilts_BTN=jax.reshard(query.tilts_BTN, tilts))
        key_tilts_BSN = jax.reshard(key_tilts_BSN, tilts)
    with jax.named_scope("cached"):
        return jax.shard_map(
            lambda *x: _attend(Query(*x[:4]), Seen(*x[4:8]), x[8], scoring),
            in_specs=(heads, rows, rows, tilts, kept, kept, rows, rows, tilts),
            out_specs=heads,
        )(*query, *seen, key_tilts_BSN)


def _attend(query: Query, seen: Seen, key_tilts_BSN: jax.Array | None, scoring: Scoring) -> jax.Array:
    """On one device's share; scores and softmax in float32."""
    q_BTNH, k_BKSH, v_BKSH = query.q_BTNH, seen.k_BKSH, seen.v_BKSH
    batch, length, num_heads, head_dim = q_BTNH.shape
    q_BKGTH = q_BTNH.reshape(batch, length, k_BKSH.shape[1], -1, head_dim).transpose(0, 2, 3, 1, 4)
    products_BKGTS = jnp.einsum("bkgth,bksh->bkgts", q_BKGTH, k_BKSH, preferred_element_type=jnp.float32)
    scores_BKGTS = scoring.scores(products_BKGTS)
    if query.tilts_BTN is not None and key_tilts_BSN is not None:
        query_tilts_BNT, key_tilts_BNS = query.tilts_BTN.swapaxes(1, 2), key_tilts_BSN.swapaxes(1, 2)
        added_BNTS = key_tilts_BNS[:, :, None, :] - query_tilts_BNT[:, :, :, None]
        scores_BKGTS = scores_BKGTS + added_BNTS.reshape(scores_BKGTS.shape)
    distance_BTS = query.positions_BT[:, :, None] - seen.positions_BS[:, None, :]
    seen_BTS = (query.segments_BT[:, :, None] == seen.segments_BS[:, None, :]) & (distance_BTS >= 0)
    if scoring.window:
        seen_BTS &= distance_BTS < scoring.window
    scores_BKGTS = jnp.where(seen_BTS[:, None, None], scores_BKGTS, MASKED)
    weights_BKGTS = jnp.exp(scores_BKGTS - jnp.max(scores_BKGTS, axis=-1, keepdims=True))
    total_BKGT1 = jnp.sum(weights_BKGTS, axis=-1, keepdims=True)
    mixed_BKGTH = jnp.einsum(
        "bkgts,bksh->bkgth", weights_BKGTS.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=jnp.float32
    )
    mixed_BKGTH = (mixed_BKGTH / total_BKGT1).astype(q_BTNH.dtype)
    return mixed_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, length, num_heads, head_dim)
