"""A run, from its experiment to its report.

    processes -> lock -> store -> mesh -> program -> state (restored or made) -> steps -> evaluation, sample, report

Step n + 1 is dispatched before the metrics of step n are read, so the devices never wait for the host.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import jax

from jaxllm.config import Experiment, ModelConfig, dump, load, refuse_changes, resolved
from jaxllm.data.batches import Batches
from jaxllm.data.store import Store, open_store
from jaxllm.layers.param import Tree
from jaxllm.models import PRESETS
from jaxllm.roofline.transformer import parameters
from jaxllm.sharding import STAGES
from jaxllm.storage import LocalStorage
from jaxllm.train import digests, environment, processes
from jaxllm.train.assemble import Program, assemble, resolve_vocabulary
from jaxllm.train.catalogue import Catalogue
from jaxllm.train.checkpoints import Checkpoints
from jaxllm.train.console import Console
from jaxllm.train.evaluation import WHOLE, Evaluation
from jaxllm.train.initial import INIT_FROM, Origin, Start, begin, go_on, open_origin
from jaxllm.train.lock import Lock
from jaxllm.train.loggers import check_installed
from jaxllm.train.metrics import read_events, read_metrics
from jaxllm.train.phase_steps import PhaseSteps
from jaxllm.train.pipeline import bubble
from jaxllm.train.profile import Profile
from jaxllm.train.records import Records
from jaxllm.train.report import write_report
from jaxllm.train.signals import Stop, stop_on_signals
from jaxllm.train.state import TrainState

CHECKPOINTS = "checkpoints"
CONFIG = "config.toml"
REPORT = "report.html"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run came to.

    Attributes:
        directory: its files.
        step: attempts so far.
        metrics: the last logged record.
        interrupted: whether a signal ended it before its last step.
        saved: whether the last step has a checkpoint.
    """

    directory: Path
    step: int
    metrics: dict[str, Any]
    interrupted: bool = False
    saved: bool = True


