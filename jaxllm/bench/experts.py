"""What experts cost, beside a dense model with the same active parameters: `jaxllm bench experts`.

Four steps take turns on a batch of random tokens, each as `bench step` runs it:

    dense   no experts: as many hidden units as a token goes through
    few     the experiment
    many    `times` as many experts of the same size: the active parameters stay, the total grows with the experts
    fine    `times` as many experts, each that much smaller, and a token goes through that many more: active and total
            parameters stay (fine-grained: DeepSeekMoE, Dai et al. 2024); left out where the hidden units do not divide

    ratio    median over turns of (seconds of a step / seconds of the step it is compared with, in the same turn)

Norms, moments and new weights are of all parameters, the active ones or not: what they take weighs the more the fewer
tokens a step has. A device that trains experts has hundreds to thousands of rows for each; a quickstart's batch has 64
where there are 64 experts, so the tokens of a step are a choice of the measurement. They are random and the routers
untrained: loads are uneven, as they are at the beginning of a run.
"""

from collections.abc import Mapping
from typing import Any

import jax
import msgspec
import numpy as np

from jaxllm.bench import step
from jaxllm.config import BlockConfig, Experiment, MLPConfig, ModelConfig
from jaxllm.roofline.transformer import parameters
from jaxllm.train import figures
from jaxllm.train.assemble import assemble

_COMPARED = {"dense": "dense", "few": "dense", "many": "few", "fine": "few"}
"""What each is compared with."""


def measure(experiment: Experiment, num_turns: int = 10, times: int = 8, num_tokens: int = 0) -> dict[str, Any]:
    """Time an experiment's step beside those of a dense model and of models with more experts.

    Args:
        experiment: with experts; of its data only the vocabulary and the batch's shape count.
        num_turns: timed steps of each, behind those that are not.
        times: how many times more experts the others have.
        num_tokens: of a step, rounded down to whole rows of the first phase; 0 for the experiment's batch.

    Returns:
        Plain data that JSON can hold: name, tokens, turns, compute; steps, each with name, experts, experts_per_token,
        d_ff (of an expert), parameters, active_parameters, rows (of an expert, in the mean), step_seconds and
        step_seconds_quartiles, compared (with which), ratio and ratio_quartiles.

    Raises:
        ValueError: the experiment has no experts, too few turns or tokens, or as `bench.step.measure`.
    """
    if num_turns < 1:
        raise ValueError(f"--turns {num_turns}: time at least one turn")
    if times < 2:
        raise ValueError(f"--times {times}: use 2 or more, such as 8")
    experiment = _with_tokens(experiment, num_tokens)
    model = step.known_vocabulary(experiment)
    if not any(block.mlp.experts for block in model.blocks):
        raise ValueError("model.mlp.experts: there are none to measure; name an experiment with experts")
    models = {name: changed(model, name, times) for name in _COMPARED}
    models = {name: one for name, one in models.items() if one is not None}
    programs = {name: assemble(msgspec.structs.replace(experiment, model=one), one) for name, one in models.items()}
    steps, seconds = {}, {name: [] for name in models}
    with jax.set_mesh(next(iter(programs.values())).mesh):
        for name, program in programs.items():
            steps[name] = step.Step(experiment, program)
        for _ in range(step.WARM_UP + num_turns):
            for name, one in steps.items():
                seconds[name].append(one.run()[0])
    taken = {name: np.array(values)[step.WARM_UP :] for name, values in seconds.items()}
    num_tokens = experiment.data.phases[0].batch_size * experiment.data.phases[0].sequence_length
    return {
        "name": experiment.run.name,
        "tokens": num_tokens,
        "turns": num_turns,
        "compute": experiment.train.precision.compute,
        "steps": [_row(name, models[name], num_tokens, taken) for name in models],
    }


