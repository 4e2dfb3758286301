"""What the guard's rules would have done on a curve."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import RulesConfig
from jaxllm.train.guard import rules


class Spike(NamedTuple):
    """Trouble that lasted.

    Attributes:
        onset: where it began, an index of the curve.
        due: where a policy would have acted.
        flags: why, as `rules.FLAGS` names it.
    """

    onset: int
    due: int
    flags: tuple[str, ...]


class Detection(NamedTuple):
    """Of N steps.

    Attributes:
        dropped: bool[N], whether the update would have been dropped.
        flags: int32[N], bits as `rules.FLAGS` names them.
        limits: float32[N], the loss above which a step is high; infinite while the rules rest.
        spikes: where a policy would have acted, in their order.
    """

    dropped: np.ndarray
    flags: np.ndarray
    limits: np.ndarray
    spikes: tuple[Spike, ...]


def detect(
    losses: Sequence[float] | np.ndarray,
    grad_norms: Sequence[float] | np.ndarray | None = None,
    config: RulesConfig | None = None,
) -> Detection:
    """Run the rules over a curve, by the very function that training uses.

    Args:
        losses: float[N], of consecutive steps, in nats; what is not finite counts as a broken step, so leave out steps
            that were not logged.
        grad_norms: float[N], before clipping; None judges by the losses alone.
        config: thresholds; the default ones if left out.

    Raises:
        ValueError: the two are not one number a step each.
    """
    curve = np.asarray(losses, np.float32)
    norms = np.ones_like(curve) if grad_norms is None else np.asarray(grad_norms, np.float32)
    if curve.ndim != 1 or curve.shape != norms.shape:
        raise ValueError(
            f"losses {list(curve.shape)} and grad_norms {list(norms.shape)}: give one number a step of each"
        )
    verdicts = jax.device_get(_scan(config or RulesConfig(), curve, norms))
    due = np.flatnonzero(verdicts.flags >> rules.FLAGS.index("due") & 1)
    spikes = [Spike(int(verdicts.onset[at]), int(at), rules.names(int(verdicts.reasons[at]))) for at in due.tolist()]
    return Detection(verdicts.drop, verdicts.flags, verdicts.limit, tuple(spikes))


@functools.partial(jax.jit, static_argnums=0)
def _scan(config: RulesConfig, losses: jax.Array, norms: jax.Array) -> rules.Verdict:
    def body(memory: rules.Memory, given: tuple[jax.Array, ...]) -> tuple[rules.Memory, rules.Verdict]:
        verdict, memory = rules.judge(config, memory, *given)
        return memory, verdict

    return jax.lax.scan(body, rules.forget(config), (jnp.arange(len(losses)), losses, norms))[1]