def train(experiment: Experiment, force: bool = False, stop: Stop | None = None) -> Run:
    """Train an experiment to its end, or go on with its run where it stopped.

    Args:
        experiment: what to train; its `run.directory` says where.
        force: go on with a run whatever its old config was.
        stop: tells of signals; by default they are watched for while the run lasts.

    Raises:
        ValueError: one sentence, when the experiment does not fit the devices, the data or the run that is there, or
            when another process trains this run.
    """
    directory = Path(experiment.run.path)
    if experiment.run.deterministic:
        environment.deterministic()
    processes.join()
    with ExitStack() as stack:
        stop = stop or stack.enter_context(stop_on_signals())
        console = stack.enter_context(Console(quiet=not processes.is_first()))
        lock = Lock(LocalStorage(directory), f"run.directory = {str(directory)!r}")
        stack.callback(lock.release)
        stop.last_words += [console.close, lock.release]

        check_installed(experiment.log.loggers)
        processes.agree({"the config": dump(resolved(experiment))})

        def begin() -> int:
            _check_run(directory, experiment, force)
            open_store(experiment.data, _progress(console))
            return 0

        processes.on_first(begin)
        store = open_store(experiment.data)
        processes.agree({"the data": store.digest})
        model = resolve_vocabulary(experiment.model, store.tokenizer.vocab_size)
        program = assemble(experiment, model)
        batches = Batches(store, experiment.data)
        origin = open_origin(experiment, model, store.manifest.tokenizer.sha256, console.note)

        def take() -> int:
            lock.acquire(console.note)
            return 0

        processes.on_first(take)  # as late as this, so that mistakes leave nothing behind
        with jax.set_mesh(program.mesh):
            return _Attempt(
                experiment, directory, model, store, batches, program, console, stop, lock, origin, force
            ).run()


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
        stop: Stop,
        lock: Lock,
        origin: Origin | None,
        force: bool,
    ) -> None:
        self.experiment, self.directory, self.model, self.store = experiment, directory, model, store
        self.program, self.console, self.stop, self.lock = program, console, stop, lock
        self.origin, self.force = origin, force
        self.batches, self.num_steps = batches, batches.num_steps
        self.phases = PhaseSteps(experiment, model, program, batches)
        self.evaluation = Evaluation(program, store, experiment.data, experiment.evaluation, experiment.run.seed)
        place = directory / CHECKPOINTS
        self.checkpoints = Checkpoints(
            place, LocalStorage(place), model, experiment.checkpoint, console.note, lock.check
        )
        self.votes = processes.Votes(program.mesh)
        self.profile = Profile(experiment.profile, directory)
        self.asked = False
        self.clean = self.saved = 0
        self.clock = 0.0
        self.record: dict[str, Any] = {}

    def run(self) -> Run:
        """Every step that is left, then the end of the run."""
        attempt = processes.on_first(self._next_attempt)
        self.start = self._start()
        state, start = self.start.state, self.start.step
        config = resolved(self.experiment)
        if processes.is_first():
            storage = LocalStorage(self.directory)
            storage.write(CONFIG, dump(config).encode())
            environment.record(storage, attempt, self.program.mesh)
        self.records = Records(self.directory, attempt, self.experiment.log, config, self.console.note)
        self.console.start(self.records.event("resumed" if start else "started", start, **self._facts()))
        began = time.monotonic()
        step = start
        for step, state in self._steps(state, start):  # noqa: B020
            self._settle(step)
            if step < self.num_steps and self._due(step, self.experiment.evaluation.interval):
                self._evaluate(state, step)
            if step < self.num_steps and self._due(step, self.experiment.checkpoint.interval):
                self._save(state, step)
        if step > start and (step == self.num_steps or not self._due(step, self.experiment.checkpoint.interval)):
            self._save(state, step)
        if step < self.num_steps:
            return self._interrupted(step)
        return self._finish(state, step, time.monotonic() - began, already=start == self.num_steps)

    def _start(self) -> Start:
        """The newest checkpoint's state, or a new one."""
        extra = {"data": self.store.digest, "tokenizer": self.store.manifest.tokenizer.sha256}
        found = self.checkpoints.restore(self.program.abstract_state())
        if found is None:
            return begin(self.program, self.experiment.run.seed, self.origin, extra)
        self.saved = step = found[1].step
        if step > self.num_steps:
            raise ValueError(
                f"{self.directory} is at step {step}, and data.phases ask for {self.num_steps}; "
                "ask for at least as many steps, or use another run.name"
            )
        return go_on(self.directory, self.program, found, self.origin, extra, self.force)

    def _next_attempt(self) -> int:
        """A number above those of all events and checkpoints."""
        events = read_events(self.directory) if (self.directory / "events.jsonl").exists() else []
        return max(self.checkpoints.catalogue.next_attempt(), *(1 + event["attempt"] for event in events), 0)

    def _steps(self, state: TrainState, start: int) -> Iterator[tuple[int, TrainState]]:
        """Dispatch each step, then read and log the one before: yields the steps done and the state, until asked."""
        pending: tuple[int, dict[str, Any], Any, float] | None = None
        feed = self.batches.iterate(start, self.program.rows)
        for step in range(start, self.num_steps):
            if pending is None:
                self.clock = time.perf_counter()  # what came between two steps, such as an evaluation, is no step's
            self.profile.before(step)
            waited = time.perf_counter()
            batch = next(feed)
            waited = time.perf_counter() - waited
            batch = self.program.put(batch, self.batches.phase(step).batch_size)
            if self.phases.is_border(step):
                self.console.phase(self.records.event("phase", step, **self.phases.beginning(step)))
            if self.phases.compile(state, batch, self.start.base):
                self.clock = time.perf_counter() - waited
            state, metrics = self.phases.run(state, batch, self.start.base)
            self.stop.at_once = False  # from here on there is something to save
            ballot = self.votes.cast(self.stop.asked, self.record.get("step_seconds", 0.0), waited)
            if pending is not None:
                self._log(*pending)
            pending = (step + 1, metrics, ballot, waited)
            if step + 1 == self.num_steps or self._looks_at(step + 1):
                self._log(*pending)
                pending = None
            yield step + 1, state
            if self._is_asked():
                break
        if pending is not None:  # asked to stop, at whatever moment: no step is without its record
            self._log(*pending)
        self.profile.stop()
        feed.close()

    def _is_asked(self) -> bool:
        """Whether all processes are to stop here: alone by the signal itself, otherwise by the votes read last."""
        return self.stop.asked if self.votes.alone else self.asked

    def _looks_at(self, step: int) -> bool:
        """Whether an evaluation, a checkpoint or another phase follows: their time must not count as the step's."""
        intervals = self.experiment.evaluation.interval, self.experiment.checkpoint.interval
        return any(self._due(step, interval) for interval in intervals) or self.phases.is_border(step)

    def _due(self, step: int, interval: int) -> bool:
        return bool(interval) and step % interval == 0

    def _log(self, step: int, metrics: dict[str, jax.Array], ballot: Any, waited: float) -> None:
        """Read a step's metrics and votes, and write them down; its time is that since the step before was read."""
        values = jax.device_get(metrics)
        seconds, self.clock = time.perf_counter() - self.clock, time.perf_counter()
        digest = digests.text(values.pop("batch_digest"))
        by_source = self.phases.by_source(values)
        values = {name: float(value) for name, value in values.items()}
        votes = self.votes.read(ballot)
        self.asked |= bool(votes[:, 0].any())
        loss = values["loss"]
        self.clean = self.clean + 1 if not values["skipped"] and math.isfinite(loss) else 0
        self.record = record = {
            "attempt": self.records.attempt,
            "step": step,
            "optimizer_step": int(values.pop("optimizer_step")),
            **values,
            "perplexity": math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss,
            **self.phases.numbers(step - 1, seconds),
            "step_seconds": seconds,
            "data_seconds": waited,
            "data_cursor": self.batches.cursor(step - 1),
            "batch_digest": digest,
            **by_source,
        }
        if not self.votes.alone:
            # Of a step's time the votes know that of the last one read.
            slowest = int(votes[:, 2].argmax())
            record |= {
                "slowest_process": slowest,
                "slowest_data_seconds": float(votes[slowest, 2]),
                "slowest_step_seconds": float(votes[:, 1].max()),
            }
        if self._due(step, self.experiment.log.interval) or step == self.num_steps:
            self.records.step(record)
        self.console.step(record)

    def _settle(self, step: int) -> None:
        """Write down what became of saves, and which checkpoints clean training has followed."""
        for outcome in self.checkpoints.poll():
            if not outcome.error:
                self.saved = outcome.step
                self.records.event("saved", outcome.step, seconds=outcome.seconds, bytes=outcome.bytes)
        after = self.experiment.checkpoint.good_after
        if processes.is_first() and self.clean >= after and self._due(step, self.experiment.checkpoint.interval):
            with suppress(OSError):  # a full disk stops no training; the next interval tries again
                self.checkpoints.catalogue.mark_good(step, self.records.attempt, step - after)

    def _evaluate(self, state: TrainState, step: int) -> dict[str, Any]:
        """The held-out losses, written down and shown; the facts of the whole split, empty if it was cut short."""
        whole: dict[str, Any] = {}
        for facts in self.evaluation.measure(self._whole(state), self._vote):
            self.console.evaluated(self.records.event("evaluated", step, **facts))
            whole = facts if facts["set"] == WHOLE else whole
        return whole

    def _whole(self, state: TrainState) -> Tree:
        """All parameters of the model."""
        return self.program.trained.attach(state.params, self.start.base)

    def _vote(self) -> bool:
        """Whether all processes are to stop in the midst of something, asked of all of them now."""
        if not self.votes.alone:
            self.asked |= bool(self.votes.read(self.votes.cast(self.stop.asked, 0.0, 0.0))[:, 0].any())
        return self._is_asked()

    def _save(self, state: TrainState, step: int) -> None:
        self.records.sync()
        with suppress(OSError):  # a full disk stops no training; the saving itself says so
            self.lock.check()
        self.checkpoints.save(state, step, self.records.attempt, self.batches.cursor(step), self.start.extra)

    def _interrupted(self, step: int) -> Run:
        """Wait for the last checkpoint and say how to go on."""
        self.checkpoints.wait()
        self._settle(step)
        self.records.event("preempted", step, signal=self.stop.signal)
        self.records.close()
        self.console.close()
        by = self.stop.signal or "another process's signal"
        saved = "saved" if self._is_saved(step) else f"not saved: the last checkpoint is of step {self.saved}"
        self.console.note(
            f"Stopped by {by} after step {step} of {self.num_steps}, {saved}; the same command goes on from there."
        )
        return Run(self.directory, step, self.record, interrupted=True, saved=self._is_saved(step))

    def _is_saved(self, step: int) -> bool:
        """Whether a step has a checkpoint, as far as this process knows: process 0 alone hears of failures."""
        return self.saved == step or not processes.is_first()

    def _finish(self, state: TrainState, step: int, seconds: float, already: bool) -> Run:
        """Evaluate, write a sample and the report."""
        whole = self._evaluate(state, step)
        if not whole:
            return self._interrupted(step)
        facts = {**whole, "seconds": seconds, **self.evaluation.write_sample(self._whole(state))}
        self.checkpoints.wait()
        self._settle(step)
        self.records.event("finished", step, **{name: value for name, value in facts.items() if name != "set"})
        self.records.close()
        report = self.directory / REPORT
        if processes.is_first():
            write_report([self.directory], report)
        self.console.finish(facts | {"report": report, "unigram_entropy": self.store.manifest.unigram_entropy})
        if already:
            index, phase = len(self.experiment.data.phases) - 1, self.experiment.data.phases[-1]
            field = f"data.phases.{index}.{'steps' if phase.steps else 'tokens'}"
            self.console.note(f"The run was already at its last step, {step}; raise {field} to go on with it.")
            self.record = (read_metrics(self.directory) or [{}])[-1]
        if not self._is_saved(step):
            self.console.note(f"The last step is not saved: the last checkpoint is of step {self.saved}.")
        return Run(self.directory, step, self.record, saved=self._is_saved(step))

    def _facts(self) -> dict[str, Any]:
        """What the first event says of the run."""
        adapters = self.program.trained.num_adapters
        device, number = self.program.mesh.devices.flat[0], self.program.mesh.devices.size
        stages = self.program.mesh.shape[STAGES]
        return {
            "name": self.experiment.run.name,
            "parameters": parameters(self.model).total + adapters,
            "trainable_parameters": adapters or parameters(self.model).total,
            "devices": f"{number} x {device.device_kind}" if number > 1 else device.device_kind,
            "processes": jax.process_count(),
            "mesh": {axis: size for axis, size in self.program.mesh.shape.items() if size > 1},
            **({"pipeline_bubble": bubble(stages, self.experiment.train.accumulate)} if stages > 1 else {}),
            "unigram_entropy": self.store.manifest.unigram_entropy,
            "store_digest": self.store.digest,
            "directory": str(self.directory),
            **({INIT_FROM: {"run": str(self.origin.directory), **self.start.extra[INIT_FROM]}} if self.origin else {}),
            **self.phases.facts,
        }


def _check_run(directory: Path, experiment: Experiment, force: bool) -> None:
    """Refuse to mix two experiments in one directory.

    Raises:
        ValueError: naming what differs.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"run.directory = {str(directory)!r}: it is a file; name a directory")
    if (directory / CONFIG).exists() and not force:
        saved = Catalogue(LocalStorage(directory / CHECKPOINTS)).candidates()
        step = max((entry.step for entry in saved), default=0)
        refuse_changes(load(directory / CONFIG, presets=PRESETS), experiment, str(directory), step)


def _progress(console: Console) -> Any:
    """Says once what the building of the store is at."""
    said: set[str] = set()

    def progress(what: str, done: int, total: int) -> None:
        if what not in said:
            said.add(what)
            console.note(f"data: {what}")

    return progress
