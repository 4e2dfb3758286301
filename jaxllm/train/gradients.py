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
from jaxllm.models.stages import split, unite
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
    batch, num_tokens = weigh(batch, loss_scale)
    prepared = tree_map(lambda value, leaf: prepare(value, leaf, recipe), params, declared)

    def gradient(micro: Batch) -> tuple[Tree, Rows]:
        grads, rows = jax.grad(objective, has_aux=True)(prepared, micro)
        return lay(grads, declared, recipe), rows

    if num_micro == 1:
        grads, rows = gradient(batch)
    else:
        micros = jax.tree.map(lambda x: split(x, num_micro), batch)

        def add(total: Tree, micro: Batch) -> tuple[Tree, Rows]:
            grads, rows = gradient(micro)
            return jax.tree.map(jnp.add, total, grads), rows

        with jax.named_scope("micro_batches"):
            grads, rows = jax.lax.scan(add, zeros(declared, recipe), micros)
        rows = jax.tree.map(unite, rows)
    grads = reduce(grads, declared, recipe)
    return grads, rows.over(loss_scale), num_tokens


def weigh(batch: Batch, loss_scale: jax.Array) -> tuple[Batch, jax.Array]:
    """The batch with weights of its share of the mean loss times the loss scale; the number of valid tokens."""
    num_tokens = jnp.sum(batch["weights"])
    factor = loss_scale / jnp.maximum(num_tokens, 1.0)
    return batch | {"weights": batch["weights"] * factor}, num_tokens


def zeros(declared: Tree, recipe: Recipe) -> Tree:
    """What micro-batches' gradients are added to."""
    return tree_map(
        lambda leaf: jnp.zeros(leaf.shape, recipe.reduction, out_sharding=accumulator(leaf, recipe)), declared
    )


def lay(grads: Tree, declared: Tree, recipe: Recipe) -> Tree:
    """A micro-batch's gradients, ready to be added."""
    return tree_map(
        lambda value, leaf: jax.reshard(value.astype(recipe.reduction), accumulator(leaf, recipe)), grads, declared
    )


def reduce(grads: Tree, declared: Tree, recipe: Recipe) -> Tree:
    """The gradients of all micro-batches, summed over the devices and laid as the optimizer table says, in float32."""
    with jax.named_scope("reduce_gradients"):
        return tree_map(
            lambda value, leaf: jax.reshard(value, recipe.rules.optimizer(leaf.axes)).astype(jnp.float32),
            grads,
            declared,
        )


def accumulator(leaf: Declaration, recipe: Recipe) -> PartitionSpec:
    """How a gradient lies while micro-batches add to it: what is not yet summed stays unreduced."""
    spec = recipe.rules.gradient(leaf.axes)
    return PartitionSpec(*spec.partitions, unreduced=recipe.rules.partial(leaf.axes) - axes_of(spec))
