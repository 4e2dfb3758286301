"""Meshes, and the tables that say which mesh axes a logical axis lies over.

Layers speak of logical axes only (`embed`, `heads`, `batch`, ...); this file alone knows the mesh axes. The mesh is
explicit (`AxisType.Explicit`): shardings are part of array types, so that a wrong one fails while tracing.

Three tables hold for parameters. `storage` is how a step receives and returns them, `compute` how a matrix product
reads them, `optimizer` how moments are kept and the update is computed; ZeRO 1 to 3 (Rajbhandari et al. 2020) are
three choices of the first. One table holds for activations.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from jaxllm.config import AXES, MeshConfig
from jaxllm.mesh_sizes import BATCH_AXES, EXPERTS, STAGES, resolve, slice_sizes

type Device = Any
"""A jax.Device, present or absent (which jax gives another class)."""

_WEIGHTS = {
    **dict.fromkeys(("heads", "kv_heads", "mlp"), ("tensor",)),
    "vocab": (STAGES, "tensor"),
    "layers": (STAGES,),
    "experts": (EXPERTS,),
    **dict.fromkeys(("norm", "positions", "head_norm", "head_dim", "rank", "choices"), ()),
}
"""Dims of weights, but for the one of the residual stream. The vocabulary lies over the stages too (Yeung et al. 2024,
"Balancing Pipeline Parallelism with Vocabulary Parallelism"): the embedding on the first stage alone and the head on
the last would make these two slower and fuller than the others."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axes, for parameters and activations. Static: two equal rules are one.

    Attributes:
        live: mesh axes of more than one device; the others never appear in a spec, so that one device means no
            sharding at all.
        zero: what fsdp shards, as in `MeshConfig.zero`.
        sequence_parallel: whether the residual stream's sequence lies over tensor.
    """

    live: frozenset[str] = frozenset()
    zero: int = 3
    sequence_parallel: bool = False

    def _spec(self, table: Mapping[str, tuple[str, ...]], names: Sequence[str | None], what: str) -> PartitionSpec:
        entries: list[tuple[str, ...] | None] = []
        taken: dict[str, str] = {}
        for name in names:
            axes = tuple(axis for axis in table[name] if axis in self.live) if name is not None else ()
            for axis in axes:
                if axis in taken:
                    raise ValueError(
                        f"{what} dims {tuple(names)}: mesh axis {axis!r} would shard both {taken[axis]!r} and {name!r}"
                    )
                taken[axis] = str(name)
            entries.append(axes or None)
        return PartitionSpec(*entries)

    def _parameter_table(self, embed: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        return _WEIGHTS | {"embed": embed, "expert_embed": tuple(axis for axis in embed if axis != EXPERTS)}

    def storage(self, names: Sequence[str | None]) -> PartitionSpec:
        """How a parameter lies between steps."""
        sharded = self.zero == 3
        return self._spec(self._parameter_table(("fsdp", "expert") if sharded else ()), names, "parameter")

    def compute(self, names: Sequence[str | None]) -> PartitionSpec:
        """How a matrix product reads a parameter."""
        return self._spec(self._parameter_table(()), names, "parameter")

    def optimizer(self, names: Sequence[str | None]) -> PartitionSpec:
        """How the moments of a parameter lie, and its update is computed."""
        return self._spec(self._parameter_table(("fsdp", "expert")), names, "parameter")

    def gradient(self, names: Sequence[str | None]) -> PartitionSpec:
        """How a parameter's gradient lies while micro-batches add to it, before what is left unreduced is summed."""
        return self.optimizer(names) if self.zero >= 2 else self.storage(names)

    def activation(self, *names: str | None) -> PartitionSpec:
        """How an activation lies. `sequence` is whole over tensor, `residual` is the sequence between blocks."""
        table = _WEIGHTS | {
            "stages": (STAGES,),
            "batch": BATCH_AXES,
            "sequence": ("context",),
            "residual": ("context", "tensor") if self.sequence_parallel else ("context",),
        }
        return self._spec(table, names, "activation")

    def partial(self, names: Sequence[str | None]) -> frozenset[str]:
        """Mesh axes over which a parameter's gradient is a partial sum: each device saw other tokens."""
        tokens = {*BATCH_AXES, "context"}
        if self.sequence_parallel and {"norm", "positions"} & set(names):
            tokens.add("tensor")  # these work on the sharded residual stream
        if "head_norm" in names:
            tokens.add("tensor")  # one scale for all heads, of which each device has its own
        if "experts" in names:
            tokens.remove(EXPERTS)  # tokens of all its devices travel to the one that has their expert
        return self.live & tokens

    @property
    def tensor(self) -> frozenset[str]:
        """The tensor axis, where it has more than one device."""
        return self.live & {"tensor"}

    @property
    def vocabulary(self) -> frozenset[str]:
        """The axes that the vocabulary lies over."""
        return self.live & set(_WEIGHTS["vocab"])

    @property
    def staged(self) -> bool:
        """Whether layers lie over the stages of a pipeline."""
        return STAGES in self.live

    @property
    def of_a_stage(self) -> "Rules":
        """The rules that hold within one stage."""
        return dataclasses.replace(self, live=self.live - {STAGES})

    @property
    def experts(self) -> str:
        """The axis that experts lie over, where it has more than one device; else empty."""
        return EXPERTS if EXPERTS in self.live else ""

    @property
    def ring(self) -> str:
        """The axis whose devices share a sequence and pass its keys around, where it has more than one; else empty."""
        return "context" if "context" in self.live else ""


