"""Parameters: declared once, read in one way.

A module holds `nnx.Param`s of `Declaration`s. Initialisation, sharding, weight decay, Muon and name tables read the
declaration; a step replaces it by an array of the same place in the tree.

**Reading.** `use` casts a weight to the compute dtype and then gathers it to the compute table's spec. What it returns
is typed `reduced` over the mesh axes of the batch, so its gradient is typed `unreduced`: the backward pass sums it over
fsdp by a reduce-scatter, in the reduction dtype, and leaves the sum over data to the end of the step, one all-reduce
for all micro-batches together.

**Adapters** (LoRA, Hu et al. 2021). A matrix's place may hold an `Adapted` one: the matrix W and the two factors of
what is added to it, s A B. Only `linear.contract` reads it, so no layer knows of adapters. The factors are declared by
`Declaration.factors`: A has the matrix's input dims, B its output dims, and each lies over the mesh as they do.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from jaxllm.sharding import Rules, axes_of, platform

GATHERED = "gathered_weight"
"""Name of weights as products read them, for rematerialisation."""

Role = Literal["matrix", "embedding", "head", "norm", "bias", "router", "balance"]


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a parameter is.

    Attributes:
        shape: sizes of its dims.
        axes: logical axis of each dim.
        role: what it does; decides weight decay and Muon, never its rank. `balance` is moved by no gradient.
        num_inputs: leading dims, behind the stacked ones, that are contracted with the layer's input; the others are
            outputs.
        std: standard deviation of the initial values (normal, cut at three); 0 with `fill` for constants.
        fill: initial value where std is 0.
        stacked: leading dims that count layers, or experts of a layer: what follows is one matrix.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    role: Role
    num_inputs: int = 1
    std: float = 0.0
    fill: float = 0.0
    stacked: int = 0

    def __post_init__(self) -> None:
        assert len(self.shape) == len(self.axes), self

    def stack(self, num: int) -> "Declaration":
        """The same parameter of `num` layers in one array."""
        return dataclasses.replace(
            self, shape=(num, *self.shape), axes=("layers", *self.axes), stacked=self.stacked + 1
        )

    def factors(self, rank: int) -> "tuple[Declaration, Declaration]":
        """A[inputs..., rank] and B[rank, outputs...] of a matrix's adapter, stacked as the matrix is.

        A begins with the variance of the paper's code, 1 / (3 inputs), B with zeros: at first nothing is added.
        """
        stacked, behind = self.stacked, self.stacked + self.num_inputs
        inputs = math.prod(self.shape[stacked:behind])
        a = dataclasses.replace(
            self,
            shape=(*self.shape[:behind], rank),
            axes=(*self.axes[:behind], "rank"),
            std=(3 * inputs) ** -0.5,
        )
        b = dataclasses.replace(
            self,
            shape=(*self.shape[:stacked], rank, *self.shape[behind:]),
            axes=(*self.axes[:stacked], "rank", *self.axes[behind:]),
            num_inputs=1,
            std=0.0,
        )
        return a, b

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A matrix with a low-rank adapter beside it: W + scale A B, kept apart.

    Attributes:
        base: W, in its declaration's shape; a constant.
        a: A, in the shape of the first of `Declaration.factors`.
        b: B, in the shape of the second.
        scale: what the product of the factors is multiplied by.
    """

    base: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float


jax.tree_util.register_dataclass(Adapted, data_fields=["base", "a", "b"], meta_fields=["scale"])


Tree = dict[str, Any]
"""A nested dict with string keys; leaves are Declarations, arrays, shapes or specs."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How layers are computed: what they need to know of the mesh and of dtypes.

    Attributes:
        rules: logical axes -> mesh axes.
        parameters: dtype of the master weights.
        compute: dtype of matrix products and of what flows between blocks.
        reduction: dtype in which gradients are summed.
    """

    rules: Rules = dataclasses.field(default_factory=Rules)
    parameters: str = "float32"
    compute: str = "float32"
    reduction: str = "float32"


class Layer(nnx.Module):
    """A module made of declared parameters."""

    def __init__(self, recipe: Recipe, **declarations: Declaration) -> None:
        self.recipe = recipe
        self.declared = tuple(declarations.items())
        for name, declaration in declarations.items():
            setattr(self, name, nnx.Param(declaration))

    def stored(self, name: str) -> tuple[Any, Declaration]:
        """The parameter as it lies between steps, and its declaration."""
        return getattr(self, name).get_value(), dict(self.declared)[name]

    def use(self, name: str) -> jax.Array:
        """The parameter as a matrix product reads it: in the compute dtype, gathered to the compute table's spec."""
        value = self.matrix(name)
        assert not isinstance(value, Adapted), f"{name} is adapted, and read by what knows no adapters"
        return value

    def matrix(self, name: str) -> jax.Array | Adapted:
        """The parameter as `linear.contract` reads it: like `use`, with the adapter that it may have."""
        value, declaration = self.stored(name)
        if not isinstance(value, Adapted):
            return use(value, declaration, self.recipe)
        a, b = declaration.factors(value.a.shape[-1])
        return dataclasses.replace(
            value,
            base=use(value.base, declaration, self.recipe),
            a=use(value.a, a, self.recipe),
            b=use(value.b, b, self.recipe),
        )


