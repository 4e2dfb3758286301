"""Learning rates over optimizer steps.

With p the peak, w = `warmup_steps`, N the number of steps, s = 0 ... N - 1 and f = `final_fraction`:

    warm-up         p (s + 1) / w                         for s < w: the first update is not a lost one
    constant        p                                     behind it
    cosine          p (f + (1 - f) (1 + cos(pi t)) / 2)   t from 0 at the first step at the peak to 1 at the last step
    wsd             p (1 - (1 - f) t)                     t is 0 until the last `decay_fraction` N steps, 1 at the last

Cosine: Loshchilov and Hutter 2017, with the warm-up of LLaMA (Touvron et al. 2023). WSD: Hu et al. 2024, section 4.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxllm.config import WSD, Constant, Cosine, OptimConfig

Schedule = Callable[[jax.Array], jax.Array]
"""int32 number of an optimizer step, from 0 -> float32 learning rate."""


def schedule(config: OptimConfig, num_steps: int) -> Schedule:
    """The learning rate of each of a run's optimizer steps; later ones keep the last rate.

    Args:
        config: the peak, `learning_rate`, and the schedule.
        num_steps: optimizer steps of the whole run.

    Raises:
        ValueError: when the warm-up does not end within the run.
    """
    curve, last = config.schedule, num_steps - 1
    if curve.warmup_steps >= num_steps:
        raise ValueError(
            f"optim.schedule.warmup_steps = {curve.warmup_steps}: the run has {num_steps} optimizer steps in all; "
            f"use fewer than {num_steps}, or train for more steps"
        )
    behind_warmup = last - max(curve.warmup_steps - 1, 0)
    match curve:
        case Constant():
            num_falling, final = 0, 1.0
        case Cosine():
            num_falling, final = behind_warmup, curve.final_fraction
        case WSD():
            num_falling, final = min(round(curve.decay_fraction * num_steps), behind_warmup), curve.final_fraction

    def rate(step: jax.Array) -> jax.Array:
        warmup = jnp.minimum((step + 1) / max(curve.warmup_steps, 1), 1.0)
        progress = jnp.clip((step - (last - num_falling)) / max(num_falling, 1), 0.0, 1.0)
        left = 0.5 * (1.0 + jnp.cos(jnp.pi * progress)) if isinstance(curve, Cosine) else 1.0 - progress
        return (config.learning_rate * warmup * (final + (1.0 - final) * left)).astype(jnp.float32)

    return rate
