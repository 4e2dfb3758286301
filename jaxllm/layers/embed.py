"""Token embedding and the head that reads it back.

With the vocabulary sharded, each device looks up the tokens of its own share and the results are summed; the head's
logits lie over the mesh by vocabulary.

The table's gradient is summed over tokens in float32, whatever the dtype of the rows: a frequent token is met thousands
of times in a batch, and a bfloat16 sum stops growing behind the first few hundred.

B batch, T sequence, D model, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.layers.linear import contract
from jaxllm.layers.param import Declaration, Layer, Recipe
from jaxllm.layers.soft_cap import soft_cap


class Embedding(Layer):
    """A row of the table a token; the table transposed is the head of a tied model."""

    def __init__(self, vocab_size: int, dim: int, std: float, recipe: Recipe) -> None:
        declaration = Declaration((vocab_size, dim), ("vocab", "embed"), "embedding", num_inputs=1, std=std)
        super().__init__(recipe, table=declaration)

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """int[B, T] -> [B, T, D] in the compute dtype, laid as the residual stream lies."""
        rules = self.recipe.rules
        with jax.named_scope("embed"):
            table_VD = self.use("table")
            table = jax.typeof(table_VD).sharding.spec
            residual = rules.activation("batch", "residual", None)
            vocab_axes = table.partitions[0]
            if not vocab_axes:
                return _look_up(table_VD, tokens_BT, residual)
            rows = rules.activation("batch", "sequence")
            vocab_axes = vocab_axes if isinstance(vocab_axes, tuple) else (vocab_axes,)
            scattered = rules.tensor if rules.sequence_parallel else frozenset()
            share = functools.partial(_look_up_share, axes=vocab_axes, scattered=tuple(scattered))
            return jax.shard_map(share, in_specs=(table, rows), out_specs=residual)(table_VD, tokens_BT)

    def weight(self) -> jax.Array:
        """The head's weight of a tied model: [D, V]."""
        return self.use("table").T


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _look_up(table_VD: jax.Array, tokens_BT: jax.Array, spec: PartitionSpec | None) -> jax.Array:
    """Rows of the table, laid as `spec` says; inside a `shard_map` there is none."""
    return table_VD.at[tokens_BT].get(out_sharding=spec)


def _forward(
    table_VD: jax.Array, tokens_BT: jax.Array, spec: PartitionSpec | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _look_up(table_VD, tokens_BT, spec), (table_VD, tokens_BT)


def _backward(
    spec: PartitionSpec | None, saved: tuple[jax.Array, jax.Array], dx_BTD: jax.Array
) -> tuple[jax.Array, None]:
    table_VD, tokens_BT = saved  # of the table only the type is read
    _, transpose = jax.vjp(lambda table: table.at[tokens_BT].get(out_sharding=spec), table_VD.astype(jnp.float32))
    (dtable_VD,) = transpose(dx_BTD.astype(jnp.float32))
    return dtable_VD.astype(table_VD.dtype), None


_look_up.defvjp(_forward, _backward)


def _look_up_share(
    table_VD: jax.Array, tokens_BT: jax.Array, axes: tuple[str, ...], scattered: tuple[str, ...]
) -> jax.Array:
    """Rows of this device's share of the vocabulary, zeros for other tokens, summed over the axes that share it.

    Over those of `scattered` each device keeps its part of the sequence only.
    """
    num = table_VD.shape[0]
    local_BT = tokens_BT - jax.lax.axis_index(axes) * num
    inside_BT = (local_BT >= 0) & (local_BT < num)
    rows_BTD = _look_up(table_VD, jnp.clip(local_BT, 0, num - 1), None)
    found_BTD = jnp.where(inside_BT[:, :, None], rows_BTD, jnp.zeros((), rows_BTD.dtype))
    if scattered:
        found_BTD = jax.lax.psum_scatter(found_BTD, scattered, scatter_dimension=1, tiled=True)
    summed = tuple(axis for axis in axes if axis not in scattered)
    return jax.lax.psum(found_BTD, summed) if summed else found_BTD


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
