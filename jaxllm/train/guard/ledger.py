"""The ledger: what the guard did to a run, in the order in which it did it.

    ledger/000000.json ...     one entry each, created and never changed

Which samples a run skips, where its learning rate is lowered and which updates it dropped are functions of the entries
alone. So a run that is given another's ledger, with the guard off, takes the same path. Each entry acts from the step
that it goes back to, and leaves what came before as it was: an entry more does not change the past.

A rollback cannot erase an entry: they lie beside the checkpoints. Each checkpoint holds those that were there when it
was saved, too: if the files are lost, they are written again. An entry is written before anything else of a rollback
happens, and all the rest can be done again from it: a kill at any moment loses nothing.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from jaxllm.config import DataConfig
from jaxllm.data.steps import Range, union
from jaxllm.storage import Storage
from jaxllm.train.sealed import DamagedError, seal, unseal

DIRECTORY = "ledger"


class Dropped(msgspec.Struct, frozen=True, kw_only=True, tag="dropped", tag_field="kind"):
    """An outlier's update was not applied.

    Attributes:
        order: which numbering of samples this is about.
        attempt: of the run.
        step: as metrics count, from 1.
        samples: of the step's batch, the end not included.
        flags: what was flagged.
        time: unix seconds.
    """

    order: str
    attempt: int
    step: int
    samples: tuple[int, int]
    flags: tuple[str, ...]
    time: float = 0.0


class RolledBack(msgspec.Struct, frozen=True, kw_only=True, tag="rolled_back", tag_field="kind"):
    """The run went back to an earlier state.

    Attributes:
        order: which numbering of samples this is about.
        attempt: that decided it.
        step: after which it was decided, as metrics count.
        onset: where the trouble began, likewise.
        flags: what was flagged when it was decided.
        policy: that decided.
        rung: of a ladder, from 1; otherwise 1.
        to_step: steps behind the state that it went back to.
        skipped: samples that are left out from then on, the end not included; empty where both are equal.
        learning_rate_factor: on steps from to_step on,
        lowered_until: this one not among them; none if it is to_step.
        time: unix seconds.
    """

    order: str
    attempt: int
    step: int
    onset: int
    flags: tuple[str, ...]
    policy: str
    rung: int
    to_step: int
    skipped: tuple[int, int]
    learning_rate_factor: float = 1.0
    lowered_until: int = 0
    time: float = 0.0


Entry = Dropped | RolledBack


class _Page(msgspec.Struct, frozen=True):
    entry: Entry


class Ledger:
    """The entries of a run, in memory; process 0's are on the disk as well.

    Args:
        entries: the first ones.
    """

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        self.entries: list[Entry] = list(entries)

    @property
    def rollbacks(self) -> list[RolledBack]:
        """All rollbacks."""
        return [entry for entry in self.entries if isinstance(entry, RolledBack)]

    @property
    def skipped(self) -> tuple[Range, ...]:
        """Samples that no step reads any more."""
        return union(Range(*entry.skipped) for entry in self.rollbacks if entry.skipped[0] < entry.skipped[1])

    @property
    def drops(self) -> dict[int, Dropped]:
        """The dropped updates that no rollback has undone, by step."""
        drops: dict[int, Dropped] = {}
        for entry in self.entries:
            if isinstance(entry, Dropped):
                drops[entry.step] = entry
            else:
                drops = {step: drop for step, drop in drops.items() if step <= entry.to_step}
        return drops

    def learning_rate_factor(self, step: int) -> float:
        """Of a step, counted from 0: that of the last entry that says something about it."""
        lowering = [entry for entry in self.rollbacks if entry.to_step <= step < entry.lowered_until]
        return lowering[-1].learning_rate_factor if lowering else 1.0

    def as_json(self) -> list[Any]:
        """For a checkpoint's `extra`."""
        return msgspec.to_builtins(self.entries)


def order(data: DataConfig, store_digest: str) -> str:
    """A digest of what decides which tokens a sample's number stands for, but for phases still to come."""
    facts = [store_digest, data.seed, data.shuffle, data.unit]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def read(storage: Storage) -> list[Entry]:
    """The entries under a run's directory.

    Raises:
        ValueError: one is damaged or missing.
    """
    names = storage.list(f"{DIRECTORY}/")
    entries = []
    for index, name in enumerate(names):
        if name != _name(index):
            raise ValueError(f"{_name(index)} is missing, and {name} is there: bring it back from a copy of the run")
        try:
            entries.append(unseal(name, storage.read(name), _Page).entry)
        except DamagedError as error:
            raise ValueError(f"{error}: bring it back from a copy of the run") from error
    return entries


def from_json(value: Any) -> list[Entry]:
    """What `Ledger.as_json` gave."""
    return msgspec.convert(value, list[Entry])


def append(storage: Storage, index: int, entry: Entry) -> None:
    """Write an entry down for good; one that is there already must be the same.

    Raises:
        ValueError: another entry is there.
    """
    if not storage.create(_name(index), seal(_Page(msgspec.structs.replace(entry, time=time.time())))):
        there = unseal(_name(index), storage.read(_name(index)), _Page).entry
        if not same(there, entry):
            raise ValueError(f"{_name(index)} holds another entry than this run's: it is the ledger of another run")


def same(one: Entry, other: Entry) -> bool:
    """Whether two entries say the same, whenever and by whichever attempt they were written."""
    blank = {"time": 0.0, "attempt": 0}
    return msgspec.structs.replace(one, **blank) == msgspec.structs.replace(other, **blank)


def _name(index: int) -> str:
    return f"{DIRECTORY}/{index:06d}.json"
