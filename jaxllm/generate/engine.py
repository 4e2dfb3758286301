"""Texts that go on from prompts: one call that reads the prompts, then one call a token, over a cache.

Prompts of different lengths end together: the shorter ones begin with padding, of segment 0, and positions count from
the first token of each. The first call's length is a power of two, so that few programs are compiled. The call of the
next token is under way before the host looks at this one.

Under rope scalings that depend on the length of the whole text (see `layers.rope`) what has been read turns otherwise
once it grows: with `longrope` when it outgrows the length of pretraining, with `dynamic` at every token from there on.
Then all of it is read again, so that what comes is always what one forward pass of the text so far says. (Turning the
kept keys anew would not do: what deeper layers made of earlier tokens depends on the angles too.)

B batch, T tokens of a call, V vocabulary.
"""

import dataclasses
import functools
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import DynamicScaling
from jaxllm.generate.cache import make_cache
from jaxllm.generate.draw import Sampling, draw
from jaxllm.layers.cached import Caches
from jaxllm.layers.param import Tree, leaves
from jaxllm.layers.rope import changes
from jaxllm.models.decoder import Decoder, declarations, merge
from jaxllm.sharding import num_shards, platform

logger = logging.getLogger("jaxllm")

_SHORTEST = {"cpu": 16}
"""Tokens of the shortest first call by platform; 128 on others, which their kernels ask for."""

_PLACES = 128
"""A cache has a multiple of so many places behind the first call's, so that few programs are compiled."""


