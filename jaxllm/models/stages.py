"""Stages of a pipeline: how activations travel over the pipe axis.

The repeats of the period lie over the axis, an equal number on each stage. What every stage holds is one array whose
first dim counts the stages, and one `vmap` runs all of them, each on the micro-batch it has reached: micro-batch i is
on stage s at tick i + s. Between two ticks activations move on by one permute to the neighbour (Huang et al. 2019,
GPipe).

    tick t:  x = advance(y, embedded micro-batch t);  y = each stage(x);  take(y, last) is micro-batch t - (S - 1)

S stages, M micro-batches, R repeats, B batch, T sequence, D model.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.sharding import STAGES, num_shards

type Stage[Result] = Callable[[Any, jax.Array, jax.Array, jax.Array], Result]
"""(parameters of R / S repeats, x[B, T, D], positions[B, T], segments[B, T]) -> x[B, T, D], or more."""


def count() -> int:
    """Stages of the ambient mesh."""
    return jax.sharding.get_abstract_mesh().shape[STAGES]


def num_micro(num_rows: int) -> int:
    """Micro-batches that a batch of so many rows is sent through the stages in, where nothing else says so."""
    return count() if num_rows % (count() * num_shards()) == 0 else 1


def numbers() -> jax.Array:
    """0, 1, ..., S - 1, each on its stage: int32[S]."""
    return jax.lax.broadcasted_iota(jnp.int32, (count(),), 0, out_sharding=PartitionSpec(STAGES))


def cut(stacked: Any) -> Any:
    """Arrays of all repeats, [R, ...] -> of those of each stage, [S, R / S, ...]; nothing moves."""

    def one(x: jax.Array) -> jax.Array:
        spec = jax.typeof(x).sharding.spec
        laid = PartitionSpec(STAGES, None, *spec.partitions[1:], reduced=spec.reduced, unreduced=spec.unreduced)
        return jax.lax.reshape(x, (count(), x.shape[0] // count(), *x.shape[1:]), out_sharding=laid)

    return jax.tree.map(one, stacked)


def join(x: jax.Array) -> jax.Array:
    """[S, R / S, ...] -> [R, ...]: what `cut` did, undone."""
    spec = jax.typeof(x).sharding.spec
    laid = PartitionSpec(STAGES, *spec.partitions[2:])
    return jax.lax.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=laid)


def spread(x_BTD: jax.Array, first: int | None = None) -> jax.Array:
    """Zeros of [S, B, T, D] (or [S, first, B, T, D]), laid as a micro-batch on every stage lies."""
    spec, more = jax.typeof(x_BTD).sharding.spec, () if first is None else (first,)
    laid = PartitionSpec(STAGES, *(None for _ in more), *spec.partitions)
    return jnp.zeros((count(), *more, *x_BTD.shape), x_BTD.dtype, out_sharding=laid)


def nothing(x_SBTD: jax.Array) -> jax.Array:
    """Zeros of one stage's [B, T, D], on all of them."""
    spec = PartitionSpec(*jax.typeof(x_SBTD).sharding.spec.partitions[1:])
    return jnp.zeros(x_SBTD.shape[1:], x_SBTD.dtype, out_sharding=spec)


def advance(y_SBTD: jax.Array, first_BTD: jax.Array) -> jax.Array:
    """Each stage gets what the one before it made, and the first what is given: [S, B, T, D]."""
    return _pass_on(y_SBTD, first_BTD, 0, 1)


def retreat(dx_SBTD: jax.Array, last_BTD: jax.Array) -> jax.Array:
    """Each stage gets what the one behind it made, and the last what is given: [S, B, T, D]."""
    return _pass_on(dx_SBTD, last_BTD, count() - 1, -1)


def _pass_on(x_SBTD: jax.Array, given_BTD: jax.Array, stage: int, by: int) -> jax.Array:
    spec, given = jax.typeof(x_SBTD).sharding.spec, jax.typeof(given_BTD).sharding.spec
    pairs = [(i, i + by) for i in range(count()) if 0 <= i + by < count()]

    def move(x_SBTD: jax.Array, given_BTD: jax.Array) -> jax.Array:
        moved = jax.lax.ppermute(x_SBTD, STAGES, pairs)
        return jnp.where(jax.lax.axis_index(STAGES) == stage, given_BTD[None], moved)

    return jax.shard_map(move, in_specs=(spec, given), out_specs=spec)(x_SBTD, given_BTD)


