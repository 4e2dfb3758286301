"""What the guard and watching cost: `jaxllm bench guard`.

The step of an experiment with its guard and what it watches, and the same step without both, take turns on a batch of
random tokens: one step of each is a pair, and which comes first alternates. A step's time ends when all its metrics are
on the host, as the loop reads them; what the loop itself does for the guard (a few integers) is hidden behind the next
step. The pass that watching takes every `watch.interval` steps is about an evaluation of one batch, and not in it.

    overhead   median over pairs of (seconds with the guard / seconds without) - 1
    interval   of the median, 95 %, by order statistics: the values of rank n/2 +- 0.98 sqrt(n)
"""

import math
from typing import Any

import jax
import msgspec
import numpy as np

from jaxllm.bench import step
from jaxllm.config import Experiment, Off, WatchConfig
from jaxllm.train.assemble import assemble
from jaxllm.train.step import UNGUARDED


def measure(experiment: Experiment, num_pairs: int = 100) -> dict[str, Any]:
    """Time an experiment's step with its guard and without.

    Args:
        experiment: what to measure; of its data only the vocabulary and the batch's shape count.
        num_pairs: steps of each.

    Returns:
        name, pairs, guarded_seconds and unguarded_seconds (medians), overhead, overhead_quartiles and
        overhead_interval, fractions; identical, whether all losses had the same bits.

    Raises:
        ValueError: the experiment has no guard, too few pairs, or as `bench.step.measure`.
    """
    if num_pairs < 10:
        raise ValueError(f"--pairs {num_pairs}: use 10 or more, for an interval of their median")
    if not experiment.guard.drop and isinstance(experiment.guard.policy, Off):
        raise ValueError(
            "guard.drop = false and the policy is off: there is no guard to measure; leave out one of them"
        )
    model = step.known_vocabulary(experiment)
    bare = msgspec.structs.replace(experiment, guard=UNGUARDED, watch=WatchConfig(interval=0))
    programs = [assemble(one, model) for one in (experiment, bare)]
    with jax.set_mesh(programs[0].mesh):
        steps = [step.Step(one, program) for one, program in zip((experiment, bare), programs, strict=True)]
        runs: list[list[tuple[float, float]]] = [[], []]
        for index in range(step.WARM_UP + num_pairs):
            for which in (0, 1) if index % 2 else (1, 0):
                runs[which].append(steps[which].fetch())
    seconds = np.array([[took for took, _ in one] for one in runs])[:, step.WARM_UP :]
    ratios = np.sort(seconds[0] / seconds[1]) - 1
    margin = 0.98 * math.sqrt(num_pairs)
    low, high = math.floor(num_pairs / 2 - margin), math.ceil(num_pairs / 2 + margin)
    return {
        "name": experiment.run.name,
        "pairs": num_pairs,
        "guarded_seconds": float(np.median(seconds[0])),
        "unguarded_seconds": float(np.median(seconds[1])),
        "overhead": float(np.median(ratios)),
        "overhead_quartiles": np.quantile(ratios, (0.25, 0.75)).tolist(),
        "overhead_interval": [float(ratios[max(low, 0)]), float(ratios[min(high, num_pairs - 1)])],
        "identical": [loss for _, loss in runs[0]] == [loss for _, loss in runs[1]],
    }


def text(result: dict[str, Any]) -> str:
    """A measurement as lines for people."""
    lower, upper = (f"{100 * value:+.1f} %" for value in result["overhead_quartiles"])
    low, high = (f"{100 * value:+.2f} %" for value in result["overhead_interval"])
    same = "bit for bit the same" if result["identical"] else "DIFFERENT"
    return (
        f"{result['name']}, {result['pairs']} pairs of steps\n"
        f"with guard  {result['guarded_seconds']:.4g} s a step\n"
        f"without     {result['unguarded_seconds']:.4g} s a step\n"
        f"overhead    {100 * result['overhead']:+.2f} %, {low} to {high} with 95 % confidence; "
        f"quartiles {lower} to {upper}\n"
        f"losses      {same}"
    )