def text(result: Mapping[str, Any]) -> str:
    """A measurement as a table for people."""
    lines = [
        f"{result['name']}, {result['tokens']:,} tokens a step, {result['compute']}, {result['turns']} turns",
        "",
        f"{'':<7}{'experts':>14}{'d_ff':>7}{'parameters':>12}{'active':>9}{'rows each':>11}{'step, s':>10}"
        "  ratio, quartiles",
    ]
    for row in result["steps"]:
        chosen = f"{row['experts_per_token']} of {row['experts']}" if row["experts"] else "-"
        low, high = row["ratio_quartiles"]
        ratio = (
            "" if row["compared"] == row["name"] else f"{row['ratio']:.2f} x {row['compared']}, {low:.2f} to {high:.2f}"
        )
        lines.append(
            f"{row['name']:<7}{chosen:>14}{row['d_ff']:>7}{figures.count(row['parameters']):>12}"
            f"{figures.count(row['active_parameters']):>9}{row['rows']:>11,.0f}{row['step_seconds']:>10.4g}"
            f"  {ratio}".rstrip()
        )
    return "\n".join(lines)


def changed(model: ModelConfig, name: str, times: int) -> ModelConfig | None:
    """A model with other experts in the place of its own; None where its hidden units do not divide."""
    replace = msgspec.structs.replace

    def mlp(one: MLPConfig) -> MLPConfig | None:
        experts = one.experts
        if not experts or name == "few":
            return one
        if name == "dense":
            return replace(one, d_ff=experts.experts_per_token * one.d_ff + experts.shared_d_ff, experts=None)
        more = replace(experts, num_experts=times * experts.num_experts)
        if name == "many":
            return replace(one, experts=more)
        more = replace(more, experts_per_token=times * experts.experts_per_token)
        return None if one.d_ff % times else replace(one, d_ff=one.d_ff // times, experts=more)

    def blocks(some: tuple[BlockConfig, ...]) -> list[BlockConfig | None]:
        found = [(one, mlp(one.mlp)) for one in some]
        return [replace(one, mlp=its) if its else None for one, its in found]

    base, prefix, period = mlp(model.default_block.mlp), blocks(model.prefix), blocks(model.period)
    if base is None or None in prefix or None in period:
        return None
    return replace(model, mlp=base, prefix=tuple(prefix), period=tuple(period))


def _with_tokens(experiment: Experiment, num_tokens: int) -> Experiment:
    """The experiment with a batch of that many tokens, in rows as long as its first phase has them."""
    phase = experiment.data.phases[0]
    if not num_tokens:
        return experiment
    if num_tokens < phase.sequence_length:
        raise ValueError(f"--tokens {num_tokens}: a row alone has {phase.sequence_length}")
    replace = msgspec.structs.replace
    phase = replace(phase, batch_size=num_tokens // phase.sequence_length)
    return replace(experiment, data=replace(experiment.data, phases=(phase,)))


def _row(name: str, model: ModelConfig, num_tokens: int, taken: Mapping[str, np.ndarray]) -> dict[str, Any]:
    mlp = next((block.mlp for block in model.blocks if block.mlp.experts), model.blocks[-1].mlp)
    experts, counted = mlp.experts, parameters(model)
    other, own = taken[_COMPARED[name]], taken[name]
    low, ratio, high = np.quantile(own / other, (0.25, 0.5, 0.75)).tolist()
    first, median, third = np.quantile(own, (0.25, 0.5, 0.75)).tolist()
    return {
        "name": name,
        "experts": experts.num_experts if experts else 0,
        "experts_per_token": experts.experts_per_token if experts else 0,
        "d_ff": mlp.d_ff,
        "parameters": counted.total,
        "active_parameters": counted.active,
        "rows": num_tokens * experts.experts_per_token / experts.num_experts if experts else num_tokens,
        "step_seconds": median,
        "step_seconds_quartiles": [first, third],
        "compared": _COMPARED[name],
        "ratio": ratio,
        "ratio_quartiles": [low, high],
    }
