"""The guard beside the training loop: hears what the rules say of each step, decides, and keeps the ledger.

Every process hears the same and keeps the same ledger in memory. What they might see differently, the files, process 0
reads and writes for all.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import msgspec

from jaxllm.config import Experiment, Off, PolicyConfig, differences
from jaxllm.config.errors import show
from jaxllm.data.steps import Range, Steps
from jaxllm.storage import Storage
from jaxllm.train import processes
from jaxllm.train.catalogue import Catalogue
from jaxllm.train.directory import CONFIG, read_config
from jaxllm.train.guard import rules
from jaxllm.train.guard.ledger import Dropped, Entry, Ledger, RolledBack, append, from_json, order, read, same
from jaxllm.train.guard.policy import kind, num_skipped, remedy


@dataclasses.dataclass(frozen=True)
class Alarm:
    """Trouble that a policy is to act on.

    Attributes:
        step: after which, as metrics count.
        onset: where it began.
        flags: what was flagged between the two.
    """

    step: int
    onset: int
    flags: tuple[str, ...]


class Guard:
    """One run's.

    Args:
        experiment: guard, data and checkpoints.
        policy: resolved.
        storage: of the run's directory.
        store_digest: of the data.
        say: is told, one sentence each, what a person should know.

    Attributes:
        policy: the same.
        ledger: what was done so far.
        clean: steps in a row in which nothing was flagged.
        alarm: steps since the last alarm, it included; 0 without one.
        onset: where its trouble began.
    """

    def __init__(
        self,
        experiment: Experiment,
        policy: PolicyConfig,
        storage: Storage,
        store_digest: str,
        say: Callable[[str], None],
    ) -> None:
        self.policy, self._storage, self._say = policy, storage, say
        self._config, self._num_steps = experiment.guard, experiment.data.num_steps
        self._order = order(experiment.data, store_digest)
        self.ledger = Ledger()
        self._num_written = 0
        self.clean = self.alarm = self.onset = 0

    # The ledger

    def open(self, followed: list[Entry] | None, force: bool = False) -> None:
        """Read the run's ledger, or take over another's.

        Raises:
            ValueError: an entry is damaged, or about other data.
        """
        self.ledger = Ledger(read(self._storage))
        self._num_written = len(self.ledger.entries)
        if followed is not None:
            self._extend(followed, "guard.follow: the run has already gone another way than that one's ledger")
        if not force:
            self._check(self.ledger.entries, "the run's ledger")

    def followed(self, storage: Storage, experiment: Experiment) -> list[Entry]:
        """Another run's entries, as this one's: none of them is about checkpoints of this one.

        Args:
            storage: of the other run's directory.
            experiment: this run's.

        Raises:
            ValueError: there is no such run, its experiment is another one, or an entry is damaged or about other data.
        """
        where = f"guard.follow = {self._config.follow!r}"
        theirs = read_config(storage)
        if theirs is None:
            raise ValueError(f"{where}: it holds no run, for it has no {CONFIG}; name a directory such as runs/base")
        entries = read(storage)
        self._check(entries, f"{where}: that ledger")
        for field, old, new, may_change in differences(theirs, experiment):
            if not may_change and not field.startswith("guard."):
                raise ValueError(
                    f"{where}: {field} = {show(new)} here and {show(old)} there, and only the same experiment takes "
                    "the same path; take the other run's config, but for [guard]"
                )
        if not entries:
            self._say(f"{where}: that run's guard has never acted")
        return [msgspec.structs.replace(entry, attempt=-1) for entry in entries]

    def remember(self, saved: Any) -> None:
        """Bring back entries that a checkpoint holds and the run's directory has lost.

        Raises:
            ValueError: the checkpoint holds others.
        """
        num = len(self.ledger.entries)
        self._extend(from_json(saved or []), "the ledger does not belong to the run's checkpoints")
        if len(self.ledger.entries) > num:
            lost = len(self.ledger.entries) - num
            self._say(f"{lost} entries of the ledger were lost; they are written again, from the newest checkpoint")

    def _extend(self, entries: list[Entry], trouble: str) -> None:
        own = self.ledger.entries
        if not all(same(one, other) for one, other in zip(own, entries, strict=False)):
            raise ValueError(f"{trouble}; take the ledger that belongs to it, or another run.name")
        for entry in entries[len(own) :]:
            self._append(entry)

    def _check(self, entries: list[Entry], whose: str) -> None:
        if any(entry.order != self._order for entry in entries):
            raise ValueError(
                f"{whose} is about other data: samples are numbered otherwise there; take the data, data.seed and "
                "sequence lengths that belong to it, or another run's ledger"
            )

    def _append(self, entry: Entry) -> None:
        """Keep an entry, and write down all that are not yet; a dropped update may wait until a full disk has room."""
        entries = self.ledger.entries
        entries.append(entry)

        def write() -> int:
            try:
                while self._num_written < len(entries):
                    append(self._storage, self._num_written, entries[self._num_written])
                    self._num_written += 1
            except OSError as error:
                if not isinstance(entry, Dropped):
                    raise
                self._say(f"the ledger cannot be written ({error.strerror}); what belongs there waits in memory")
            return 0

        processes.on_first(write)

    # Steps

    def hear(
        self, step: int, values: dict[str, Any], samples: Range, attempt: int
    ) -> tuple[tuple[str, ...], Alarm | None]:
        """Take what the rules say out of a step's metrics.

        Args:
            step: as metrics count.
            values: of the step; what only the guard needs is taken out. Where something is flagged, worst_samples comes
                in: the samples with the highest losses, each with its loss.
            samples: of its batch.
            attempt: of the run.

        Returns:
            What is flagged, by name; and what a policy is to act on.
        """
        if "flags" not in values:  # no rules: whatever is finite is clean
            fine = not values["skipped"] and math.isfinite(values["loss"])
            self.clean = self.clean + 1 if fine else 0
            return (), None
        rows, losses = values.pop("worst_rows").tolist(), values.pop("worst_losses").tolist()
        told = {name: int(values.pop(name)) for name in ("flags", "alarm", "onset", "reasons", "clean")}
        flags, self.clean = rules.names(told["flags"]), told["clean"]
        self.alarm, self.onset = told["alarm"], told["onset"]
        if values["skipped"] and "broken" not in flags:
            self._dropped(step, samples, attempt, flags)
        if flags:
            values["worst_samples"] = [[samples.start + row, loss] for row, loss in zip(rows, losses, strict=True)]
        if "due" in flags:
            return flags, Alarm(
                step, told["onset"], tuple(name for name in rules.names(told["reasons"]) if name != "due")
            )
        return flags, None

    def _dropped(self, step: int, samples: Range, attempt: int, flags: tuple[str, ...]) -> None:
        entry = Dropped(
            order=self._order, attempt=attempt, step=step, samples=(samples.start, samples.stop), flags=flags
        )
        known = self.ledger.drops.get(step)
        if known is None or not same(known, entry):  # a step may be trained again after a kill
            self._append(entry)

    def drops(self, step: int) -> bool:
        """Whether a step's update, counted from 0, is to be dropped because the run that is followed did so."""
        return step + 1 in self.ledger.drops

    @property
    def follows(self) -> bool:
        """Whether updates are dropped by the ledger."""
        return bool(self._config.follow)

    # Decisions

    def decide(self, alarm: Alarm, attempt: int, catalogue: Catalogue, steps: Steps) -> RolledBack | str:
        """What to do: the entry of a rollback, or why the run is to stop; empty where there is nothing to go back to.

        Args:
            alarm: the trouble.
            attempt: of the run.
            catalogue: checkpoints.
            steps: of the run so far.
        """
        assert not isinstance(self.policy, Off)
        factor = self.ledger.learning_rate_factor(alarm.step - 1)
        chosen = remedy(self.policy, self.ledger.rollbacks, alarm.onset, factor)
        if isinstance(chosen, str):
            return chosen

        def choose() -> int:
            good = [entry.step for entry in catalogue.candidates(alarm.onset - 1, good=True)]
            return max((step for step in good if step <= chosen.to_step), default=min(good, default=-1))

        to_step = processes.on_first(choose)
        if to_step < 0:
            return ""
        start = steps.cursor(to_step)
        seen = alarm.step - to_step
        skips = max(num_skipped(chosen.skip, chosen.widen, steps, to_step, self._num_steps), seen) if chosen.skip else 0
        lowered = to_step + chosen.lowered_steps if chosen.lowered_steps else 0
        return RolledBack(
            order=self._order,
            attempt=attempt,
            step=alarm.step,
            onset=alarm.onset,
            flags=alarm.flags,
            policy=kind(self.policy),
            rung=chosen.rung,
            to_step=to_step,
            skipped=(start, steps.cursor(to_step + skips)),
            learning_rate_factor=chosen.learning_rate_factor,
            lowered_until=lowered,
        )

    def enter(self, entry: RolledBack) -> None:
        """Write a decision down; from then on it holds, whatever happens."""
        self._append(entry)
        self.clean = self.alarm = self.onset = 0

    def set_aside(self, catalogue: Catalogue) -> None:
        """Quarantine the checkpoints behind the last rollback, unless that is done."""

        def quarantine() -> int:
            for entry in self.ledger.rollbacks[-1:]:
                late = [
                    one
                    for one in catalogue.entries()
                    if one.step > entry.to_step and one.attempt <= entry.attempt and not one.quarantine
                ]
                reason = f"a spike began at step {entry.onset}; the run went back to step {entry.to_step}"
                catalogue.quarantine(late, reason, entry.attempt)
            return 0

        processes.on_first(quarantine)


def told(decision: RolledBack | str) -> str:
    """What is done, half a sentence."""
    if not decision:
        return "no good checkpoint is older than it; training goes on as it is"
    if isinstance(decision, str):
        return f"the run stops, for {decision}"
    first, stop = decision.skipped
    data = f"without samples {first:,} to {stop - 1:,}" if stop > first else "on the same data"
    lowered = (
        f", at {decision.learning_rate_factor:.3g} of the learning rate until step {decision.lowered_until:,}"
        if decision.lowered_until
        else ""
    )
    return f"back from step {decision.step:,} to step {decision.to_step:,}, and on {data}{lowered}"
