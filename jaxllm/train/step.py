"""One training step: (state, batch) -> (state, metrics), pure, to be jitted with its state donated.

    gradients -> verdict of the guard's rules -> optimizer's direction -> params - learning rate * direction

The last product is limited where `optim.update_clip` asks for it (see `optim`).

A step whose loss or gradients are not finite, or that the rules call an outlier, drops its update by `lax.cond`:
parameters, moments and `optimizer_step` stay, `step` counts on. With float16 compute a step that is not finite also
halves the loss scale (Micikevicius et al. 2018).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import msgspec
import optax
from jax.sharding import PartitionSpec

from jaxllm.config import GuardConfig, Off, OptimConfig, TrainConfig
from jaxllm.layers.context import balance
from jaxllm.layers.param import Tree, tree_map
from jaxllm.models.decoder import Decoder
from jaxllm.train.balance import over_rows, rebalance, told
from jaxllm.train.digests import digest
from jaxllm.train.gradients import accumulate
from jaxllm.train.guard.rules import judge
from jaxllm.train.loss_scale import next_loss_scale
from jaxllm.train.objectives import Batch, Rows, pretrain, pretrain_parts
from jaxllm.train.optim import limit, norm, squares
from jaxllm.train.pipeline import pipeline
from jaxllm.train.state import NO_BASE, Trained, TrainState, everything
from jaxllm.train.watch import by_group

Metrics = dict[str, jax.Array]

NUM_WORST = 4
"""Rows of a batch that the metrics name."""

UNGUARDED = GuardConfig(drop=False, policy=Off())
"""No rules: only what is not finite is dropped."""


def make_gradients(
    decoder: Decoder, config: TrainConfig, trained: Trained | None = None
) -> Callable[..., tuple[Tree, Rows, jax.Array]]:
    """(params, batch, loss scale, base) -> what `accumulate` returns; by a pipeline where layers lie over stages.

    The base only where not all is trained, which a pipeline cannot do.
    """
    trained = trained or everything(decoder)
    declared, recipe = trained.declared, decoder.recipe

    def accumulated(params: Tree, batch: Batch, scale: jax.Array, base: Tree = NO_BASE) -> tuple[Tree, Rows, jax.Array]:
        def objective(params: Tree, micro: Batch) -> tuple[jax.Array, Rows]:
            return pretrain(decoder, trained.attach(params, base), micro, config.loss)

        return accumulate(objective, params, batch, scale, config.accumulate, declared, recipe)

    def pipelined(params: Tree, batch: Batch, scale: jax.Array, base: Tree = NO_BASE) -> tuple[Tree, Rows, jax.Array]:
        assert not base, "assemble refuses adapters in a pipeline"
        parts, batch = pretrain_parts(decoder, config.loss), balance(batch, recipe.rules)
        return pipeline(parts, params, batch, scale, config.accumulate, declared, recipe, config.pipeline)

    return pipelined if recipe.rules.staged else accumulated


def make_train_step(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    config: TrainConfig,
    optim: OptimConfig,
    num_sources: int = 1,
    trained: Trained | None = None,
    guard: GuardConfig = UNGUARDED,
    watched: bool = False,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step of pretraining: (state, batch, base) -> (state, metrics), the base only where not all is trained.

    A batch may hold `drop`, bool: whether the update is not to be applied, whatever the rules say.

    A batch may hold `sources` as well, int32[B], below `num_sources`; with several the metrics have source_loss and
    source_tokens, float32[num_sources] each: a source's mean loss in this batch, 0 where it has no valid token.

    The other metrics are scalars, but for the first: batch_digest (uint32[2], which tokens were trained on, and where
    in the batch: the same on every mesh), loss (mean cross-entropy in nats), z_loss, tokens (valid ones), grad_norm
    (before clipping), param_norm, update_norm, learning_rate, skipped (1 when the update was dropped), optimizer_step
    (accepted updates so far) and loss_scale; with experts, balance_loss and those of `balance.told`; where
    the step is `watched`, those of `watch.by_group`; and, where there is a guard, its rules' flags, alarm, onset,
    reasons, clean and loss_limit (see guard.rules.Verdict; drift counts from the first step behind the warm-up on), and
    worst_rows and worst_losses (int32 and float32[4], or fewer): the batch's rows with the highest mean loss over their
    tokens, the highest first.
    """
    trained = trained or everything(decoder)
    declared, recipe = trained.declared, decoder.recipe
    rules = recipe.rules
    gradients = make_gradients(decoder, config, trained)
    guarded = guard.drop or not isinstance(guard.policy, Off)
    rules_config = guard.rules if guard.drop else msgspec.structs.replace(guard.rules, max_drops=0)
    smallest_scale = optim.loss_scale.minimum if recipe.compute == "float16" else 1.0

    def to_optimizer(params: Tree) -> Tree:
        return tree_map(lambda value, leaf: jax.reshard(value, rules.optimizer(leaf.axes)), params, declared)

    def to_storage(params: Tree) -> Tree:
        return tree_map(lambda value, leaf: jax.reshard(value, rules.storage(leaf.axes)), params, declared)

    def step(state: TrainState, batch: Batch, base: Tree = NO_BASE) -> tuple[TrainState, Metrics]:
        scale = state.loss_scale.scale
        tokens = {name: batch[name] for name in batch if name not in ("sources", "drop")}
        grads, rows, num_tokens = gradients(state.params, tokens, scale, base)
        # Without the barrier the sum over rows may be merged with those in them, and so its bits depend on its readers.
        rows = jax.lax.optimization_barrier(rows)
        loss, z_loss = jnp.sum(rows.loss), jnp.sum(rows.z_loss)
        loads, num_routed = over_rows(rows.loads or {}, tokens["segments"])
        if recipe.compute == "float16":  # elsewhere the scale is 1, and the division a pass over all gradients
            grads = jax.tree.map(lambda value: value / scale, grads)
        grad_squares, param_squares = squares(grads), squares(state.params)
        grad_norm = norm(grad_squares)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        rate = schedule(state.optimizer_step) * state.learning_rate_scale
        of_guard: Metrics = {}
        accepted = finite
        if guarded:
            # The barrier keeps the compiler from merging what is judged with what is trained: the same bits without it.
            seen_loss, seen_norm = jax.lax.optimization_barrier((loss, grad_norm))
            settled, excused = state.optimizer_step >= optim.schedule.warmup_steps, scale > smallest_scale
            verdict, memory = judge(rules_config, state.guard, state.step + 1, seen_loss, seen_norm, settled, excused)
            state, accepted = dataclasses.replace(state, guard=memory), ~verdict.drop
            of_guard = {
                "flags": verdict.flags,
                "alarm": verdict.alarm,
                "onset": verdict.onset,
                "reasons": verdict.reasons,
                "clean": verdict.clean,
                "loss_limit": verdict.limit,
                **worst(tokens, rows, num_tokens),
            }
        if "drop" in batch:
            accepted &= ~batch["drop"]

        def accept(state: TrainState) -> tuple[TrainState, Tree]:
            with jax.named_scope("optimizer"):
                params = to_optimizer(state.params)
                direction, moments = optimizer.update(grads, state.optimizer, params)
                update = jax.tree.map(lambda value: -rate * value, direction)
                if optim.update_clip:
                    update = limit(update, params, declared, optim.update_clip)
                params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, update)
                params = rebalance(params, loads, optim.balancing_rate)
            changed = dataclasses.replace(
                state, params=to_storage(params), optimizer=moments, optimizer_step=state.optimizer_step + 1
            )
            return changed, squares(update)

        def drop(state: TrainState) -> tuple[TrainState, Tree]:
            return state, jax.tree.map(jnp.zeros_like, param_squares)

        state, update_squares = jax.lax.cond(accepted, accept, drop, state)
        if recipe.compute == "float16":
            state = dataclasses.replace(state, loss_scale=next_loss_scale(optim.loss_scale, state.loss_scale, finite))
        metrics = {
            "batch_digest": _batch_digest(batch),
            "loss": loss,
            "z_loss": z_loss,
            "tokens": num_tokens,
            "grad_norm": grad_norm,
            "param_norm": norm(param_squares),
            "update_norm": norm(update_squares),
            "learning_rate": rate,
            "skipped": 1.0 - accepted,
            "optimizer_step": state.optimizer_step,
            "loss_scale": scale,
            **of_guard,
        }
        if rows.balance is not None:
            metrics |= {"balance_loss": jnp.sum(rows.balance)} | told(decoder.config, loads, num_routed, state.params)
        if watched:
            metrics |= by_group(declared, grad_squares, param_squares, update_squares)
        if num_sources > 1:
            metrics |= by_source(batch, rows, num_tokens, num_sources)
        return dataclasses.replace(state, step=state.step + 1), metrics

    return step


