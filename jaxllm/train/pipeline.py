"""Gradients by a pipeline: the other side of the step's seam, for layers that lie over the stages of the pipe axis.

The forward pass of micro-batch i is on stage s at tick i + s (see `models.stages`). Of each micro-batch a stage keeps
its input alone, and computes its blocks again for the backward pass. S stages, M micro-batches; two schedules:

- `gpipe` (Huang et al. 2019): all forward passes, then all backward passes; a stage keeps M + S - 1 inputs.
- `1f1b` (Narayanan et al. 2019, PipeDream): a forward and a backward pass in every tick; micro-batch i is back on stage
  s at tick i + 2 (S - 1) - s, so a stage keeps 2 S - 1 inputs, however many micro-batches there are.

Either way the forward and the backward passes both go on for M + S - 1 ticks where M would do on one device: the bubble
is (S - 1) / M of the ideal time. Embedding and head lie over all stages by vocabulary; all of them work on them, on
the micro-batch that enters the first stage or leaves the last.

K inputs kept, R / S repeats of a stage, B batch, T sequence, D model.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.layers.param import Recipe, Tree, prepare, tree_map
from jaxllm.models import stages
from jaxllm.models.decoder import PERIOD
from jaxllm.train.gradients import accumulator, lay, reduce, weigh, zeros
from jaxllm.train.objectives import Batch, Parts, Rows


class _Flow(NamedTuple):
    """What goes from tick to tick.

    Attributes:
        y_SBTD: outputs of the forward passes.
        dx_SBTD: gradients of the inputs, of the backward passes.
        stash_SKBTD: inputs of the forward passes, by tick modulo K.
        slots: gradients of the stages' parameters so far.
        ends: gradients of the other parameters so far.
    """

    y_SBTD: jax.Array
    dx_SBTD: jax.Array
    stash_SKBTD: jax.Array
    slots: Tree
    ends: Tree


def bubble(num_stages: int, num_micro: int) -> float:
    """Time lost to filling and draining, as a share of the time that the micro-batches alone would take."""
    return (num_stages - 1) / num_micro


def pipeline(
    parts: Parts,
    params: Tree,
    batch: Batch,
    loss_scale: jax.Array,
    num_micro: int,
    declared: Tree,
    recipe: Recipe,
    schedule: Literal["1f1b", "gpipe"],
) -> tuple[Tree, Rows, jax.Array]:
    """As `gradients.accumulate`, with an objective in parts, and the order of forward and backward passes."""
    batch, num_tokens = weigh(batch, loss_scale)
    micros = jax.tree.map(lambda x: stages.split(x, num_micro), batch)
    last = stages.count() - 1
    ticks = _Ticks(parts, params, micros, declared, recipe, 2 * last + 1 if schedule == "1f1b" else num_micro + last)
    flow = ticks.start()
    with jax.named_scope("pipeline_fills"):
        flow, _ = jax.lax.scan(lambda flow, now: (ticks.forward(flow, now), None), flow, jnp.arange(last))

    def leave(flow: _Flow, micro: jax.Array) -> tuple[_Flow, tuple[Rows, jax.Array]]:
        return ticks.end(ticks.forward(flow, micro + last), micro)

    def leave_and_return(flow: _Flow, micro: jax.Array) -> tuple[_Flow, Rows]:
        flow, (rows, dy_BTD) = leave(flow, micro)
        return ticks.backward(flow, micro, dy_BTD), rows

    def return_with(flow: _Flow, given: tuple[jax.Array, jax.Array]) -> tuple[_Flow, None]:
        return ticks.backward(flow, *given), None

    def drain(flow: _Flow, now: jax.Array) -> tuple[_Flow, None]:
        return ticks.backward(flow, now, stages.nothing(flow.y_SBTD)), None

    with jax.named_scope("pipeline_runs"):
        if schedule == "1f1b":
            flow, rows = jax.lax.scan(leave_and_return, flow, jnp.arange(num_micro))
        else:
            flow, (rows, dy_MBTD) = jax.lax.scan(leave, flow, jnp.arange(num_micro))
            flow, _ = jax.lax.scan(return_with, flow, (jnp.arange(num_micro), dy_MBTD))
    with jax.named_scope("pipeline_drains"):
        flow, _ = jax.lax.scan(drain, flow, num_micro + jnp.arange(last))
    return ticks.gradients(flow), jax.tree.map(stages.unite, rows).over(loss_scale), num_tokens


class _Ticks:
    """What happens in a tick. Ticks of forward and of backward passes count from 0 each."""

    def __init__(
        self, parts: Parts, params: Tree, micros: Batch, declared: Tree, recipe: Recipe, num_kept: int
    ) -> None:
        self.parts, self.micros, self.num_kept = parts, micros, num_kept
        self.recipe = recipe
        self.of_a_stage = Recipe(recipe.rules.of_a_stage, recipe.parameters, recipe.compute, recipe.reduction)
        self.declared_slots = declared[PERIOD]
        self.declared_ends = {name: value for name, value in declared.items() if name != PERIOD}
        self.slots = stages.cut(params[PERIOD])
        ends = {name: value for name, value in params.items() if name != PERIOD}
        self.ends = tree_map(lambda value, leaf: prepare(value, leaf, recipe), ends, self.declared_ends)
        self.num_micro = len(micros["tokens"])
        self.sees = micros["positions"], micros["segments"]

    def start(self) -> _Flow:
        """Before the first tick."""
        x_BTD = self.parts.begin(self.ends, self.micro(jnp.int32(0)))  # for its type
        kept = [stages.spread(x_BTD), stages.spread(x_BTD), stages.spread(x_BTD, self.num_kept)]
        slots = tree_map(
            lambda leaf, value: jnp.zeros_like(value, dtype=self.recipe.reduction, out_sharding=self._spec(leaf)),
            self.declared_slots,
            self.slots,
        )
        return _Flow(*kept, slots=slots, ends=zeros(self.declared_ends, self.recipe))

    def micro(self, index: jax.Array) -> Batch:
        """One micro-batch; the nearest one for an index outside."""
        return jax.tree.map(lambda x: stages.at(x, index), self.micros)

    def forward(self, flow: _Flow, tick: jax.Array) -> _Flow:
        """A forward pass on every stage: micro-batch `tick` enters the first."""
        x_SBTD = stages.advance(flow.y_SBTD, self.parts.begin(self.ends, self.micro(tick)))
        stash = jax.lax.dynamic_update_index_in_dim(flow.stash_SKBTD, x_SBTD, tick % self.num_kept, 1)
        y_SBTD = stages.run(self._stage, self.slots, x_SBTD, self.sees, tick)
        return flow._replace(y_SBTD=y_SBTD, stash_SKBTD=stash)

    def end(self, flow: _Flow, index: jax.Array) -> tuple[_Flow, tuple[Rows, jax.Array]]:
        """The loss of the micro-batch that left the last stage, and its gradient there."""
        y_BTD = stages.take(flow.y_SBTD, stages.count() - 1)
        differentiate = jax.grad(self.parts.end, argnums=(0, 1), has_aux=True)
        (grads, dy_BTD), rows = differentiate(self.ends, y_BTD, self.micro(index))
        return self._add_ends(flow, grads), (rows, dy_BTD)

    def backward(self, flow: _Flow, tick: jax.Array, dy_BTD: jax.Array) -> _Flow:
        """A backward pass on every stage: micro-batch `tick`, of this gradient, enters the last one."""
        stage_S, last = stages.numbers(), stages.count() - 1
        micro_S = tick - last + stage_S
        is_one_S = (micro_S >= 0) & (micro_S < self.num_micro)
        dy_SBTD = stages.retreat(flow.dx_SBTD, dy_BTD)
        dy_SBTD = jnp.where(is_one_S[:, None, None, None], dy_SBTD, jnp.zeros_like(dy_SBTD))
        x_SBTD = stages.recall(flow.stash_SKBTD, (micro_S + stage_S) % self.num_kept)
        positions_SBT, segments_SBT = stages.own(self.sees, micro_S)
        grads, dx_SBTD = jax.vmap(self._pull)(self.slots, x_SBTD, positions_SBT, segments_SBT, dy_SBTD)
        flow = flow._replace(dx_SBTD=dx_SBTD, slots=jax.tree.map(jnp.add, flow.slots, grads))
        _, pull = jax.vjp(lambda ends: self.parts.begin(ends, self.micro(tick - last)), self.ends)
        return self._add_ends(flow, *pull(stages.take(dx_SBTD, 0)))

    def gradients(self, flow: _Flow) -> Tree:
        """The sums over all micro-batches, laid as the optimizer table says."""
        rules = self.of_a_stage.rules

        def finish(leaf: Any, value: jax.Array) -> jax.Array:
            spec = rules.optimizer(leaf.axes)
            laid = PartitionSpec(stages.STAGES, *spec.partitions)
            return stages.join(jax.reshard(value, laid).astype(jnp.float32))

        with jax.named_scope("reduce_gradients"):
            slots = tree_map(finish, self.declared_slots, flow.slots)
        return {**reduce(flow.ends, self.declared_ends, self.recipe), PERIOD: slots}

    def _stage(self, slots: Tree, x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
        """One stage's blocks; their parameters typed so that gradients stay partial sums."""
        slots = tree_map(lambda value, leaf: prepare(value, leaf, self.of_a_stage), slots, self.declared_slots)
        return self.parts.stage(slots, x_BTD, positions_BT, segments_BT)

    def _pull(
        self, slots: Tree, x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array, dy_BTD: jax.Array
    ) -> tuple[Tree, jax.Array]:
        """One stage's gradients, of its parameters and its input."""
        slots = tree_map(lambda value, leaf: prepare(value, leaf, self.of_a_stage), slots, self.declared_slots)
        _, pull = jax.vjp(lambda w, x: self.parts.stage(w, x, positions_BT, segments_BT), slots, x_BTD)
        grads, dx_BTD = pull(dy_BTD)
        return lay(grads, self.declared_slots, self.of_a_stage), dx_BTD

    def _add_ends(self, flow: _Flow, grads: Tree) -> _Flow:
        laid = lay(grads, self.declared_ends, self.recipe)
        return flow._replace(ends=jax.tree.map(jnp.add, flow.ends, laid))

    def _spec(self, leaf: Any) -> PartitionSpec:
        """How the gradients of all stages lie while they are added up."""
        spec = accumulator(leaf, self.of_a_stage)
        return PartitionSpec(stages.STAGES, *spec.partitions, unreduced=spec.unreduced)
