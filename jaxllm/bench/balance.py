"""What balancing experts does, and what it costs in loss: `jaxllm bench balance`.

An experiment with experts is trained on its own data by the same `train` that users run, three times a seed:

    bias         each expert's bias moved against its load after every step, at the experiment's rate; no loss
    loss         the classic auxiliary loss, weighted AUXILIARY (Fedus et al. 2021: 0.01); no bias
    unbalanced   neither

    MaxVio   largest load of an expert over the mean, less 1: mean over layers and the last 50 steps
    loss     held-out, at the end

The bias keeps its promise (Wang et al. 2024) where its MaxVio is below a quarter of the unbalanced runs', and its
held-out loss at most 0.01 nats above that of the runs with the auxiliary loss, means over seeds.
"""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jaxllm.config import BlockConfig, Experiment
from jaxllm.train import programs
from jaxllm.train.loop import train
from jaxllm.train.metrics import read_events, read_metrics

ARMS = ("bias", "loss", "unbalanced")
AUXILIARY = 0.01
LAST = 50
"""Steps at the end over which a load is averaged."""

_MOST_OF_UNBALANCED, _MOST_ABOVE = 0.25, 0.01


def measure(
    experiment: Experiment, num_seeds: int = 3, num_steps: int = 0, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Train an experiment balanced in two ways and not at all.

    Args:
        experiment: with experts, and one phase.
        num_seeds: runs of each, from the experiment's seed on.
        num_steps: of a run; 0 means the experiment's own.
        say: is told of each run when it has ended.

    Returns:
        Plain data that JSON can hold: name, steps, seeds, balancing_rate; runs, each with arm, seed, max_violation,
        loss and seconds (of its steps together); summary, by arm the means of max_violation and loss; claims, what
        must hold, each with claim, value and held.

    Raises:
        ValueError: the experiment has no experts or several phases, a number is too small, or as `train` does.
    """
    if num_seeds < 1:
        raise ValueError(f"--seeds {num_seeds}: train one at least")
    if num_steps < 0:
        raise ValueError(f"--steps {num_steps}: use a number of steps, or 0 for the experiment's own")
    if not any(block.mlp.experts for block in experiment.model.blocks):
        raise ValueError("model.mlp.experts: there are none to balance; name an experiment with experts")
    if len(experiment.data.phases) > 1:
        raise ValueError(f"data.phases: {len(experiment.data.phases)} phases; balance is measured in a run of one")
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, programs.kept(str(Path(place) / "compiled")):
        for seed in range(num_seeds):
            for arm in ARMS:
                wanted = arranged(experiment, arm, experiment.run.seed + seed, num_steps, Path(place) / "run")
                runs.append({"arm": arm, "seed": wanted.run.seed, **_run(wanted)})
                say(f"{len(runs)}/{num_seeds * len(ARMS)}  {_line(runs[-1])}")
    summary = {
        arm: {
            name: float(np.mean([run[name] for run in runs if run["arm"] == arm])) for name in ("max_violation", "loss")
        }
        for arm in ARMS
    }
    return {
        "name": experiment.run.name,
        "steps": wanted.data.num_steps,
        "seeds": num_seeds,
        "balancing_rate": experiment.optim.balancing_rate,
        "runs": runs,
        "summary": summary,
        "claims": claims(summary),
    }


def claims(summary: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """What must hold of the means."""
    share = summary["bias"]["max_violation"] / summary["unbalanced"]["max_violation"]
    above = summary["bias"]["loss"] - summary["loss"]["loss"]
    least = f"MaxVio with the bias, of the unbalanced runs', is below {_MOST_OF_UNBALANCED}"
    no_worse = f"held-out loss above the auxiliary loss' is at most {_MOST_ABOVE} nats"
    return [
        {"claim": least, "value": share, "held": share < _MOST_OF_UNBALANCED},
        {"claim": no_worse, "value": above, "held": above <= _MOST_ABOVE},
    ]


def text(result: Mapping[str, Any]) -> str:
    """A measurement as a table for people."""
    lines = [f"{result['name']}, {result['steps']} steps, balancing rate {result['balancing_rate']:g}", ""]
    lines += [f"{'':<12}{'seed':>6}{'MaxVio':>10}{'held-out':>11}{'seconds':>10}", *map(_line, result["runs"]), ""]
    for arm, means in result["summary"].items():
        lines.append(f"{arm:<12}{'mean':>6}{means['max_violation']:>10.3f}{means['loss']:>11.4f}")
    lines.append("")
    lines += [f"{'yes' if one['held'] else 'NO':<4}{one['claim']}: {one['value']:.4f}" for one in result["claims"]]
    return "\n".join(lines)


def arranged(experiment: Experiment, arm: str, seed: int, num_steps: int, place: Path) -> Experiment:
    """The experiment of an arm and a seed, with an evaluation at its end and nothing else beside its steps."""
    replace = msgspec.structs.replace

    def block(one: BlockConfig) -> BlockConfig:
        if not one.mlp.experts:
            return one
        experts = replace(one.mlp.experts, balancing_bias=arm == "bias")
        return replace(one, mlp=replace(one.mlp, experts=experts))

    model, phase = experiment.model, experiment.data.phases[0]
    blocks = {name: tuple(block(one) for one in getattr(model, name)) for name in ("prefix", "period")}
    if num_steps:
        phase = replace(phase, steps=num_steps, tokens=0)
    loss = replace(experiment.train.loss, balance=AUXILIARY if arm == "loss" else 0.0, sequence_balance=0.0)
    return replace(
        experiment,
        run=replace(experiment.run, directory=str(place), seed=seed),
        model=replace(model, mlp=block(model.default_block).mlp, **blocks),
        data=replace(experiment.data, phases=(phase,), seed=seed),
        train=replace(experiment.train, loss=loss),
        evaluation=replace(experiment.evaluation, interval=0, sample_tokens=0),
        checkpoint=replace(experiment.checkpoint, interval=0),
        watch=replace(experiment.watch, interval=0),
        log=replace(experiment.log, interval=1, loggers=()),
    )


def _run(experiment: Experiment) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run = train(experiment)
    if run.interrupted:
        raise KeyboardInterrupt
    records, events = read_metrics(run.directory), read_events(run.directory)
    shutil.rmtree(str(run.directory))
    return {
        "max_violation": float(np.mean([record["max_violation"] for record in records[-LAST:]])),
        "loss": next(float(event["loss"]) for event in events if event["event"] == "finished"),
        "seconds": float(sum(record["step_seconds"] for record in records)),
    }


def _line(run: Mapping[str, Any]) -> str:
    return f"{run['arm']:<12}{run['seed']:>6}{run['max_violation']:>10.3f}{run['loss']:>11.4f}{run['seconds']:>10.0f}"
