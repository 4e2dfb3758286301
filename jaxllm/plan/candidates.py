"""Every way to run an experiment's step on a number of devices: mesh, recomputation, micro-batches.

What `mesh_sizes` would refuse is left out. `expert` stays 1: for a dense decoder it is more of fsdp.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from jaxllm import mesh_sizes
from jaxllm.config import AXES, Experiment, MeshConfig, ModelConfig, PhaseConfig, TrainConfig
from jaxllm.plan.target import Target

type Remat = Literal["none", "dots", "block", "offload"]

REMATS: tuple[Remat, ...] = ("none", "dots", "block", "offload")
"""From the fastest to the one that keeps least."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A mesh that the model and the batch can be split over.

    Attributes:
        sizes: devices along every axis.
        sequence_parallel: as in `MeshConfig.sequence_parallel`.
        slices: how many slices each axis crosses.
    """

    sizes: Mapping[str, int]
    sequence_parallel: bool
    slices: Mapping[str, int]

    @property
    def rows(self) -> int:
        """Devices that the samples of a batch lie over."""
        return math.prod(self.sizes[axis] for axis in mesh_sizes.BATCH_AXES)

    def describe(self) -> str:
        """For people: `data 2, fsdp 16, tensor 4 (sp)`."""
        text = ", ".join(f"{axis} {size}" for axis, size in self.sizes.items() if size > 1) or "one device"
        return text + " (sp)" * self.sequence_parallel


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run a step.

    Attributes:
        mesh: the devices.
        remat: as in `TrainConfig.remat`.
        accumulate: micro-batches.
    """

    mesh: Mesh
    remat: Remat
    accumulate: int

    def overrides(self) -> dict[str, int | str | bool]:
        """The config fields that ask for it, by dotted names."""
        mesh = {f"mesh.{axis}": size for axis, size in self.mesh.sizes.items()}
        slices = math.prod(self.mesh.slices.values())
        return {
            **mesh,
            "mesh.slices": slices,
            "mesh.sequence_parallel": self.mesh.sequence_parallel,
            "train.remat": self.remat,
            "train.accumulate": self.accumulate,
        }


def divisors(number: int) -> list[int]:
    """Rising."""
    low = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return low + [number // one for one in reversed(low) if one * one != number]


def meshes(experiment: Experiment, phase: PhaseConfig, target: Target) -> list[Mesh]:
    """All meshes of the target's devices that the model and the phase's batch can be split over."""
    model, found, crossing = experiment.model, [], MeshConfig(slices=target.num_slices)

    @functools.cache
    def splits(**sizes: int) -> bool:
        try:
            mesh_sizes.check_model(model, dict.fromkeys(AXES, 1) | sizes)
        except ValueError:
            return False
        return True

    for sizes in _sizes(model, phase, target.num_devices):
        if not splits(**{axis: sizes[axis] for axis in ("pipe", "fsdp", "expert", "tensor")}):
            continue
        try:
            slices = mesh_sizes.slice_sizes(crossing, sizes)
        except ValueError:
            continue
        for sequence_parallel in (False, True) if sizes["tensor"] > 1 else (False,):
            try:
                mesh_sizes.check_batch(phase.batch_size, 1, phase.sequence_length, sizes, sequence_parallel)
            except ValueError:
                continue
            found.append(Mesh(sizes=sizes, sequence_parallel=sequence_parallel, slices=slices))
    return found


def _sizes(model: ModelConfig, phase: PhaseConfig, num_devices: int) -> Iterator[dict[str, int]]:
    """Sizes of all axes that multiply to the devices, but for those that the batch's rows or the heads rule out.

    Without experts the expert axis is more of fsdp, and left at 1.
    """
    heads = math.gcd(*(block.attention.kv_heads for block in model.blocks))
    experts = math.gcd(*(block.mlp.experts.num_experts for block in model.blocks if block.mlp.experts))
    for tensor in (one for one in divisors(num_devices) if heads % one == 0):
        for pipe in (one for one in divisors(num_devices // tensor) if model.num_repeats % one == 0):
            rest = num_devices // tensor // pipe
            for rows in (one for one in divisors(rest) if phase.batch_size % one == 0):
                for data in divisors(rows):
                    for expert in divisors(math.gcd(experts, rows // data)) if experts else (1,):
                        sizes = dict.fromkeys(AXES, 1)
                        sizes |= {"pipe": pipe, "data": data, "fsdp": rows // data // expert, "expert": expert}
                        yield sizes | {"context": rest // rows, "tensor": tensor}


def micro_batches(mesh: Mesh, phase: PhaseConfig) -> list[int]:
    """Numbers of micro-batches that split the phase's batch evenly over a mesh, rising."""
    return divisors(phase.batch_size // mesh.rows)


def refuse(experiment: Experiment) -> None:
    """Refuse what cannot be planned.

    Raises:
        ValueError: adapters, or a vocabulary of unknown size.
    """
    if experiment.tune.lora is not None:
        raise ValueError("tune.lora: a plan is of training all parameters; leave the section out")
    if experiment.model.vocab_size == 0:
        raise ValueError(
            "model.vocab_size = 0: the plan reads no tokenizer; give a number, as in --model.vocab_size 32000"
        )


def configured(experiment: Experiment, phase: PhaseConfig, target: Target) -> Candidate | str:
    """What the config itself asks for on the target; a sentence that says why that cannot be."""
    config = msgspec.structs.replace(experiment.mesh, slices=target.num_slices)
    train: TrainConfig = experiment.train
    try:
        sizes = mesh_sizes.resolve(config, target.num_devices)
        mesh_sizes.check_model(experiment.model, sizes)
        slices = mesh_sizes.slice_sizes(config, sizes)
        parallel = config.sequence_parallel and sizes["tensor"] > 1
        mesh_sizes.check_batch(phase.batch_size, train.accumulate, phase.sequence_length, sizes, parallel)
    except ValueError as error:
        return str(error)
    mesh = Mesh(sizes=sizes, sequence_parallel=parallel, slices=slices)
    return Candidate(mesh=mesh, remat=train.remat, accumulate=train.accumulate)
