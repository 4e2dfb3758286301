"""LoRA (Hu et al. 2021): matrices stay as they are, and a product of two narrow ones is trained beside each.

    y = x W + s (x A) B,  s = alpha / rank,  A random, B = 0 at first

A target is a parameter of the role matrix. Its adapter's two factors are parameters under the target's own name,
`period.0.attention.query.a` and `.b`, declared as `Declaration.factors` says: stacked, sharded, decayed and
orthogonalised as matrices are. They are all that the optimizer and the run's checkpoints hold.

The base is everything else, targets included: no gradient of it is ever computed. It is kept in the compute dtype, in
which every product reads it anyway; the results are the same, bit for bit, as those of a base in float32.
"""

import difflib
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.config import LoRAConfig, MeshConfig, ModelConfig
from jaxllm.layers.param import Adapted, Declaration, Recipe, Tree, leaves, nest, tree_map
from jaxllm.models.decoder import Decoder, canonical_name, declarations, init
from jaxllm.roofline.memory import Adapters
from jaxllm.sharding import axes_of, make_rules
from jaxllm.train.state import Trained

ROLE = "matrix"
"""The role of what can be adapted: it is read by `linear.contract` alone."""


def adapters(config: LoRAConfig, decoder: Decoder) -> Trained:
    """The adapters of a model, as what is trained of it.

    Raises:
        ValueError: a target matches no matrix.
    """
    recipe, scale = decoder.recipe, config.alpha / config.rank
    chosen = targets(config, declarations(decoder))
    declared: dict[str, Declaration] = {}
    for name, leaf in chosen.items():
        declared[f"{name}.a"], declared[f"{name}.b"] = leaf.factors(config.rank)

    def begin(key: jax.Array) -> Tree:
        return init(decoder, key, nest(declared))

    def begin_base(key: jax.Array) -> Tree:
        return tree_map(lambda value: value.astype(recipe.compute), init(decoder, key))

    def attach(params: Tree, base: Tree) -> Tree:
        factors = dict(leaves(params))
        return nest(
            {
                name: Adapted(value, factors[f"{name}.a"], factors[f"{name}.b"], scale) if name in chosen else value
                for name, value in leaves(base)
            }
        )

    return Trained(declared=nest(declared), init=begin, init_base=begin_base, attach=attach)


def targets(config: LoRAConfig, declared: Tree) -> dict[str, Declaration]:
    """The parameters to adapt, by dotted name.

    Raises:
        ValueError: a target matches no matrix.
    """
    matrices = {name: leaf for name, leaf in leaves(declared) if leaf.role == ROLE}
    known = list(dict.fromkeys(map(target_name, matrices)))
    for target in config.targets:
        if target != ROLE and not fnmatch.filter(known, target):
            near = difflib.get_close_matches(target, known, n=3, cutoff=0.4) or known
            raise ValueError(
                f"tune.lora.targets = {list(config.targets)}: {target!r} matches no matrix of the blocks; "
                f'the nearest are {", ".join(near)}, and "matrix" means all'
            )
    found = {
        name: leaf
        for name, leaf in matrices.items()
        if any(target == ROLE or fnmatch.fnmatchcase(target_name(name), target) for target in config.targets)
    }
    if any("experts" in leaf.axes for leaf in found.values()):
        raise ValueError(
            f"tune.lora.targets = {list(config.targets)}: experts have no adapters; name other matrices, such as "
            '"attention.*"'
        )
    return found


def target_name(name: str) -> str:
    """A parameter's name as `tune.lora.targets` has it: `period.0.mlp.up` -> `mlp.up`."""
    return canonical_name(name).removeprefix("layers.")


def count(config: LoRAConfig, model: ModelConfig, mesh: MeshConfig, sizes: Mapping[str, int]) -> Adapters:
    """The adapters' values, in all and on one device of a mesh that need not be there.

    Args:
        config: of the adapters.
        model: with its vocabulary known.
        mesh: what is sharded over it.
        sizes: devices along each axis, none of them -1.

    Raises:
        ValueError: a target matches no matrix.
    """
    rules = make_rules(mesh, sizes)
    declared = [leaf for _, leaf in leaves(adapters(config, Decoder(model, Recipe(rules))).declared)]

    def held(table: Callable[[Sequence[str]], PartitionSpec]) -> int:
        return sum(leaf.size // math.prod(sizes[axis] for axis in axes_of(table(leaf.axes))) for leaf in declared)

    return Adapters(
        total=sum(leaf.size for leaf in declared),
        parameters=held(rules.storage),
        gradients=held(rules.gradient),
        optimizer=held(rules.optimizer),
    )


def merged(params: Tree, decoder: Decoder) -> Tree:
    """Parameters with every adapter folded in: W + s A B, summed in float32, in W's dtype and layout. Use under `jit`.

    Args:
        params: as `Trained.attach` gives them.
        decoder: whose declarations they stand for.
    """

    def fold(value: Any, leaf: Declaration) -> jax.Array:
        if not isinstance(value, Adapted):
            return value
        batch, last = tuple(range(leaf.stacked)), value.a.ndim - 1
        product = jax.lax.dot_general(
            value.a.astype(jnp.float32),
            value.b.astype(jnp.float32),
            (((last,), (leaf.stacked,)), (batch, batch)),
            out_sharding=decoder.recipe.rules.storage(leaf.axes),
        )
        return (value.base.astype(jnp.float32) + value.scale * product).astype(value.base.dtype)

    return tree_map(fold, params, declarations(decoder))
