"""Confirms a plan: jaxllm's real step, compiled by the real compiler for devices that are not here.

The step is the one that `jaxllm train` runs (train/assemble). TPU programs come from libtpu (the extra `aot-tpu`), GPU
programs from jax's CUDA plugin (`aot-gpu`); simulated CPU devices need neither, and stand in for both where only the
collectives matter. Each compilation runs in a process of its own (`worker`): jax chooses its platforms when it starts,
a process loads one libtpu, and what a compiler leaves behind ends with its process.

    memory of a device = arguments + temporaries + outputs - aliases

The state is donated, so its outputs are its arguments' aliases. FLOPs, seconds and bytes are of a device and a step,
loops counted as often as they run (see `hlo`).
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxllm.config import Experiment, resolved
from jaxllm.plan.target import Target
from jaxllm.roofline.transformer import vocabulary

_ROOT = Path(__file__).parents[2]

_COMPILERS = {"tpu": ("libtpu", "aot-tpu"), "gpu": ("jax_plugins.xla_cuda13", "aot-gpu")}
"""Platform -> the module that brings its compiler, and the extra that installs it."""

_SETTINGS: Mapping[str, Mapping[str, str]] = {
    # the first keeps libtpu from asking a cloud's metadata server which TPU this is; the second lets other processes
    # compile too
    "tpu": {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
    # the plugin looks for a driver, and else refuses to load without one
    "gpu": {"JAX_PLATFORMS": "cpu,cuda", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
    "cpu": {"JAX_PLATFORMS": "cpu"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices to compile for.

    Attributes:
        platform: whose compiler.
        chip: a TPU's generation as libtpu names it (`v5p`, `v5e`, `v6e`, `v4`, `tpu7x`), or a GPU as
            `roofline.hardware` names it; empty for CPUs.
        shape: chips along each dim of a TPU slice; hosts x GPUs of a host; the number of CPU devices.
        num_slices: how many such, joined by the slower network only.
    """

    platform: Literal["tpu", "gpu", "cpu"]
    chip: str = ""
    shape: tuple[int, ...]
    num_slices: int = 1

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        name = f"{self.chip}:{shape}" if self.chip else f"{shape} simulated CPU devices"
        return name if self.num_slices == 1 else f"{name} x {self.num_slices} slices"