def use(value: jax.Array, declaration: Declaration, recipe: Recipe) -> jax.Array:
    """Cast and gather a weight of one layer (see the module's docstring for its gradient)."""
    stored = jax.typeof(value).sharding.spec

    @jax.custom_vjp
    def read(value: jax.Array) -> jax.Array:
        return gather(value, declaration, recipe)

    def forward(value: jax.Array) -> tuple[jax.Array, None]:
        return read(value), None

    def backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
        return (scatter(cotangent, declaration, recipe, stored).astype(value.dtype),)

    read.defvjp(forward, backward)
    with jax.named_scope("gather_weight"):
        return checkpoint_name(read(value), GATHERED)


def gather(value: jax.Array, declaration: Declaration, recipe: Recipe) -> jax.Array:
    """A weight as products read it: in the compute dtype, laid as the compute table says."""
    rules = recipe.rules
    spec = PartitionSpec(*rules.compute(declaration.axes).partitions, reduced=rules.partial(declaration.axes))
    return jax.reshard(value.astype(recipe.compute), spec)


def scatter(gradient: jax.Array, declaration: Declaration, recipe: Recipe, stored: PartitionSpec) -> jax.Array:
    """The gradient of a gathered weight, in the reduction dtype, summed over the axes that the stored weight lies over.

    Args:
        gradient: partial sums, as the backward pass of a product makes them.
        declaration: of the weight.
        recipe: rules and dtypes.
        stored: how the weight lies before it is gathered.
    """
    partial = recipe.rules.partial(declaration.axes)
    laid = PartitionSpec(*stored.partitions, unreduced=partial - axes_of(stored))
    wide = gradient.astype(recipe.reduction)
    if declaration.role == "head" and partial & axes_of(stored):
        # Vocabulary first, as the embedding has it: of [D, V] sharded by rows the TPU compiler makes a full
        # all-reduce and a slice where V / 128 has a large prime factor, 167 in Llama 3 and 1187 in Qwen 2. What
        # counts there is the order in memory; elsewhere that would only cost a copy.
        turned = PartitionSpec(*laid.partitions[::-1], unreduced=laid.unreduced)
        wide_VD = wide.T
        if platform() == "tpu":
            wide_VD = with_layout_constraint(wide_VD, Layout(major_to_minor=(0, 1)))
        return jax.reshard(wide_VD, turned).T
    return jax.reshard(wide, laid)


def prepare(value: jax.Array, declaration: Declaration, recipe: Recipe) -> jax.Array:
    """Type a stored parameter so that its gradients stay partial sums until `rules.gradient` says otherwise."""
    spec = recipe.rules.storage(declaration.axes)
    reduced = recipe.rules.partial(declaration.axes) - axes_of(spec)
    return jax.reshard(value, PartitionSpec(*spec.partitions, reduced=reduced))


def leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and leaves of a nested dict, in its order."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, name + ".")
        else:
            yield name, value


def nest(flat: dict[str, Any]) -> Tree:
    """Dotted names -> nested dict."""
    tree: Tree = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def tree_map(function: Any, tree: Tree, *rest: Tree) -> Tree:
    """Map over nested dicts; leaves are whatever is not a dict. `function` takes one leaf of each tree."""
    return {
        key: tree_map(function, value, *(other[key] for other in rest))
        if isinstance(value, dict)
        else function(value, *(other[key] for other in rest))
        for key, value in tree.items()
    }


def initialise(declaration: Declaration, key: jax.Array, name: str, layers: tuple[int, ...], dtype: str) -> jax.Array:
    """Initial values of one parameter.

    A layer's values depend on the key, its canonical name and its number only, not on how layers are stacked.

    Args:
        declaration: what to make.
        key: the run's key.
        name: canonical name, without the layer's number.
        layers: number of each stacked layer; empty for a parameter outside the blocks.
        dtype: of the result; values are drawn in float32.
    """
    if declaration.std == 0:
        return jnp.full(declaration.shape, declaration.fill, dtype)
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    shape = declaration.shape[1:] if layers else declaration.shape

    def draw(key: jax.Array) -> jax.Array:
        return (declaration.std * jax.random.truncated_normal(key, -3.0, 3.0, shape)).astype(dtype)

    if not layers:
        return draw(key)
    numbers = jnp.asarray(layers, jnp.uint32)
    return jax.vmap(lambda layer: draw(jax.random.fold_in(key, layer)))(numbers)
