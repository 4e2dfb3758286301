"""What is minimised. An objective returns (weighted sum, its parts); pretraining and fine-tuning differ only here.

**Cross-entropy in chunks.** Logits exist for `chunk` tokens of a device at a time; float32[B, T, V] never does. The
gradient with respect to the last hidden state and to the head is computed with the loss, chunk by chunk, so that no
logits are computed twice:

    loss = sum_t w_t (logsumexp(l_t) - l_t[target]) + z sum_t w_t logsumexp(l_t)^2,  l = x W
    dl_t = w_t ((1 + 2 z logsumexp(l_t)) softmax(l_t) - onehot(target))

With a soft cap c (see layers/soft_cap) l = c tanh(x W / c), and the gradient of x W is dl (1 - (l / c)^2).

Weights are divided by the global number of valid tokens, and multiplied by the loss scale, before anything is summed:
partial sums of micro-batches and devices then simply add up.

B batch, T sequence, C tokens of a chunk, D model, V vocabulary (over tensor).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.config import LossConfig
from jaxllm.layers.context import balance
from jaxllm.layers.linear import weight_gradient
from jaxllm.layers.param import Recipe, Tree
from jaxllm.layers.soft_cap import slope, soft_cap
from jaxllm.models.decoder import PERIOD, Decoder, Loads, merge
from jaxllm.models.stages import Stage
from jaxllm.train.balance import balance_loss

Batch = dict[str, jax.Array]
"""tokens, targets, positions, segments: int32[B, T]; weights: float32[B, T]."""


class Rows(NamedTuple):
    """Sums over each sample's tokens, float32[B], laid over the batch axes: one sample is on one group of devices.

    Attributes:
        loss: cross-entropy in nats times the token's weight.
        z_loss: squared log of the softmax's denominator times the token's weight, times the z-loss's weight.
        balance: what keeps routers of experts in order, weighted likewise (see `balance`); None without experts.
        loads: what these routers did, sums that nothing weighs, [B, R, ...] by slot; None without experts.
    """

    loss: jax.Array
    z_loss: jax.Array
    balance: jax.Array | None = None
    loads: Loads | None = None

    def over(self, loss_scale: jax.Array) -> "Rows":
        """The same of weights that have not been multiplied by a scale."""
        return jax.tree.map(lambda x: x / loss_scale, self._replace(loads=None))._replace(loads=self.loads)


class Columns(NamedTuple):
    """What `Rows` sums, chunks added place by place, float32[B, C], so that the scan moves nothing between devices."""

    loss_BC: jax.Array
    z_loss_BC: jax.Array


class Parts(NamedTuple):
    """An objective in three parts, for a pipeline. `ends` are the parameters outside the stages.

    Attributes:
        begin: (ends, micro-batch) -> x[B, T, D].
        stage: (a stage's parameters, x, positions, segments) -> x.
        end: (ends, x, micro-batch) -> (what is differentiated, its parts per sample).
    """

    begin: Callable[[Tree, Batch], jax.Array]
    stage: Stage[jax.Array]
    end: Callable[[Tree, jax.Array, Batch], tuple[jax.Array, Rows]]


def pretrain(decoder: Decoder, params: Tree, batch: Batch, config: LossConfig) -> tuple[jax.Array, Rows]:
    """Next-token cross-entropy and experts' balance: what the gradient is taken of, and its parts per sample.

    Args:
        decoder: the declarations.
        params: arrays in their place.
        batch: one micro-batch; its weights say how much each token counts.
        config: chunk and z-loss.
    """
    model = merge(decoder, params)
    batch = balance(batch, decoder.recipe.rules)
    if decoder.config.tie_embeddings:
        x_BTD, weight_DV = model.embed_with_weight(batch["tokens"], batch["positions"])
    else:
        x_BTD, weight_DV = model.embed(batch["tokens"], batch["positions"]), None
    x_BTD, loads = model.blocks(x_BTD, batch["positions"], batch["segments"])
    total, rows = next_token_loss(decoder, params, x_BTD, batch, config, weight_DV)
    if not loads:
        return total, rows
    with jax.named_scope("balance"):
        balance_B = balance_loss(loads, batch["weights"], batch["segments"], config)
    by_row = jax.tree.map(lambda x: x.swapaxes(0, 1), loads)
    return total + jnp.sum(balance_B), rows._replace(balance=balance_B, loads=by_row)


def next_token_loss(
    decoder: Decoder,
    params: Tree,
    x_BTD: jax.Array,
    batch: Batch,
    config: LossConfig,
    weight_DV: jax.Array | None = None,
) -> tuple[jax.Array, Rows]:
    """`pretrain` from the last block's output on; of the parameters it needs the last norm's and the head's.

    Args:
        decoder, params, batch, config: as in `pretrain`.
        x_BTD: the last block's output.
        weight_DV: a tied head's, where it has been read with the embedding.
    """
    if weight_DV is not None:
        x_BTD, weight_DV = _head_first(x_BTD, weight_DV)
    elif not decoder.config.tie_embeddings:
        head = params["head"]
        x_BTD, kernel_DV = _head_first(x_BTD, head["kernel"])
        params = {**params, "head": {**head, "kernel": kernel_DV}}
    model = merge(decoder, params)
    with jax.named_scope("loss"):
        weight_DV = model.head_weight() if weight_DV is None else weight_DV
        targets_BT, weights_BT = batch["targets"], batch["weights"]
        cap = decoder.config.final_soft_cap
        return cross_entropy(model.final(x_BTD), weight_DV, targets_BT, weights_BT, config, decoder.recipe, cap)


@jax.custom_vjp
def _head_first(x_BTD: jax.Array, kernel_DV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is given; in the backward pass, the head's gradient goes to its shares before the blocks begin.

    Else the compiler may leave it for the end of the step, and keep D V values whole until then. A tied head's gradient
    waits for the embedding's, which comes last; it waits in the compute dtype.
    """
    return x_BTD, kernel_DV


def _head_first_forward(x: Any, kernel: Any) -> tuple[tuple[jax.Array, jax.Array], tuple[()] | None]:
    # a kernel that is not trained has no gradient to wait for; the structure of what is saved says which it is
    return (x.value, kernel.value), () if kernel.perturbed else None


def _head_first_backward(saved: tuple[()] | None, cotangents: tuple[jax.Array, jax.Array]) -> Any:
    return cotangents if saved is None else jax.lax.optimization_barrier(cotangents)


_head_first.defvjp(_head_first_forward, _head_first_backward, symbolic_zeros=True)


def pretrain_parts(decoder: Decoder, config: LossConfig) -> Parts:
    """`pretrain` in parts; over context, its batches come in head-tail order (see layers/context)."""

    def stage(slots: Tree, x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
        model = merge(decoder, {PERIOD: slots})
        return model.stage(list(model.period), x_BTD, positions_BT, segments_BT)

    return Parts(
        begin=lambda ends, batch: merge(decoder, ends).embed(batch["tokens"], batch["positions"]),
        stage=stage,
        end=lambda ends, x_BTD, batch: next_token_loss(decoder, ends, x_BTD, batch, config),
    )


def cross_entropy(
    x_BTD: jax.Array,
    weight_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    config: LossConfig,
    recipe: Recipe,
    cap: float = 0.0,
) -> tuple[jax.Array, Rows]:
    """Summed cross-entropy and z-loss, differentiable in x and in the head's weight, and both per sample.

    Args:
        x_BTD: last hidden states, laid as the residual stream lies.
        weight_DV: the head's weight, as `Decoder.head_weight` gives it.
        targets_BT: int32, the tokens to predict.
        weights_BT: float32, how much each counts.
        config: weight of the z-loss; tokens a device holds logits of at a time.
        recipe: rules and dtypes.
        cap: soft cap of the logits; 0 means none.
    """
    batch, length = jax.typeof(targets_BT).sharding.shard_shape(targets_BT.shape)  # of one device's share
    most = max(1, config.chunk // batch) if config.chunk else length
    columns = next(size for size in range(min(most, length), 0, -1) if length % size == 0)
    x_BTD = jax.reshard(x_BTD, recipe.rules.activation("batch", "sequence", None))
    return _cross_entropy(x_BTD, weight_DV, targets_BT, weights_BT, _Terms(config.z_loss, cap), columns, recipe)


class _Terms(NamedTuple):
    """Static: the z-loss's weight, and the soft cap of the logits (0 means none)."""

    z_loss: float
    cap: float


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _cross_entropy(
    x_BTD: jax.Array,
    weight_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    terms: _Terms,
    columns: int,
    recipe: Recipe,
) -> tuple[jax.Array, Rows]:
    def body(total: Columns, chunk: tuple[jax.Array, ...]) -> tuple[Columns, None]:
        x_BCD, targets_BC, weights_BC = chunk
        added, _ = _chunk_loss(x_BCD, weight_DV, targets_BC, weights_BC, terms, recipe)
        return jax.tree.map(jnp.add, total, added), None

    chunks = _split((x_BTD, targets_BT, weights_BT), columns)
    total, _ = jax.lax.scan(body, _no_columns(chunks, recipe), chunks)
    return _over_rows(total)


def _forward(
    x_BTD: jax.Array,
    weight_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    terms: _Terms,
    columns: int,
    recipe: Recipe,
) -> tuple[tuple[jax.Array, Rows], tuple[jax.Array, jax.Array]]:
    """The loss and, with every chunk's logits at hand, its gradients."""
    weight_spec = jax.typeof(weight_DV).sharding.spec
    dweight_spec = PartitionSpec(*weight_spec.partitions, unreduced=weight_spec.reduced)
    whole = recipe.rules.activation("batch", "sequence", None)
    partial = PartitionSpec(*whole.partitions, unreduced=recipe.rules.vocabulary)

    def body(
        carry: tuple[Columns, jax.Array], chunk: tuple[jax.Array, ...]
    ) -> tuple[tuple[Columns, jax.Array], jax.Array]:
        total, dweight_DV = carry
        x_BCD, targets_BC, weights_BC = chunk
        added, dlogits_BCV = _chunk_loss(x_BCD, weight_DV, targets_BC, weights_BC, terms, recipe)
        dlogits_BCV = dlogits_BCV.astype(x_BCD.dtype)
        dx_BCD = jax.lax.dot_general(dlogits_BCV, weight_DV, (((2,), (1,)), ((), ())), out_sharding=partial)
        dweight_DV += weight_gradient(x_BCD, dlogits_BCV, dweight_spec, recipe)
        return (jax.tree.map(jnp.add, total, added), dweight_DV), jax.reshard(dx_BCD, whole)

    zeros_DV = jnp.zeros(weight_DV.shape, jnp.float32, out_sharding=dweight_spec)
    chunks = _split((x_BTD, targets_BT, weights_BT), columns)
    (total, dweight_DV), dx = jax.lax.scan(body, (_no_columns(chunks, recipe), zeros_DV), chunks)
    dx_BTD = _join(dx)
    return _over_rows(total), (dx_BTD, dweight_DV.astype(weight_DV.dtype))


def _backward(
    terms: _Terms,
    columns: int,
    recipe: Recipe,
    saved: tuple[jax.Array, jax.Array],
    cotangents: tuple[jax.Array, Rows],
) -> tuple[jax.Array, jax.Array, None, None]:
    """The saved gradients times the total's cotangent; the parts are for reading only."""
    scale, _ = cotangents
    dx_BTD, dweight_DV = saved
    # partial sums may only be multiplied by what is typed as the same on all devices that hold them
    same = jax.reshard(scale, PartitionSpec(reduced=jax.typeof(dweight_DV).sharding.spec.unreduced))
    return scale.astype(dx_BTD.dtype) * dx_BTD, same.astype(dweight_DV.dtype) * dweight_DV, None, None


_cross_entropy.defvjp(_forward, _backward)


def _no_columns(chunks: tuple[jax.Array, ...], recipe: Recipe) -> Columns:
    zeros_BC = jnp.zeros(chunks[1].shape[1:], out_sharding=recipe.rules.activation("batch", "sequence"))
    return Columns(zeros_BC, zeros_BC)


def _over_rows(total: Columns) -> tuple[jax.Array, Rows]:
    """The sum of all, and the sums of each row."""
    rows = Rows(jnp.sum(total.loss_BC, axis=1), jnp.sum(total.z_loss_BC, axis=1))
    return jnp.sum(rows.loss + rows.z_loss), rows


def _split(arrays: tuple[jax.Array, ...], columns: int) -> tuple[jax.Array, ...]:
    """[B, T, ...] -> [T / C, B, C, ...]: what a scan over chunks reads; C `columns` of every device's share of T."""

    def split(x: jax.Array) -> jax.Array:
        parts = x.reshape(x.shape[0], _num_shares(x, 1), -1, columns, *x.shape[2:])
        return jnp.moveaxis(parts, 2, 0).reshape(-1, x.shape[0], parts.shape[1] * columns, *x.shape[2:])

    return tuple(split(x) for x in arrays)


def _join(x: jax.Array) -> jax.Array:
    """[T / C, B, C, ...] -> [B, T, ...], the inverse."""
    parts = x.reshape(*x.shape[:2], _num_shares(x, 2), -1, *x.shape[3:])
    return jnp.moveaxis(parts, 0, 2).reshape(x.shape[1], -1, *x.shape[3:])


def _num_shares(x: jax.Array, dim: int) -> int:
    """Devices that a dim lies over."""
    return x.shape[dim] // jax.typeof(x).sharding.shard_shape(x.shape)[dim]


def _chunk_loss(
    x_BCD: jax.Array,
    weight_DV: jax.Array,
    targets_BC: jax.Array,
    weights_BC: jax.Array,
    terms: _Terms,
    recipe: Recipe,
) -> tuple[Columns, jax.Array]:
    """The parts of one chunk's loss and the gradient with respect to x W, float32[B, C, V]."""
    logits_spec = recipe.rules.activation("batch", "sequence", "vocab")
    logits_BCV = jax.lax.dot_general(
        x_BCD,
        weight_DV,
        (((2,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
        out_sharding=logits_spec,
    )
    logits_BCV = soft_cap(logits_BCV, terms.cap)
    shifted_BCV = logits_BCV - jnp.max(logits_BCV, axis=-1, keepdims=True)
    exponential_BCV = jnp.exp(shifted_BCV)
    total_BC1 = jnp.sum(exponential_BCV, axis=-1, keepdims=True)
    is_target_BCV = (
        jax.lax.broadcasted_iota(jnp.int32, logits_BCV.shape, 2, out_sharding=logits_spec) == targets_BC[:, :, None]
    )
    target_BC = jnp.sum(jnp.where(is_target_BCV, shifted_BCV, 0.0), axis=-1)
    log_total_BC = jnp.log(total_BC1[:, :, 0])
    log_z_BC = log_total_BC + jnp.max(logits_BCV, axis=-1)
    added = Columns(
        loss_BC=weights_BC * (log_total_BC - target_BC),
        z_loss_BC=weights_BC * terms.z_loss * jnp.square(log_z_BC),
    )
    factor_BC1 = (weights_BC * (1 + 2 * terms.z_loss * log_z_BC))[:, :, None]
    hit_BCV = jnp.where(is_target_BCV, weights_BC[:, :, None], 0.0)
    dlogits_BCV = factor_BC1 * (exponential_BCV / total_BC1) - hit_BCV
    return added, dlogits_BCV * slope(logits_BCV, terms.cap) if terms.cap else dlogits_BCV
