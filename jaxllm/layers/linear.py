"""The one contraction: every matrix product of a model's weights goes through `contract`.

Here are decided the dtype of the product, how its output lies over the mesh, and the form the platform runs fastest.

**Tensor parallelism** (Shoeybi et al. 2019). `enter` brings the residual stream whole to products whose weights lie
over tensor by their outputs; `leave` sums what products whose weights lie over tensor by their inputs left partial.
With sequence parallelism (Korthikanti et al. 2022) these are an all-gather and a reduce-scatter of the sequence, else
nothing and an all-reduce; the types `reduced` and `unreduced` make the backward pass the mirror image, one collective
for all products that share an input.

**Adapters** (LoRA, Hu et al. 2021, section 4.1). Beside an adapted matrix the input goes through two narrow ones,

    y = x W + s (x A) B

W a constant. Each factor lies over tensor where the matrix's dims do. x A is made whole on every device of tensor: it
is narrow, so that costs little, and the factors' gradients then need no sum over tensor.

**On a CPU** matrix units take bf16 products only where the left operand is contracted over its last, physically
contiguous dim. The gradient of a weight, x^T dy, is not of that form; there x^T is made physical first.
"""

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from jaxllm.layers.param import Adapted, Recipe
from jaxllm.sharding import platform

PRODUCT = "product"
"""Name of products' results, for rematerialisation; partial sums have none, they are summed first."""


def enter(x_BTD: jax.Array, recipe: Recipe) -> jax.Array:
    """The residual stream as column-parallel products read it: the whole sequence on every device of tensor."""
    spec = recipe.rules.activation("batch", "sequence", None)
    return jax.reshard(x_BTD, PartitionSpec(*spec.partitions, reduced=recipe.rules.tensor))


def leave(x_BTD: jax.Array, recipe: Recipe) -> jax.Array:
    """A row-parallel product's partial sums, summed and laid as the residual stream lies."""
    return checkpoint_name(jax.reshard(x_BTD, recipe.rules.activation("batch", "residual", None)), PRODUCT)


def contract(
    x: jax.Array, w: jax.Array | Adapted, outputs: tuple[str | None, ...], recipe: Recipe, num_inputs: int = 1
) -> jax.Array:
    """x[B, T, inputs...] times w[inputs..., outputs...] -> [B, T, outputs...] in x's dtype.

    Args:
        x: activations.
        w: a weight, as `Layer.matrix` gives it.
        outputs: logical axes of the weight's output dims.
        recipe: rules and dtypes.
        num_inputs: dims contracted.

    A product that contracts over a sharded dim returns its partial sums typed `unreduced`: pass them to `leave`.
    """
    if isinstance(w, Adapted):
        return _contract_adapted(x, w, outputs, recipe, num_inputs)
    rules = recipe.rules
    contracted = jax.typeof(w).sharding.spec.partitions[:num_inputs]
    partial = rules.tensor if any(entry is not None for entry in contracted) else frozenset()
    spec = PartitionSpec(*rules.activation("batch", "sequence", *outputs).partitions, unreduced=partial)
    if _on_one_cpu(x, recipe):
        batch, inner = x.shape[: x.ndim - num_inputs], math.prod(w.shape[:num_inputs])
        y = _matmul(x.reshape(-1, inner), w.reshape(inner, -1)).reshape(*batch, *w.shape[num_inputs:])
    else:
        first = x.ndim - num_inputs
        dims = ((tuple(range(first, x.ndim)), tuple(range(num_inputs))), ((), ()))
        y = jax.lax.dot_general(x, w, dims, out_sharding=spec)
    return y if partial else checkpoint_name(y, PRODUCT)


def _contract_adapted(
    x: jax.Array, w: Adapted, outputs: tuple[str | None, ...], recipe: Recipe, num_inputs: int
) -> jax.Array:
    """x W + s (x A) B, partial sums where x W has them."""
    y = contract(x, w.base, outputs, recipe, num_inputs)
    with jax.named_scope("adapter"):
        # Typed as the same on all devices of tensor: types `reduced` and `unreduced` speak of the product with W.
        narrow = contract(plain(x), w.a, (None,), recipe, num_inputs)
        narrow = w.scale * jax.reshard(narrow, recipe.rules.activation("batch", "sequence", None))
        added = contract(narrow, w.b, outputs, recipe)
        return y + jax.reshard(added, jax.typeof(y).sharding.spec)