def by_source(batch: Batch, rows: Rows, num_tokens: jax.Array, num_sources: int) -> Metrics:
    """The mean loss over each source's valid tokens, and their number; a row's part of the loss is of all tokens'."""
    is_of_BS = batch["sources"][:, None] == jnp.arange(num_sources)[None, :]
    tokens_S = jnp.sum(jnp.where(is_of_BS, jnp.sum(batch["weights"], axis=1)[:, None], 0.0), axis=0)
    parts_S = jnp.sum(jnp.where(is_of_BS, rows.loss[:, None], 0.0), axis=0)
    return {"source_loss": parts_S * num_tokens / jnp.maximum(tokens_S, 1.0), "source_tokens": tokens_S}


def worst(batch: Batch, rows: Rows, num_tokens: jax.Array) -> Metrics:
    """The rows with the highest mean losses; what is no number is the highest."""
    tokens_B = jnp.sum(batch["weights"], axis=1)
    loss_B = jax.reshard(rows.loss * num_tokens / jnp.maximum(tokens_B, 1.0), PartitionSpec())
    key_B = jnp.where(jnp.isnan(loss_B), jnp.inf, loss_B)
    order = jax.lax.top_k(key_B, min(NUM_WORST, loss_B.shape[0]))[1]
    return {"worst_rows": order, "worst_losses": loss_B[order]}


def _batch_digest(batch: Batch) -> jax.Array:
    """uint32[2] of all arrays of a batch; odd factors tell them apart."""
    parts = (
        jnp.uint32(2 * index + 1) * digest(batch[name]) for index, name in enumerate(sorted(set(batch) - {"drop"}))
    )
    return functools.reduce(jnp.add, parts)


def make_eval_step(decoder: Decoder, config: TrainConfig) -> Callable[[Tree, Batch], Metrics]:
    """(params, batch) -> summed cross-entropy in nats (`loss`) and valid tokens (`tokens`) of one batch."""

    def step(params: Tree, batch: Batch) -> Metrics:
        _, rows = pretrain(decoder, params, batch, config.loss)
        return {"loss": jnp.sum(rows.loss), "tokens": jnp.sum(batch["weights"])}

    return step
