"""A run, from its experiment to its report.

    store -> mesh -> program -> state (restored or made) -> steps -> evaluation, sample, checkpoint, report

Step n + 1 is dispatched before the metrics of step n are read, so the devices never wait for the host.
"""

import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxllm.config import Experiment, ModelConfig, dump, load, refuse_changes, resolved
from jaxllm.data.batches import Batches, digest
from jaxllm.data.store import Store, open_store
from jaxllm.generate.sample import sample
from jaxllm.roofline.hardware import find_chip
from jaxllm.roofline.transformer import Convention, flops_per_token, parameters
from jaxllm.storage import LocalStorage
from jaxllm.train import environment
from jaxllm.train.assemble import Program, assemble, resolve_vocabulary
from jaxllm.train.checkpoint import Checkpoints, Meta
from jaxllm.train.console import Console
from jaxllm.train.metrics import METRICS, EventLog, JsonLines, read_events, read_metrics
from jaxllm.train.report import write_report
from jaxllm.train.state import TrainState

CONFIG = "config.toml"
REPORT = "report.html"
MFU_CONVENTION = Convention.TORCHTITAN


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run came to.

    Attributes:
        directory: its files.
        step: attempts so far.
        metrics: the last logged record.
        interrupted: whether a signal ended it before its last step.
    """

    directory: Path
    step: int
    metrics: dict[str, Any]
    interrupted: bool = False


def train(experiment: Experiment, force: bool = False) -> Run:
    """Train an experiment to its end, or go on with its run where it stopped.

    Args:
        experiment: what to train; its `run.directory` says where.
        force: go on with a run whatever its old config was.

    Raises:
        ValueError: one sentence, when the experiment does not fit the devices, the data or the run that is there.
    """
    directory = Path(experiment.run.path)
    _check_run(directory, experiment, force)
    if experiment.run.deterministic:
        environment.deterministic()
    with Console() as console, _stop_on_signals() as stop:
        store = open_store(experiment.data, _progress(console))
        model = resolve_vocabulary(experiment.model, store.tokenizer.vocab_size)
        batches = Batches(store, experiment.data)
        program = assemble(experiment, model)
        with jax.set_mesh(program.mesh):
            return _Attempt(experiment, directory, model, store, batches, program, console, stop).run()


class _Stop:
    """Whether a signal asked the run to end."""

    signal: str = ""


class _Attempt:
    """One start of a run."""

    def __init__(
        self,
        experiment: Experiment,
        directory: Path,
        model: ModelConfig,
        store: Store,
        batches: Batches,
        program: Program,
        console: Console,
        stop: _Stop,
    ) -> None:
        self.experiment, self.directory, self.model = experiment, directory, model
        self.store, self.batches, self.program = store, batches, program
        self.console, self.stop = console, stop
        self.storage = LocalStorage(directory)
        self.checkpoints = Checkpoints(directory / "checkpoints", model)
        self.num_steps = batches.num_steps
        phase = experiment.data.phases[0]
        self.tokens_per_step = phase.batch_size * phase.sequence_length
        self.meter = _Meter(model, program, experiment, self.tokens_per_step)

    def run(self) -> Run:
        """Every step that is left, then the end of the run."""
        state, start, attempt = self._state()
        self.storage.write(CONFIG, dump(resolved(self.experiment)).encode())
        environment.record(self.storage, attempt, self.program.mesh)
        self.events = EventLog(self.directory)
        self.metrics = JsonLines(self.directory / METRICS)
        self.attempt = attempt
        facts = self.events.write("resumed" if start else "started", attempt=attempt, step=start, **self._facts())
        self.console.start(facts)
        began = time.monotonic()
        record, step = {}, start
        for step, state, record in self._steps(state, start):  # noqa: B007, B020
            if self._due(step, self.experiment.evaluation.interval) and step < self.num_steps:
                self._evaluate(state, step)
            if self._due(step, self.experiment.checkpoint.interval) and step < self.num_steps:
                self._save(state, step)
            if self.stop.signal:
                break
        if step < self.num_steps:
            return self._interrupted(state, step, record, saved=step == start)
        return self._finish(state, step, record, time.monotonic() - began, already=start == self.num_steps)

    def _state(self) -> tuple[TrainState, int, int]:
        """The newest checkpoint's state, or a new one; the step to go on from, and this attempt's number."""
        attempt = 0
        if (self.directory / "events.jsonl").exists():
            attempt = 1 + max((event["attempt"] for event in read_events(self.directory)), default=-1)
        steps = self.checkpoints.steps()
        if not steps:
            return self.program.init(jax.random.key(self.experiment.run.seed)), 0, attempt
        state, meta = self.checkpoints.restore(steps[-1], self.program.abstract_state())
        if meta.step > self.num_steps:
            raise ValueError(
                f"{self.directory} is at step {meta.step}, and data.phases ask for {self.num_steps}; "
                "ask for at least as many steps, or use another run.name"
            )
        return state, meta.step, attempt

    def _steps(self, state: TrainState, start: int) -> Iterator[tuple[int, TrainState, dict[str, Any]]]:
        """Dispatch each step, then read and log the one before: yields the steps done, the state, the last record."""
        pending: tuple[int, dict[str, Any], dict[str, Any]] | None = None
        record: dict[str, Any] = {}
        feed = self.batches.iterate(start)
        clock = time.perf_counter()
        for step in range(start, self.num_steps):
            asked = time.perf_counter()
            batch = next(feed)
            waited = time.perf_counter() - asked
            facts = {"data_seconds": waited, "data_cursor": self.batches.cursor(step), "batch_digest": digest(batch)}
            state, metrics = self.program.step(state, self.program.put(batch))
            if pending is not None:
                record = self._log(*pending)
            now = time.perf_counter()
            pending, clock = (step + 1, metrics, facts | {"step_seconds": now - clock}), now
            leaving = self.stop.signal or step + 1 == self.num_steps
            if leaving or self._looks_at(step + 1):
                record, pending = self._log(*pending), None
            yield step + 1, state, record
            if self.stop.signal:
                break
        feed.close()

    def _looks_at(self, step: int) -> bool:
        """Whether an evaluation or a checkpoint follows: their time must not count as the step's."""
        return self._due(step, self.experiment.evaluation.interval) or self._due(
            step, self.experiment.checkpoint.interval
        )

    def _due(self, step: int, interval: int) -> bool:
        return bool(interval) and step % interval == 0

    def _log(self, step: int, metrics: dict[str, jax.Array], facts: dict[str, Any]) -> dict[str, Any]:
        """Read a step's metrics and write them down."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        loss = values["loss"]
        optimizer_step = int(values.pop("optimizer_step"))
        record = {
            "attempt": self.attempt,
            "step": step,
            "optimizer_step": optimizer_step,
            **values,
            "perplexity": math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss,
            "tokens_seen": step * self.tokens_per_step,
            **self.meter.read(facts["step_seconds"]),
            **facts,
        }
        if self._due(step, self.experiment.log.interval) or step == self.num_steps:
            self.metrics.write(record)
        self.console.step(record)
        return record

    def _evaluate(self, state: TrainState, step: int) -> dict[str, Any]:
        """The held-out loss, written down and shown."""
        held_out = Batches(self.store, self.experiment.data, "held_out")
        number = self.experiment.evaluation.batches or held_out.num_batches
        loss = tokens = 0.0
        for index in range(min(number, held_out.num_batches)):
            sums = self.program.evaluate(state.params, self.program.put(held_out.batch(held_out.cursor(index))))
            loss, tokens = loss + float(sums["loss"]), tokens + float(sums["tokens"])
        mean = loss / max(tokens, 1.0)
        facts = {
            "loss": mean,
            "perplexity": math.exp(min(mean, 700.0)),
            "bits_per_byte": self.store.manifest.bits_per_byte(mean),
        }
        event = self.events.write(
            "evaluated", attempt=self.attempt, step=step, set="held_out", tokens=int(tokens), **facts
        )
        self.console.evaluated(event)
        return facts

    def _save(self, state: TrainState, step: int) -> None:
        cursor = self.batches.cursor(step)
        self.metrics.sync()
        self.checkpoints.save(
            state, Meta(step=step, attempt=self.attempt, data_cursor=cursor), self.experiment.checkpoint.keep
        )
        self.events.write("saved", attempt=self.attempt, step=step, data_cursor=cursor)

    def _interrupted(self, state: TrainState, step: int, record: dict[str, Any], saved: bool) -> Run:
        """Save what there is and say how to go on."""
        if not saved:
            self._save(state, step)
        self.events.write("preempted", attempt=self.attempt, step=step, signal=self.stop.signal)
        self._close()
        self.console.note(
            f"Stopped by {self.stop.signal} after step {step} of {self.num_steps}"
            + (", saved" if not saved or step else "")
            + ": the same command goes on from there."
        )
        return Run(self.directory, step, record, interrupted=True)

    def _finish(self, state: TrainState, step: int, record: dict[str, Any], seconds: float, already: bool) -> Run:
        """Evaluate, save, write a sample and the report."""
        if not already:
            self._save(state, step)
        facts: dict[str, Any] = {**self._evaluate(state, step), "seconds": seconds}
        evaluation = self.experiment.evaluation
        if evaluation.sample_tokens:
            facts |= {"prompt": evaluation.sample_prompt, "sample": self._sample(state)}
        self.events.write("finished", attempt=self.attempt, step=step, **facts)
        self._close()
        report = self.directory / REPORT
        write_report([self.directory], report)
        self.console.finish(facts | {"report": report, "unigram_entropy": self.store.manifest.unigram_entropy})
        if already:
            self.console.note(
                f"The run was already at its last step, {step}; raise data.phases.0.steps to go on with it."
            )
            record = (read_metrics(self.directory) or [{}])[-1]
        return Run(self.directory, step, record)

    def _sample(self, state: TrainState) -> str:
        evaluation, tokenizer = self.experiment.evaluation, self.store.tokenizer
        prompt = [tokenizer.eos_id, *tokenizer.encode(evaluation.sample_prompt)]
        ids = sample(
            self.program.decoder,
            state.params,
            [int(one) for one in prompt],
            evaluation.sample_tokens,
            evaluation.sample_temperature,
            jax.random.key(self.experiment.run.seed),
            tokenizer.vocab_size,
            self.experiment.data.phases[0].sequence_length,
        )
        return tokenizer.decode(one for one in ids if one != tokenizer.eos_id)

    def _close(self) -> None:
        self.metrics.close()
        self.events.close()

    def _facts(self) -> dict[str, Any]:
        """What the first event says of the run."""
        device = self.program.mesh.devices.flat[0]
        number = self.program.mesh.devices.size
        facts = {
            "name": self.experiment.run.name,
            "parameters": parameters(self.model).total,
            "devices": f"{number} x {device.device_kind}" if number > 1 else device.device_kind,
            "mesh": {axis: size for axis, size in self.program.mesh.shape.items() if size > 1},
            "steps": self.num_steps,
            "tokens": self.num_steps * self.tokens_per_step,
            "unigram_entropy": self.store.manifest.unigram_entropy,
            "store_digest": self.store.digest,
            "directory": str(self.directory),
        }
        return facts | ({"mfu_convention": f"{MFU_CONVENTION}: {MFU_CONVENTION.formula}"} if self.meter.peak else {})


class _Meter:
    """Turns the seconds of a step into throughput."""

    def __init__(self, model: ModelConfig, program: Program, experiment: Experiment, tokens: int) -> None:
        self._tokens = tokens
        self._devices = program.mesh.devices.flatten().tolist()
        length = experiment.data.phases[0].sequence_length
        self._flops = flops_per_token(model, length, MFU_CONVENTION)
        chip = find_chip(self._devices[0].device_kind)
        self.peak = chip.device_flops_per_second(experiment.train.precision.compute) if chip else None

    def read(self, seconds: float) -> dict[str, float]:
        """tokens_per_second, tflops_per_device, mfu where the peak is known, and the peak of memory."""
        speed = self._tokens / seconds
        per_device = speed * self._flops / len(self._devices)
        values = {"tokens_per_second": speed, "tflops_per_device": per_device / 1e12}
        if self.peak:
            values["mfu"] = per_device / self.peak
        return values | {"memory_bytes": environment.peak_memory(self._devices)}


def _check_run(directory: Path, experiment: Experiment, force: bool) -> None:
    """Refuse to mix two experiments in one directory.

    Raises:
        ValueError: naming what differs.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"run.directory = {str(directory)!r}: it is a file; name a directory")
    if (directory / CONFIG).exists() and not force:
        refuse_changes(load(directory / CONFIG), experiment, str(directory))


def _progress(console: Console) -> Any:
    """Says once what the building of the store is at."""
    said: set[str] = set()

    def progress(what: str, done: int, total: int) -> None:
        if what not in said:
            said.add(what)
            console.note(f"data: {what}")

    return progress


@contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """The first SIGINT or SIGTERM asks the run to end after its step; a second one ends it at once."""
    stop = _Stop()
    previous: dict[int, Any] = {}

    def ask(number: int, _: object) -> None:
        stop.signal = signal.Signals(number).name
        for one, handler in previous.items():
            signal.signal(one, handler)

    try:
        for one in (signal.SIGINT, signal.SIGTERM):
            previous[one] = signal.signal(one, ask)
    except ValueError:  # not the main thread: the caller handles signals
        previous.clear()
    try:
        yield stop
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
