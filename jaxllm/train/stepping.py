"""Steps in flight: step n + 1 is dispatched before the metrics of step n are read, so the devices never wait."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxllm.config import Experiment
from jaxllm.data.batches import Batches
from jaxllm.data.steps import Range
from jaxllm.layers.param import Tree
from jaxllm.train import digests
from jaxllm.train.assemble import Program
from jaxllm.train.console import Console
from jaxllm.train.phase_steps import PhaseSteps
from jaxllm.train.processes import Votes
from jaxllm.train.profile import Profile
from jaxllm.train.records import Records
from jaxllm.train.signals import Stop
from jaxllm.train.state import TrainState
from jaxllm.train.trouble import Trouble

TAKEN = "the step's program was taken from there"
NOT_TAKEN = "it had no program of this step for these devices, versions and flags; compiled, and kept there"

Heed = Callable[[int, dict[str, Any]], bool]
"""(step as metrics count, its values, of which it may take some out and add others) -> whether to halt behind it."""


class Stepping:
    """Dispatches steps, and writes down what became of them.

    Args:
        experiment: intervals and dtypes.
        program: compiled functions.
        phases: the steps' programs and meters.
        stop: tells of signals.
        console: is shown each step.
        records: where each step's record goes.
        heed: is told each step's values before they are written down.
        trouble: disturbs the run.

    Attributes:
        record: of the last step that was read.
        halted: whether `heed` asked to halt.
    """

    def __init__(
        self,
        experiment: Experiment,
        program: Program,
        phases: PhaseSteps,
        stop: Stop,
        console: Console,
        records: Records,
        profile: Profile,
        heed: Heed,
        trouble: Trouble | None = None,
    ) -> None:
        self._experiment, self._program, self._phases = experiment, program, phases
        self._stop, self._console, self._records = stop, console, records
        self._heed, self._profile, self._trouble = heed, profile, trouble
        self._votes = Votes(program.mesh)
        self._asked = False
        self._clock = 0.0
        self.halted = False
        self.record: dict[str, Any] = {}

    def run(
        self,
        batches: Batches,
        state: TrainState,
        base: Tree,
        start: int,
        factor: Callable[[int], float],
        drops: Callable[[int], bool] | None,
    ) -> Iterator[tuple[int, TrainState]]:
        """Each step that is left, until asked to stop or halted: yields the steps done, and the state.

        Args:
            batches: what steps read.
            state: after `start` steps; donated.
            base: of the program.
            start: steps done.
            factor: of the learning rate, by step from 0.
            drops: whether a step's update is dropped whatever its loss; None where that is up to the step.
        """
        pending: tuple[int, dict[str, Any], Any, float] | None = None
        num_steps, self.halted = batches.num_steps, False
        scale = float(jax.device_get(state.learning_rate_scale))
        feed = batches.iterate(start, self._program.rows)
        for step in range(start, num_steps):
            if pending is None:
                self._clock = time.perf_counter()  # what came between two steps, such as an evaluation, is no step's
            self._profile.before(step)
            waited = time.perf_counter()
            batch = next(feed)
            waited = time.perf_counter() - waited
            batch, state = self._disturb(batches, step, batch, state)
            batch = self._program.put(batch, batches.phase(step).batch_size)
            if drops is not None:
                batch["drop"] = self._program.scalar(np.bool_(drops(step)))
            if factor(step) != scale:
                scale = factor(step)
                laid = self._program.scalar(np.float32(scale))
                state = dataclasses.replace(state, learning_rate_scale=laid)
            if batches.steps.is_border(step):
                self._console.phase(self._records.event("phase", step, **self._phases.beginning(batches, step)))
                state = self._program.begin_phase(state)
            if self._phases.compile(state, batch, base):
                self._tell_of_program(step)
                self._clock = time.perf_counter() - waited
            state, metrics = self._phases.run(step, state, batch, base)
            self._stop.at_once = False  # from here on there is something to save
            ballot = self._votes.cast(self._stop.asked, self.record.get("step_seconds", 0.0), waited)
            if pending is not None:
                self._log(batches, *pending)
            if not self.halted:
                pending = (step + 1, metrics, ballot, waited)
                if step + 1 == num_steps or self._looks_at(batches, step + 1):
                    self._log(batches, *pending)
                    pending = None
            if self.halted:  # the step in flight is forgotten
                pending = None
                break
            yield step + 1, state
            if self.is_asked():
                break
        if pending is not None:  # asked to stop, at whatever moment: no step is without its record
            self._log(batches, *pending)
        self._profile.stop()
        feed.close()

    def _tell_of_program(self, step: int) -> None:
        """Say whether the step's program was found where it was looked for."""
        directory, taken = self._experiment.run.compilation_cache, self._phases.is_taken
        if directory:
            self._records.event("compiled", step, compilation_cache=directory, taken=taken)
            self._console.note(f"run.compilation_cache = {directory!r}: {TAKEN if taken else NOT_TAKEN}.")

    def _disturb(self, batches: Batches, step: int, rows: Any, state: TrainState) -> tuple[Any, TrainState]:
        """What the trouble makes of a step's rows and state."""
        if self._trouble is None:
            return rows, state
        held, first = self._program.rows(batches.phase(step).batch_size), batches.cursor(step)
        samples = Range(first + held.start, first + held.stop)
        return self._trouble.rows(samples, rows), self._trouble.state(step, state)

    def is_asked(self) -> bool:
        """Whether all processes are to stop here: alone by the signal itself, otherwise by the votes read last."""
        return self._stop.asked if self._votes.alone else self._asked

    def vote(self) -> bool:
        """Whether all processes are to stop in the midst of something, asked of all of them now."""
        if not self._votes.alone:
            self._asked |= bool(self._votes.read(self._votes.cast(self._stop.asked, 0.0, 0.0))[:, 0].any())
        return self.is_asked()

    def _looks_at(self, batches: Batches, step: int) -> bool:
        """Whether an evaluation, a checkpoint or another phase follows: their time must not count as the step's."""
        intervals = self._experiment.evaluation.interval, self._experiment.checkpoint.interval
        return any(due(step, interval) for interval in intervals) or batches.steps.is_border(step)

    def _log(self, batches: Batches, step: int, metrics: dict[str, jax.Array], ballot: Any, waited: float) -> None:
        """Read a step's metrics and votes, and write them down; its time is that since the step before was read."""
        values = jax.device_get(metrics)
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        digest = digests.text(values.pop("batch_digest"))
        arrays = self._phases.take_arrays(values)
        votes = self._votes.read(ballot)
        self._asked |= bool(votes[:, 0].any())
        self.halted = self._heed(step, values)
        found = {name: values.pop(name) for name in ("flags", "worst_samples") if values.get(name)}
        values.pop("flags", None)
        values = {name: float(value) for name, value in values.items()}
        loss = values["loss"]
        self.record = record = {
            "attempt": self._records.attempt,
            "step": step,
            "optimizer_step": int(values.pop("optimizer_step")),
            **values,
            "perplexity": math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss,
            **self._phases.numbers(batches, step - 1, seconds),
            "step_seconds": seconds,
            "data_seconds": waited,
            "data_cursor": batches.cursor(step - 1),
            "batch_digest": digest,
            **found,
            **arrays,
        }
        if not self._votes.alone:
            # Of a step's time the votes know that of the last one read.
            slowest = int(votes[:, 2].argmax())
            record |= {
                "slowest_process": slowest,
                "slowest_data_seconds": float(votes[slowest, 2]),
                "slowest_step_seconds": float(votes[:, 1].max()),
            }
        told = bool(found) or self._phases.is_watched(step)
        if due(step, self._experiment.log.interval) or step == batches.num_steps or told:
            self._records.step(record)
        self._console.step(record)


def due(step: int, interval: int) -> bool:
    """Whether something that happens every so many steps, or (0) never, happens behind a step."""
    return bool(interval) and step % interval == 0
