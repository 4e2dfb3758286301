"""jaxllm trains large language models in JAX: plan it, train it, trust it.

The names here load what they need when they are called, so that `import jaxllm` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from jaxllm.config import Experiment
    from jaxllm.plan.search import Plan
    from jaxllm.train import guard
    from jaxllm.train.loop import Run

__all__ = ["guard", "load_experiment", "plan", "train"]


def load_experiment(config: str | Path | dict[str, Any], overrides: Mapping[str, Any] | None = None) -> Experiment:
    """An experiment from a TOML file (or a tree of the same shape) and overrides by dotted names.

    Raises:
        ValueError: one sentence that names the field, its value and the fix.
    """
    from jaxllm.config import load
    from jaxllm.models import PRESETS

    return load(config, overrides, PRESETS)


def train(experiment: Experiment) -> Run:
    """Train an experiment to its end, or go on with its run where it stopped.

    Returns:
        The run: its directory, its last step, and the last logged metrics.

    Raises:
        ValueError: one sentence, when the experiment does not fit the devices, the data or the run that is there.
    """
    from jaxllm.train.loop import train

    return train(experiment)


def plan(experiment: Experiment, *, target: str, tokens: int = 0, batch: int = 0, price: float | None = None) -> Plan:
    """Every way to run an experiment on chips that need not be here, ranked by the predicted time of a step.

    Args:
        experiment: what to train.
        target: chips by their vendors' names: `v5p-256`, `v5p:4x4x8`, `v6e-256 x 4`, `h100x64`.
        tokens: to train on; 0 means those of the experiment's phases.
        batch: tokens of a step; 0 means those of the first phase.
        price: US dollars an hour and chip, instead of the list price.

    Raises:
        ValueError: one sentence, when there are no such chips or no way to split the experiment over them.
    """
    from jaxllm.plan.search import plan

    return plan(experiment, target=target, tokens=tokens, batch=batch, price=price)


def __getattr__(name: str) -> Any:
    if name == "guard":  # guard.detect(losses, grad_norms)
        from jaxllm.train import guard

        return guard
    raise AttributeError(f"module 'jaxllm' has no attribute {name!r}")
