"""jaxllm trains large language models in JAX: plan it, train it, trust it.

The names here load what they need when they are called, so that `import jaxllm` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from jax.sharding import Mesh

    from jaxllm.config import Experiment
    from jaxllm.data.tokenizer import Tokenizer
    from jaxllm.plan.answer import Plan
    from jaxllm.pretrained import Model
    from jaxllm.storage import Place
    from jaxllm.train import guard
    from jaxllm.train.loop import Run

__all__ = ["guard", "load_experiment", "load_pretrained", "plan", "train"]


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


def load_pretrained(path: Place, mesh: Mesh | Mapping[str, int] | None = None) -> tuple[Model, Tokenizer | None]:
    """A trained model and its tokenizer: `model(tokens).logits` is float32[B, T, V] of int[B, T].

    Args:
        path: a run, which may be a URL: its newest checkpoint; or a directory in Hugging Face's format.
        mesh: devices: a mesh, or sizes by axis, such as {"tensor": 4}, the others 1. By default tensor, over as many
            devices as divide the model.

    Returns:
        The model, its parameters in the dtype that it computes in; and the tokenizer, None where there is none.

    Raises:
        ValueError: one sentence: there is no model, it is damaged, or it does not fit the mesh.
    """
    from jaxllm.pretrained import load_pretrained

    return load_pretrained(path, mesh)


def plan(
    experiment: Experiment,
    *,
    target: str,
    tokens: int = 0,
    batch: int = 0,
    price: float | None = None,
    ceilings: str = "",
) -> Plan:
    """Every way to run an experiment on chips that need not be here, ranked by the predicted time of a step.

    Args:
        experiment: what to train.
        target: chips by their vendors' names: `v5p-256`, `v5p:4x4x8`, `v6e-256 x 4`, `h100x64`.
        tokens: to train on; 0 means those of the experiment's phases.
        batch: tokens of a step; 0 means those of the first phase.
        price: US dollars an hour and chip, instead of the list price.
        ceilings: a file that `jaxllm bench matmul --out` wrote on such a chip: measured peaks instead of the
            datasheet's.

    Raises:
        ValueError: one sentence, when there are no such chips or no way to split the experiment over them.
    """
    from jaxllm.plan.search import plan

    return plan(experiment, target=target, tokens=tokens, batch=batch, price=price, ceilings=ceilings)


def __getattr__(name: str) -> Any:
    if name == "guard":  # guard.detect(losses, grad_norms)
        from jaxllm.train import guard

        return guard
    raise AttributeError(f"module 'jaxllm' has no attribute {name!r}")
