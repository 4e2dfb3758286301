"""Causal attention within segments, one function a kernel, all of one signature and all on one device's share.

    softmax(scale * q k^T + mask) v,  query t sees key s iff s <= t and segment(s) = segment(t)

With a soft cap (see `soft_cap`) the scores under the softmax are s = cap tanh(scale * q k^T / cap), and the dS below is
multiplied by the derivative, 1 - (s / cap)^2. A window w leaves the keys with t - s < w (Beltagy et al. 2020); blocks
without such a key are not computed. ALiBi adds tilt(s) - tilt(t) to the scores (see `alibi`), behind the cap.

- `xla`: the reference, on every platform; queries in blocks, each against the keys up to its end. Its gradient is
  written out as flash attention's is (Dao et al. 2022): only the result and the log-sum-exps l are kept for it,

      P = exp(scale * q k^T - l),  dv = P^T do,  dS = P * (do v^T - sum(do * o)),  dq = scale dS k,  dk = scale dS^T q.
- `splash`: Pallas on TPU, block-sparse, segments in the kernel (jax.experimental.pallas.ops.tpu).
- `cudnn`: cuDNN's fused flash attention on NVIDIA GPUs. It knows causality but not segments; they go in as a mask,
  one byte a pair of positions and row, shared by all heads, and a window with them.

A kernel that cannot honour a shape says why through `refusal`; nothing is dropped silently.

B batch, T and S sequence, N query heads, K key and value heads, G query heads a key head, H width of a head.
"""

import functools
import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.typing import DTypeLike

from jaxllm.layers.linear import physical_transpose
from jaxllm.layers.soft_cap import slope, soft_cap
from jaxllm.sharding import platform

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
"""Score of a masked pair: finite, so that a row's maximum is; a row always sees at least itself."""

_LARGEST_BLOCKS = 16
_SMALLEST_BLOCK = 128
_SPLASH_BLOCK = 512


class Scoring(NamedTuple):
    """How products of queries and keys become scores; static.

    Attributes:
        scale: multiplies the products.
        cap: soft cap of what comes of that; 0 means none.
        window: keys that a query sees at most, its own included; 0 means all before it.
    """

    scale: float
    cap: float = 0.0
    window: int = 0

    def scores(self, products: jax.Array) -> jax.Array:
        """The scores of products, any shape."""
        return soft_cap(self.scale * products, self.cap)

    def pull(self, dscores: jax.Array, scores: jax.Array) -> jax.Array:
        """The scores' gradient taken back through the cap."""
        return dscores * slope(scores, self.cap) if self.cap else dscores


def refusal(
    kernel: str,
    platform: str,
    sequence_length: int,
    head_dim: int,
    dtype: str,
    context: int = 1,
    cap: float = 0.0,
    window: int = 0,
    alibi: bool = False,
) -> str:
    """Why a kernel cannot compute this attention, of sequences over so many devices; empty if it can."""
    if kernel != "xla" and alibi:
        return f"{kernel} adds nothing to logits, which ALiBi in model.attention.positions asks for"
    if kernel == "splash":
        if platform == "gpu":
            return "splash is a TPU kernel"
        if window and context > 1:
            return f"splash knows no window (model.attention.window = {window}) over mesh.context = {context}"
        multiple = 128 * 2 * context if context > 1 else 128  # in a ring it runs on half of a device's share
        if sequence_length % multiple:
            where = f"over mesh.context = {context} " if context > 1 else ""
            return f"{where}splash needs a sequence length that is a multiple of {multiple}, not {sequence_length}"
        if head_dim % 64:
            return f"splash needs heads whose width is a multiple of 64, not {head_dim}"
    if kernel == "cudnn":
        if platform != "gpu":
            return "cudnn is a GPU kernel"
        if cap:
            return f"cudnn has no soft cap of logits, which model.attention.soft_cap = {cap:g} asks for"
        if context > 1:
            return f"cudnn has no public gradient over part of the keys, which mesh.context = {context} needs"
        if dtype not in ("bfloat16", "float16"):
            return f"cudnn computes in bfloat16 or float16, not {dtype}"
        if head_dim > 128 or head_dim % 8:
            return f"cudnn needs heads at most 128 wide and a multiple of 8, not {head_dim}"
        if sequence_length % 2:
            return f"cudnn with packed documents needs an even sequence length, not {sequence_length}"
    return ""


