"""Small trees of declared parameters, laid over meshes of simulated devices."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxllm import sharding
from jaxllm.config import AttentionConfig, MeshConfig, MLPConfig, ModelConfig
from jaxllm.layers.param import Declaration, Recipe, Tree, leaves, tree_map
from jaxllm.models.decoder import Decoder, declarations, nest
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


def make_mesh(**axes: int) -> tuple[Mesh, Rules]:
    """A mesh of just the axes named, and its rules."""
    config = MeshConfig(**{"fsdp": 1, **axes})
    mesh = sharding.make_mesh(config, jax.devices()[: int(np.prod(config.shape))])
    return mesh, sharding.make_rules(config, dict(mesh.shape))


def decoder_declarations(num_layers: int = 3) -> Tree:
    """Declarations of a small decoder whose heads, and wide and tall matrices, can be sharded."""
    attention, mlp = AttentionConfig(num_heads=8, num_kv_heads=4), MLPConfig(d_ff=48)
    config = ModelConfig(vocab_size=32, d_model=32, num_layers=num_layers, attention=attention, mlp=mlp)
    return declarations(Decoder(config, Recipe()))


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


def single(declared: Tree, name: str) -> Tree:
    """The tree with one parameter only."""
    return nest({name: dict(leaves(declared))[name]})
