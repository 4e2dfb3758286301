"""The first steps of an experiment on several meshes, beside the same on one device: `jaxllm bench meshes`.

The step is the one that `jaxllm train` runs, from the same initial weights, each step on a batch of other random
tokens. Where sums are taken in another order losses part in their last digits, and what is a decision parts in full: a
token whose two best experts are all but equal may go to the other one. Such tokens are counted by the loads:

    moved   half the sum, over layers and experts, of how much the numbers of choices differ: at least so many choices
            of the step are other ones

Losses are told without their balance losses.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import msgspec
import numpy as np

from jaxllm.bench import step
from jaxllm.config import AXES, Experiment, ModelConfig
from jaxllm.train import figures
from jaxllm.train.assemble import assemble

MESHES = (
    "expert=2",
    "expert=4",
    "expert=8",
    "expert=4,fsdp=2",
    "expert=2,fsdp=2,tensor=2",
    "expert=4,tensor=2",
    "expert=4,data=2",
    "expert=2,context=2,fsdp=2",
)
"""Of 8 devices or fewer."""


def measure(
    experiment: Experiment,
    meshes: Sequence[str] = MESHES,
    num_steps: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Take the first steps of an experiment on one device, and on each of some meshes.

    Args:
        experiment: of its data only the vocabulary and the batch's shape count, of its mesh only how parameters lie.
        meshes: sizes of axes, as in `expert=4,fsdp=2`; of as many devices as that makes.
        num_steps: of each.
        say: is told of each mesh when it is done.

    Returns:
        Plain data that JSON can hold: name, steps, learning_rate, compute; losses, of one device; meshes, each with
        mesh, losses, difference (the largest between losses of one step), choices (of all steps and layers) and moved.

    Raises:
        ValueError: a mesh is not written so, needs more devices than there are, or does not fit the experiment.
    """
    if num_steps < 1:
        raise ValueError(f"--steps {num_steps}: take at least one step")
    wanted = [sizes_of(mesh) for mesh in meshes]
    needed = max(math.prod(sizes.values()) for sizes in wanted)
    if needed > len(jax.devices()):
        raise ValueError(
            f"--mesh: {needed} devices are needed, and there are {len(jax.devices())}; on a CPU simulate them, with "
            f"JAX_NUM_CPU_DEVICES={needed} in the environment"
        )
    model = step.known_vocabulary(experiment)
    phase = experiment.data.phases[0]
    batches = [
        step.random_batch(model.vocab_size, phase.batch_size, phase.sequence_length, seed) for seed in range(num_steps)
    ]
    alone = _run(experiment, model, {}, batches)
    found = []
    for name, sizes in zip(meshes, wanted, strict=True):
        losses, loads = _run(experiment, model, sizes, batches)
        found.append(
            {
                "mesh": name,
                "losses": losses,
                "difference": max(abs(a - b) for a, b in zip(losses, alone[0], strict=True)),
                "choices": float(alone[1].sum()),
                "moved": float(np.abs(loads - alone[1]).sum() / 2),
            }
        )
        say(f"{len(found)}/{len(meshes)}  {_line(found[-1])}")
    return {
        "name": experiment.run.name,
        "steps": num_steps,
        "learning_rate": experiment.optim.learning_rate,
        "compute": experiment.train.precision.compute,
        "losses": alone[0],
        "meshes": found,
    }


def text(result: Mapping[str, Any]) -> str:
    """A measurement as a table for people."""
    losses = ", ".join(f"{loss:.6f}" for loss in result["losses"])
    return "\n".join(
        [
            f"{result['name']}, {result['steps']} steps at learning rate {result['learning_rate']:g}, "
            f"{result['compute']}",
            f"one device: {losses}",
            "",
            f"{'mesh':<28}{'largest difference':>20}{'choices':>12}{'moved, at least':>18}",
            *map(_line, result["meshes"]),
        ]
    )


def _line(row: Mapping[str, Any]) -> str:
    return (
        f"{row['mesh']:<28}{row['difference']:>20.1e}{figures.integer(row['choices']):>12}"
        f"{figures.integer(row['moved']):>18}"
    )


def sizes_of(mesh: str) -> dict[str, int]:
    """Sizes of axes, by name.

    Raises:
        ValueError: the text is not such, or names no axis of a mesh.
    """
    sizes: dict[str, int] = {}
    for part in mesh.split(","):
        axis, _, size = part.partition("=")
        if axis not in AXES or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"{mesh}: {part} is no axis with its size; write expert=4,fsdp=2, of the axes {', '.join(AXES)}"
            )
        sizes[axis] = int(size)
    return sizes


def _run(
    experiment: Experiment, model: ModelConfig, sizes: Mapping[str, int], batches: Sequence[dict[str, np.ndarray]]
) -> tuple[list[float], np.ndarray]:
    """Losses of the steps, and how often each expert was chosen: [steps, layers, experts], or empty."""
    mesh = msgspec.structs.replace(experiment.mesh, **dict.fromkeys((*AXES, "slices"), 1) | dict(sizes))
    program = assemble(
        msgspec.structs.replace(experiment, mesh=mesh), model, jax.devices()[: math.prod(sizes.values())]
    )
    losses, loads = [], []
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(experiment.run.seed))
        base = program.init_base(jax.random.key(experiment.run.seed))
        for batch in batches:
            state, metrics = program.step(state, program.put(batch), base)
            losses.append(float(metrics["loss"]))
            loads.append(np.asarray(metrics.get("expert_load", ()), np.float64))
    return losses, choices(model, np.array(loads), batches[0]["tokens"].size)


def choices(model: ModelConfig, loads: np.ndarray, num_tokens: int) -> np.ndarray:
    """From loads over the mean, [steps, layers, experts], as they are without experts empty: numbers of choices."""
    per_token = [block.mlp.experts.experts_per_token for block in model.blocks if block.mlp.experts]
    if not per_token:
        return loads
    return loads * (num_tokens * np.array(per_token)[None, :, None] / loads.shape[-1])
