"""Token embedding, the head that reads it back, and a table of learned positions.

With the vocabulary sharded, each device looks up the tokens of its own share and the results are summed; the head's
logits lie over the mesh by vocabulary.

The table's gradient is summed over tokens in float32, whatever the dtype of the rows: a frequent token is met thousands
of times in a batch, and a bfloat16 sum stops growing behind the first few hundred. It is large where nothing else is,
V D values whole on each device, so it exists once, and goes to its shares as it is. Where the table is the head's too,
tokens are added to the head's gradient, instead of both being made and then summed.

B batch, T sequence, D model, V vocabulary, P positions.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.layers.linear import contract
from jaxllm.layers.param import Declaration, Layer, Recipe, gather, scatter
from jaxllm.layers.soft_cap import soft_cap


class Embedding(Layer):
    """A row of the table a token; the table transposed is the head of a tied model."""

    def __init__(self, vocab_size: int, dim: int, std: float, recipe: Recipe) -> None:
        declaration = Declaration((vocab_size, dim), ("vocab", "embed"), "embedding", num_inputs=1, std=std)
        super().__init__(recipe, table=declaration)

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """int[B, T] -> [B, T, D] in the compute dtype, laid as the residual stream lies."""
        stored_VD, declaration = self.stored("table")
        with jax.named_scope("embed"):
            return _embed(stored_VD, tokens_BT, declaration, self.recipe)[0]

    def with_weight(self, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What a call and `weight` give, of a table that is read once and has one gradient from the start."""
        stored_VD, declaration = self.stored("table")
        with jax.named_scope("embed"):
            x_BTD, table_VD = _embed(stored_VD, tokens_BT, declaration, self.recipe)
            return x_BTD, table_VD.T

    def weight(self) -> jax.Array:
        """The head's weight of a tied model: [D, V]."""
        return self.use("table").T


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _embed(
    stored_VD: jax.Array, tokens_BT: jax.Array, declaration: Declaration, recipe: Recipe
) -> tuple[jax.Array, jax.Array]:
    """Rows of the table, and the table as it was gathered."""
    with jax.named_scope("gather_weight"):
        table_VD = gather(stored_VD, declaration, recipe)
    return _look_up(table_VD, tokens_BT, recipe), table_VD


