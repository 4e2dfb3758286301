"""What of a run changes from phase to phase: the compiled step, the meter, what an event says."""

import math
from typing import Any

import jax

from jaxllm.config import Experiment, ModelConfig
from jaxllm.data.batches import Batches
from jaxllm.data.steps import Steps
from jaxllm.layers.param import Tree
from jaxllm.train import programs
from jaxllm.train.assemble import Program
from jaxllm.train.balance import BY_LAYER
from jaxllm.train.objectives import Batch
from jaxllm.train.state import TrainState
from jaxllm.train.throughput import Meter
from jaxllm.train.watch import LAYERS, Logits


class PhaseSteps:
    """A run's phases as its loop meets them.

    Args:
        experiment: phases and dtype.
        model: counted for the throughput.
        program: whose step is compiled for each shape when its first phase begins, so that no step's time holds it.

    Attributes:
        is_taken: whether the last program was found in the compilation cache.
    """

    def __init__(self, experiment: Experiment, model: ModelConfig, program: Program) -> None:
        self._data, self._program = experiment.data, program
        compute = experiment.train.precision.compute
        adapters = program.trained.num_adapters
        self._meters = [Meter(model, program.mesh, phase, compute, adapters) for phase in experiment.data.phases]
        self._watch, self._clip = experiment.watch.interval, experiment.optim.qk_clip
        intervals = [self._watch or math.inf] + ([self._clip.interval] if self._clip else [])
        self._looks = min(intervals) <= self._data.num_steps  # else nothing of it is compiled
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._watches: dict[tuple[int, ...], Any] = {}
        self._qk_clip: Any = None
        self.is_taken = False

    @property
    def facts(self) -> dict[str, Any]:
        """Of the whole run: steps, tokens, phases; and the convention of mfu, where there is one."""
        steps = self._data.num_steps
        whole = {"steps": steps, "tokens": Steps(self._data).num_tokens(steps), "phases": len(self._data.phases)}
        return whole | self._meters[0].facts

    def beginning(self, batches: Batches, step: int) -> dict[str, Any]:
        """What an event says of the phase that begins behind so many steps."""
        index = batches.steps.phase(step)
        phase = self._data.phases[index]
        return {
            "phase": index,
            "sequence_length": phase.sequence_length,
            "batch_size": phase.batch_size,
            "shares": batches.shares(index),
        }

    def compile(self, state: TrainState, batch: Batch, base: Tree) -> bool:
        """Compile the step for a batch of this shape, unless that is done; returns whether it was not."""
        shape, before = batch["tokens"].shape, programs.num_taken()
        if shape in self._compiled:
            return False
        self._compiled[shape] = self._program.step.lower(state, batch, base).compile()
        self.is_taken = programs.num_taken() > before
        if self._looks:
            self._watches[shape] = self._program.watch.lower(state.params, batch, base).compile()
        if self._looks and self._clip and self._qk_clip is None:
            _, logits = jax.eval_shape(self._program.watch, state.params, batch, base)
            self._qk_clip = self._program.qk_clip.lower(state, logits).compile()
        return True

    def run(self, step: int, state: TrainState, batch: Batch, base: Tree) -> tuple[TrainState, dict[str, jax.Array]]:
        """The compiled step, of a number from 0, with what is watched and clipped in some steps only."""
        shape, is_clipped = batch["tokens"].shape, self._clip is not None and (step + 1) % self._clip.interval == 0
        seen: dict[str, jax.Array] = {}
        logits: Logits = {}
        if is_clipped or self.is_watched(step + 1):
            seen, logits = self._watches[shape](state.params, batch, base)  # before the step takes the state away
        state, metrics = self._compiled[shape](state, batch, base)
        if is_clipped:
            state, clipped = self._qk_clip(state, logits)
            metrics = metrics | clipped
        return state, metrics | seen if self.is_watched(step + 1) else metrics

    def is_watched(self, step: int) -> bool:
        """Whether the record of a step, from 1, tells of the layers."""
        return bool(self._watch) and step % self._watch == 0

    def numbers(self, batches: Batches, step: int, seconds: float) -> dict[str, Any]:
        """Of a step (from 0) that took so long: tokens_seen, and what the meter reads."""
        meter = self._meters[batches.steps.phase(step)]
        return {"tokens_seen": batches.steps.num_tokens(step + 1), **meter.read(seconds)}

    def take_arrays(self, values: dict[str, Any]) -> dict[str, Any]:
        """Takes out of a step's metrics what are arrays, as a record has them: by source, and by layer."""
        by_layer = {name: values.pop(name).tolist() for name in (*LAYERS, *BY_LAYER) if name in values}
        return {**self._by_source(values), **by_layer}

    def _by_source(self, values: dict[str, Any]) -> dict[str, float]:
        """Loss and tokens of each source that has any."""
        losses, tokens = values.pop("source_loss", ()), values.pop("source_tokens", ())
        found = [one for one in zip(self._data.source_names, losses, tokens, strict=False) if one[2]]
        return {f"loss/{name}": float(loss) for name, loss, _ in found} | {
            f"tokens/{name}": int(num) for name, _, num in found
        }
