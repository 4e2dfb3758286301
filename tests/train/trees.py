"""Small trees of declared parameters, laid over meshes of simulated devices."""

import math

import jax
import msgspec
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxllm import sharding
from jaxllm.config import MeshConfig
from jaxllm.layers.param import Declaration, Tree, leaves, tree_map
from jaxllm.sharding import Rules

ALL_ROLES: Tree = {
    "embedding": {"table": Declaration((16, 8), ("vocab", "embed"), "embedding")},
    "period": {
        "0": {
            "bias": Declaration((12,), ("mlp",), "bias", num_inputs=0).stack(3),
            "down": Declaration((12, 8), ("mlp", "embed"), "matrix").stack(3),
            "router": Declaration((8, 4), ("embed", "norm"), "router").stack(3),
            "scale": Declaration((8,), ("norm",), "norm", num_inputs=0).stack(3),
        }
    },
    "norm": {"scale": Declaration((8,), ("norm",), "norm", num_inputs=0)},
    "head": {"kernel": Declaration((8, 16), ("embed", "vocab"), "head")},
}
"""One parameter of each role; norms, biases and a router are stacked, so that ranks tell nothing."""

MESHES = [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "expert": 2, "tensor": 2}]
"""Eight devices: moments repeated over some, and over none."""


def make_mesh(**axes: int) -> tuple[Mesh, Rules]:
    """A mesh of just the axes named, and its rules."""
    config = msgspec.convert({"fsdp": 1, **axes}, MeshConfig)
    mesh = sharding.make_mesh(config, jax.devices()[: math.prod(config.shape)])
    return mesh, sharding.make_rules(config, dict(mesh.shape))


def random_tree(declared: Tree, seed: int, scale: float = 1.0) -> Tree:
    """Normal float32 numpy arrays in the declarations' places."""
    rng = np.random.default_rng(seed)
    return tree_map(lambda leaf: np.float32(scale * rng.standard_normal(leaf.shape)), declared)


def lay(tree: Tree, declared: Tree, mesh: Mesh, rules: Rules, dtype: str = "float32") -> Tree:
    """The tree on a mesh, laid as the optimizer table says."""
    return tree_map(
        lambda value, leaf: jax.device_put(value.astype(dtype), NamedSharding(mesh, rules.optimizer(leaf.axes))),
        tree,
        declared,
    )


def flat(tree: Tree) -> dict[str, np.ndarray]:
    """Dotted names and values as numpy arrays."""
    return {name: np.asarray(value) for name, value in leaves(tree)}


def names_of(tree: Tree) -> set[str]:
    """Dotted names of the leaves."""
    return {name for name, _ in leaves(tree)}


def scaled(tree: Tree, factor: float) -> Tree:
    """Every value times a factor."""
    return tree_map(lambda value: np.float32(factor) * value, tree)


def norm_of(tree: Tree) -> float:
    """Euclidean norm of all values together, in float64."""
    return math.sqrt(sum(np.sum(np.float64(value) ** 2) for value in flat(tree).values()))
