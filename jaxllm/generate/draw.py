"""Which token comes next.

    p(next) = softmax(logits / temperature), of which may be kept only
    top k: the k likeliest tokens (Fan et al. 2018)
    top p: the fewest likeliest tokens that together have probability p or more (Holtzman et al. 2020)

Temperature 0 takes the likeliest token. What a row draws depends on the key, on its number and on the step, not on how
many rows are drawn beside it.

B batch, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 means all tokens.
        top_p: 1 means all tokens.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature}: use a positive number, or 0 for the likeliest token")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k}: use a number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: use a probability above 0, or 1 for all tokens")


def draw(logits_BV: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """A token a row: int32[B].

    Args:
        logits_BV: float32, the same on all devices.
        sampling: how.
        key: of this step.
    """
    with jax.named_scope("draw"):
        if sampling.temperature == 0:
            return jnp.argmax(logits_BV, axis=-1).astype("int32")
        scaled_BV = logits_BV / sampling.temperature
        if 0 < sampling.top_k < scaled_BV.shape[-1]:
            least_B = jax.lax.top_k(scaled_BV, sampling.top_k)[0][:, -1]
            scaled_BV = jnp.where(scaled_BV < least_B[:, None], -jnp.inf, scaled_BV)
        if sampling.top_p < 1:
            falling_BV = -jnp.sort(-scaled_BV, axis=-1)
            shares_BV = jax.nn.softmax(falling_BV, axis=-1)
            needed_BV = jnp.cumsum(shares_BV, axis=-1) - shares_BV < sampling.top_p  # those before are not enough
            least_B = jnp.min(jnp.where(needed_BV, falling_BV, jnp.inf), axis=-1)
            scaled_BV = jnp.where(scaled_BV < least_B[:, None], -jnp.inf, scaled_BV)
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(scaled_BV.shape[0]))
        return jax.vmap(jax.random.categorical)(keys_B, scaled_BV).astype("int32")
