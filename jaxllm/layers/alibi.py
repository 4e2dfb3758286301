"""Attention with linear biases (ALiBi, Press et al. 2021): logits fall with the distance of query and key.

    score_nts += slope_n (s - t),  slope_n = 2^(-8 n / N) for n = 1, ..., N and N a power of two

For another number of heads: the slopes of the largest power of two below it, then every second one of twice as many
(the paper's code). Documents count from 0 each, so positions are those of the batch.

A softmax does not see what all scores of a query have in common, so the bias is taken as a tilt of the key's position
less the tilt of the query's, tilt_n(p) = slope_n p, which keeps it small near the query. Falcon's tilt is rounded to
bfloat16 in computations of any dtype, and scaled as the products of queries and keys are:

    tilt_n(p) = scale bf16(bf16(slope_n) bf16(p))

B batch, T sequence, N heads.
"""

import jax
import jax.numpy as jnp
import numpy as np


def slopes(num_heads: int) -> np.ndarray:
    """float64[N]."""
    whole = 2 ** (num_heads.bit_length() - 1)  # the largest power of two that is not above
    first = 2.0 ** (-8 / whole * np.arange(1, whole + 1))
    between = 2.0 ** (-4 / whole * np.arange(1, 2 * (num_heads - whole), 2))
    return np.concatenate([first, between])


def tilts(positions_BT: jax.Array, num_heads: int, scale: float, falcon: bool) -> jax.Array:
    """float32[B, T, N]: what is added to the scores of keys at these positions, and taken from those of queries.

    Args:
        positions_BT: int32, in their document.
        num_heads: N.
        scale: of the products of queries and keys.
        falcon: whether in Falcon's form.
    """
    with jax.named_scope("alibi"):
        slopes_N, places_BT1 = jnp.asarray(slopes(num_heads), jnp.float32), positions_BT.astype(jnp.float32)[:, :, None]
        if falcon:
            return scale * _bfloat16(_bfloat16(slopes_N)[None, None] * _bfloat16(places_BT1))
        return slopes_N[None, None] * places_BT1


def _bfloat16(x: jax.Array) -> jax.Array:
    """Rounded to bfloat16 and still float32; a cast there and back is what compilers leave out."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