class Pairs(NamedTuple):
    """Queries, and the keys and values that they may see; segments are int32.

    Attributes:
        q: [B, N, T, H], or by groups, [B, K, G, T, H].
        query_tilts: float32, of ALiBi: [B, N, T], or by groups, [B, K, G, T]; None without.
        key_tilts: likewise, of the keys as each query head reads them.
        query_places_BT: int32, where in the sequence these are; None where they are 0, 1, 2, ..., as are the next.
        key_places_BS: only a window reads them.
    """

    q: jax.Array
    k_BKSH: jax.Array
    v_BKSH: jax.Array
    query_segments_BT: jax.Array
    key_segments_BS: jax.Array
    query_tilts: jax.Array | None = None
    key_tilts: jax.Array | None = None
    query_places_BT: jax.Array | None = None
    key_places_BS: jax.Array | None = None


def xla(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segments_BT: jax.Array,
    tilts_BTN: jax.Array | None,
    scoring: Scoring,
) -> jax.Array:
    """Attention in plain jax.numpy, scores and softmax in float32: [B, T, N, H]."""
    batch, length, _, head_dim = q_BTNH.shape
    q_BTKGH = q_BTNH.reshape(batch, length, k_BSKH.shape[2], -1, head_dim)
    q_BKGTH, k_BKSH, v_BKSH = q_BTKGH.transpose(0, 2, 3, 1, 4), k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    tilts_BKGT = None if tilts_BTN is None else tilts_BTN.swapaxes(1, 2).reshape(q_BKGTH.shape[:4])
    o_BKGTH = _blockwise(q_BKGTH, k_BKSH, v_BKSH, segments_BT, tilts_BKGT, scoring)
    return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _blockwise(
    q_BKGTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    segments_BT: jax.Array,
    tilts_BKGT: jax.Array | None,
    scoring: Scoring,
) -> jax.Array:
    return _forward(q_BKGTH, k_BKSH, v_BKSH, segments_BT, tilts_BKGT, scoring)[0]


def _forward(
    q_BKGTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    segments_BT: jax.Array,
    tilts_BKGT: jax.Array | None,
    scoring: Scoring,
) -> tuple[jax.Array, tuple[Pairs, jax.Array, jax.Array]]:
    pairs = Pairs(q_BKGTH, k_BKSH, v_BKSH, segments_BT, segments_BT, tilts_BKGT, tilts_BKGT)
    o_BKGTH, normaliser_BKGT = attend_in_blocks(pairs, scoring, causal=True, dtype=q_BKGTH.dtype)
    return o_BKGTH, (pairs, o_BKGTH, normaliser_BKGT)


def _backward(
    scoring: Scoring, saved: tuple[Pairs, jax.Array, jax.Array], do_BKGTH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, None]:
    return *differentiate_in_blocks(*saved, do_BKGTH, scoring, causal=True, dtype=do_BKGTH.dtype), None, None


_blockwise.defvjp(_forward, _backward)


