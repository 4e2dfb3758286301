"""Drawing by running the whole window for each token: slow, and right on any mesh and for texts of any length.

It is for what a cache does not do (see `engine`): pipelines, sequences that several devices share, and texts that grow
beyond the sequences that a model was trained on, of which it sees the newest tokens only.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.generate.draw import Sampling, draw
from jaxllm.layers.param import Tree
from jaxllm.models.decoder import Decoder, merge
from jaxllm.sharding import num_shards


def sample(
    decoder: Decoder,
    params: Tree,
    prompt: list[int],
    num_tokens: int,
    sampling: Sampling,
    vocab_size: int,
    window: int,
) -> list[int]:
    """Token ids that go on from a prompt.

    Args:
        decoder: the declarations.
        params: arrays in their place.
        prompt: at least one token id.
        num_tokens: how many to draw.
        sampling: how.
        vocab_size: ids at or above it are never drawn (the embedding may be padded).
        window: tokens that the model sees at a time; the newest ones, of a multiple of what the mesh needs.
    """
    rows = num_shards()  # one for each share of the batch: all the same, the first is read
    spec = decoder.recipe.rules.activation("batch", "sequence")

    @functools.partial(jax.jit, static_argnames="sampling")
    def read(
        params: Tree, tokens_T: jax.Array, last: jax.Array, key: jax.Array, step: jax.Array, sampling: Sampling
    ) -> jax.Array:
        tokens_BT = jax.reshard(jnp.broadcast_to(tokens_T[None], (rows, window)), spec)
        logits_BTV = jax.reshard(merge(decoder, params)(tokens_BT).logits, jax.P(None, None, None))
        return draw(logits_BTV[:1, last, :vocab_size], sampling, jax.random.fold_in(key, step))[0]

    ids, key = list(prompt), jax.random.key(sampling.seed)
    for step in range(num_tokens):
        seen = ids[-window:]
        tokens = np.zeros(window, np.int32)
        tokens[: len(seen)] = seen  # what follows the last token is padding, which causality hides
        ids.append(int(read(params, tokens, np.int32(len(seen) - 1), key, np.int32(step), sampling)))
    return ids[len(prompt) :]
