"""The loop around the step, measured: `jaxllm bench train`.

What a run loses to everything but its step: data, metrics, the console. `train` and `bench step` take turns, each
with a program compiled anew, on the same experiment:

    ratio   median over pairs of (tokens per second of a run / tokens per second of the steps timed right before it)

A run dispatches one step ahead and times from step to step, so the ratio can be above 1.
"""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jaxllm.bench import step
from jaxllm.config import Constant, Experiment
from jaxllm.train.loop import train
from jaxllm.train.metrics import read_metrics


def measure(experiment: Experiment, num_steps: int = 20, num_pairs: int = 5) -> dict[str, Any]:
    """Time a run's steps beside the bare step's.

    Args:
        experiment: what to train, on its own data; evaluation, checkpoints and the sample of text are left out.
        num_steps: timed steps of a run, and of the bare step.
        num_pairs: how often both are measured.

    Returns:
        tokens_per_second of the runs and of the bare step (medians), ratio and ratio_quartiles over the pairs.

    Raises:
        ValueError: as `train` does.
    """
    if num_steps < 1 or num_pairs < 1:
        raise ValueError(f"--steps {num_steps} --pairs {num_pairs}: measure at least one step and one pair")
    bare, runs = [], []
    with tempfile.TemporaryDirectory() as directory:
        for index in range(num_pairs):
            bare.append(step.measure(experiment, num_steps)["tokens_per_second"])
            short = _shortened(experiment, step.WARM_UP + num_steps, Path(directory) / str(index))
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                train(short)
            records = read_metrics(Path(short.run.path))[step.WARM_UP :]
            runs.append(float(np.median([record["tokens_per_second"] for record in records])))
    low, ratio, high = np.quantile(np.divide(runs, bare), (0.25, 0.5, 0.75)).tolist()
    return {
        "name": experiment.run.name,
        "pairs": num_pairs,
        "steps": num_steps,
        "train_tokens_per_second": float(np.median(runs)),
        "step_tokens_per_second": float(np.median(bare)),
        "ratio": ratio,
        "ratio_quartiles": [low, high],
    }


def text(result: dict[str, Any]) -> str:
    """A measurement as lines for people."""
    low, high = result["ratio_quartiles"]
    return (
        f"{result['name']}, {result['pairs']} pairs of {result['steps']} steps\n"
        f"train       {result['train_tokens_per_second']:,.0f} tokens/s\n"
        f"bench step  {result['step_tokens_per_second']:,.0f} tokens/s\n"
        f"ratio       {result['ratio']:.3f}, quartiles {low:.3f} to {high:.3f}"
    )


def _shortened(experiment: Experiment, num_steps: int, directory: Path) -> Experiment:
    """So many steps of the experiment's first phase, in a directory of its own, and nothing but steps."""
    replace = msgspec.structs.replace
    phase = replace(experiment.data.phases[0], steps=num_steps, tokens=0)
    return replace(
        experiment,
        run=replace(experiment.run, directory=str(directory)),
        data=replace(experiment.data, phases=(phase,)),
        optim=replace(experiment.optim, schedule=Constant(warmup_steps=0)),
        evaluation=replace(experiment.evaluation, interval=0, batches=1, sample_tokens=0),
        checkpoint=replace(experiment.checkpoint, interval=0),
        log=replace(experiment.log, interval=1),
    )