class Generator:
    """A model that goes on from prompts. Call it inside `jax.set_mesh`.

    Args:
        decoder: the declarations.
        params: arrays in their place.
        vocab_size: ids at or above it are never drawn (the embedding may be padded).

    Raises:
        ValueError: the mesh has pipe or context, over which a cache does not lie.
    """

    def __init__(self, decoder: Decoder, params: Tree, vocab_size: int) -> None:
        rules = decoder.recipe.rules
        if rules.staged or rules.ring:
            axis = "pipe" if rules.staged else "context"
            raise ValueError(f"mesh.{axis}: text is not generated over it; set mesh.{axis} = 1 and raise mesh.tensor")
        # a call of one token leaves nothing of the sequence to share
        recipe = dataclasses.replace(decoder.recipe, rules=dataclasses.replace(rules, sequence_parallel=False))
        self._decoder, self._vocab_size = Decoder(decoder.config, recipe), vocab_size
        self._params = in_compute(self._decoder, params)  # once, not again for every token
        self._ropes = {block.attention.rope for block in decoder.config.blocks if block.attention.positions == "rope"}
        self._read = jax.jit(self._read_call, static_argnames=("num_places", "sampling"))
        self._step = jax.jit(self._step_call, static_argnames="sampling", donate_argnames="cache")

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        sampling: Sampling | None = None,
        stop: Collection[int] = (),
    ) -> Iterator[list[int | None]]:
        """The texts' next tokens, one a prompt at a time; None for a text that has ended.

        Args:
            prompts: token ids, at least one each.
            num_tokens: how many to draw at most.
            sampling: how; the likeliest token by default.
            stop: ids that end a text; the id comes, and is the text's last.

        Raises:
            ValueError: a prompt is empty, has an id that the model does not know, or is too long for it.
        """
        self._check(prompts, num_tokens)
        return self._stream(prompts, num_tokens, sampling or Sampling(), stop)

    def _stream(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, sampling: Sampling, stop: Collection[int]
    ) -> Iterator[list[int | None]]:
        num_rows = -(-len(prompts) // num_shards()) * num_shards()
        texts = [list(prompts[index % len(prompts)]) for index in range(num_rows)]
        key, sampling = jax.random.key(sampling.seed), dataclasses.replace(sampling, seed=0)  # programs know no seed
        ended = [False] * len(prompts)
        tokens_B, positions_B, cache = self._first(texts, num_tokens, sampling, key, np.int32(0))
        for step in range(1, num_tokens + 1):
            again, following = self._read_again(max(map(len, texts)) + 1), None
            if step < num_tokens and not again:
                following = self._step(
                    self._params, cache, tokens_B, positions_B, key, np.int32(step), sampling=sampling
                )
            drawn = np.asarray(tokens_B).tolist()
            for text, token in zip(texts, drawn, strict=True):
                text.append(token)
            yield [None if done else token for done, token in zip(ended, drawn, strict=False)]
            ended = [done or token in stop for done, token in zip(ended, drawn, strict=False)]
            if all(ended) or step == num_tokens:
                return
            following = following or self._first(texts, num_tokens - step, sampling, key, np.int32(step))
            tokens_B, positions_B, cache = following

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        sampling: Sampling | None = None,
        stop: Collection[int] = (),
    ) -> list[list[int]]:
        """The tokens that go on from each prompt; arguments and errors as of `stream`."""
        texts: list[list[int]] = [[] for _ in prompts]
        for drawn in self.stream(prompts, num_tokens, sampling, stop):
            for text, token in zip(texts, drawn, strict=True):
                if token is not None:
                    text.append(token)
        return texts

    def _check(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> None:
        """Refuse what the model cannot read.

        Raises:
            ValueError: see `stream`.
        """
        longest, known = max(map(len, prompts)), self._decoder.config.learned_positions
        for prompt in prompts:
            if not prompt:
                raise ValueError("the prompt is empty; give at least one token")
            if (wrong := next((one for one in prompt if not 0 <= one < self._vocab_size), None)) is not None:
                raise ValueError(f"token id {wrong}: the model knows ids from 0 to {self._vocab_size - 1}")
        if known and longest > known:
            raise ValueError(
                f"the prompt has {longest} tokens, and the model positions for {known} (model.learned_positions); "
                "shorten it"
            )
        if known and longest + num_tokens - 1 > known:
            raise ValueError(
                f"{num_tokens} tokens behind a prompt of {longest}: the model has positions for {known} "
                f"(model.learned_positions); ask for at most {known - longest + 1}"
            )

    def _read_again(self, length: int) -> bool:
        """Whether a text of this length turns otherwise than all but its last token did."""
        found = [rope for rope in self._ropes if changes(rope, length - 1, length)]
        for rope in found:
            if isinstance(rope.scaling, DynamicScaling):
                _say_slow(rope.scaling.original_max_positions)
        return bool(found)

    def _first(
        self, texts: list[list[int]], num_tokens: int, sampling: Sampling, key: jax.Array, step: np.int32
    ) -> tuple[jax.Array, jax.Array, Caches]:
        """Read whole texts; the token behind each, its position, and the cache."""
        lengths_B = np.array([len(text) for text in texts], np.int32)
        shortest = _SHORTEST.get(platform(), 128)
        length = max(shortest, 1 << int(lengths_B.max() - 1).bit_length())
        tokens_BT = np.zeros((len(texts), length), np.int32)
        for row, text in zip(tokens_BT, texts, strict=True):
            row[length - len(text) :] = text
        num_places = length + -(-num_tokens // _PLACES) * _PLACES
        return self._read(self._params, tokens_BT, lengths_B, key, step, num_places=num_places, sampling=sampling)

    def _read_call(
        self,
        params: Tree,
        tokens_BT: jax.Array,
        lengths_B: jax.Array,
        key: jax.Array,
        step: jax.Array,
        num_places: int,
        sampling: Sampling,
    ) -> tuple[jax.Array, jax.Array, Caches]:
        num_rows, length = tokens_BT.shape
        places_BT = jnp.arange(length)[None] - (length - lengths_B)[:, None]
        cache = make_cache(self._decoder, num_rows, num_places)
        positions_BT, segments_BT = jnp.maximum(places_BT, 0), (places_BT >= 0).astype("int32")
        key = jax.random.fold_in(key, step)
        tokens_B, cache = self._next(params, cache, tokens_BT, positions_BT, segments_BT, key, sampling)
        return tokens_B, lengths_B, cache

    def _step_call(
        self,
        params: Tree,
        cache: Caches,
        tokens_B: jax.Array,
        positions_B: jax.Array,
        key: jax.Array,
        step: jax.Array,
        sampling: Sampling,
    ) -> tuple[jax.Array, jax.Array, Caches]:
        tokens_B1, positions_B1 = tokens_B[:, None], positions_B[:, None]
        key = jax.random.fold_in(key, step)
        drawn_B, cache = self._next(params, cache, tokens_B1, positions_B1, jnp.ones_like(tokens_B1), key, sampling)
        return drawn_B, positions_B + 1, cache

    def _next(
        self,
        params: Tree,
        cache: Caches,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        key: jax.Array,
        sampling: Sampling,
    ) -> tuple[jax.Array, Caches]:
        """Read tokens and draw the one behind the last."""
        model = merge(self._decoder, params)
        x_BTD, cache = model.extend(tokens_BT, positions_BT, segments_BT, cache)
        logits_BV = jax.reshard(model.logits(x_BTD[:, -1:]), jax.P(None, None, None))[:, 0, : self._vocab_size]
        return draw(logits_BV, sampling, key), cast(Caches, cache)


def in_compute(decoder: Decoder, params: Tree) -> Tree:
    """Parameters in the dtype that products read them in; routers' stay, for they are read in float32."""
    dtype, declared = decoder.recipe.compute, leaves(declarations(decoder))
    kept = {name for name, declaration in declared if declaration.role in ("router", "balance")}

    def one(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        name = ".".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        return x if name in kept or x.dtype == dtype else x.astype(dtype)

    return jax.tree.map_with_path(one, params)


@functools.cache
def _say_slow(length: int) -> None:
    """Once."""
    logger.warning("dynamic rope scaling: beyond %d tokens each one reads the whole text again, which is slow", length)
