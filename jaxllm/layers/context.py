"""The order of a sequence over the devices that share it: each holds a head and a tail.

Causal attention costs a late position more than an early one. So a sequence is cut into 2c chunks for c devices, and
device i holds chunks i and 2c - 1 - i (Llama 3, Dubey et al. 2024, section 3.3.2): all devices then see equally many
pairs of positions, and each one's columns still ascend.

Batches come in natural order, device i with chunks 2i and 2i + 1. Chunk k belongs to device k if k < c, else to device
2c - 1 - k: of the even chunks no two to the same device, nor of the odd ones. So two permutations of half a sequence
each bring them there, and back; nothing is gathered.

B batch, T sequence.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxllm.sharding import Rules


def balance(arrays: Mapping[str, jax.Array], rules: Rules) -> dict[str, jax.Array]:
    """[B, T] arrays of 32-bit numbers from natural into head-tail order; not differentiable."""
    if not rules.ring:
        return dict(arrays)

    def move(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        # as one array, so that two permutations carry all of them
        packed = jnp.stack([jax.lax.bitcast_convert_type(x, jnp.int32) for x in arrays.values()])
        moved = _to_head_and_tail(packed, rules.ring)
        return {name: jax.lax.bitcast_convert_type(moved[i], x.dtype) for i, (name, x) in enumerate(arrays.items())}

    with jax.named_scope("balance_context"):
        spec = rules.activation("batch", "sequence")
        return jax.shard_map(move, in_specs=spec, out_specs=spec)(dict(arrays))


def restore(x_BTV: jax.Array, rules: Rules) -> jax.Array:
    """Logits, [B, T, V], from head-tail back into natural order."""
    if not rules.ring:
        return x_BTV

    def move(x_BTV: jax.Array) -> jax.Array:
        return _to_natural(x_BTV, rules.ring)

    with jax.named_scope("restore_context"):
        spec = rules.activation("batch", "sequence", "vocab")
        return jax.shard_map(move, in_specs=spec, out_specs=spec)(x_BTV)


def places(length: int, axis: str) -> jax.Array:
    """Where in the sequence the positions of a device are, inside a `shard_map`: int32[T].

    Args:
        length: T, of the device's share.
        axis: mesh axis of the ring; empty where none shares the sequence.
    """
    if not axis:
        return jnp.arange(length)
    chunk, device, last = length // 2, jax.lax.axis_index(axis), 2 * jax.lax.axis_size(axis) - 1
    inside = jnp.arange(chunk)
    return jnp.concatenate([device * chunk + inside, (last - device) * chunk + inside])


def _to_head_and_tail(x_ABT: jax.Array, axis: str) -> jax.Array:
    to_even, to_odd = _homes(axis)
    even, odd = jnp.split(x_ABT, 2, axis=2)
    even, odd = jax.lax.ppermute(even, axis, to_even), jax.lax.ppermute(odd, axis, to_odd)
    return jnp.concatenate(_turn(even, odd, axis), axis=2)


def _to_natural(x_BTV: jax.Array, axis: str) -> jax.Array:
    to_even, to_odd = _homes(axis)
    head, tail = jnp.split(x_BTV, 2, axis=1)
    even, odd = _turn(head, tail, axis)
    even = jax.lax.ppermute(even, axis, [(home, i) for i, home in to_even])
    odd = jax.lax.ppermute(odd, axis, [(home, i) for i, home in to_odd])
    return jnp.concatenate([even, odd], axis=1)


def _homes(axis: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """From which device to which the even chunks go, and the odd ones."""
    num = jax.lax.axis_size(axis)
    homes = [min(chunk, 2 * num - 1 - chunk) for chunk in range(2 * num)]
    return list(enumerate(homes[0::2])), list(enumerate(homes[1::2]))


def _turn(first: jax.Array, second: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
    """Even and odd chunk as head and tail, or the other way round: on odd devices the head is the odd one."""
    is_odd = jax.lax.axis_index(axis) % 2 == 1
    return jnp.where(is_odd, second, first), jnp.where(is_odd, first, second)
