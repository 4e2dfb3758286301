"""What goes on inside a decoder: a forward pass that tells of every layer, in any mesh and any stack of blocks.

It stands beside the pass that is trained, so that watching leaves that one as it is.

S stages, M micro-batches, R repeats of a slot, B batch, T sequence, D model, N query heads.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.layers.context import balance
from jaxllm.models import stages
from jaxllm.models.decoder import PERIOD, Block, Decoder


class Activity(NamedTuple):
    """Of the layers of one slot, float32.

    Attributes:
        mean_square_R: of the residual stream behind the layer, over all tokens and features.
        largest_R: largest magnitude in it.
        logits_RN: largest attention logit of each head, before a soft cap.
    """

    mean_square_R: jax.Array
    largest_R: jax.Array
    logits_RN: jax.Array


def activity(model: Decoder, batch: Mapping[str, jax.Array]) -> dict[str, Activity]:
    """What each layer does on a batch of tokens, positions and segments, by slot: `prefix.0`, `period.1`, ...

    Args:
        model: with arrays in the place of its declarations.
        batch: int32[B, T] each, as a step gets them.
    """
    batch = balance({name: batch[name] for name in ("tokens", "positions", "segments")}, model.recipe.rules)
    x_BTD, sees = model.embed(batch["tokens"], batch["positions"]), (batch["positions"], batch["segments"])
    if model.recipe.rules.staged:
        return _by_slot(PERIOD, _through_stages(list(model.period), x_BTD, *sees))
    found: dict[str, Activity] = {}
    for group in ("prefix", PERIOD, "remainder"):
        if len(getattr(model, group)):
            x_BTD, seen = _through(list(getattr(model, group)), x_BTD, *sees)
            found |= _by_slot(group, seen)
    return found


def over_micro_batches(seen: dict[str, Activity]) -> dict[str, Activity]:
    """[M, R, ...] each -> [R, ...]: that of all micro-batches together."""
    return {slot: _together(one) for slot, one in seen.items()}


def _together(one: Activity) -> Activity:
    return Activity(
        mean_square_R=jnp.mean(one.mean_square_R, axis=0),
        largest_R=jnp.max(one.largest_R, axis=0),
        logits_RN=jnp.max(one.logits_RN, axis=0),
    )


def _by_slot(group: str, seen: list[Activity]) -> dict[str, Activity]:
    return {f"{group}.{index}": one for index, one in enumerate(seen)}


def _through(
    slots: list[Block], x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, list[Activity]]:
    """Some repeats of a group's blocks, and what was seen."""
    run = functools.partial(_run_slots, positions_BT=positions_BT, segments_BT=segments_BT)
    return jax.lax.scan(run, x_BTD, slots)


def _run_slots(
    x_BTD: jax.Array, slots: list[Block], positions_BT: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, list[Activity]]:
    """The blocks of one repetition. The compiler makes queries and keys once for the block and for their largest."""
    seen: list[Activity] = []
    for block in slots:
        logits_N = block.attention.largest_logits(block.attention_input(x_BTD), positions_BT, segments_BT)
        x_BTD, _, _ = block(x_BTD, positions_BT, segments_BT)
        wide_BTD = x_BTD.astype(jnp.float32)
        seen.append(Activity(jnp.mean(jnp.square(wide_BTD)), jnp.max(jnp.abs(wide_BTD)), logits_N))
    return x_BTD, seen


def _through_stages(
    slots: list[Block], x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array
) -> list[Activity]:
    """As `stages.forward`. What stages see before the first micro-batch and behind the last is left out."""
    num_micro, num_stages = stages.num_micro(x_BTD.shape[0]), stages.count()
    x_MBTD, *micros = (stages.split(x, num_micro) for x in (x_BTD, positions_BT, segments_BT))
    cut = stages.cut(slots)

    def tick(y_SBTD: jax.Array, now: jax.Array) -> tuple[jax.Array, list[Activity]]:
        x_SBTD = stages.advance(y_SBTD, stages.at(x_MBTD, now))
        return stages.run(_through, cut, x_SBTD, (micros[0], micros[1]), now)

    _, seen = jax.lax.scan(tick, stages.spread(x_MBTD[0]), jnp.arange(num_micro + num_stages - 1))
    stage_S = jnp.arange(num_stages)
    tick_MS = jnp.arange(num_micro)[:, None] + stage_S[None]

    def of_micro_batches(x: jax.Array) -> jax.Array:
        """[ticks, S, R / S, ...] -> [M, R, ...]."""
        chosen = jax.reshard(x, PartitionSpec())[tick_MS, stage_S[None]]
        return chosen.reshape(num_micro, -1, *x.shape[3:])

    return [_together(Activity(*map(of_micro_batches, one))) for one in seen]
