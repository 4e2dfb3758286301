"""Sampling by running the whole window for each token: slow, without a cache, and right on any mesh.

p(next) = softmax(logits / temperature); temperature 0 takes the largest
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.layers.param import Tree
from jaxllm.models.decoder import Decoder, merge
from jaxllm.sharding import num_shards


def sample(
    decoder: Decoder,
    params: Tree,
    prompt: list[int],
    num_tokens: int,
    temperature: float,
    key: jax.Array,
    vocab_size: int,
    window: int,
) -> list[int]:
    """Token ids that go on from a prompt.

    Args:
        decoder: the declarations.
        params: arrays in their place.
        prompt: at least one token id.
        num_tokens: how many to draw.
        temperature: 0 is greedy.
        key: of the draws.
        vocab_size: ids at or above it are never drawn (the embedding may be padded).
        window: tokens that the model sees at a time; the newest ones, of a multiple of what the mesh needs.
    """
    rows = num_shards()  # one for each share of the batch: all the same, the first is read
    spec = decoder.recipe.rules.activation("batch", "sequence")

    @functools.partial(jax.jit, static_argnums=2)
    def draw(params: Tree, tokens_T: jax.Array, temperature: float, last: jax.Array, key: jax.Array) -> jax.Array:
        tokens_BT = jax.reshard(jnp.broadcast_to(tokens_T[None], (rows, window)), spec)
        logits_BTV = merge(decoder, params)(tokens_BT).logits
        logits_V = jax.reshard(logits_BTV, jax.P(None, None, None))[0, last, :vocab_size]
        if temperature == 0:
            return jnp.argmax(logits_V)
        return jax.random.categorical(key, logits_V / temperature)

    ids = list(prompt)
    for step in range(num_tokens):
        seen = ids[-window:]
        tokens = np.zeros(window, np.int32)
        tokens[: len(seen)] = seen  # what follows the last token is padding, which causality hides
        ids.append(int(draw(params, tokens, temperature, len(seen) - 1, jax.random.fold_in(key, step))))
    return ids[len(prompt) :]
