"""The plan against the compilers: `jaxllm bench plan-truth`.

Each pair is a published model, chips, a mesh and a way to rematerialise. Its step is compiled for the absent chips by
their own compiler (plan/compile), and two things that the plan says without one are put beside what comes out:

    memory          roofline/step_memory's bytes on a device, and arguments + temporaries + outputs - aliases
    communication   roofline/communication's bytes by mesh axes and kind of collective, and the program's

A sum that is to be scattered, or shares that are to be gathered, the TPU compiler makes an all-reduce of where the
axis spans a whole slice of 16 chips or more; the bytes are then compared under that name. Some permutes are the
compiler's own: it pads rows of a reduce-scatter and moves them to where they belong.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxllm.config import Experiment, load
from jaxllm.mesh_sizes import resolve
from jaxllm.models import PRESETS
from jaxllm.plan.compile import Compiled, DoesNotFit, Machine, confirm, require_compiler
from jaxllm.roofline import communication
from jaxllm.roofline.step_memory import COMPONENTS, StepBytes, step_bytes

LARGE = 2**21
"""Bytes a step below which a kind of collective is not compared: sums of numbers and of rows."""

_REPLACED = ("reduce-scatter", "all-gather")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A model on chips.

    Attributes:
        preset: the model.
        machine: the chips.
        mesh: that section of the config.
        train: of that section what is not as ever.
        length: tokens of a sequence.
        rows: of a batch.
    """

    preset: str
    machine: Machine
    mesh: Mapping[str, Any]
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    length: int = 4096
    rows: int

    @property
    def experiment(self) -> Experiment:
        """What is compiled."""
        phase = {"sequence_length": self.length, "batch_size": self.rows, "steps": 100}
        tree = {
            "model": {"preset": self.preset},
            "data": {"phases": [phase]},
            "mesh": dict(self.mesh),
            "optim": {"schedule": {"type": "cosine", "warmup_steps": 2}},
            "train": dict(self.train),
        }
        return load(tree, presets=PRESETS)


def _tpu(chip: str, *shape: int) -> Machine:
    return Machine(platform="tpu", chip=chip, shape=shape)


def _h100(*shape: int) -> Machine:
    return Machine(platform="gpu", chip="H100 SXM", shape=shape)


_8B, _70B, _1B = "llama3-8b", "llama3-70b", "llama3.2-1b"

PAIRS: Mapping[str, Pair] = {
    "8b-v5p-fsdp32": Pair(preset=_8B, machine=_tpu("v5p", 2, 4, 4), mesh={"fsdp": 32}, rows=32),
    "8b-v5p-fsdp8-tensor4": Pair(preset=_8B, machine=_tpu("v5p", 2, 4, 4), mesh={"fsdp": 8, "tensor": 4}, rows=32),
    "8b-v5p-data2-fsdp4-dots": Pair(
        preset=_8B, machine=_tpu("v5p", 2, 2, 2), mesh={"data": 2, "fsdp": 4}, train={"remat": "dots"}, rows=8
    ),
    "8b-v5p-fsdp16-micro4": Pair(
        preset=_8B, machine=_tpu("v5p", 2, 2, 4), mesh={"fsdp": 16}, train={"accumulate": 4}, rows=64
    ),
    "8b-v6e-fsdp16": Pair(preset=_8B, machine=_tpu("v6e", 4, 4), mesh={"fsdp": 16}, length=8192, rows=16),
    "1b-v5e-fsdp4-tensor2-dots": Pair(
        preset=_1B,
        machine=_tpu("v5e", 2, 4),
        mesh={"fsdp": 4, "tensor": 2},
        train={"remat": "dots"},
        length=2048,
        rows=8,
    ),
    "1b-v6e-fsdp4-none": Pair(
        preset=_1B, machine=_tpu("v6e", 2, 2), mesh={"fsdp": 4}, train={"remat": "none"}, length=2048, rows=8
    ),
    "70b-v5p-fsdp64": Pair(preset=_70B, machine=_tpu("v5p", 4, 4, 4), mesh={"fsdp": 64}, rows=64),
    "70b-v5p-fsdp32-tensor4-sequence": Pair(
        preset=_70B,
        machine=_tpu("v5p", 4, 4, 8),
        mesh={"fsdp": 32, "tensor": 4, "sequence_parallel": True},
        length=8192,
        rows=64,
    ),
    "mixtral-v5p-fsdp8-expert8": Pair(
        preset="mixtral-8x7b", machine=_tpu("v5p", 4, 4, 4), mesh={"fsdp": 8, "expert": 8}, rows=64
    ),
    "mixtral-v5p-fsdp4-expert4-tensor4": Pair(
        preset="mixtral-8x7b", machine=_tpu("v5p", 4, 4, 4), mesh={"fsdp": 4, "expert": 4, "tensor": 4}, rows=64
    ),
    "8b-h100-fsdp8": Pair(preset=_8B, machine=_h100(1, 8), mesh={"fsdp": 8}, rows=8),
    "8b-h100-fsdp4-tensor2-dots": Pair(
        preset=_8B,
        machine=_h100(1, 8),
        mesh={"fsdp": 4, "tensor": 2},
        train={"remat": "dots"},
        length=2048,
        rows=8,
    ),
    "70b-h100-fsdp64": Pair(preset=_70B, machine=_h100(8, 8), mesh={"fsdp": 64}, rows=64),
}


