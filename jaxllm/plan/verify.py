"""A plan's best options, compiled by the target's own compiler: what was predicted beside what came out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jaxllm.config import Experiment
from jaxllm.plan.answer import Option, Plan
from jaxllm.plan.compile import Compiled, DoesNotFit, Machine, confirm, machine_of
from jaxllm.roofline.communication import totals, transfers

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Verified:
    """An option and its compiled step.

    Attributes:
        option: as planned.
        cache: where the executable was kept; empty if it was not.
        memory: bytes of a device, predicted.
        moved: bytes of a device and step by kind of collective and mesh axes, predicted.
        compiled: what the compiler says; a sentence where it found no way to fit the step.
    """

    option: Option
    cache: str = ""
    memory: float
    moved: dict[tuple[str, tuple[str, ...]], int]
    compiled: Compiled | str


def verify(plan: Plan, num: int = 1, export: str = "") -> Iterator[Verified]:
    """Compile the best options of a plan, one after the other.

    Args:
        plan: with options.
        num: how many.
        export: a directory to keep programs in, one of each option below it.

    Raises:
        ValueError: the target's compiler is not installed, or the compiler refuses the target.
    """
    machine = machine_of(plan.target)
    for number, option in enumerate(plan.options[:num], 1):
        experiment = as_run(plan, option)
        place = str(Path(export) / str(number)) if export and num > 1 else export
        yield Verified(
            option=option,
            cache=str(Path(place) / "cache") if place else "",
            memory=option.total_memory,
            moved=_moved(plan, option, experiment),
            compiled=_compiled(experiment, machine, place),
        )


def as_run(plan: Plan, option: Option) -> Experiment:
    """The experiment with an option's mesh, rematerialisation and micro-batches, and the plan's batch."""
    experiment, candidate = plan.experiment, option.candidate
    mesh = msgspec.structs.replace(
        experiment.mesh,
        **candidate.mesh.sizes,
        sequence_parallel=candidate.mesh.sequence_parallel,
        slices=plan.target.num_slices,
    )
    train = msgspec.structs.replace(experiment.train, remat=candidate.remat, accumulate=candidate.accumulate)
    data = msgspec.structs.replace(experiment.data, phases=(plan.phase,))
    return msgspec.structs.replace(experiment, mesh=mesh, train=train, data=data)


def _compiled(experiment: Experiment, machine: Machine, export: str) -> Compiled | str:
    try:
        return confirm(experiment, machine, export)
    except DoesNotFit as error:
        return str(error)


def _moved(plan: Plan, option: Option, experiment: Experiment) -> dict[tuple[str, tuple[str, ...]], int]:
    found = transfers(
        experiment.model,
        experiment.train,
        experiment.mesh,
        option.candidate.mesh.sizes,
        plan.phase.batch_size,
        plan.phase.sequence_length,
    )
    return totals(found)


def as_data(verified: Sequence[Verified]) -> list[dict[str, Any]]:
    """As plain data that JSON can hold."""
    return [
        {
            "mesh": dict(one.option.candidate.mesh.sizes),
            "remat": one.option.candidate.remat,
            "accumulate": one.option.candidate.accumulate,
            "memory_bytes": one.memory,
            "moved": [{"kind": kind, "axes": axes, "bytes": size} for (kind, axes), size in one.moved.items()],
            "compiled": one.compiled if isinstance(one.compiled, str) else msgspec.to_builtins(one.compiled),
        }
        for one in verified
    ]


def text(one: Verified) -> str:
    """One of them as lines for people."""
    candidate = one.option.candidate
    title = f"{candidate.mesh.describe()}; remat {candidate.remat}; accumulate {candidate.accumulate}"
    if isinstance(one.compiled, str):
        return f"{title}\n  {one.compiled}; predicted were {one.memory / _GIB:.1f} GiB"
    made = one.compiled
    lines = [
        f"{title}, by {made.compiler} for {made.machine} in {made.compile_seconds:.0f} s",
        f"  {'':<40}{'predicted':>12}{'compiled':>12}{'':>9}",
        _line("memory, GiB a device", one.memory / _GIB, made.memory_bytes / _GIB),
        _line("  arguments, GiB", None, made.argument_bytes / _GIB),
        _line("  temporaries, GiB", None, made.temporary_bytes / _GIB),
    ]
    compiled = _as_meant({(moved.kind, moved.axes): moved.size for moved in made.moved}, one.moved)
    for key in sorted({*one.moved, *compiled}, key=lambda key: -max(one.moved.get(key, 0), compiled.get(key, 0))):
        kind, axes = key
        sizes = one.moved.get(key, 0) / _GIB, compiled.get(key, 0) / _GIB
        if max(sizes) >= 0.005:
            lines.append(_line(f"{kind} over {' + '.join(axes)}, GiB a step", *sizes))
    if one.cache:
        lines.append(f"  its executable is kept; train takes it with --run.compilation_cache {one.cache}")
    return "\n".join(lines)


def _as_meant(
    compiled: dict[tuple[str, tuple[str, ...]], int], meant: dict[tuple[str, tuple[str, ...]], int]
) -> dict[tuple[str, tuple[str, ...]], int]:
    """All-reduces that stand for reduce-scatters under the name of these.

    The TPU compiler makes the one of the other, and a slice, where an axis spans all chips of a large slice.
    """
    found = dict(compiled)
    for kind, axes in meant:
        whole = ("all-reduce", axes)
        if kind == "reduce-scatter" and (kind, axes) not in found and whole in found and whole not in meant:
            found[kind, axes] = found.pop(whole)
    return found


def _line(name: str, predicted: float | None, compiled: float) -> str:
    left = "" if predicted is None else f"{predicted:.2f}"
    share = f"{100 * (predicted / compiled - 1):+.1f} %" if predicted and compiled else ""
    return f"  {name:<40}{left:>12}{compiled:>12.2f}{share:>9}"
