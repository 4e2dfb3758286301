"""Compiles steps of Llama 3 8B for machines that are not here."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxllm import sharding
from jaxllm.config import Experiment, load
from jaxllm.models import PRESETS
from jaxllm.plan import compile, worker


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
    """The step of an experiment, compiled in this process."""
    compiled, mesh = worker.compile_step(experiment, devices)
    memory = compiled.memory_analysis()
    return Compiled(compiled.as_text(), dict(mesh.shape), memory.argument_size_in_bytes, memory.temp_size_in_bytes)


def compile_for_gpus(chip: str, shape: tuple[int, int], directory: Path, **arguments: Any) -> Compiled:
    """As `compile_step`, in a process of its own, of `llama3_8b`: jax has to be asked for CUDA before it starts.

    Args:
        chip: such as `H100`.
        shape: hosts and GPUs of a host.
        directory: for what the process writes.
        arguments: of `llama3_8b`.
    """
    machine = compile.Machine(platform="gpu", chip=chip, shape=shape)
    made = compile.confirm(llama3_8b(**arguments), machine, str(directory))
    return Compiled((directory / "step.hlo").read_text(), dict(made.mesh), made.argument_bytes, made.temporary_bytes)
