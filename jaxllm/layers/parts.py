"""Kernels over part of the keys: what attention over a ring of devices is put together from.

A part returns its result together with the log-sum-exps of its scores, by which parts are merged; its gradient takes
the result and the log-sum-exps over all keys, and is then right by itself (see `ring`).

B batch, T and S sequence, N query heads, K key and value heads, H width of a head.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxllm.layers import kernels
from jaxllm.layers.kernels import Pairs


@dataclasses.dataclass(frozen=True)
class Part:
    """A kernel over part of the keys.

    Attributes:
        attend: (pairs, scale, causal) -> (o_BNTH, normaliser_BNT): the result over these keys and, in float32, the
            log-sum-exps of the scores, finite even where a query sees no key. Without `causal` every query sees every
            key of its segment.
        differentiate: (pairs, o_BNTH, normaliser_BNT, do_BNTH, scale, causal) -> (dq, dk, dv); the result and the
            log-sum-exps are those over all keys.
    """

    attend: Callable[..., tuple[jax.Array, jax.Array]]
    differentiate: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def _attend_xla(pairs: Pairs, scale: float, causal: bool) -> tuple[jax.Array, jax.Array]:
    q_BNTH = pairs.q
    grouped = pairs._replace(q=_grouped(q_BNTH, pairs))
    o_BKGTH, normaliser_BKGT = kernels.attend_in_blocks(grouped, scale, causal, jnp.float32)
    return o_BKGTH.reshape(q_BNTH.shape), normaliser_BKGT.reshape(q_BNTH.shape[:3])


def _differentiate_xla(
    pairs: Pairs, o_BNTH: jax.Array, normaliser_BNT: jax.Array, do_BNTH: jax.Array, scale: float, causal: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, o, normaliser, do = (_grouped(x, pairs) for x in (pairs.q, o_BNTH, normaliser_BNT, do_BNTH))
    dq_BKGTH, dk_BKSH, dv_BKSH = kernels.differentiate_in_blocks(
        pairs._replace(q=q), o, normaliser, do, scale, causal, jnp.float32
    )
    return dq_BKGTH.reshape(pairs.q.shape), dk_BKSH, dv_BKSH


def _grouped(x: jax.Array, pairs: Pairs) -> jax.Array:
    """[B, N, ...] -> [B, K, G, ...]."""
    return x.reshape(x.shape[0], pairs.k_BKSH.shape[1], -1, *x.shape[2:])


PARTS = {"xla": Part(_attend_xla, _differentiate_xla)}