def machine_of(target: Target) -> Machine:
    """The devices of a plan's target."""
    if target.chip.torus:
        name = target.chip.name.lower().removeprefix("tpu ")
        return Machine(platform="tpu", chip=name, shape=target.shape, num_slices=target.num_slices)
    node = target.chip.node.size if target.chip.node else 1
    hosts = math.ceil(target.num_chips / node)
    return Machine(platform="gpu", chip=target.chip.name, shape=(hosts, target.num_chips // hosts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moved:
    """What a step moves by one kind of collective over the same mesh axes, all of them together.

    Attributes:
        kind: HLO's name of what is done.
        axes: mesh axes whose devices take part; `slice` for the slower network.
        count: arrays.
        size: bytes on one device: of an all-gather what it gives, of a reduction what it takes, of a permute what it
            sends.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a compiler made of a step, on one device.

    Attributes:
        machine: in words.
        mesh: sizes of the mesh's axes.
        compiler: its name and version.
        compile_seconds: that it took.
        argument_bytes: state and batch.
        temporary_bytes: all arrays of the step at its fullest moment.
        output_bytes: what the step returns.
        alias_bytes: outputs in the place of arguments.
        flops: of the matrix products, those within kernels left out (see `work`).
        cycles: that the TPU compiler expects a core to compute, without waiting for other devices; 0 where a compiler
            expects none.
        moved: collectives by kind and axes, the most bytes first.
    """

    machine: str
    mesh: Mapping[str, int]
    compiler: str
    compile_seconds: float
    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    alias_bytes: int
    flops: float
    cycles: int
    moved: tuple[Moved, ...]

    @property
    def memory_bytes(self) -> int:
        """All of a device's memory that the step needs."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes - self.alias_bytes


class DoesNotFit(Exception):
    """The compiler found no way to run a step in a device's memory.

    Attributes:
        needed: bytes that it needed at the least, and `limit`, those that there are; 0 where it does not say.
    """

    def __init__(self, words: str, machine: Machine) -> None:
        found = re.search(r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm", words)
        self.needed, self.limit = 0, 0
        if found:
            units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
            self.needed = int(float(found[1]) * units[found[2]])
            self.limit = int(float(found[3]) * units[found[4]])
        size = f"it needs {self.needed / 2**30:.1f} GiB of {self.limit / 2**30:.1f}" if found else words[:300]
        super().__init__(f"the compiler found no way to fit the step into {machine}: {size}")


def require_compiler(platform: str) -> None:
    """Refuse a platform whose compiler is not installed.

    Raises:
        ValueError: naming the extra that brings it.
    """
    if platform not in _COMPILERS:
        return
    module, extra = _COMPILERS[platform]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ValueError(
            f"the {platform.upper()} compiler is not installed, so no step can be compiled for one: install it with "
            f'pip install "jaxllm[{extra}]"'
        )


def confirm(experiment: Experiment, machine: Machine, export: str = "") -> Compiled:
    """Compile an experiment's step for a machine that is not here.

    Args:
        experiment: mesh, remat and micro-batches as they are to be; its first phase gives the batch, and the model's
            vocabulary must be a number.
        machine: what to compile for.
        export: a directory for what is worth keeping: `step.hlo`, the program; `memory.json`, its memory over time,
            where the compiler tells it; `cache`, the executable (see `worker`). Empty keeps nothing.

    Raises:
        DoesNotFit: the compiler found no way to run the step in the device's memory.
        ValueError: the compiler is not installed, the machine has no such shape, or the experiment does not fit the
            mesh.
        RuntimeError: the compiler failed, in its own words.
    """
    require_compiler(machine.platform)
    vocabulary(experiment.model)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "compiled.json"
        order = {
            "experiment": resolved(experiment),
            "machine": dataclasses.asdict(machine),
            "export": str(Path(export).absolute()) if export else "",
            "path": str(path),
        }
        ran = subprocess.run(
            [sys.executable, "-m", "jaxllm.plan.worker"],
            input=json.dumps(order),
            env=environment(machine),
            capture_output=True,
            text=True,
        )
        result = read_result(path, ran.stderr, machine)
    result["moved"] = tuple(Moved(**one | {"axes": tuple(one["axes"])}) for one in result["moved"])
    return Compiled(**result)


def read_result(path: Path, errors: str, machine: Machine) -> dict[str, Any]:
    """What the worker wrote of a step that it compiled.

    Args:
        path: of its answer.
        errors: that it printed.
        machine: that it compiled for.

    Raises:
        DoesNotFit, ValueError, RuntimeError: as `confirm`.
    """
    if not path.exists():
        raise RuntimeError(f"the compiler for {machine} failed:\n{errors[-2000:]}")
    result = json.loads(path.read_text())
    if "mistake" in result:
        raise ValueError(result["mistake"])
    if "exceeded" in result:
        raise DoesNotFit(result["exceeded"], machine)
    return result


def environment(machine: Machine) -> dict[str, str]:
    """Of the process that compiles for a machine."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | _SETTINGS[machine.platform] | {"PYTHONPATH": os.pathsep.join(paths)}
    if machine.platform == "cpu":
        flags = os.environ.get("XLA_FLAGS", "").split()
        kept = [flag for flag in flags if "host_platform_device_count" not in flag]
        num = machine.num_slices * math.prod(machine.shape)
        environment["XLA_FLAGS"] = " ".join([*kept, f"--xla_force_host_platform_device_count={num}"])
    return environment