def make_rules(config: MeshConfig, sizes: Mapping[str, int]) -> Rules:
    """The tables that a mesh config asks for, on a mesh of the given sizes."""
    live = frozenset(axis for axis, size in sizes.items() if size > 1)
    return Rules(live=live, zero=config.zero, sequence_parallel=config.sequence_parallel and "tensor" in live)


def num_shards() -> int:
    """Devices of the ambient mesh that the samples of a batch lie over."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in BATCH_AXES)


def axes_of(spec: PartitionSpec) -> frozenset[str]:
    """Mesh axes that a spec shards over."""
    return frozenset(
        axis
        for entry in spec.partitions
        if entry is not None
        for axis in (entry if isinstance(entry, tuple) else (entry,))
    )


def make_mesh(config: MeshConfig, devices: Sequence[Device] | None = None) -> Mesh:
    """The explicit mesh of a config over devices (all of this run by default), present or absent.

    Raises:
        ValueError: when the axes do not fit the devices, or the slices the axes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = resolve(config, len(devices))
    across = slice_sizes(config, sizes)
    within = [sizes[axis] // across[axis] for axis in AXES]
    if config.slices == 1:
        grid = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    elif len({getattr(device, "slice_index", 0) for device in devices}) == 1:
        # Simulated devices know no slices: consecutive ones stand in for them.
        groups = np.array(devices).reshape(config.slices, *within)
        axis = next(index for index, name in enumerate(AXES) if across[name] > 1)
        grid = np.concatenate(list(groups), axis=axis)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            within, [across[axis] for axis in AXES], devices, allow_split_physical_axes=True
        )
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def make_abstract_mesh(config: MeshConfig, num_devices: int) -> AbstractMesh:
    """A mesh without devices: enough for shapes, shardings and tracing.

    Raises:
        ValueError: as `make_mesh`.
    """
    sizes = resolve(config, num_devices)
    slice_sizes(config, sizes)
    return AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def absent_devices(platform: str, topology: str, num_slices: int = 1, **options: object) -> list[Device]:
    """Devices of a machine that is not here, good for compiling only.

    Args:
        platform: `tpu` (needs libtpu) or `cuda` (needs jax's CUDA plugin).
        topology: `v5p:2x4x4`, `v5e:4x4`, ... for TPUs; `HOSTSxNODESxGPUS` such as `1x1x8` for GPUs.
        num_slices: groups joined by the slower network only.
        options: passed on to the compiler's plugin (`target_config` for GPUs).
    """
    if num_slices > 1:
        options["num_slices"] = num_slices
    if platform == "cuda":
        options["topology"] = topology  # there the name is only a name
    return list(topologies.get_topology_desc(platform=platform, topology_name=topology, **options).devices)


def platform(mesh: AbstractMesh | None = None) -> str:
    """Platform that a mesh, the ambient one by default, computes on: `cpu`, `gpu` or `tpu`, present or absent."""
    device = (mesh or jax.sharding.get_abstract_mesh()).abstract_device
    if device is None:
        return jax.default_backend()
    return "gpu" if device.platform in ("cuda", "rocm") else str(device.platform)
