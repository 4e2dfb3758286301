"""The arrays of one checkpoint on a disk: orbax writes a directory of them, TensorStore reads it.

Orbax is given all processes by number, so that they meet at barriers of the coordination service: its default is a
collective of the devices, which in a thread beside the training loop's would deadlock.

Reading goes past orbax to the library below it. Orbax asks for more files than hold the values, makes processes wait
for each other, and answers a damaged file with pages about futures that nobody awaited; here a stacked array is put
together in host memory, so that the devices hold no second copy of anything.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from jaxllm.train.digests import host_digest

_PIECE = 64 << 20
"""Bytes read back at a time."""


def write(directory: str, arrays: Mapping[str, jax.Array]) -> None:
    """Write arrays by name; return when all processes have. Safe beside a running step.

    Off the CPU orbax makes another copy of them in host memory while it writes.

    Raises:
        Exception: of many types; the directory is then unfinished.
    """
    everyone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes=set(range(jax.process_count())))
    handler = ocp.PyTreeCheckpointHandler(
        use_compression=False,  # floats shrink by less than a tenth, and the host's cores are busy
        multiprocessing_options=everyone,
    )
    with ocp.Checkpointer(handler, multiprocessing_options=everyone) as checkpointer:
        checkpointer.save(directory, args=ocp.args.PyTreeSave(dict(arrays)))


def read(directory: str, names: Sequence[str], abstract: jax.ShapeDtypeStruct, stacked: bool) -> jax.Array:
    """Read an array onto its sharding: each process what its devices hold, through host memory.

    Args:
        directory: that `write` wrote, from any mesh.
        names: the array's, or those of the layers that it stacks.
        abstract: its shape, dtype and sharding.
        stacked: whether the first dim counts layers.

    Raises:
        Exception: of many types, when files are lost or damaged in a way that shows.
    """
    opened = [_open(directory, name) for name in names]
    sources = [one.result() for one in opened]
    shape = abstract.shape[1:] if stacked else abstract.shape
    for name, source in zip(names, sources, strict=True):
        if source.shape != shape or source.dtype.numpy_dtype != abstract.dtype:
            raise ValueError(f"{name} is {source.dtype.name}{list(source.shape)} on the disk")
    whole = ts.stack(sources) if stacked else sources[0]
    parts: dict[str, np.ndarray] = {}
    placed = []
    for device, index in abstract.sharding.addressable_devices_indices_map(abstract.shape).items():
        if str(index) not in parts:
            parts[str(index)] = np.asarray(whole[index].read().result())
        placed.append(jax.device_put(parts[str(index)], device))
    return jax.make_array_from_single_device_arrays(abstract.shape, abstract.sharding, placed)


def read_digest(directory: str, name: str) -> np.ndarray:
    """Digest of an array as it lies on the disk, read in pieces: uint32[2].

    Raises:
        Exception: of many types, when files are lost or damaged in a way that shows.
    """
    array = _open(directory, name).result()
    if not array.ndim:
        return host_digest(np.asarray(array.read().result()))
    rows = max(1, _PIECE // max(1, math.prod(array.shape[1:]) * array.dtype.numpy_dtype.itemsize))
    total = np.zeros(2, np.uint32)
    for row in range(0, array.shape[0], rows):
        part = np.ascontiguousarray(array[row : min(row + rows, array.shape[0])].read().result())
        total += host_digest(part, (row, *[0] * (part.ndim - 1)))
    return total


def _open(directory: str, name: str) -> Any:
    """A future of an array as orbax lays it: zarr in an OCDBT database."""
    place = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{directory}/"}, "path": f"{name}/"}
    return ts.open({"driver": "zarr", "kvstore": place}, open=True, read=True)


def sync(directory: Path) -> None:
    """Return when all files below a local directory would survive a loss of power."""
    for parent, _, files in os.walk(directory):
        for name in [*files, "."]:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