def attend_in_blocks(pairs: Pairs, scoring: Scoring, causal: bool, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """The result, [B, K, G, T, H] in a dtype, and the log-sum-exps, float32[B, K, G, T], of grouped queries.

    Blocks of queries, each against the keys up to its end, or against all where not `causal`.
    """
    q_BKGTH, k_BKSH, v_BKSH = pairs[:3]
    outputs, normalisers = [], []
    for start, stop in _blocks(q_BKGTH.shape[3]):
        rows, columns = slice(start, stop), slice(0, stop if causal else None)
        if causal and scoring.window:
            columns = slice(max(0, start + 1 - scoring.window), stop)
        products_BKGTS = _product("bkgth,bksh->bkgts", q_BKGTH[:, :, :, rows], k_BKSH[:, :, columns])
        scores_BKGTS = _tilted(scoring.scores(products_BKGTS), pairs, rows, columns)
        scores_BKGTS = jnp.where(_seen(pairs, rows, columns, causal, scoring.window), scores_BKGTS, MASKED)
        most_BKGT1 = jnp.max(scores_BKGTS, axis=-1, keepdims=True)
        weights_BKGTS = jnp.exp(scores_BKGTS - most_BKGT1)
        total_BKGT1 = jnp.sum(weights_BKGTS, axis=-1, keepdims=True)
        mixed_BKGTH = _product("bkgts,bksh->bkgth", weights_BKGTS.astype(v_BKSH.dtype), v_BKSH[:, :, columns])
        outputs.append((mixed_BKGTH / total_BKGT1).astype(dtype))
        normalisers.append((most_BKGT1 + jnp.log(total_BKGT1))[..., 0])
    return jnp.concatenate(outputs, axis=3), jnp.concatenate(normalisers, axis=3)


def differentiate_in_blocks(
    pairs: Pairs,
    o_BKGTH: jax.Array,
    normaliser_BKGT: jax.Array,
    do_BKGTH: jax.Array,
    scoring: Scoring,
    causal: bool,
    dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dq, dk and dv in a dtype: blocks of keys, each against the queries from its start, or all; scores transposed.

    The result and the log-sum-exps may be those over more keys than are here: the gradients of all parts add up.
    """
    q_BKGTH, k_BKSH, v_BKSH = pairs[:3]
    delta_BKGT = jnp.sum(do_BKGTH.astype(jnp.float32) * o_BKGTH.astype(jnp.float32), axis=-1)
    # transposed in memory where a CPU's matrix units need it so (see `linear`)
    kt_BKHS = physical_transpose(k_BKSH) if platform() == "cpu" else k_BKSH.swapaxes(-1, -2)
    dqt_BKGHT = jnp.zeros((*q_BKGTH.shape[:3], q_BKGTH.shape[4], q_BKGTH.shape[3]), jnp.float32)
    dks, dvs = [], []
    for start, stop in _blocks(k_BKSH.shape[2]):
        rows, columns = slice(start if causal else 0, None), slice(start, stop)
        if causal and scoring.window:
            rows = slice(start, stop - 1 + scoring.window)
        q, do, k, v = q_BKGTH[:, :, :, rows], do_BKGTH[:, :, :, rows], k_BKSH[:, :, columns], v_BKSH[:, :, columns]
        scores_BKSGT = scoring.scores(_product("bksh,bkgth->bksgt", k, q))
        seen = _seen(pairs, rows, columns, causal, scoring.window).transpose(0, 1, 4, 2, 3)
        tilted_BKSGT = _tilted(scores_BKSGT, pairs, rows, columns, (0, 1, 4, 2, 3))
        weights_BKSGT = jnp.where(seen, jnp.exp(tilted_BKSGT - normaliser_BKGT[:, :, None, :, rows]), 0.0)
        dweights_BKSGT = _product("bksh,bkgth->bksgt", v, do)
        dscores_BKSGT = scoring.scale * weights_BKSGT * (dweights_BKSGT - delta_BKGT[:, :, None, :, rows])
        dscores_BKSGT = scoring.pull(dscores_BKSGT, scores_BKSGT)
        weights_BKSGT, dscores_BKSGT = weights_BKSGT.astype(do.dtype), dscores_BKSGT.astype(q.dtype)
        dvs.append(_product("bksgt,bkgth->bksh", weights_BKSGT, do).astype(dtype))
        dks.append(_product("bksgt,bkgth->bksh", dscores_BKSGT, q).astype(dtype))
        dqt = _product("bkhs,bksgt->bkhgt", kt_BKHS[..., columns], dscores_BKSGT)
        dqt_BKGHT = dqt_BKGHT.at[..., rows].add(dqt.swapaxes(2, 3))
    dq_BKGTH = dqt_BKGHT.astype(dtype).swapaxes(-1, -2)
    return dq_BKGTH, jnp.concatenate(dks, axis=2), jnp.concatenate(dvs, axis=2)


def _blocks(length: int) -> list[tuple[int, int]]:
    """First and last position of each block."""
    block = max(_SMALLEST_BLOCK, -(-length // _LARGEST_BLOCKS))
    return [(start, min(start + block, length)) for start in range(0, length, block)]


def _seen(pairs: Pairs, rows: slice, columns: slice, causal: bool, window: int) -> jax.Array:
    """Which keys the queries see: bool[B, 1, 1, T, S]."""
    seen_BTS = pairs.query_segments_BT[:, rows, None] == pairs.key_segments_BS[:, None, columns]
    places = jnp.arange(max(pairs.query_segments_BT.shape[1], pairs.key_segments_BS.shape[1]))
    if causal:
        seen_BTS &= (places[rows, None] >= places[None, columns])[None]
    if window:
        query_places, key_places = places[None, rows], places[None, columns]
        if pairs.query_places_BT is not None and pairs.key_places_BS is not None:
            query_places, key_places = pairs.query_places_BT[:, rows], pairs.key_places_BS[:, columns]
        seen_BTS &= query_places[:, :, None] - key_places[:, None, :] < window
    return seen_BTS[:, None, None]


def _tilted(
    scores: jax.Array, pairs: Pairs, rows: slice, columns: slice, order: tuple[int, ...] = (0, 1, 2, 3, 4)
) -> jax.Array:
    """Scores with what ALiBi adds, [B, K, G, T, S] or with these dims in another order."""
    if pairs.query_tilts is None or pairs.key_tilts is None:
        return scores
    added_BKGTS = pairs.key_tilts[..., None, columns] - pairs.query_tilts[..., rows, None]
    return scores + added_BKGTS.transpose(order)


def _product(dims: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(dims, x, y, preferred_element_type=jnp.float32)


def splash(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array, _: None, scoring: Scoring
) -> jax.Array:
    """Splash attention; it has no ALiBi."""
    length, num_heads = q_BTNH.shape[1:3]
    kernel = splash_kernel(num_heads, length, scoring.cap, causal=True, window=scoring.window)

    def one(q_NTH: jax.Array, k_KSH: jax.Array, v_KSH: jax.Array, segments_T: jax.Array) -> jax.Array:
        ids = splash_attention_kernel.SegmentIds(q=segments_T, kv=segments_T)
        return cast(jax.Array, kernel(q_NTH * jnp.asarray(scoring.scale, q_NTH.dtype), k_KSH, v_KSH, segment_ids=ids))

    q_BNTH, k_BKSH, v_BKSH = (x.swapaxes(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    return jax.vmap(one)(q_BNTH, k_BKSH, v_BKSH, segments_BT).swapaxes(1, 2)


def splash_kernel(
    num_heads: int, length: int, cap: float, causal: bool, save_residuals: bool = False, window: int = 0
) -> splash_attention_kernel.SplashAttentionKernel:
    """The kernel of so many heads and positions; interpreted where there is no TPU, which is for tests."""
    block = math.gcd(length, _SPLASH_BLOCK)
    sizes = splash_attention_kernel.BlockSizes(
        **dict.fromkeys(
            ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute",
             "block_q_dq", "block_kv_dq"),
            block,
        )
    )  # fmt: skip
    shape = (length, length)
    mask = splash_attention_mask.CausalMask(shape) if causal else splash_attention_mask.FullMask(shape)
    if window:
        mask = splash_attention_mask.LocalMask(shape, window_size=(window - 1, 0), offset=0)
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * num_heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        save_residuals=save_residuals,
        attn_logits_soft_cap=cap or None,
        interpret=jax.sharding.get_abstract_mesh().abstract_device.platform == "cpu",
    )


def cudnn(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array, _: None, scoring: Scoring
) -> jax.Array:
    """cuDNN's flash attention: causal by itself, segments and window as a mask; it has neither soft cap nor ALiBi."""
    mask_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    if scoring.window:
        places = jnp.arange(segments_BT.shape[1])
        mask_BTS &= (places[:, None] - places[None, :] < scoring.window)[None]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask_BTS[:, None], scale=scoring.scale, is_causal=True, implementation="cudnn"
    )


KERNELS = {"xla": xla, "splash": splash, "cudnn": cudnn}
PREFERRED = {"tpu": "splash", "gpu": "cudnn"}