def _forward(
    stored_VD: jax.Array, tokens_BT: jax.Array, declaration: Declaration, recipe: Recipe
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    return _embed(stored_VD, tokens_BT, declaration, recipe), (stored_VD, tokens_BT)


def _backward(
    declaration: Declaration,
    recipe: Recipe,
    saved: tuple[jax.Array, jax.Array],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, None]:
    """The whole table's gradient in float32, and nothing else as large: `Layer.use` would ask for a rounded copy."""
    stored_VD, tokens_BT = saved  # of the table only the type is read
    dx_BTD, dtable_VD = cotangents
    dtable_VD = _add_rows(dtable_VD.astype(jnp.float32), tokens_BT, dx_BTD, recipe)
    with jax.named_scope("gather_weight"):
        spec = jax.typeof(stored_VD).sharding.spec
        return scatter(dtable_VD, declaration, recipe, spec).astype(stored_VD.dtype), None


_embed.defvjp(_forward, _backward)


def _look_up(table_VD: jax.Array, tokens_BT: jax.Array, recipe: Recipe) -> jax.Array:
    """Rows of a gathered table, in the compute dtype, laid as the residual stream lies."""
    rules, table = recipe.rules, jax.typeof(table_VD).sharding.spec
    residual, vocab_axes = rules.activation("batch", "residual", None), table.partitions[0]
    if not vocab_axes:
        return table_VD.at[tokens_BT].get(out_sharding=residual).astype(recipe.compute)
    rows = rules.activation("batch", "sequence")
    vocab_axes = vocab_axes if isinstance(vocab_axes, tuple) else (vocab_axes,)
    scattered = rules.tensor if rules.sequence_parallel else frozenset()
    share = functools.partial(_look_up_share, axes=vocab_axes, scattered=tuple(scattered), dtype=recipe.compute)
    return jax.shard_map(share, in_specs=(table, rows), out_specs=residual)(table_VD, tokens_BT)


def _look_up_share(
    table_VD: jax.Array, tokens_BT: jax.Array, axes: tuple[str, ...], scattered: tuple[str, ...], dtype: str
) -> jax.Array:
    """Rows of this device's share of the vocabulary, zeros for other tokens, summed over the axes that share it.

    Over those of `scattered` each device keeps its part of the sequence only.
    """
    num = table_VD.shape[0]
    local_BT = tokens_BT - jax.lax.axis_index(axes) * num
    inside_BT = (local_BT >= 0) & (local_BT < num)
    rows_BTD = table_VD[jnp.clip(local_BT, 0, num - 1)].astype(dtype)
    found_BTD = jnp.where(inside_BT[:, :, None], rows_BTD, jnp.zeros((), dtype))
    if scattered:
        found_BTD = jax.lax.psum_scatter(found_BTD, scattered, scatter_dimension=1, tiled=True)
    summed = tuple(axis for axis in axes if axis not in scattered)
    return jax.lax.psum(found_BTD, summed) if summed else found_BTD


def _add_rows(table_VD: jax.Array, tokens_BT: jax.Array, dx_BTD: jax.Array, recipe: Recipe) -> jax.Array:
    """The transpose of `_look_up`: dx added to rows of a table's gradient, of which each device has partial sums."""
    table, residual = jax.typeof(table_VD).sharding.spec, jax.typeof(dx_BTD).sharding.spec
    rules, vocab_axes = recipe.rules, table.partitions[0] or ()
    vocab_axes = vocab_axes if isinstance(vocab_axes, tuple) else (vocab_axes,)
    rows = rules.activation("batch", "sequence") if vocab_axes else PartitionSpec(*residual.partitions[:2])
    scattered = rules.tensor if vocab_axes and rules.sequence_parallel else frozenset()
    share = functools.partial(_add_rows_share, axes=vocab_axes, scattered=tuple(scattered))
    # partial sums are added to partial sums, device by device: the types of a checked shard_map have no word for that
    on_device = jax.shard_map(share, in_specs=(table, rows, residual), out_specs=table, check_vma=False)
    return on_device(table_VD, jax.reshard(tokens_BT, rows), dx_BTD)


def _add_rows_share(
    table_VD: jax.Array, tokens_BT: jax.Array, dx_BTD: jax.Array, axes: tuple[str, ...], scattered: tuple[str, ...]
) -> jax.Array:
    """As `_add_rows`, to this device's share of the vocabulary."""
    if scattered:
        dx_BTD = jax.lax.all_gather(dx_BTD, scattered, axis=1, tiled=True)
    # numbers below 0 would count from the end; those behind it are dropped
    num = table_VD.shape[0]
    local_BT = tokens_BT - (jax.lax.axis_index(axes) * num if axes else 0)
    local_BT = jnp.where(local_BT < 0, num, local_BT)
    return table_VD.at[local_BT].add(dx_BTD.astype(table_VD.dtype), mode="drop")


class Positions(Layer):
    """A row of the table a position (Radford et al. 2019, GPT-2)."""

    def __init__(self, num: int, dim: int, std: float, recipe: Recipe) -> None:
        super().__init__(recipe, table=Declaration((num, dim), ("positions", "embed"), "embedding", std=std))

    def __call__(self, positions_BT: jax.Array) -> jax.Array:
        """int[B, T] -> [B, T, D] in the compute dtype, laid as the residual stream lies."""
        stored_PD, declaration = self.stored("table")
        with jax.named_scope("positions"):
            rows_BT = jax.reshard(positions_BT, self.recipe.rules.activation("batch", "residual"))
            return _embed(stored_PD, rows_BT, declaration, self.recipe)[0]


class Head(Layer):
    """The weight of an untied model's logits."""

    def __init__(self, vocab_size: int, dim: int, std: float, recipe: Recipe) -> None:
        super().__init__(recipe, kernel=Declaration((dim, vocab_size), ("embed", "vocab"), "head", std=std))

    def weight(self) -> jax.Array:
        """[D, V] in the compute dtype."""
        return self.use("kernel")


def logits(x_BTD: jax.Array, weight_DV: jax.Array, recipe: Recipe, cap: float = 0.0) -> jax.Array:
    """float32[B, T, V] of a whole sequence: for evaluation and sampling; training reads the head in chunks.

    Args:
        x_BTD: last hidden states.
        weight_DV: the head's weight.
        recipe: rules and dtypes.
        cap: soft cap of the logits; 0 means none.
    """
    with jax.named_scope("logits"):
        return soft_cap(contract(x_BTD, weight_DV, ("vocab",), recipe).astype(jnp.float32), cap)