def predict(pair: Pair) -> tuple[StepBytes, dict[tuple[str, tuple[str, ...]], int]]:
    """What the plan says of a pair: bytes on a device, and bytes moved by (kind, axes)."""
    experiment, chips = pair.experiment, math.prod(pair.machine.shape)
    sizes = resolve(experiment.mesh, chips)
    train, mesh = experiment.train, experiment.mesh
    memory = step_bytes(
        experiment.model,
        train,
        experiment.optim.optimizer,
        mesh,
        sizes,
        pair.rows,
        pair.length,
        platform="gpu" if pair.machine.platform == "gpu" else "tpu",
        slice_sum=sizes["fsdp"] == chips >= 16,
    )
    found = communication.transfers(experiment.model, train, mesh, sizes, pair.rows, pair.length)
    return memory, communication.totals(found)


def measure(names: Sequence[str] = (), say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Compile pairs and compare.

    Args:
        names: of `PAIRS`; all whose compiler is installed where there are none.
        say: what is going on.

    Returns:
        Plain data that JSON can hold: `pairs`, of each its name, predicted_bytes, compiled_bytes, error (a fraction of
        the compiler's), components, and moved: kind, axes, predicted_bytes, compiled_bytes and error; `skipped`, names.

    Raises:
        ValueError: no such pair, or its compiler is not installed.
    """
    unknown = [name for name in names if name not in PAIRS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no pair; use one of {', '.join(PAIRS)}")
    for name in names:
        require_compiler(PAIRS[name].machine.platform)
    skipped = [] if names else [name for name, pair in PAIRS.items() if not _installed(pair)]
    rows = []
    for name in names or [name for name in PAIRS if name not in skipped]:
        say(f"compiling {name}")
        try:
            rows.append(compare(name, PAIRS[name], confirm(PAIRS[name].experiment, PAIRS[name].machine)))
        except DoesNotFit as error:
            say(str(error))
            skipped.append(name)
    return {"pairs": rows, "skipped": skipped}


def _installed(pair: Pair) -> bool:
    try:
        require_compiler(pair.machine.platform)
    except ValueError:
        return False
    return True


def compare(name: str, pair: Pair, compiled: Compiled) -> dict[str, Any]:
    """A pair's prediction beside what the compiler made of it, as in `measure`."""
    memory, moved = predict(pair)
    found = {(one.kind, one.axes): one.size for one in compiled.moved}
    wanted = _as_compiled(moved, found)
    return {
        "name": name,
        "machine": str(pair.machine),
        "predicted_bytes": memory.total,
        "compiled_bytes": compiled.memory_bytes,
        "error": memory.total / compiled.memory_bytes - 1,
        "moment": memory.moment,
        "components": {part: getattr(memory, part) for part in COMPONENTS},
        "moved": [
            {
                "kind": kind,
                "axes": list(axes),
                "predicted_bytes": wanted.get((kind, axes), 0),
                "compiled_bytes": found.get((kind, axes), 0),
                "error": wanted.get((kind, axes), 0) / max(1, found.get((kind, axes), 0)) - 1,
            }
            for kind, axes in sorted(wanted.keys() | found.keys())
            if max(wanted.get((kind, axes), 0), found.get((kind, axes), 0)) >= LARGE
        ],
    }


def _as_compiled(
    wanted: Mapping[tuple[str, tuple[str, ...]], int], found: Mapping[tuple[str, tuple[str, ...]], int]
) -> dict[tuple[str, tuple[str, ...]], int]:
    """Predictions under the names of what the compiler made of them."""
    named: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)
    for (kind, axes), size in wanted.items():
        replaced = kind in _REPLACED and (kind, axes) not in found and ("all-reduce", axes) in found
        named["all-reduce" if replaced else kind, axes] += size
    return dict(named)


def text(result: Mapping[str, Any]) -> str:
    """Both tables, for people."""
    lines = [f"{'memory of a device':<34}{'predicted':>12}{'compiled':>12}{'error':>8}  fullest moment"]
    for row in result["pairs"]:
        sizes = f"{row['predicted_bytes'] / 1e9:>9.2f} GB{row['compiled_bytes'] / 1e9:>9.2f} GB"
        lines.append(f"{row['name']:<34}{sizes}{row['error']:>+8.1%}  {row['moment']}")
    lines += ["", f"{'bytes moved in a step':<34}{'predicted':>12}{'compiled':>12}{'error':>8}"]
    for row in result["pairs"]:
        lines.append(row["name"])
        for one in row["moved"]:
            what = f"  {one['kind']} over {', '.join(one['axes'])}"
            sizes = f"{one['predicted_bytes'] / 1e9:>9.2f} GB{one['compiled_bytes'] / 1e9:>9.2f} GB"
            known = one["predicted_bytes"] and one["compiled_bytes"]
            lines.append(f"{what:<34}{sizes}" + (f"{one['error']:>+8.1%}" if known else "  one of the two alone"))
    if result["skipped"]:
        lines += ["", f"left out, for want of a compiler or of memory: {', '.join(result['skipped'])}"]
    return "\n".join(lines)
