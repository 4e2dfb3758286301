"""Keys and values of what a model has read, so that the next token costs one position and not all of them.

One `SlotCache` a slot of the decoder's groups, its repeats stacked as their parameters are. It holds S places a row. A
slot without a window has a place for every token of the longest sequence; one with a window w has a ring of w, for a
query sees no more, and token c (counted over all calls, padding too) lies at c mod w.

Beside the keys lie their positions and segments; all that attention asks is in them (see `layers.cached`), so rows may
begin with padding, of segment 0, and places where nothing lies yet have segment -1. Keys are kept as they come: turned
by rope, but for scalings under which earlier keys turn otherwise once a sequence has grown (see `layers.attention`).

A call of many tokens may overwrite, in a ring, what its own first tokens still see. So those of more than one token see
the ring as it was, and behind it their own keys.

R repeats, B batch, T tokens of a call, S places, K key and value heads, H width of a head.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from jaxllm.layers.cached import Caches, Seen
from jaxllm.layers.param import Recipe
from jaxllm.models.decoder import GROUPS, Decoder

NOTHING = -1
"""The segment of places where nothing lies."""


@dataclasses.dataclass(frozen=True)
class SlotCache:
    """What the layers of one slot have read.

    Attributes:
        k_RBKSH: keys.
        v_RBKSH: values.
        positions_BS: int32, of the tokens in the places.
        segments_BS: int32.
        written: int32, tokens of each row so far, padding too.
        repeat: int32, of the layer at hand.
        ring: whether places are used again.
        fresh: whether no call has been before.
    """

    k_RBKSH: jax.Array
    v_RBKSH: jax.Array
    positions_BS: jax.Array
    segments_BS: jax.Array
    written: jax.Array
    repeat: jax.Array
    ring: bool
    fresh: bool

    @property
    def num_places(self) -> int:
        """S."""
        return self.positions_BS.shape[1]

    def at(self, repeat: jax.Array) -> Self:
        """See `StackedCache.at`."""
        return dataclasses.replace(self, repeat=repeat)

    def back(self, cache: Self) -> Self:
        """See `StackedCache.back`."""
        return dataclasses.replace(cache, repeat=self.repeat)

    def extend(
        self, k_BTKH: jax.Array, v_BTKH: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array
    ) -> tuple[Seen | None, Self]:
        """See `Cache.extend`."""
        with jax.named_scope("cache"):
            k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
            after = dataclasses.replace(
                self, k_RBKSH=self._add(self.k_RBKSH, k_BKTH), v_RBKSH=self._add(self.v_RBKSH, v_BKTH)
            )
            if self.fresh:
                return None, after
            if self.ring and positions_BT.shape[1] > 1:
                join = jnp.concatenate
                return Seen(
                    join([self._layer(self.k_RBKSH), k_BKTH], axis=2),
                    join([self._layer(self.v_RBKSH), v_BKTH], axis=2),
                    join([self.positions_BS, positions_BT], axis=1),
                    join([self.segments_BS, segments_BT], axis=1),
                ), after
            places = self._write(self.positions_BS, positions_BT, 1), self._write(self.segments_BS, segments_BT, 1)
            return Seen(self._layer(after.k_RBKSH), self._layer(after.v_RBKSH), *places), after

    def advance(self, positions_BT: jax.Array, segments_BT: jax.Array) -> Self:
        """See `StackedCache.advance`."""
        return dataclasses.replace(
            self,
            positions_BS=self._write(self.positions_BS, positions_BT, 1),
            segments_BS=self._write(self.segments_BS, segments_BT, 1),
            written=self.written + positions_BT.shape[1],
            fresh=False,
        )

    def _layer(self, x_RBKSH: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(x_RBKSH, self.repeat, keepdims=False)

    def _add(self, x_RBKSH: jax.Array, new_BKTH: jax.Array) -> jax.Array:
        """The stack with a call's keys or values in the layer at hand."""
        num, zero = new_BKTH.shape[2], jnp.int32(0)
        if self._fits(num):
            place = self.written % self.num_places
            return jax.lax.dynamic_update_slice(x_RBKSH, new_BKTH[None], (self.repeat, zero, zero, place, zero))
        layer_BKSH = self._write(self._layer(x_RBKSH), new_BKTH, 2)
        return jax.lax.dynamic_update_index_in_dim(x_RBKSH, layer_BKSH, self.repeat, 0)

    def _fits(self, num: int) -> bool:
        """Whether so many tokens lie side by side in their places."""
        return num == 1 or not self.ring

    def _write(self, x: jax.Array, new: jax.Array, dim: int) -> jax.Array:
        """What lies in the places, along a dim, with the new; of more than there are places the last."""
        num, total = new.shape[dim], self.num_places
        if self._fits(num):
            return jax.lax.dynamic_update_slice_in_dim(x, new, self.written % total, dim)
        # oldest first, the new behind them; then round to where they belong
        in_order = jnp.concatenate([jnp.roll(x, -(self.written % total), dim), new], axis=dim)
        newest = jax.lax.slice_in_dim(in_order, num, num + total, axis=dim)
        return jnp.roll(newest, (self.written + num) % total, dim)


jax.tree_util.register_dataclass(
    SlotCache,
    data_fields=["k_RBKSH", "v_RBKSH", "positions_BS", "segments_BS", "written", "repeat"],
    meta_fields=["ring", "fresh"],
)


def make_cache(decoder: Decoder, num_rows: int, length: int) -> Caches:
    """The empty cache of a batch; call it under `jit`.

    Args:
        decoder: whose blocks read and write it.
        num_rows: B.
        length: tokens of the longest row, padding too, that all calls together add.
    """
    model, recipe = decoder.config, decoder.recipe
    groups = zip(GROUPS, ((model.prefix, 1), (model.slots, model.num_repeats), (model.remainder, 1)), strict=True)
    caches: Caches = {}
    for group, (slots, num_repeats) in groups:
        if num_repeats and slots:
            shapes = [(slot.attention.kv_heads, model.head_dim(slot.attention)) for slot in slots]
            windows = [slot.attention.window for slot in slots]
            caches[group] = [
                _make_slot(num_repeats, num_rows, kv_heads, head_dim, window, length, recipe)
                for (kv_heads, head_dim), window in zip(shapes, windows, strict=True)
            ]
    return caches


def _make_slot(
    num_repeats: int, num_rows: int, kv_heads: int, head_dim: int, window: int, length: int, recipe: Recipe
) -> SlotCache:
    rules, ring = recipe.rules, 0 < window < length
    places = window if ring else length
    heads = rules.activation(None, "batch", "kv_heads", None, None)
    rows = rules.activation("batch", None)
    shape = (num_repeats, num_rows, kv_heads, places, head_dim)
    return SlotCache(
        k_RBKSH=jnp.zeros(shape, recipe.compute, out_sharding=heads),
        v_RBKSH=jnp.zeros(shape, recipe.compute, out_sharding=heads),
        positions_BS=jnp.zeros((num_rows, places), "int32", out_sharding=rows),
        segments_BS=jnp.full((num_rows, places), NOTHING, "int32", out_sharding=rows),
        written=jnp.int32(0),
        repeat=jnp.int32(0),
        ring=ring,
        fresh=True,
    )
