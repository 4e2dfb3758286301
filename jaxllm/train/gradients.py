"""The seam of the step: from parameters and a global batch to the gradient of an objective.

`accumulate` runs micro-batches one after the other; a pipeline goes beside it. Each divides every token's weight by the
global number of valid tokens before anything is summed, so micro-batches and devices of unequal numbers simply add up.

Gradients of micro-batches are partial sums over the mesh axes of the batch (`param.use`): a reduce-scatter a weight and
micro-batch over fsdp, and one all-reduce a step over data.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.layers.param import Declaration, Recipe, Tree, prepare, tree_map
from jaxllm.sharding import axes_of
from jaxllm.train.objectives import Batch, Rows

Objective = Callable[[Tree, Batch], tuple[jax.Array, Rows]]
"""(parameters, micro-batch) -> (what is differentiated, its parts per sample); linear in the batch's weights."""


def accumulate(
    objective: Objective,
    params: Tree,
    batch: Batch,
    loss_scale: jax.Array,
    num_micro: int,
    declared: Tree,
    recipe: Recipe,
) -> tuple[Tree, Rows, jax.Array]:
    """Gradients of the mean loss over the batch's valid tokens, times the loss scale.

    Args:
        objective: see `Objective`.
        params: laid as the storage table says.
        batch: [B, T] arrays.
        loss_scale: float32 scalar that multiplies every weight.
        num_micro: micro-batches; divides B.
        declared: declarations of the parameters.
        recipe: rules and dtypes.

    Returns:
        Gradients laid as the optimizer table says; what each sample adds to the mean loss (without the scale), in the
        batch's order; and the number of valid tokens.
    """
    num_tokens = jnp.sum(batch["weights"])
    factor = loss_scale / jnp.maximum(num_tokens, 1.0)
    batch = batch | {"weights": batch["weights"] * factor}
    prepared = tree_map(lambda value, leaf: prepare(value, leaf, recipe), params, declared)

    def gradient(micro: Batch) -> tuple[Tree, Rows]:
        grads, rows = jax.grad(objective, has_aux=True)(prepared, micro)
        return tree_map(lambda value, leaf: _lay(value, leaf, recipe), grads, declared), rows

    if num_micro == 1:
        grads, rows = gradient(batch)
    else:
        micros = jax.tree.map(lambda x: _split_rows(x, num_micro), batch)

        def add(total: Tree, micro: Batch) -> tuple[Tree, Rows]:
            grads, rows = gradient(micro)
            return jax.tree.map(jnp.add, total, grads), rows

        zeros = tree_map(
            lambda leaf: jnp.zeros(leaf.shape, recipe.reduction, out_sharding=_spec(leaf, recipe)), declared
        )
        with jax.named_scope("micro_batches"):
            grads, rows = jax.lax.scan(add, zeros, micros)
        rows = jax.tree.map(_join_rows, rows)
    with jax.named_scope("reduce_gradients"):
        grads = tree_map(
            lambda value, leaf: jax.reshard(value, recipe.rules.optimizer(leaf.axes)).astype(jnp.float32),
            grads,
            declared,
        )
    return grads, jax.tree.map(lambda x: x / loss_scale, rows), num_tokens


def _spec(leaf: Declaration, recipe: Recipe) -> PartitionSpec:
    """How a gradient lies while micro-batches add to it: what is not yet summed stays unreduced."""
    spec = recipe.rules.gradient(leaf.axes)
    return PartitionSpec(*spec.partitions, unreduced=recipe.rules.partial(leaf.axes) - axes_of(spec))


def _lay(value: jax.Array, leaf: Declaration, recipe: Recipe) -> jax.Array:
    return jax.reshard(value.astype(recipe.reduction), _spec(leaf, recipe))


def _split_rows(x: jax.Array, num: int) -> jax.Array:
    """[B, T] -> [num, B / num, T], each micro-batch with rows of every device, so that nothing moves."""
    return x.reshape(-1, num, *x.shape[1:]).swapaxes(0, 1)


def _join_rows(x: jax.Array) -> jax.Array:
    """[num, B / num] -> [B]: what `_split_rows` did, undone."""
    return x.swapaxes(0, 1).reshape(-1)
