"""Digests of arrays: 64 bits that say whether an array's values and their places are what they were.

With b the bits of an element at index (i_0, .., i_k), read as an unsigned number, and lane l of two,

    place_l  = sum over dims d of mix(i_d + salt(l, d))
    digest_l = sum over elements of mix(b ^ place_l)                    all modulo 2^32

where mix is a bijection of 32-bit numbers (Wellons 2018, "Prospecting for hash functions", lowbias32). So a single
changed element always changes both lanes, and any other damage passes with a chance of about 2^-64. A sum of integers
has no order: the digest depends on no sharding, mesh or number of processes, needs one number of communication, and
parts of an array can be digested apart and added. No linear index is formed: an array may have more than 2^32 elements.

`digest` runs under `jit` on an array sharded in any way; `host_digest` is its twin in numpy, equal bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

_SALTS = (0x243F6A88, 0xB7E15162)
_SALT_STRIDE = 0x9E3779B1
_BLOCK = 1 << 16
"""Elements that the numpy twin hashes at a time: few enough to stay in a core's cache."""


def digest(x: jax.Array) -> jax.Array:
    """Digest of an array: uint32[2], whole on every device. Call under `jit`.

    Args:
        x: of any shape and sharding; floating point or integer of at most 32 bits, bool, or random keys.
    """
    bits = _bits(x)
    sharding = jax.typeof(bits).sharding
    lanes = []
    for salt in _SALTS:
        hashed = bits
        if bits.ndim:
            places = [_place(size, dim, salt, sharding) for dim, size in enumerate(bits.shape)]
            hashed = bits ^ sum(
                jnp.expand_dims(place, [other for other in range(bits.ndim) if other != dim])
                for dim, place in enumerate(places)
            )
        lanes.append(jnp.sum(_mix(hashed), dtype=jnp.uint32))
    return jnp.stack(lanes)


def host_digest(x: np.ndarray, starts: Sequence[int] = ()) -> np.ndarray:
    """Digest of an array on the host, or of a part of one: uint32[2].

    The digests of parts that make up an array add up, modulo 2^32, to the digest of the array.

    Args:
        x: the values.
        starts: where in each dim of the whole array the part begins; empty for the whole.
    """
    bits = x.view(f"uint{8 * x.itemsize}")
    if not bits.size:
        return np.zeros(2, np.uint32)
    starts = tuple(starts) or (0,) * bits.ndim
    if not bits.ndim:
        return np.concatenate([_mix(bits.astype(np.uint32).reshape(1)) for _ in _SALTS])
    rows = max(1, _BLOCK * bits.shape[0] // bits.size)
    lanes = []
    for salt in _SALTS:
        first, *others = [
            _mix(np.arange(start, start + size, dtype=np.uint32) + _salt(salt, dim)).reshape(
                [-1 if other == dim else 1 for other in range(bits.ndim)]
            )
            for dim, (start, size) in enumerate(zip(starts, bits.shape, strict=True))
        ]
        blocks = (slice(row, row + rows) for row in range(0, bits.shape[0], rows))
        sums = (_mix(bits[block] ^ sum(others, first[block])).sum(dtype=np.uint32) for block in blocks)
        lanes.append(sum(map(int, sums)) % (1 << 32))
    return np.array(lanes, np.uint32)


def text(value: Any) -> str:
    """A digest, uint32[2], as 16 hexadecimal digits."""
    return "".join(f"{int(lane):08x}" for lane in value)


def _bits(x: jax.Array) -> jax.Array:
    """The bits of each element, uint32."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)


def _place(size: int, dim: int, salt: int, sharding: NamedSharding) -> jax.Array:
    """Hash of each index along one dim, laid as that dim is."""
    laid = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[dim]))
    index = jax.lax.broadcasted_iota(jnp.uint32, (size,), 0, out_sharding=laid)
    return _mix(index + _salt(salt, dim))


def _salt(salt: int, dim: int) -> np.uint32:
    return np.uint32((salt + dim * _SALT_STRIDE) % (1 << 32))


def _mix(x: Any) -> Any:
    """A bijection of uint32 whose every output bit depends on every input bit; for jax and numpy arrays alike."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
