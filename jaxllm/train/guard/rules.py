"""What a step tells of itself: whether its update is dropped, and whether something is wrong.

Every step compares its loss L and the logarithm of its gradient norm g with the median m and the robust standard
deviation s (1.4826 times the median absolute deviation) of the last W accepted ones:

    broken    L or g is not finite
    outlier   L > m + max(6 s, drop_floor), or ln g > m' + max(6 s', ln norm_floor)
    high      L > m + max(6 s, spike_floor); never becomes part of the window
    spike     3 high steps of the last 5
    drift     the mean of the last 64 accepted losses is drift_nats above the best such mean
    streak    so many broken steps in a row

The update of a broken step is dropped, and that of an outlier, though only so many in a row. Spike, drift and streak
raise an alarm, with the step where the trouble began. The alarm ends by itself after 5 steps without a high one; if it
lasts longer than the patience it is due: the host's policy acts, and the windows begin anew, as they would have to
where a policy decides to live with the new level.

The logarithm, because raw norms are skewed: 6 sigma on them flag 4.5 % of a clean public run. The medians, because a
mean follows what it should judge. A level of gradient norms that lasts is no outlier any more: it is let into the
window once a run of drops has reached its bound.

All of it is a function of numbers that are the same on all devices, and its memory is part of the state of training:
a resumed run, on whatever mesh, comes to the same verdicts.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.config import RulesConfig

RECENT = 5
"""Steps among which high ones are counted, and calm steps that end an alarm."""

SPAN = 64
"""Losses of the means that drift is read from."""

FLAGS = ("broken", "loss_outlier", "norm_outlier", "high", "spike", "drift", "streak", "due")
"""What the bits of `Verdict.flags` mean, from the lowest."""

_SIGMA = 1.4826


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the rules know of the steps before.

    Attributes:
        losses: float32[W], accepted ones in a ring, in nats.
        norms: float32[W], logarithms of accepted gradient norms, likewise.
        num_losses: int32, accepted so far.
        num_norms: int32, likewise.
        high: int32, one bit for each of the last 5 steps, the lowest for the last.
        drops: int32, outliers in a row.
        broken: int32, broken steps in a row.
        best: float32, the lowest mean of 64 losses; infinite until there is one.
        best_step: int32, the last step of those.
        alarm: int32, steps since the alarm, it included; 0 without one.
        onset: int32, the step where its trouble began.
        reasons: int32, what was flagged since the alarm, bits as `FLAGS` names them.
        clean: int32, steps in a row in which nothing was flagged.
    """

    losses: jax.Array
    norms: jax.Array
    num_losses: jax.Array
    num_norms: jax.Array
    high: jax.Array
    drops: jax.Array
    broken: jax.Array
    best: jax.Array
    best_step: jax.Array
    alarm: jax.Array
    onset: jax.Array
    reasons: jax.Array
    clean: jax.Array


jax.tree_util.register_dataclass(Memory)


class Verdict(NamedTuple):
    """Of one step.

    Attributes:
        drop: bool, whether its update is dropped.
        flags: int32, bits as `FLAGS` names them.
        limit: float32, the loss above which a step is high; infinite while the rules rest.
        alarm: int32, steps since the alarm, it included; 0 without one.
        onset: int32, where the trouble began, if there is an alarm.
        reasons: int32, what was flagged since the alarm.
        clean: int32, steps in a row in which nothing was flagged.
    """

    drop: jax.Array
    flags: jax.Array
    limit: jax.Array
    alarm: jax.Array
    onset: jax.Array
    reasons: jax.Array
    clean: jax.Array


def forget(config: RulesConfig) -> Memory:
    """The memory of no step."""
    numbers = {field.name: jnp.zeros((), jnp.int32) for field in dataclasses.fields(Memory)}
    rings = {name: jnp.zeros(config.window, jnp.float32) for name in ("losses", "norms")}
    return Memory(**{**numbers, **rings, "best": jnp.full((), jnp.inf, jnp.float32)})