def take(x_SBTD: jax.Array, stage: int) -> jax.Array:
    """What one stage holds, on all of them: [B, T, D]."""
    spec = jax.typeof(x_SBTD).sharding.spec

    def share(x_SBTD: jax.Array) -> jax.Array:
        mine = jax.lax.axis_index(STAGES) == stage
        return jax.lax.psum(jnp.where(mine, x_SBTD[0], jnp.zeros_like(x_SBTD[0])), STAGES)

    return jax.shard_map(share, in_specs=spec, out_specs=PartitionSpec(*spec.partitions[1:]))(x_SBTD)


def own(arrays: Any, index_S: jax.Array) -> Any:
    """Of arrays [M, ...], for each stage the entry of its index: [S, ...]. Indices outside count as the nearest one."""
    specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, arrays)
    laid = jax.tree.map(lambda spec: PartitionSpec(STAGES, *spec.partitions[1:]), specs, is_leaf=_is_spec)

    def pick(arrays: Any, index_S: jax.Array) -> Any:
        return jax.tree.map(lambda x: at(x, index_S[0])[None], arrays)

    return jax.shard_map(pick, in_specs=(specs, PartitionSpec(STAGES)), out_specs=laid)(arrays, index_S)


def recall(stash_SKBTD: jax.Array, slot_S: jax.Array) -> jax.Array:
    """What each stage keeps in the slot of its own choice: [S, K, B, T, D] -> [S, B, T, D]."""
    spec = jax.typeof(stash_SKBTD).sharding.spec
    laid = PartitionSpec(STAGES, *spec.partitions[2:])
    pick = jax.shard_map(
        lambda stash, slot: at(stash[0], slot[0])[None], in_specs=(spec, PartitionSpec(STAGES)), out_specs=laid
    )
    return pick(stash_SKBTD, slot_S)


def at(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[index], the nearest entry where the index lies outside; the first dim is not sharded."""
    return jax.lax.dynamic_index_in_dim(x, jnp.clip(index, 0, x.shape[0] - 1), 0, keepdims=False)


def run[Result](
    stage: Stage[Result], slots: Any, x_SBTD: jax.Array, micros: tuple[jax.Array, jax.Array], tick: Any
) -> Result:
    """All stages at once, each on the micro-batch it has reached: [S, B, T, D], or whatever a stage returns.

    Args:
        stage: what one stage computes.
        slots: parameters as `cut` gives them.
        x_SBTD: inputs.
        micros: positions and segments, [M, B, T].
        tick: since micro-batch 0 entered stage 0.
    """
    positions_SBT, segments_SBT = own(micros, tick - numbers())
    return jax.vmap(stage)(slots, x_SBTD, positions_SBT, segments_SBT)


def forward(
    stage: Stage[jax.Array],
    slots: Any,
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    num_micro: int,
) -> jax.Array:
    """A whole batch through all stages, [B, T, D] -> [B, T, D], in M + S - 1 ticks."""
    x_MBTD, positions_MBT, segments_MBT = (split(x, num_micro) for x in (x_BTD, positions_BT, segments_BT))
    slots = cut(slots)

    def tick(y_SBTD: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
        y_SBTD = run(stage, slots, advance(y_SBTD, at(x_MBTD, now)), (positions_MBT, segments_MBT), now)
        return y_SBTD, take(y_SBTD, count() - 1)

    _, y = jax.lax.scan(tick, spread(x_MBTD[0]), jnp.arange(num_micro + count() - 1))
    return unite(y[count() - 1 :])


def split(x: jax.Array, num: int) -> jax.Array:
    """[B, ...] -> [num, B / num, ...]: micro-batches, each with rows of every device, so that nothing moves."""
    return x.reshape(-1, num, *x.shape[1:]).swapaxes(0, 1)


def unite(x: jax.Array) -> jax.Array:
    """[num, B / num, ...] -> [B, ...]: what `split` did, undone."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _is_spec(leaf: object) -> bool:
    return isinstance(leaf, PartitionSpec)