def plain(x: jax.Array) -> jax.Array:
    """An activation without its type's note on how its gradient is summed: that gradient comes summed."""
    return jax.reshard(x, PartitionSpec(*jax.typeof(x).sharding.spec.partitions))


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y[B, T, outputs...] + bias[outputs...] in y's dtype; of a partial sum, behind `leave`.

    Its gradient is written out, as partial sums over the tokens of each device (see `norm`).
    """
    plain = jax.reshard(bias, PartitionSpec(*jax.typeof(bias).sharding.spec.partitions))
    return y + jnp.expand_dims(plain.astype(y.dtype), (0, 1))


def _add_bias_forward(y: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return add_bias(y, bias), bias


def _add_bias_backward(bias: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return dy, sum_over_tokens(dy, bias)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def sum_over_tokens(dy: jax.Array, bias: jax.Array) -> jax.Array:
    """A bias's gradient: dy[B, T, ...] summed over tokens in float32, partial sums as the bias's type asks for."""
    spec = jax.typeof(bias).sharding.spec
    laid = PartitionSpec(*spec.partitions, unreduced=spec.reduced)
    return jax.lax.reduce_sum(pinned(dy).astype(jnp.float32), axes=(0, 1), out_sharding=laid).astype(bias.dtype)


def pinned(dy: jax.Array) -> jax.Array:
    """A gradient laid as its type says.

    One that comes straight out of a loop's carry need not be: the partitioner may lay it otherwise, and partial sums
    over it are then counted more than once (seen with jax 0.12, over context and tensor together).
    """
    return jax.reshard(dy, jax.typeof(dy).sharding.spec)


def weight_gradient(x_BTD: jax.Array, dy_BTF: jax.Array, spec: PartitionSpec, recipe: Recipe) -> jax.Array:
    """float32[D, F], x^T dy summed over the tokens of a device, for gradients that are written out.

    Args:
        x_BTD: what was contracted.
        dy_BTF: the gradient of the product.
        spec: how the result lies; the mesh axes of the batch are in its `unreduced`.
        recipe: rules and dtypes.
    """
    if _on_one_cpu(x_BTD, recipe):
        x_ND, dy_NF = x_BTD.reshape(-1, x_BTD.shape[-1]), dy_BTF.reshape(-1, dy_BTF.shape[-1])
        return _dot(physical_transpose(x_ND), dy_NF, 0)
    dims = (((0, 1), (0, 1)), ((), ()))
    return jax.lax.dot_general(x_BTD, dy_BTF, dims, preferred_element_type=jnp.float32, out_sharding=spec)


def _on_one_cpu(x: jax.Array, recipe: Recipe) -> bool:
    return platform() == "cpu" and not recipe.rules.live and x.dtype == jnp.bfloat16


@jax.custom_vjp
def _matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    return _dot(x, w, 0).astype(x.dtype)


def _matmul_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _matmul(x, w), (x, w)


def _matmul_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    return _dot(dy, w, 1).astype(x.dtype), _dot(physical_transpose(x), dy, 0).astype(w.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _dot(x: jax.Array, w: jax.Array, dim: int) -> jax.Array:
    """Contract x's last dim with w's given dim; float32 out of bf16 is what the units give."""
    return jax.lax.dot_general(x, w, (((1,), (dim,)), ((), ())), preferred_element_type=jnp.float32)


def physical_transpose(x: jax.Array) -> jax.Array:
    """x with its last two dims swapped in memory too; a plain transpose would be folded into the product."""
    turned = jax.lax.optimization_barrier(x).swapaxes(-1, -2)
    laid = with_layout_constraint(turned, Layout(major_to_minor=tuple(range(x.ndim))))
    return jax.lax.optimization_barrier(laid)
