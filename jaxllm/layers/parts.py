"""Kernels over part of the keys: what attention over a ring of devices is put together from.

A part returns its result together with the log-sum-exps of its scores, by which parts are merged; its gradient takes
the result and the log-sum-exps over all keys, and is then right by itself (see `ring`).

B batch, T and S sequence, N query heads, K key and value heads, H width of a head.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

from jaxllm.layers import kernels
from jaxllm.layers.kernels import Pairs, Scoring


@dataclasses.dataclass(frozen=True)
class Part:
    """A kernel over part of the keys.

    Attributes:
        attend: (pairs, scoring, causal) -> (o_BNTH, normaliser_BNT): the result over these keys and, in float32, the
            log-sum-exps of the scores, finite even where a query sees no key. Without `causal` every query sees every
            key of its segment.
        differentiate: (pairs, o_BNTH, normaliser_BNT, do_BNTH, scoring, causal) -> (dq, dk, dv); the result and the
            log-sum-exps are those over all keys.
    """

    attend: Callable[..., tuple[jax.Array, jax.Array]]
    differentiate: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def _attend_xla(pairs: Pairs, scoring: Scoring, causal: bool) -> tuple[jax.Array, jax.Array]:
    q_BNTH = pairs.q
    grouped = _all_grouped(pairs)
    o_BKGTH, normaliser_BKGT = kernels.attend_in_blocks(grouped, scoring, causal, jnp.float32)
    return o_BKGTH.reshape(q_BNTH.shape), normaliser_BKGT.reshape(q_BNTH.shape[:3])


def _differentiate_xla(
    pairs: Pairs, o_BNTH: jax.Array, normaliser_BNT: jax.Array, do_BNTH: jax.Array, scoring: Scoring, causal: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    o, normaliser, do = (_grouped(x, pairs) for x in (o_BNTH, normaliser_BNT, do_BNTH))
    dq_BKGTH, dk_BKSH, dv_BKSH = kernels.differentiate_in_blocks(
        _all_grouped(pairs), o, normaliser, do, scoring, causal, jnp.float32
    )
    return dq_BKGTH.reshape(pairs.q.shape), dk_BKSH, dv_BKSH


def _all_grouped(pairs: Pairs) -> Pairs:
    """What goes by query heads, by groups."""
    tilts = (None if x is None else _grouped(x, pairs) for x in (pairs.query_tilts, pairs.key_tilts))
    return pairs._replace(q=_grouped(pairs.q, pairs), **dict(zip(("query_tilts", "key_tilts"), tilts, strict=True)))


def _grouped(x: jax.Array, pairs: Pairs) -> jax.Array:
    """[B, N, ...] -> [B, K, G, ...]."""
    return x.reshape(x.shape[0], pairs.k_BKSH.shape[1], -1, *x.shape[2:])


def _attend_splash(pairs: Pairs, scoring: Scoring, causal: bool) -> tuple[jax.Array, jax.Array]:
    kernel: Any = kernels.splash_kernel(*_heads_and_length(pairs), scoring.cap, causal, save_residuals=True)

    def one(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
        q_NTH, k_KSH, v_KSH, *segments = pairs[:5]
        o_NTH, (normaliser_NT,) = kernel(q_NTH, k_KSH, v_KSH, segment_ids=SegmentIds(*segments))
        return o_NTH, normaliser_NT

    return jax.vmap(one)(_scaled(pairs, scoring.scale))


def _differentiate_splash(
    pairs: Pairs, o_BNTH: jax.Array, normaliser_BNT: jax.Array, do_BNTH: jax.Array, scoring: Scoring, causal: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """By the function that splash's own gradient calls: private, but the same in jax 0.11 and 0.12.

    What is public differentiates over the keys that are here as if they were all.
    """
    kernel = kernels.splash_kernel(*_heads_and_length(pairs), scoring.cap, causal)
    masks = kernel.dq_mask_info, kernel.dkv_mask_info

    def one(
        pairs: Pairs, o_NTH: jax.Array, normaliser_NT: jax.Array, do_NTH: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        q_NTH, k_KSH, v_KSH, *segments = pairs[:5]
        saved = (q_NTH, k_KSH, v_KSH, SegmentIds(*segments), None, o_NTH, normaliser_NT, *masks)
        _, _, _, dq_NTH, dk_KSH, dv_KSH, *_ = splash_attention_kernel._splash_attention_bwd(
            **kernel.kwargs, res=saved, do=do_NTH
        )
        return dq_NTH, dk_KSH, dv_KSH

    gradients = jax.vmap(one)(_scaled(pairs, scoring.scale), o_BNTH, normaliser_BNT, do_BNTH)
    dq_BNTH, dk_BKSH, dv_BKSH = (x.astype(jnp.float32) for x in gradients)
    return scoring.scale * dq_BNTH, dk_BKSH, dv_BKSH


def _heads_and_length(pairs: Pairs) -> tuple[int, int]:
    return pairs.q.shape[1], pairs.q.shape[2]


def _scaled(pairs: Pairs, scale: float) -> Pairs:
    return pairs._replace(q=pairs.q * jnp.asarray(scale, pairs.q.dtype))


PARTS = {"xla": Part(_attend_xla, _differentiate_xla), "splash": Part(_attend_splash, _differentiate_splash)}
