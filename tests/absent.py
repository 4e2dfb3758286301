"""Compiles steps of Llama 3 8B for machines that are not here.

Run as a program, in a process of its own, it compiles for absent GPUs: jax has to be asked for the CUDA plugin
before it starts, which the other tests, all on the CPU, do not.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from jaxllm import sharding
from jaxllm.config import Experiment, load
from jaxllm.models import PRESETS
from jaxllm.roofline.gpu_targets import target_config
from jaxllm.train.assemble import assemble

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
        text: its HLO.
        mesh: sizes of the mesh's axes.
        argument_bytes: state and batch on one device.
        temporary_bytes: what it needs beside them.
    """

    text: str
    mesh: dict[str, int]
    argument_bytes: int
    temporary_bytes: int


def llama3_8b(
    mesh: dict[str, Any],
    num_layers: int = 2,
    sequence_length: int = 512,
    batch_size: int = 64,
    accumulate: int = 1,
    kernel: str = "auto",
    vocab_size: int = 128256,
    **train: Any,
) -> Experiment:
    """Llama 3 8B, by default with two of its layers and short sequences, which change no collective of a block.

    `train` are more fields of that section.
    """
    attention = {"kernel": kernel}
    tree = {
        "model": {"preset": "llama3-8b", "num_layers": num_layers, "vocab_size": vocab_size, "attention": attention},
        "data": {"phases": [{"sequence_length": sequence_length, "batch_size": batch_size, "steps": 100}]},
        "mesh": mesh,
        "optim": {"schedule": {"type": "cosine", "warmup_steps": 2}},
        "train": {"accumulate": accumulate, **train},
    }
    return load(tree, presets=PRESETS)


def compile_step(experiment: Experiment, devices: list[sharding.Device]) -> Compiled:
    """The step of an experiment, compiled for absent devices of one platform; its first phase gives the batch."""
    program, phase = assemble(experiment, experiment.model, devices), experiment.data.phases[0]
    platform = "cuda" if devices[0].platform == "gpu" else devices[0].platform
    with jax.set_mesh(program.mesh):
        batch = program.abstract_batch(phase.batch_size, phase.sequence_length)
        traced = program.step.trace(program.abstract_state(), batch)
        compiled = traced.lower(lowering_platforms=(platform,)).compile()
    memory = compiled.memory_analysis()
    sizes = dict(program.mesh.shape)
    return Compiled(compiled.as_text(), sizes, memory.argument_size_in_bytes, memory.temp_size_in_bytes)


def compile_for_gpus(chip: str, topology: str, directory: Path, **arguments: Any) -> Compiled:
    """As `compile_step`, in a process of its own.

    Args:
        chip: such as `H100`.
        topology: hosts x nodes x GPUs.
        directory: for what the process writes.
        arguments: of `llama3_8b`.
    """
    path = directory / "compiled.json"
    order = json.dumps({"chip": chip, "topology": topology, "path": str(path), "arguments": arguments})
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu,cuda",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # the plugin looks for a driver, and else refuses to load without one
    }
    subprocess.run([sys.executable, __file__, order], env=environment, check=True)
    return Compiled(**json.loads(path.read_text()))


def _main(order: dict[str, Any]) -> None:
    target = target_config(order["chip"])
    devices = sharding.absent_devices("cuda", order["topology"], target_config=target)
    compiled = compile_step(llama3_8b(**order["arguments"]), devices)
    Path(order["path"]).write_text(json.dumps(dataclasses.asdict(compiled)))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
