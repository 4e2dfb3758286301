"""One start of a run: its steps, what happens between them, where the guard sends it back, and how it ends."""

import dataclasses
import time
from contextlib import suppress
from typing import Any

import jax

from jaxllm.config import Experiment, ModelConfig, Off, dump, resolved
from jaxllm.data.batches import Batches
from jaxllm.data.store import Store
from jaxllm.layers.param import Tree
from jaxllm.roofline.transformer import parameters
from jaxllm.sharding import STAGES
from jaxllm.storage import Place, open_storage
from jaxllm.train import environment, processes
from jaxllm.train.assemble import Program
from jaxllm.train.checkpoints import Checkpoints
from jaxllm.train.console import Console
from jaxllm.train.directory import CHECKPOINTS, CONFIG, REPORT, TOKENIZER
from jaxllm.train.evaluation import WHOLE, Evaluation
from jaxllm.train.guard import dossier
from jaxllm.train.guard.host import Guard, told
from jaxllm.train.guard.ledger import Entry, RolledBack
from jaxllm.train.guard.policy import kind
from jaxllm.train.initial import INIT_FROM, Origin, Start, begin, go_on
from jaxllm.train.lock import Lock
from jaxllm.train.metrics import EVENTS, read_events, read_metrics
from jaxllm.train.phase_steps import PhaseSteps
from jaxllm.train.pipeline import bubble
from jaxllm.train.profile import Profile
from jaxllm.train.records import Records
from jaxllm.train.report import write_report
from jaxllm.train.signals import Stop
from jaxllm.train.state import TrainState
from jaxllm.train.stepping import Stepping, due
from jaxllm.train.trouble import Trouble


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run came to.

    Attributes:
        directory: its files: a path, or the URL as text.
        step: attempts so far.
        metrics: the last logged record.
        interrupted: whether a signal ended it before its last step.
        stopped: why the guard ended it before its last step; empty if it did not.
        saved: whether the last step has a checkpoint.
    """

    directory: Place
    step: int
    metrics: dict[str, Any]
    interrupted: bool = False
    stopped: str = ""
    saved: bool = True


class Attempt:
    """One start of a run."""

    def __init__(
        self,
        experiment: Experiment,
        directory: Place,
        model: ModelConfig,
        store: Store,
        batches: Batches,
        program: Program,
        console: Console,
        stop: Stop,
        lock: Lock,
        origin: Origin | None,
        guard: Guard,
        followed: list[Entry] | None,
        force: bool,
        trouble: Trouble | None = None,
    ) -> None:
        self.experiment, self.model, self.store, self.batches = experiment, model, store, batches
        self.directory, self.storage = directory, open_storage(directory)
        self.program, self.console, self.stop, self.lock = program, console, stop, lock
        self.origin, self.guard, self.followed, self.force = origin, guard, followed, force
        self.trouble = trouble
        self.num_steps = experiment.data.num_steps
        self.phases = PhaseSteps(experiment, model, program)
        self.evaluation = Evaluation(program, store, experiment.data, experiment.evaluation, experiment.run.seed)
        place, flush = self.storage.below(CHECKPOINTS), lambda: self.records.sync()
        self.checkpoints = Checkpoints(place, model, experiment.checkpoint, console.note, lock.check, flush)
        self.saved = 0
        self.decision: RolledBack | str = ""

    def run(self) -> Run:
        """Every step that is left, then the end of the run."""
        self.guard.open(self.followed, self.force)
        self.guard.set_aside(self.checkpoints.catalogue)
        attempt = processes.on_first(self._next_attempt)
        self.start = self._start()
        state, step = self.start.state, self.start.step
        config = resolved(self.experiment)
        if processes.is_first():
            self.storage.write(CONFIG, dump(config).encode())
            for name, content in self.store.tokenizer.files.items():
                self.storage.write(f"{TOKENIZER}/{name}", content)
            environment.record(self.storage, attempt, self.program.mesh)
        self.records = Records(self.directory, attempt, self.experiment.log, config, self.console.note)
        self.stepping = Stepping(
            self.experiment,
            self.program,
            self.phases,
            self.stop,
            self.console,
            self.records,
            Profile(self.experiment.profile, self.storage),
            self._heed,
            self.trouble,
        )
        self.batches = self.batches.skipping(self.guard.ledger.skipped)
        self.console.start(self.records.event("resumed" if step else "started", step, **self._facts()))
        if self.origin is not None and step == 0 and self.num_steps:
            self._evaluate(state, step)  # what the parameters were worth that training begins with
        began, already = time.monotonic(), step == self.num_steps
        while True:
            state, step = self._go_on(state, step)
            if not self.stepping.halted:
                break
            if isinstance(self.decision, str):
                return self._stopped(self.decision)
            del state
            state, step = self._go_back(self.decision)
        if step < self.num_steps:
            return self._interrupted(step)
        return self._finish(state, step, time.monotonic() - began, already)

    def _go_on(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Steps, evaluations and checkpoints until the end, a signal, or a halt; the last state and its step."""
        start, guard = step, self.guard
        evaluation, checkpoint = self.experiment.evaluation.interval, self.experiment.checkpoint.interval
        drops = guard.drops if guard.follows else None
        for step, state in self.stepping.run(self.batches, state, self.start.base, step, self._factor, drops):  # noqa: B020
            self._settle(step)
            if step < self.num_steps and due(step, evaluation):
                self._evaluate(state, step)
            if step < self.num_steps and due(step, checkpoint):
                self._save(state, step)
        if self.stepping.halted:
            return state, step
        if step > start and (step == self.num_steps or not due(step, checkpoint)):
            self._save(state, step)
        return state, step

    def _factor(self, step: int) -> float:
        """Of a step's learning rate, steps counted from 0."""
        factor = self.guard.ledger.learning_rate_factor(step)
        return factor * self.trouble.learning_rate(step) if self.trouble else factor

    def _heed(self, step: int, values: dict[str, Any]) -> bool:
        """Let the guard hear of a step: its values lose what is for the guard alone; returns whether to halt."""
        attempt, samples = self.records.attempt, self.batches.steps.samples(step - 1)
        flags, alarm = self.guard.hear(step, values, samples, attempt)
        values["flags"] = flags
        if values["skipped"]:
            self.records.event("skipped", step, flags=flags, samples=list(samples), loss=float(values["loss"]))
        if alarm is None:
            return False
        trouble = f"A spike began at step {alarm.onset} ({', '.join(alarm.flags)})"
        if isinstance(self.guard.policy, Off):
            action = "guard.policy is off: training goes on as it is"
        else:
            self.checkpoints.wait()  # the checkpoint to go back to may still be under way
            self.decision = self.guard.decide(alarm, attempt, self.checkpoints.catalogue, self.batches.steps)
            action = told(self.decision)
        self.console.note(f"{trouble}: {action}.")
        name = dossier.name(alarm, attempt)
        if processes.is_first():
            with suppress(OSError, ValueError):  # records that cannot be stored or read back make no dossier
                self.records.sync()
                dossier.write(self.directory, name, alarm, action, self.store, self.batches)
        facts = {"onset": alarm.onset, "flags": alarm.flags, "policy": kind(self.guard.policy), "action": action}
        self.records.event("spiked", step, **facts, dossier=name)
        return bool(self.decision)

    def _go_back(self, entry: RolledBack) -> tuple[TrainState, int]:
        """Do what the guard has decided: the state to go on from, and its step."""
        self.guard.enter(entry)
        self.guard.set_aside(self.checkpoints.catalogue)
        found = self.checkpoints.restore(self.program.abstract_state())
        assert found is not None, "the checkpoint was there when the guard chose it"
        state, step = found[0], found[1].step
        self.saved = step
        self.batches = self.batches.skipping(self.guard.ledger.skipped)
        self.records.attempt = processes.on_first(self._next_attempt)
        facts = {"from_step": entry.step, "onset": entry.onset, "flags": entry.flags, "policy": entry.policy}
        facts |= {"rung": entry.rung, "skipped_samples": list(entry.skipped)}
        facts |= {"learning_rate_factor": entry.learning_rate_factor, "lowered_until": entry.lowered_until}
        self.records.event("rolled_back", step, **facts)
        return state, step

    def _start(self) -> Start:
        """The newest checkpoint's state, or a new one."""
        extra = {"data": self.store.digest, "tokenizer": self.store.manifest.tokenizer.sha256}
        found = self.checkpoints.restore(self.program.abstract_state())
        self.guard.remember(found[1].extra.get("ledger") if found else [])
        if found is None:
            if not self.force:
                processes.on_first(self._refuse_to_begin_again)
            return begin(self.program, self.experiment.run.seed, self.origin, extra)
        self.saved = step = found[1].step
        if step > self.num_steps:
            raise ValueError(
                f"{self.directory} is at step {step}, and data.phases ask for {self.num_steps}; "
                "ask for at least as many steps, or use another run.name"
            )
        return go_on(self.directory, self.program, found, self.origin, extra, self.force)

    def _refuse_to_begin_again(self) -> int:
        """Refuse step 0 where there was a checkpoint: its directory may lie on a disk that is not there today.

        Raises:
            ValueError: the events tell of one.
        """
        saved = [event["step"] for event in self._events() if event["event"] == "saved"]
        if saved:
            raise ValueError(
                f"{self.directory} saved its step {saved[-1]}, and {CHECKPOINTS}/ has no trace of it; bring it back, "
                "begin again under another run.name, or here with --force"
            )
        return 0

    def _events(self) -> list[dict[str, Any]]:
        return read_events(self.directory) if EVENTS in self.storage.list(EVENTS) else []

    def _next_attempt(self) -> int:
        """A number above those of all events and checkpoints."""
        events = self._events()
        return max(self.checkpoints.catalogue.next_attempt(), *(1 + event["attempt"] for event in events), 0)

    def _settle(self, step: int) -> None:
        """Write down what became of saves."""
        for outcome in self.checkpoints.poll():
            if not outcome.error:
                self.saved = outcome.step
                self.records.event("saved", outcome.step, seconds=outcome.seconds, bytes=outcome.bytes)

    def _evaluate(self, state: TrainState, step: int) -> dict[str, Any]:
        """The held-out losses, written down and shown; the facts of the whole split, empty if it was cut short."""
        whole: dict[str, Any] = {}
        for facts in self.evaluation.measure(self._whole(state), self.stepping.vote):
            self.console.evaluated(self.records.event("evaluated", step, **facts))
            whole = facts if facts["set"] == WHOLE else whole
        return whole

    def _whole(self, state: TrainState) -> Tree:
        """All parameters of the model."""
        return self.program.trained.attach(state.params, self.start.base)

    def _save(self, state: TrainState, step: int) -> None:
        if self.lock.lost:
            self.lock.check()
        extra = {**self.start.extra, "ledger": self.guard.ledger.as_json()}
        after = self.experiment.checkpoint.good_after
        good_through = step - after if self.guard.clean >= after else -1
        self.checkpoints.save(state, step, self.records.attempt, self.batches.cursor(step), extra, good_through)

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
        return Run(self.directory, step, self.stepping.record, interrupted=True, saved=self._is_saved(step))

    def _stopped(self, reason: str) -> Run:
        """Say why the guard ended the run, and how it can go on."""
        self.checkpoints.wait()
        step = int(self.stepping.record["step"])
        self._settle(step)
        self.records.event("stopped", step, reason=reason)
        self.records.close()
        report = self._report()
        self.console.close()
        see = f" See {report}." if report else ""
        self.console.note(f"Stopped by the guard after step {step} of {self.num_steps}: {reason}.{see}")
        return Run(self.directory, step, self.stepping.record, stopped=reason, saved=self._is_saved(step))

    def _report(self) -> str:
        """Draw the run; the report's place, empty where its records are damaged or the disk is full."""
        place = f"{self.directory}/{REPORT}"
        try:
            if processes.is_first():
                write_report([self.directory], place)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            self.console.note(f"There is no report ({reason}); `jaxllm report {self.directory}` makes it later.")
            return ""
        return place

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
        report = self._report()
        facts["unigram_entropy"] = self.store.manifest.unigram_entropy
        self.console.finish(facts | ({"report": report} if report else {}))
        if already:
            index, phase = len(self.experiment.data.phases) - 1, self.experiment.data.phases[-1]
            field = f"data.phases.{index}.{'steps' if phase.steps else 'tokens'}"
            self.console.note(f"The run was already at its last step, {step}; raise {field} to go on with it.")
            self.stepping.record = (read_metrics(self.directory) or [{}])[-1] if report else {}
        if not self._is_saved(step):
            self.console.note(f"The last step is not saved: the last checkpoint is of step {self.saved}.")
        return Run(self.directory, step, self.stepping.record, saved=self._is_saved(step))

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
            **({"compilation_cache": kept} if (kept := self.experiment.run.compilation_cache) else {}),
            **({INIT_FROM: {"run": str(self.origin.directory), **self.start.extra[INIT_FROM]}} if self.origin else {}),
            **self.phases.facts,
        }
