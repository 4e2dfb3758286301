"""The largest attention logit of each head, which kernels that never hold all scores do not tell.

    S_n = max of scale * q_tn k_sn, over samples and the pairs that attention sees: s <= t in one segment and window

It is the logit before a soft cap, and before ALiBi, which no weight makes. One sample and one block of queries at a
time meets all keys that the device holds, so that of the scores [N, C, S] exist. Over context the keys travel around
the ring, and every device compares them with its own queries. Nothing here is differentiated.

B batch, T and S a device's share of the sequence, C queries of a block, N query heads, K key and value heads, G query
heads a key head, H width of a head.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.layers.context import places
from jaxllm.layers.param import Recipe

_BLOCK = 128

type _Held = tuple[jax.Array, jax.Array, jax.Array]
"""Keys [B, S, K, H], their segments [B, S] and their places in the sequence [S]."""


def largest_logits(
    q_BTNH: jax.Array, k_BTKH: jax.Array, segments_BT: jax.Array, recipe: Recipe, scale: float, window: int = 0
) -> jax.Array:
    """float32[N], the same on all devices; NaN if a score is.

    Args:
        q_BTNH: queries, laid over the mesh as `attend` reads them.
        k_BTKH: keys.
        segments_BT: document of each position.
        recipe: rules of the mesh.
        scale: multiplies the products.
        window: keys that a query sees at most; 0 means all before it.
    """
    rules = recipe.rules
    heads = rules.activation("batch", "sequence", "heads", None)
    rows = rules.activation("batch", "sequence")
    compute = functools.partial(_of_a_share, axis=rules.ring, scale=scale, window=window)
    with jax.named_scope("largest_logits"):
        most_BMN = jax.shard_map(
            compute, in_specs=(heads, heads, rows), out_specs=rules.activation("batch", "sequence", "heads")
        )(q_BTNH, k_BTKH, segments_BT)
        return jax.reshard(jnp.max(most_BMN, axis=(0, 1)), PartitionSpec(None))


def _of_a_share(
    q_BTNH: jax.Array, k_BSKH: jax.Array, segments_BT: jax.Array, axis: str, scale: float, window: int
) -> jax.Array:
    """float32[B, T / C, N] of one device: the largest logit of each sample, block of queries and head."""
    places_T = places(q_BTNH.shape[1], axis)
    held = k_BSKH, segments_BT, places_T
    most_BMN = _against(q_BTNH, segments_BT, places_T, held, scale, window)
    if not axis:
        return most_BMN
    num = jax.lax.axis_size(axis)

    def step(carry: tuple[_Held, jax.Array], _: None) -> tuple[tuple[_Held, jax.Array], None]:
        held, most_BMN = carry
        held = jax.lax.ppermute(held, axis, [(i, (i + 1) % num) for i in range(num)])
        return (held, jnp.maximum(most_BMN, _against(q_BTNH, segments_BT, places_T, held, scale, window))), None

    (_, most_BMN), _ = jax.lax.scan(step, (held, most_BMN), length=num - 1)
    return most_BMN


def _against(
    q_BTNH: jax.Array, segments_BT: jax.Array, places_T: jax.Array, held: _Held, scale: float, window: int
) -> jax.Array:
    """float32[B, T / C, N]; -inf where a block of queries sees none of these keys."""
    k_BSKH, key_segments_BS, key_places_S = held
    length, num_heads = q_BTNH.shape[1:3]
    num = -(-length // _BLOCK)
    rest = num * _BLOCK - length
    # queries that fill up the last block see no key: segments are not negative
    q_BTNH = jnp.pad(q_BTNH, ((0, 0), (0, rest), (0, 0), (0, 0)))
    segments_BT = jnp.pad(segments_BT, ((0, 0), (0, rest)), constant_values=-1)
    places_MC = jnp.pad(places_T, (0, rest)).reshape(num, _BLOCK)

    def of_a_sample(given: tuple[jax.Array, ...]) -> jax.Array:
        q_TNH, segments_T, k_SKH, key_segments_S = given

        def of_a_block(given: tuple[jax.Array, ...]) -> jax.Array:
            q_CKGH, segments_C, places_C = given
            products_KGCS = jnp.einsum("ckgh,skh->kgcs", q_CKGH, k_SKH, preferred_element_type=jnp.float32)
            seen_CS = (segments_C[:, None] == key_segments_S[None]) & (places_C[:, None] >= key_places_S[None])
            if window:
                seen_CS &= places_C[:, None] - key_places_S[None] < window
            most_KG = jnp.max(jnp.where(seen_CS[None, None], products_KGCS, -jnp.inf), axis=(2, 3))
            return most_KG.reshape(num_heads) * scale

        q_MCKGH = q_TNH.reshape(num, _BLOCK, k_SKH.shape[1], -1, q_TNH.shape[2])
        return jax.lax.map(of_a_block, (q_MCKGH, segments_T.reshape(num, _BLOCK), places_MC))

    return jax.lax.map(of_a_sample, (q_BTNH, segments_BT, k_BSKH, key_segments_BS))
