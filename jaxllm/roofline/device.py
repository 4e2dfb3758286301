"""What one device holds while it trains, by what it is: the sum of `memory`'s parts on a mesh."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal

import msgspec

from jaxllm import mesh_sizes
from jaxllm.config import Experiment, ModelConfig, OptimizerConfig, TrainConfig
from jaxllm.roofline.memory import (
    BYTES,
    Adapters,
    activation_bytes,
    logits_bytes,
    shards,
    stage_inputs,
    state_bytes,
)
from jaxllm.roofline.step_memory import COMPONENTS, step_bytes


def memory_per_device(
    model: ModelConfig,
    train: TrainConfig,
    optimizer: OptimizerConfig,
    mesh: Mapping[str, int],
    *,
    zero: Literal[1, 2, 3] = 3,
    sequence_parallel: bool = False,
    tokens: int = 0,
    adapters: Adapters | None = None,
) -> dict[str, int]:
    """Bytes of one device: parameters, gradients, optimizer, and of a step activations and logits.

    Args:
        model: the decoder, with its vocabulary known.
        train: dtypes, rematerialisation, micro-batches and loss chunk.
        optimizer: whose moments are counted.
        mesh: devices along each axis, none of them -1; absent axes have one.
        zero: as in `MeshConfig.zero`.
        sequence_parallel: as in `MeshConfig.sequence_parallel`.
        tokens: of a micro-batch on one device; 0 leaves activations and logits out.
        adapters: what is trained, where it is these alone.

    Raises:
        ValueError: the vocabulary is not known yet.
    """
    memory = asdict(state_bytes(model, train.precision, optimizer, shards(mesh, zero), adapters))
    if tokens:
        width, tensor, pipe = BYTES[train.precision.compute], mesh.get("tensor", 1), mesh.get("pipe", 1)
        stage = msgspec.structs.replace(model, num_layers=model.num_layers // pipe)
        kept = activation_bytes(stage, tokens, train.remat, width, tensor, sequence_parallel, mesh.get("expert", 1))
        inputs = stage_inputs(pipe, train.accumulate, train.pipeline) * tokens * model.d_model * width
        memory |= {
            "activations": kept.total + inputs // (tensor if sequence_parallel else 1),
            "logits": logits_bytes(model, tokens, train.loss.chunk, width, tensor * pipe),
        }
    return memory


def of_experiment(
    experiment: Experiment,
    model: ModelConfig,
    sizes: Mapping[str, int],
    adapters: Adapters | None = None,
    platform: Literal["tpu", "gpu"] = "gpu",
) -> dict[str, int]:
    """Bytes of one device at the fullest moment of a step, in the phase of an experiment that needs most.

    As compilers make it (`step_memory`); where adapters alone are trained, the sum of the parts.

    Args:
        experiment: everything but the vocabulary's size.
        model: the experiment's, with its vocabulary known.
        sizes: devices along each mesh axis, none of them -1.
        adapters: what is trained, where it is these alone.
        platform: whose compiler; a CPU's is taken for a GPU's.
    """
    train, optimizer, mesh = experiment.train, experiment.optim.optimizer, experiment.mesh
    if adapters:
        return memory_per_device(
            model,
            train,
            optimizer,
            sizes,
            zero=mesh.zero,
            sequence_parallel=mesh.sequence_parallel,
            tokens=max(micro_batch_tokens(experiment, sizes)),
            adapters=adapters,
        )
    whole = sizes["fsdp"] == math.prod(sizes.values()) // mesh.slices >= 16
    found = (
        step_bytes(model, train, optimizer, mesh, sizes, phase.batch_size, phase.sequence_length, platform, whole)
        for phase in experiment.data.phases
    )
    fullest = max(found, key=lambda one: one.total)
    return {name: getattr(fullest, name) for name in COMPONENTS}


def micro_batch_tokens(experiment: Experiment, sizes: Mapping[str, int]) -> list[int]:
    """Tokens of a micro-batch on one device, in each phase."""
    pieces = experiment.train.accumulate * math.prod(sizes[axis] for axis in mesh_sizes.BATCH_AXES)
    return [
        -(-one.batch_size // pieces) * -(-one.sequence_length // sizes["context"]) for one in experiment.data.phases
    ]
