"""Causal attention within segments, one function a kernel, all of one signature and all on one device's share.

    softmax(scale * q k^T + mask) v,  query t sees key s iff s <= t and segment(s) = segment(t)

- `xla`: the reference, on every platform; queries in blocks, each against the keys up to its end.
- `splash`: Pallas on TPU, block-sparse, segments in the kernel (jax.experimental.pallas.ops.tpu).
- `cudnn`: cuDNN's fused flash attention on NVIDIA GPUs. It knows causality but not segments; they go in as a mask,
  one byte a pair of positions and row, shared by all heads.

A kernel that cannot honour a shape says why through `refusal`; nothing is dropped silently.

B batch, T and S sequence, N query heads, K key and value heads, G query heads a key head, H width of a head.
"""

import math
from typing import cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
"""Score of a masked pair: finite, so that a row's maximum is; a row always sees at least itself."""

_LARGEST_BLOCKS = 16
_SMALLEST_BLOCK = 128
_SPLASH_BLOCK = 512


def refusal(kernel: str, platform: str, sequence_length: int, head_dim: int, dtype: str) -> str:
    """Why a kernel cannot compute this attention; empty if it can."""
    if kernel == "splash":
        if platform == "gpu":
            return "splash is a TPU kernel"
        if sequence_length % 128:
            return f"splash needs a sequence length that is a multiple of 128, not {sequence_length}"
        if head_dim % 64:
            return f"splash needs heads whose width is a multiple of 64, not {head_dim}"
    if kernel == "cudnn":
        if platform != "gpu":
            return "cudnn is a GPU kernel"
        if dtype not in ("bfloat16", "float16"):
            return f"cudnn computes in bfloat16 or float16, not {dtype}"
        if head_dim > 128 or head_dim % 8:
            return f"cudnn needs heads at most 128 wide and a multiple of 8, not {head_dim}"
        if sequence_length % 2:
            return f"cudnn with packed documents needs an even sequence length, not {sequence_length}"
    return ""


def xla(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array, scale: float) -> jax.Array:
    """Attention in plain jax.numpy, scores and softmax in float32: [B, T, N, H]."""
    batch, length, num_heads, head_dim = q_BTNH.shape
    q_BTKGH = q_BTNH.reshape(batch, length, k_BSKH.shape[2], -1, head_dim)
    block = max(_SMALLEST_BLOCK, -(-length // _LARGEST_BLOCKS))
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        q, k, v = q_BTKGH[:, start:stop], k_BSKH[:, :stop], v_BSKH[:, :stop]
        scores_BKGTS = scale * jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
        seen_TS = jnp.arange(stop)[None, :] <= jnp.arange(start, stop)[:, None]
        same_BTS = segments_BT[:, start:stop, None] == segments_BT[:, None, :stop]
        mask_BTS = same_BTS & seen_TS[None]
        scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, MASKED)
        weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v.dtype)
        outputs.append(jnp.einsum("bkgts,bskh->btkgh", weights_BKGTS, v))
    return jnp.concatenate(outputs, axis=1).reshape(batch, length, num_heads, head_dim)


def splash(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array, scale: float) -> jax.Array:
    """Splash attention; interpreted where there is no TPU, which is for tests."""
    length, num_heads = q_BTNH.shape[1:3]
    block = math.gcd(length, _SPLASH_BLOCK)
    sizes = splash_attention_kernel.BlockSizes(
        **dict.fromkeys(
            ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute",
             "block_q_dq", "block_kv_dq"),
            block,
        )
    )  # fmt: skip
    causal = splash_attention_mask.CausalMask((length, length))
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([causal] * num_heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=jax.sharding.get_abstract_mesh().abstract_device.platform == "cpu",
    )

    def one(q_NTH: jax.Array, k_KSH: jax.Array, v_KSH: jax.Array, segments_T: jax.Array) -> jax.Array:
        ids = splash_attention_kernel.SegmentIds(q=segments_T, kv=segments_T)
        return cast(jax.Array, kernel(q_NTH * jnp.asarray(scale, q_NTH.dtype), k_KSH, v_KSH, segment_ids=ids))

    q_BNTH, k_BKSH, v_BKSH = (x.swapaxes(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    return jax.vmap(one)(q_BNTH, k_BKSH, v_BKSH, segments_BT).swapaxes(1, 2)


def cudnn(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array, scale: float) -> jax.Array:
    """cuDNN's flash attention: causal by itself, segments as a mask."""
    mask_B1TS = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask_B1TS, scale=scale, is_causal=True, implementation="cudnn"
    )


KERNELS = {"xla": xla, "splash": splash, "cudnn": cudnn}
PREFERRED = {"tpu": "splash", "gpu": "cudnn"}
