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
    shape = config.schedule
    if shape.warmup_steps >= num_steps:
        fix = "lower it or train for more steps" if num_steps > 1 else "set it to 0"
        raise ValueError(
            f"optim.schedule.warmup_steps = {shape.warmup_steps}: the warm-up must end before the run does, at "
            f"optimizer step {num_steps}; {fix}"
        )
    last, first_at_peak = num_steps - 1, max(shape.warmup_steps - 1, 0)
    match shape:
        case Constant():
            fall = 0
        case Cosine():
            fall = last - first_at_peak
        case WSD():
            fall = min(round(shape.decay_fraction * num_steps), last - first_at_peak)

    def rate(step: jax.Array) -> jax.Array:
        warmup = jnp.minimum((step + 1) / max(shape.warmup_steps, 1), 1.0)
        progress = jnp.clip((step - (last - fall)) / max(fall, 1), 0.0, 1.0)
        match shape:
            case Cosine():
                left = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            case WSD():
                left = 1.0 - progress
            case Constant():
                left = jnp.ones(())
        final = 1.0 if isinstance(shape, Constant) else shape.final_fraction
        return (config.learning_rate * warmup * (final + (1.0 - final) * left)).astype(jnp.float32)

    return rate
