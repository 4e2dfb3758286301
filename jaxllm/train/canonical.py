"""A state under canonical names: layers numbered one by one, whatever the scan, the pipeline or the mesh.

    params.period.0.mlp.up            [4, D, F], in memory: the layers of one slot of the period, stacked
    params.layers.{0..3}.mlp.up       [D, F] each, under their canonical names

The same holds for the optimizer's moments. Cutting goes one stacked array at a time into host memory, so that the
devices never hold more than the state and one of its arrays.
"""

import functools
import re
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.config import ModelConfig
from jaxllm.models.decoder import layer_numbers
from jaxllm.train.digests import digest, text

_STACKED = re.compile(r"^(?P<head>.*?)(?P<stack>(?:prefix|period|remainder)\.\d+)\.(?P<rest>.+)$")


def named(tree: Any) -> list[tuple[str, Any]]:
    """Dotted names and leaves of a state, or of a part of one, in the order of its leaves."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def layer_names(model: ModelConfig, name: str) -> list[str]:
    """Canonical names of the layers stacked in the leaf of a dotted name; empty for a leaf that is not stacked."""
    match = _STACKED.match(name)
    if not match:
        return []
    layers = layer_numbers(model, f"{match['stack']}.{match['rest']}")
    return [f"{match['head']}layers.{layer}.{match['rest']}" for layer in layers]


def digests(model: ModelConfig, leaves: list[tuple[str, jax.Array]]) -> dict[str, str]:
    """Digests by canonical name, of arrays by dotted name."""
    # one small program for each kind of leaf: moments and parameters share theirs
    found = {name: (_layer_digests if layer_names(model, name) else _digest)(leaf) for name, leaf in leaves}
    flat: dict[str, str] = {}
    for name, value in jax.device_get(found).items():
        layers = layer_names(model, name)
        flat |= {layer: text(one) for layer, one in zip(layers, value, strict=True)} if layers else {name: text(value)}
    return flat


_digest = jax.jit(digest)
_layer_digests = jax.jit(jax.vmap(digest))


def cut(model: ModelConfig, tree: Any) -> dict[str, jax.Array]:
    """A copy of a state in host memory, by canonical name, complete on return.

    Every value lies once in the memory of all hosts together, but for what is too small to be split: leaves that are
    replicated over mesh axes are split over them.
    """
    flat: dict[str, jax.Array] = {}
    for name, leaf in named(tree):
        layers = layer_names(model, name)
        parts = _cutter(leaf.sharding, leaf.shape, bool(layers))(leaf)
        jax.block_until_ready(parts)  # one leaf after the other: the devices hold one cut leaf at a time
        flat |= zip(layers or [name], parts, strict=True)
    return flat


@functools.cache
def _cutter(sharding: NamedSharding, shape: tuple[int, ...], stacked: bool) -> Any:
    """A function from a leaf to the list of its layers in host memory."""
    spec = _spread(sharding, shape[1:] if stacked else shape, sharding.spec.partitions[stacked:])
    split = NamedSharding(sharding.mesh, spec)
    whole = NamedSharding(sharding.mesh, PartitionSpec(*[None] * stacked, *spec.partitions))

    def take(x: jax.Array) -> list[jax.Array]:
        x = jax.reshard(x, whole)  # first of all, so that no layer is cut out of a stage's share
        return [x[i] for i in range(shape[0])] if stacked else [x]

    return jax.jit(take, out_shardings=split.with_memory_kind("pinned_host"))


def _spread(sharding: NamedSharding, shape: tuple[int, ...], partitions: tuple[Any, ...]) -> PartitionSpec:
    """A spec that also splits an array over the mesh axes that it is replicated over, where they divide a dim."""
    sizes = dict(sharding.mesh.shape)
    dims = [() if one is None else one if isinstance(one, tuple) else (one,) for one in partitions]
    dims += [()] * (len(shape) - len(dims))
    used = {axis for axes in dims for axis in axes}
    for axis in sizes:
        for dim, axes in enumerate(dims):
            num = sizes[axis]
            for other in axes:
                num *= sizes[other]
            if axis not in used and sizes[axis] > 1 and shape[dim] % num == 0:
                dims[dim] = (*axes, axis)
                break
    return PartitionSpec(*(axes or None for axes in dims))
