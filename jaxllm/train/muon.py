"""Muon: momentum, orthogonalised (Jordan et al. 2024), scaled to the size of an Adam update (Liu et al. 2025).

    M = momentum M + G;   N = G + momentum M                 (Nesterov's)
    X = N / ||N||;   X = a X + (b A + c A A) X,  A = X X^T   (Newton-Schulz, quintic; the second repeatedly)
    update = update_rms sqrt(max(inputs, outputs)) X

With N = U S V^T the iteration drives X towards U V^T: (a, b, c) send every singular value from 0.002 to 1 into
0.68 ... 1.2. An orthogonal matrix has a root mean square of 1 / sqrt(max(inputs, outputs)), so the factor gives the
update one of `update_rms`, as near as the singular values come to 1. It is not the measured root mean square that is
divided by: that would blow up the few directions of a gradient of low rank, where the factor bounds each of them.

**On a mesh.** The products need whole matrices. A stack of layers whose dims lie over n devices is exchanged for whole
layers, 1/n of the stack each (zero layers fill the stack up to a multiple of n), orthogonalised without further
communication, and exchanged back: no device computes or holds more than its share. Devices that share a piece of the
moments, such as those of the data axis, repeat each other's work, as they do for Adam.

**Dtype.** Where the model computes in 16 bits the operands of these products are bfloat16, which the iteration was made
for (Jordan et al. 2024): matrix units multiply them fastest, and the exchange is half as long. Sums are float32. Where
the model computes in float32, so does Muon.

S stacked layers, I inputs, O outputs of a matrix.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from jaxllm.config import Muon
from jaxllm.layers.param import Declaration, Tree, tree_map
from jaxllm.sharding import Rules

_A, _B, _C = 3.4445, -4.7750, 2.0315
_SMALLEST_NORM = 1e-15
"""Below it a matrix counts as zero: the squares of such a one underflow."""


class MuonState(NamedTuple):
    """Attributes: momentum, a nested dict as the parameters'."""

    momentum: Tree


def scale_by_muon(config: Muon, declarations: Tree, rules: Rules, compute: str) -> optax.GradientTransformation:
    """Gradients of matrices -> orthogonalised directions of root mean square `update_rms`.

    Args:
        config: momentum, number of iterations, size of the update.
        declarations: of the parameters that are given, all matrices.
        rules: gradients and momentum lie as its optimizer table says.
        compute: dtype of the model's matrix products. Muon's are float32 with float32, bfloat16 with every other.
    """
    dtype = "float32" if compute == "float32" else "bfloat16"

    def init(params: Any) -> MuonState:
        return MuonState(optax.tree.zeros_like(params))

    def direction(gradient: jax.Array, momentum: jax.Array, declaration: Declaration) -> jax.Array:
        nesterov = (gradient + config.momentum * momentum).astype(dtype)
        laid = rules.optimizer(declaration.axes)
        orthogonal = _orthogonalise(nesterov, declaration, laid, config.newton_schulz_steps)
        scale = config.update_rms * max(_matrix_shape(declaration)) ** 0.5
        return scale * orthogonal.astype(gradient.dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Tree, MuonState]:
        del params
        momentum = tree_map(lambda g, m: config.momentum * m + g, updates, state.momentum)
        with jax.named_scope("muon"):
            return tree_map(direction, updates, momentum, declarations), MuonState(momentum)

    return optax.GradientTransformation(init, update)


def _matrix_shape(declaration: Declaration) -> tuple[int, int]:
    """Inputs and outputs of one layer."""
    dims = declaration.shape[declaration.stacked :]
    return math.prod(dims[: declaration.num_inputs]), math.prod(dims[declaration.num_inputs :])


def _orthogonalise(value: jax.Array, declaration: Declaration, laid: PartitionSpec, steps: int) -> jax.Array:
    """A parameter with each of its layers orthogonalised as a matrix; laid as it came."""
    stacked = declaration.stacked
    sharded_dims = [(dim, axes) for dim, axes in enumerate(laid.partitions[stacked:], start=1) if axes is not None]

    @jax.shard_map(out_specs=laid)
    def exchange_and_iterate(piece: jax.Array) -> jax.Array:
        layers = piece.reshape(-1, *piece.shape[stacked:])
        num_layers, num_devices = len(layers), math.prod(jax.lax.axis_size(axes) for _, axes in sharded_dims)
        whole = jnp.pad(layers, [(0, -num_layers % num_devices)] + [(0, 0)] * (layers.ndim - 1))
        for dim, axes in sharded_dims:
            whole = jax.lax.all_to_all(whole, axes, split_axis=0, concat_axis=dim, tiled=True)
        matrices_SIO = whole.reshape(-1, *_matrix_shape(declaration))
        pieces = newton_schulz(matrices_SIO, steps).reshape(whole.shape)
        for dim, axes in reversed(sharded_dims):
            pieces = jax.lax.all_to_all(pieces, axes, split_axis=dim, concat_axis=0, tiled=True)
        return pieces[:num_layers].reshape(piece.shape)

    return exchange_and_iterate(value)


def newton_schulz(matrices_SIO: jax.Array, steps: int) -> jax.Array:
    """Matrices [S, I, O] with singular values driven to about 1 and singular vectors kept; in the dtype given.

    A zero matrix stays zero.
    """
    num_inputs, num_outputs = matrices_SIO.shape[1:]
    if num_inputs > num_outputs:  # the products are cheaper on the smaller side
        return newton_schulz(matrices_SIO.swapaxes(1, 2), steps).swapaxes(1, 2)
    dtype, product = matrices_SIO.dtype, functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    wide_SIO = matrices_SIO.astype(jnp.float32)
    norm_S11 = jnp.sqrt(jnp.sum(jnp.square(wide_SIO), axis=(1, 2), keepdims=True))
    x_SIO = (wide_SIO / jnp.maximum(norm_S11, _SMALLEST_NORM)).astype(dtype)

    def iterate(_: int, x_SIO: jax.Array) -> jax.Array:
        a_SII = product("sio,sjo->sij", x_SIO, x_SIO).astype(dtype)
        b_SII = (_B * a_SII + _C * product("sij,sjk->sik", a_SII, a_SII)).astype(dtype)
        return (_A * x_SIO + product("sij,sjo->sio", b_SII, x_SIO)).astype(dtype)

    return jax.lax.fori_loop(0, steps, iterate, x_SIO)  # a loop compiles in a fraction of the time of straight code
