"""Reading a text piece by piece through the cache gives what one forward pass of the whole gives."""

import dataclasses
import functools

import families
import jax
import numpy as np
import pytest
import tiny

from jaxllm.config import MeshConfig, ModelConfig
from jaxllm.generate.cache import make_cache
from jaxllm.models.decoder import merge

LENGTH = 24
BLOCKS = families.published()
PUBLISHED = families.stack(
    BLOCKS,
    num_layers=2 * len(BLOCKS) + 1,
    learned_positions=LENGTH,
    embedding_norm=True,
    tie_embeddings=True,
    final_soft_cap=2.0,
)
"""Every slot repeated, and a remainder."""

MIXED = families.stack([families.plain(window=families.WINDOW), families.plain(scaling="yarn")])
"""With and without a window."""

PADS = np.array([0, 7])
"""Padding on the left of each row; that of the second row reaches past the first chunks of some splits."""


def text(num_pads: np.ndarray = PADS, length: int = LENGTH) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and segments of rows that begin with padding."""
    places = np.arange(length)[None] - num_pads[:, None]
    tokens = np.random.default_rng(0).integers(0, 64, places.shape, dtype=np.int32)
    return tokens, np.maximum(places, 0).astype(np.int32), (places >= 0).astype(np.int32)


class Reader:
    """Forward passes of a model, on a mesh or alone."""

    def __init__(self, model: ModelConfig, mesh: MeshConfig | None = None) -> None:
        self.running = tiny.program(tiny.experiment(model, mesh, shape=(8, LENGTH)))
        decoder = self.running.decoder

        def extend(params, cache, *call):
            model = merge(decoder, params)
            x_BTD, cache = model.extend(*call, cache)
            return model.logits(x_BTD), cache

        with jax.set_mesh(self.running.mesh):
            self.params = tiny.place(self.running, tiny.make_params(model))
            self.forward = jax.jit(lambda params, *call: merge(decoder, params)(*call).logits)
            self.extend = jax.jit(extend, donate_argnums=1)
            self.empty = jax.jit(functools.partial(make_cache, decoder), static_argnums=(0, 1))

    def whole(self, *arrays: np.ndarray) -> np.ndarray:
        """Logits of one pass without a cache."""
        with jax.set_mesh(self.running.mesh):
            return np.asarray(self.forward(self.params, *arrays))

    def in_pieces(self, lengths: list[int], *arrays: np.ndarray) -> list[np.ndarray]:
        """Logits of calls of these lengths, one behind the other, over places for all that there is."""
        ends, found = np.cumsum(lengths), []
        with jax.set_mesh(self.running.mesh):
            cache = self.empty(*arrays[0].shape)
            for start, end in zip(ends - lengths, ends, strict=True):
                logits, cache = self.extend(self.params, cache, *(x[:, start:end] for x in arrays))
                found.append(np.asarray(logits))
        return found

    def token_by_token(self, *arrays: np.ndarray) -> np.ndarray:
        """Logits of calls of one token, the first one too, over what holds nothing yet."""
        found = []
        with jax.set_mesh(self.running.mesh):
            cache = {
                group: [dataclasses.replace(one, fresh=False) for one in slots]
                for group, slots in self.empty(*arrays[0].shape).items()
            }
            for column in range(arrays[0].shape[1]):
                logits, cache = self.extend(self.params, cache, *(x[:, column : column + 1] for x in arrays))
                found.append(np.asarray(logits))
        return np.concatenate(found, axis=1)


def assert_equal(found: np.ndarray, wanted: np.ndarray, counts: np.ndarray) -> None:
    """Logits are, but for those of padding."""
    np.testing.assert_allclose(
        found * counts[:, :, None], wanted * counts[:, :, None], rtol=0, atol=1e-5 * np.abs(wanted).max()
    )


def test_single_tokens_give_what_a_pass_without_a_cache_gives():
    """All published kinds of attention, several times around the rings; padding first, in one row."""
    reader, arrays = Reader(PUBLISHED), text()
    assert_equal(reader.token_by_token(*arrays), reader.whole(*arrays), arrays[2])


@pytest.fixture(scope="module")
def mixed():
    return Reader(MIXED)


@pytest.mark.parametrize("num_pads", [(0, 0), (3, 9)])
def test_pieces_of_any_length_give_what_a_pass_without_a_cache_gives(mixed, num_pads):
    """Rings of 5, that a first call does not fill, a chunk fills more than once, and single tokens go around."""
    arrays = text(np.array(num_pads))
    wanted = mixed.whole(*arrays)
    for lengths in ([3, 7, 7, *[1] * 7], [3, 1, 1, 1, 7, *[1] * 11]):
        assert_equal(np.concatenate(mixed.in_pieces(lengths, *arrays), axis=1), wanted, arrays[2])


def test_on_a_mesh_pieces_give_what_one_device_gives(mixed):
    arrays = text()
    wanted = mixed.whole(*arrays)
    reader = Reader(MIXED, MeshConfig(fsdp=2, tensor=2))
    assert_equal(np.concatenate(reader.in_pieces([23, 1], *arrays), axis=1), wanted, arrays[2])
    with jax.set_mesh(reader.running.mesh):
        held = reader.empty(2, LENGTH)["period"][0].k_RBKSH.addressable_shards[0].data
    assert held.shape == (2, 1, 1, families.WINDOW, families.HEAD_DIM), "a row of a head of a ring a device"


def test_experts_on_other_devices_give_what_one_device_gives():
    """A token goes where its expert is, alone too; padding goes there as well, and changes nothing of the others."""
    model, arrays = families.stack([families.sparse()], repeats=1), text()
    found = Reader(model, MeshConfig(fsdp=1, expert=2)).token_by_token(*arrays)
    other = arrays[0].copy()
    other[arrays[2] == 0] = 5
    assert_equal(found, Reader(model).whole(other, *arrays[1:]), arrays[2])


def test_a_slot_with_a_window_keeps_no_more_than_the_window(mixed):
    with jax.set_mesh(mixed.running.mesh):
        cache = mixed.empty(2, LENGTH)
    places = {group: [one.num_places for one in slots] for group, slots in cache.items()}
    assert places == {"period": [5, LENGTH]}
