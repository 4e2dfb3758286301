"""The process that compiles: an order on its standard input, what came of it in a file. See `compile`.

What it keeps for `--export`:

    step.hlo       the program after all of the compiler's passes, as text
    memory.json    temporary memory after each instruction, and the arrays of the fullest moment
    cache/         jax's compilation cache with the executable: `jaxllm train` with `run.compilation_cache` set to it
                   takes the executable from there wherever program, devices and versions are the same

It is a cache, and not jax's `serialize_executable`, because loading one of those unpickles a file. A cache's entry is
found by a hash of the program, so it is never the wrong one; still, like any program, take only your own.
"""

import dataclasses
import json
import math
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxllm import sharding
from jaxllm.config import Experiment, load
from jaxllm.models import PRESETS
from jaxllm.plan import buffers, hlo, work
from jaxllm.plan.compile import Compiled, Machine, Moved
from jaxllm.roofline.gpu_targets import target_config
from jaxllm.train.assemble import assemble

_OUT_OF_MEMORY = "Ran out of memory"
_PACKAGES = {"tpu": "libtpu", "gpu": "jax-cuda13-plugin", "cpu": "jaxlib"}


def compile_step(experiment: Experiment, devices: list[sharding.Device]) -> tuple[Any, Mesh]:
    """An experiment's step, compiled for present or absent devices of one platform, and its mesh.

    The first phase gives the batch.
    """
    program, phase = assemble(experiment, experiment.model, devices), experiment.data.phases[0]
    platform = "cuda" if devices[0].platform == "gpu" else devices[0].platform
    with jax.set_mesh(program.mesh):
        batch = program.abstract_batch(phase.batch_size, phase.sequence_length)
        traced = program.step.trace(program.abstract_state(), batch, program.abstract_base())
        return traced.lower(lowering_platforms=(platform,)).compile(), program.mesh


def devices_of(machine: Machine) -> list[sharding.Device]:
    """The machine's devices.

    Raises:
        ValueError: the compiler knows no such chip, or no slice of such a shape.
    """
    shape = "x".join(map(str, machine.shape))
    match machine.platform:
        case "cpu":
            return jax.devices()[: math.prod(machine.shape) * machine.num_slices]
        case "gpu":
            topology = f"{machine.num_slices}x{shape}"
            return sharding.absent_devices("cuda", topology, target_config=target_config(machine.chip))
        case "tpu":
            try:
                return sharding.absent_devices("tpu", f"{machine.chip}:{shape}", machine.num_slices)
            except jax.errors.JaxRuntimeError as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"{machine}: the TPU compiler knows no such slice: {reason}") from None


def describe(machine: Machine, compiled: Any, mesh: Mesh, seconds: float) -> Compiled:
    """What the compiler made, in numbers."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    program = hlo.parse(text)
    moved: dict[tuple[str, tuple[str, ...]], list[int]] = defaultdict(lambda: [0, 0])
    for found in hlo.collectives(text, dict(mesh.shape)):
        entry = moved[found.kind, found.axes]
        entry[0] += found.repeats
        entry[1] += found.repeats * found.size
    return Compiled(
        machine=str(machine),
        mesh=dict(mesh.shape),
        compiler=f"{_PACKAGES[machine.platform]} {version(_PACKAGES[machine.platform])}",
        compile_seconds=seconds,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        flops=work.flops(program),
        cycles=work.cycles(program),
        moved=tuple(
            Moved(kind=kind, axes=axes, count=count, size=size)
            for (kind, axes), (count, size) in sorted(moved.items(), key=lambda item: -item[1][1])
        ),
    )


def _keep(compiled: Any, directory: Path) -> None:
    (directory / "step.hlo").write_text(compiled.as_text())
    told = buffers.timeline(compiled.memory_analysis().serialized_buffer_assignment_proto)
    if told.moments:
        (directory / "memory.json").write_text(json.dumps(dataclasses.asdict(told)))


def main() -> None:
    """Do one order."""
    order = json.load(sys.stdin)
    experiment = load(order["experiment"], presets=PRESETS)
    machine = Machine(**order["machine"] | {"shape": tuple(order["machine"]["shape"])})
    export = Path(order["export"]) if order["export"] else None
    if export:
        export.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(export / "cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    result: dict[str, Any]
    try:
        devices, began = devices_of(machine), time.perf_counter()
        compiled, mesh = compile_step(experiment, devices)
        result = dataclasses.asdict(describe(machine, compiled, mesh, time.perf_counter() - began))
        if export:
            _keep(compiled, export)
    except ValueError as error:
        result = {"mistake": str(error)}
    except jax.errors.JaxRuntimeError as error:
        if _OUT_OF_MEMORY not in str(error):
            raise
        result = {"exceeded": str(error)}
    Path(order["path"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
