"""Sizes of mesh axes: worked out, laid over slices, and checked against a model and its batches. Loads without jax.

`sharding` makes meshes and specs of them; `jaxllm plan` asks only which are possible.
"""

import math
from collections.abc import Mapping

from jaxllm.config import AXES, MeshConfig, ModelConfig

BATCH_AXES = ("data", "fsdp", "expert")
"""Mesh axes that the samples of a batch lie over."""

ACROSS_SLICES = ("pipe", "data")
"""Mesh axes that may cross the slower network between slices, in order of preference reversed."""

STAGES = "pipe"
"""The mesh axis that the stages of a pipeline lie over."""

EXPERTS = "expert"
"""The mesh axis that experts lie over."""


_ROOM = 1.25
"""Rows of a round of an exchange over those that there would be if all experts were chosen alike."""

_TILE, _SMALL_TILE = 128, 8
"""A round's rows for one device are a multiple of the first, or where there are fewer of the second: the TPU compiler's
grouped product is of rows in whole tiles, and of others computes every expert's."""


def round_rows(num_rows: int, num_devices: int) -> int:
    """Rows that a device sends each of the devices of the expert axis at a time (see layers/exchange).

    Args:
        num_rows: that a device has for experts: its tokens times the experts of each.
        num_devices: that the experts lie over.
    """
    even = -(-num_rows // num_devices)
    tile = _TILE if even >= _TILE else _SMALL_TILE
    return min(num_rows, -(-int(_ROOM * even) // tile) * tile)


def resolve(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Sizes of all axes for a number of devices, -1 worked out.

    Raises:
        ValueError: when the axes need more devices than there are, or do not divide them.
    """
    sizes: dict[str, int] = dict(zip(AXES, config.shape, strict=True))
    known = math.prod(size for size in sizes.values() if size != -1)
    asked = ", ".join(f"mesh.{axis} = {size}" for axis, size in sizes.items() if size not in (1, -1)) or "mesh"
    if known > num_devices:
        raise ValueError(
            f"{asked}: this needs {known} devices and there {'is' if num_devices == 1 else 'are'} {num_devices}; "
            f"make the axes smaller, or simulate devices with XLA_FLAGS=--xla_force_host_platform_device_count={known}"
        )
    free = [axis for axis, size in sizes.items() if size == -1]
    if num_devices % known or (not free and known != num_devices):
        raise ValueError(
            f"{asked}: the axes multiply to {known}, which "
            + (
                f"does not divide {num_devices} devices"
                if num_devices % known
                else f"uses only {known} of {num_devices}"
            )
            + "; set one axis to -1 to use what is left" * (not free)
        )
    for axis in free:
        sizes[axis] = num_devices // known
    return sizes


def slice_sizes(config: MeshConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    """How many slices each axis crosses: all of `mesh.slices` lies on data, or on pipe where data cannot hold it.

    Raises:
        ValueError: when neither is a multiple of `mesh.slices`.
    """
    for axis in reversed(ACROSS_SLICES):
        if sizes[axis] % config.slices == 0:
            return {name: config.slices if name == axis else 1 for name in AXES}
    raise ValueError(
        f"mesh.slices = {config.slices}: only mesh.data and mesh.pipe may cross slices, and neither "
        f"({sizes['data']}, {sizes['pipe']}) is a multiple of it; raise mesh.data"
    )


_EXPERTS = "model.mlp.experts"


def check_model(model: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Refuse a mesh that cannot split a model evenly.

    Raises:
        ValueError: naming the mesh axis, the model's field and both numbers.
    """
    tensor = sizes["tensor"]
    dense = sizes["fsdp"] * sizes["expert"]
    stages = sizes[STAGES]
    vocab = f"mesh.tensor = {tensor}" if stages == 1 else f"mesh.pipe x mesh.tensor = {stages * tensor}"
    needs = [(vocab, stages * tensor, "model.vocab_size", model.vocab_size)]
    if stages > 1:
        if model.prefix or model.remainder:
            raise ValueError(
                f"mesh.pipe = {stages}: stages hold repeats of one period, and of the {model.num_layers} layers "
                f"{len(model.prefix) + len(model.remainder)} stand outside of it; use mesh.pipe = 1, or a model "
                "without model.prefix whose period divides num_layers"
            )
        repeats = "model.num_layers" if len(model.slots) == 1 else "model.num_layers / len(model.period)"
        needs.append((f"mesh.pipe = {stages}", stages, repeats, model.num_repeats))
        if any(block.mlp.experts for block in model.blocks):
            raise ValueError(
                f"mesh.pipe = {stages}: a pipeline does not balance experts (model.mlp.experts); set mesh.pipe = 1"
            )
    for block in model.blocks:
        if experts := block.mlp.experts:
            needs.append(
                (f"mesh.expert = {sizes[EXPERTS]}", sizes[EXPERTS], f"{_EXPERTS}.num_experts", experts.num_experts)
            )
            needs.append((f"mesh.tensor = {tensor}", tensor, f"{_EXPERTS}.shared_d_ff", experts.shared_d_ff))
        needs += [
            (f"mesh.tensor = {tensor}", tensor, "model.attention.num_heads", block.attention.num_heads),
            (f"mesh.tensor = {tensor}", tensor, "model.attention.num_kv_heads", block.attention.kv_heads),
            (f"mesh.tensor = {tensor}", tensor, "model.mlp.d_ff", block.mlp.d_ff),
        ]
    needs.append((f"mesh.fsdp x mesh.expert = {dense}", dense, "model.d_model", model.d_model))
    for what, size, field, value in needs:
        if value % size:
            raise ValueError(f"{what} does not divide {field} = {value}; choose a divisor of {value}")


def check_batch(
    batch_size: int,
    accumulate: int,
    sequence_length: int,
    sizes: Mapping[str, int],
    sequence_parallel: bool,
    phase: int = 0,
) -> None:
    """Refuse a phase's batch that the mesh cannot split evenly.

    Raises:
        ValueError: naming the mesh axes, the field and both numbers.
    """
    rows = math.prod(sizes[axis] for axis in BATCH_AXES)
    if batch_size // accumulate % rows:
        micro = f"batch_size {batch_size} / train.accumulate {accumulate} = {batch_size // accumulate} samples"
        raise ValueError(
            f"data.phases.{phase}.batch_size = {batch_size}: mesh.data x mesh.fsdp x mesh.expert = {rows} does not "
            f"divide a micro-batch ({micro}); use a multiple of {rows * accumulate}"
        )
    context, tensor = sizes["context"], sizes["tensor"] if sequence_parallel else 1
    # over context each device holds two chunks of a sequence, and tensor splits what it holds
    columns = context * (math.lcm(2, tensor) if context > 1 else tensor)
    if sequence_length % columns:
        raise ValueError(
            f"data.phases.{phase}.sequence_length = {sequence_length}: it must be a multiple of {columns} "
            "(2 x mesh.context, and mesh.context x mesh.tensor with mesh.sequence_parallel)"
        )