def judge(
    config: RulesConfig,
    memory: Memory,
    step: jax.Array,
    loss: jax.Array,
    grad_norm: jax.Array,
    settled: jax.Array | bool = True,
    excused: jax.Array | bool = False,
) -> tuple[Verdict, Memory]:
    """The verdict on a step, and the memory for the next.

    Args:
        config: thresholds.
        memory: of the steps before.
        step: int32, the number of this one.
        loss: float32, in nats.
        grad_norm: float32, before clipping.
        settled: whether the learning rate has reached its peak: what a warm-up does to the loss is no drift.
        excused: whether a step that is not finite is as it should be, as where a loss scale is still too large.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    norm = jnp.log(jnp.maximum(grad_norm, jnp.finfo(jnp.float32).tiny))
    loss_median, loss_sigma, loss_ready = _robust(memory.losses, memory.num_losses)
    norm_median, norm_sigma, norm_ready = _robust(memory.norms, memory.num_norms)
    spread = config.sigmas * loss_sigma
    limit = jnp.where(loss_ready, loss_median + jnp.maximum(spread, config.spike_floor), jnp.inf)
    high = finite & (loss > limit)
    loss_outlier = finite & loss_ready & (loss > loss_median + jnp.maximum(spread, config.drop_floor))
    spread = jnp.maximum(config.sigmas * norm_sigma, math.log(config.norm_floor))
    norm_outlier = finite & norm_ready & (norm > norm_median + spread)
    outlier = loss_outlier | norm_outlier
    bounded = memory.drops < config.max_drops
    broken = ~finite & ~jnp.asarray(excused)

    losses, num_losses = _append(memory.losses, memory.num_losses, loss, finite & ~high & (~norm_outlier | ~bounded))
    norms, num_norms = _append(memory.norms, memory.num_norms, norm, finite & ~high & (~norm_outlier | ~bounded))
    mean = _mean(losses, num_losses)
    is_best = jnp.asarray(settled) & (num_losses >= SPAN) & (mean < memory.best)
    best, best_step = jnp.where(is_best, mean, memory.best), jnp.where(is_best, step, memory.best_step)
    excess = jnp.where(num_losses >= SPAN, mean - best, 0.0)  # of no best mean yet: minus infinity

    last = ((memory.high << 1) | high) & ((1 << RECENT) - 1)
    streak_length = jnp.where(broken, memory.broken + 1, jnp.where(finite, 0, memory.broken))
    spike = jax.lax.population_count(last) >= config.spike_steps
    drift = excess > config.drift_nats
    streak = streak_length >= config.broken_steps
    trouble = spike | drift | streak
    calm = (last == 0) & ~drift & (streak_length == 0)
    age = jnp.where(memory.alarm > 0, jnp.where(calm, 0, memory.alarm + 1), trouble.astype(jnp.int32))
    began = jnp.where(
        streak, step - streak_length + 1, jnp.where(spike, step - (31 - jax.lax.clz(last)), best_step + 1)
    )
    onset = jnp.where(memory.alarm > 0, memory.onset, began)
    due = age > config.patience
    clean = finite & ~high & ~outlier & (excess < config.drift_nats / 2) & (age == 0)

    flagged = (broken, loss_outlier, norm_outlier, high, spike, drift, streak, due)
    flags = sum((flag.astype(jnp.int32) << bit for bit, flag in enumerate(flagged)), jnp.zeros((), jnp.int32))
    reasons = jnp.where(age > 0, memory.reasons | flags, 0)

    after = Memory(
        losses=losses,
        norms=norms,
        num_losses=num_losses,
        num_norms=num_norms,
        high=last,
        drops=jnp.where(outlier, memory.drops + 1, 0),
        broken=streak_length,
        best=best,
        best_step=best_step,
        alarm=age,
        onset=onset,
        reasons=reasons,
        clean=jnp.where(clean, memory.clean + 1, 0),
    )
    verdict = Verdict(
        drop=~finite | (outlier & bounded),
        flags=flags,
        limit=limit,
        alarm=age,
        onset=onset,
        reasons=reasons,
        clean=after.clean,
    )
    anew = forget(config)
    return verdict, jax.tree.map(lambda new, old: jnp.where(due, new, old), anew, after)


def names(flags: int) -> tuple[str, ...]:
    """Flags by name."""
    return tuple(name for bit, name in enumerate(FLAGS) if flags >> bit & 1)


def _robust(ring: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Median and robust standard deviation of a ring's values, and whether they are enough."""
    size = ring.shape[0]
    held = jnp.minimum(count, size)
    filled = jnp.arange(size) < held
    middle = jnp.maximum(held - 1, 0) // 2
    median = jnp.sort(jnp.where(filled, ring, jnp.inf))[middle]
    deviation = jnp.sort(jnp.where(filled, jnp.abs(ring - median), jnp.inf))[middle]
    return median, _SIGMA * deviation, count >= size // 2


def _append(ring: jax.Array, count: jax.Array, value: jax.Array, accept: jax.Array) -> tuple[jax.Array, jax.Array]:
    place = jnp.arange(ring.shape[0]) == count % ring.shape[0]
    return jnp.where(place & accept, value, ring), count + accept


def _mean(ring: jax.Array, count: jax.Array) -> jax.Array:
    """The mean of the last `SPAN` values of a ring that holds as many."""
    size = ring.shape[0]
    age = (count - 1 - jnp.arange(size)) % size
    return jnp.sum(jnp.where(age < SPAN, ring, 0.0)) / SPAN
