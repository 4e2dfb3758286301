"""The plan's order of meshes against the compiler's programs: `jaxllm bench plan-rank`.

For a published model on 16 chips every legal mesh is predicted, and its step scheduled by the TPU compiler
(plan/schedule). How long the scheduled program takes is told by its own instructions (plan/program_time): the compiler
decides what is computed again, what is fused, what is sent, what of that is waited for, and how often all of it runs.
The two orders are compared by Spearman's rank correlation.

    remat           block
    micro-batches   as many as the plan takes for the mesh
    attention       its kernel is left out on both sides, as compilers know nothing of kernels

Meshes that do not fit are left out: the plan does not rank them. One worker runs at a time, and takes 8 to 25 seconds
of a core, 20 minutes for all meshes of a model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxllm.config import load
from jaxllm.models import PRESETS
from jaxllm.plan.answer import Option, Plan
from jaxllm.plan.compile import DoesNotFit, machine_of, require_compiler
from jaxllm.plan.efficiency import peak_flops
from jaxllm.plan.program_time import Spent, seconds
from jaxllm.plan.schedule import scheduled
from jaxllm.plan.search import plan
from jaxllm.plan.verify import as_run
from jaxllm.roofline.communication import Transfer

WORST = 6
"""Meshes that the text lists, of those whose places differ most."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model on chips.

    Attributes:
        target: the chips.
        length: tokens of a sequence.
        rows: of a batch.
    """

    target: str
    length: int
    rows: int

    def plan(self, preset: str) -> Plan:
        """Of a published model's step."""
        phase = {"sequence_length": self.length, "batch_size": self.rows, "steps": 100}
        tree = {
            "run": {"name": preset},
            "model": {"preset": preset},
            "data": {"phases": [phase]},
            "optim": {"schedule": {"type": "cosine", "warmup_steps": 2}},
        }
        return plan(load(tree, presets=PRESETS), target=self.target)


CASES: Mapping[str, Case] = {
    "llama3.2-1b": Case(target="v5e:4x4", length=2048, rows=32),
    "qwen3-4b": Case(target="v5p:2x2x4", length=4096, rows=32),
}


def measure(names: Sequence[str] = (), say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Schedule every mesh of some models and compare.

    Args:
        names: of `CASES`; all of them where there are none.
        say: what is going on.

    Returns:
        Plain data that JSON can hold: `models`, of each its name, target, rank_correlation, and meshes: mesh,
        accumulate, predicted_seconds, program_seconds, waited_seconds (of the program's), predicted_bytes and
        compiled_bytes; and too_large, the meshes that the compiler finds no memory for.

    Raises:
        ValueError: no such model, or no TPU compiler is installed.
    """
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not compared; use one of {', '.join(CASES)}")
    require_compiler("tpu")
    return {"models": [_model(name, CASES[name].plan(name), say) for name in names or CASES]}


def _model(name: str, found: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    options = [one for one in found.options if one.candidate.remat == "block"]
    rows, too_large = [], []
    for number, option in enumerate(options, 1):
        mesh = option.candidate.mesh.describe()
        say(f"{name}, mesh {number} of {len(options)}: {mesh}")
        try:
            made = scheduled(as_run(found, option), machine_of(found.target))
        except DoesNotFit:
            too_large.append(mesh)
            continue
        spent = program_seconds(made.text, found, option)
        rows.append(
            {
                "mesh": mesh,
                "accumulate": option.candidate.accumulate,
                "predicted_seconds": option.time.total - option.time.attention,
                "program_seconds": spent.total,
                "waited_seconds": spent.waited,
                "predicted_bytes": option.total_memory,
                "compiled_bytes": made.memory_bytes,
            }
        )
    pairs = [(row["predicted_seconds"], row["program_seconds"]) for row in rows]
    return {
        "name": name,
        "target": found.target.describe(),
        "rank_correlation": rank_correlation(*zip(*pairs, strict=True)),
        "meshes": rows,
        "too_large": too_large,
    }


def program_seconds(text: str, found: Plan, option: Option) -> Spent:
    """What the scheduled step of an option takes, at full peaks."""
    chip = found.target.chip

    def cost(kind: str, axes: tuple[str, ...], size: int) -> float:
        return option.placement.seconds(Transfer(kind=kind, axes=axes, size=size, count=1, what="")) if axes else 0.0

    return seconds(
        text,
        option.candidate.mesh.sizes,
        peak_flops(chip, found.experiment.train.precision.compute),
        chip.hbm_bytes_per_second / chip.devices_per_chip,
        cost,
    )


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's: the correlation of places, equal values sharing theirs."""
    one, other = places(left), places(right)
    mean = (len(one) + 1) / 2
    product = sum((x - mean) * (y - mean) for x, y in zip(one, other, strict=True))
    return product / math.sqrt(sum((x - mean) ** 2 for x in one) * sum((y - mean) ** 2 for y in other))


def places(values: Sequence[float]) -> list[float]:
    """From 1 for the least; equal values get the mean of theirs."""
    ordered = sorted(values)
    first = {value: place for place, value in reversed(list(enumerate(ordered, 1)))}
    last = {value: place for place, value in enumerate(ordered, 1)}
    return [(first[value] + last[value]) / 2 for value in values]


def text(result: Mapping[str, Any]) -> str:
    """For people."""
    return "\n\n".join("\n".join(_lines(one)) for one in result["models"])


def _lines(model: Mapping[str, Any]) -> list[str]:
    rows = model["meshes"]
    by_plan = places([row["predicted_seconds"] for row in rows])
    by_program = places([row["program_seconds"] for row in rows])
    placed = sorted(zip(rows, by_plan, by_program, strict=True), key=lambda one: -abs(one[1] - one[2]))
    errors = [row["predicted_bytes"] / row["compiled_bytes"] - 1 for row in rows]
    lines = [
        f"{model['name']} on {model['target']}: rank correlation {model['rank_correlation']:.3f} "
        f"over {len(rows)} meshes",
        f"memory predicted within {min(errors):+.1%} and {max(errors):+.1%} of the compiler's",
        f"{'furthest apart':<50}{'plan':>10}{'place':>7}{'program':>10}{'place':>7}{'waited':>8}",
    ]
    for row, one, other in placed[:WORST]:
        name = f"{row['mesh']}; accumulate {row['accumulate']}"
        share = row["waited_seconds"] / row["program_seconds"]
        lines.append(
            f"  {name:<48}{row['predicted_seconds']:>9.3f}s{one:>7.0f}{row['program_seconds']:>9.3f}s{other:>7.0f}"
            f"{share:>8.0%}"
        )
    if model["too_large"]:
        lines.append(f"left out, as the compiler finds no memory for them: {'; '.join(model['too_large'])}")
    return lines
