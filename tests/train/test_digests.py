"""The digest: the same on any sharding and on the host, another for any damage."""

import itertools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxllm.train.digests import digest, host_digest, text

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool", "float8_e4m3fn"]
SHARDINGS = [
    ({}, ()),
    ({"fsdp": 8}, (None, "fsdp", None)),
    ({"data": 2, "fsdp": 2, "tensor": 2}, (None, "fsdp", "tensor")),
    ({"data": 2, "fsdp": 2, "tensor": 2}, ("data", ("fsdp", "tensor"), None)),
]


def values(dtype: str, shape: tuple[int, ...] = (2, 24, 16), seed: int = 0) -> np.ndarray:
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    if dtype == "bool":
        raw %= 2
    return raw.view(np.dtype(dtype)).reshape(shape)


def on_device(x: np.ndarray | jax.Array) -> np.ndarray:
    return np.asarray(jax.jit(digest)(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_device_and_the_host_agree(dtype: str):
    for shape in [(2, 24, 16), (5,), ()]:
        x = values(dtype, shape)
        np.testing.assert_array_equal(on_device(x), host_digest(x))


@pytest.mark.parametrize(("sizes", "spec"), SHARDINGS)
def test_the_sharding_does_not_matter(sizes: dict[str, int], spec: tuple):
    x = values("bfloat16")
    wanted = host_digest(x)
    if not sizes:
        np.testing.assert_array_equal(on_device(x), wanted)
        return
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
        found = jax.jit(digest)(placed)
        np.testing.assert_array_equal(np.asarray(found), wanted)
        assert found.sharding.is_fully_replicated
        if spec[0] is None:
            layers = jax.jit(jax.vmap(digest))(placed)
            np.testing.assert_array_equal(np.asarray(layers), [host_digest(layer) for layer in x])


def test_parts_add_up():
    x = values("float32", (6, 8, 4))
    parts = itertools.product((slice(0, 4), slice(4, 6)), (slice(0, 3), slice(3, 8)))
    total = np.zeros(2, np.uint32)
    for rows, columns in parts:
        total += host_digest(x[rows, columns], (rows.start, columns.start, 0))
    np.testing.assert_array_equal(total, host_digest(x))


def test_blocks_of_the_host_twin_add_up():
    x = values("int8", (1000, 200))
    np.testing.assert_array_equal(host_digest(x), on_device(x))


def test_every_single_bit_counts_in_both_lanes():
    x = values("float32", (6, 5))
    wanted = host_digest(x)
    for place in range(x.size):
        for bit in range(32):
            changed = x.copy()
            changed.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
            assert (host_digest(changed) != wanted).all(), (place, bit)


def test_places_count():
    x = values("float32", (8, 8))
    others = [x[::-1], x[:, ::-1], x.T, np.roll(x, 1, axis=0), np.zeros_like(x), -np.zeros_like(x), x.reshape(4, 16)]
    swapped = x.copy()
    swapped[2, 3], swapped[5, 1] = x[5, 1], x[2, 3]
    digests = [text(host_digest(np.ascontiguousarray(one))) for one in (x, swapped, *others)]
    assert len(set(digests)) == len(digests)


def test_digests_of_near_arrays_differ_in_half_their_bits():
    digests = []
    for number in range(400):
        x = np.zeros((4, 4), np.uint32)
        x[0, 0] = number
        digests.append(int(text(host_digest(x)), 16))
    distances = [(one ^ other).bit_count() for one, other in itertools.pairwise(digests)]
    assert abs(np.mean(distances) - 32) < 1.5  # the mean of 399 sums of 64 coins has a deviation of 0.2


def test_random_keys_have_a_digest():
    keys = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_array_equal(on_device(keys), host_digest(np.asarray(jax.random.key_data(keys))))


def test_text_is_sixteen_digits():
    assert text(np.array([1, 0xABCDEF01], np.uint32)) == "00000001abcdef01"
