"""Which checkpoints exist, and what each is worth: durable, good, quarantined.

    step-00000120.attempt-0003/
      params/  training/     arrays, written by orbax
      meta.json              written last: a checkpoint without it does not exist
      good.json              clean training followed: what a rollback may go back to
      quarantined.json       kept as evidence, never restored
    committed.json           a checkpoint was finished here once: training never again begins at step 0 by itself

The attempt is part of the name because a step that was rolled back is written again, beside its evidence. Among
checkpoints the highest attempt comes first, and its highest step: what a later attempt wrote has replaced what an
earlier one wrote beyond it.

Each mark is one small file that is written once and never changed, and carries the SHA-256 of its content: damage is
found. A damaged meta.json makes a checkpoint useless, a damaged quarantine mark still counts, a damaged good mark does
not. A directory loses meta.json before anything else, so that a kill in the middle leaves no checkpoint that looks
whole. Only the five operations of a `Storage` are used.
"""

import re
import threading
import time
from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from jaxllm.storage import Storage
from jaxllm.train.sealed import DamagedError, seal, unseal

FORMAT_VERSION = 2
"""Of names, layout and meta.json. Raise it whenever an older jaxllm would misread what is written."""

META, GOOD, QUARANTINED = "meta.json", "good.json", "quarantined.json"
COMMITTED = "committed.json"

KEEP_EVIDENCE = 2
"""Newest quarantined checkpoints that retention leaves."""

_PLACE = re.compile(r"step-(\d{8,})\.attempt-(\d{4,})")


class Leaf(msgspec.Struct, frozen=True, kw_only=True):
    """One array of a checkpoint.

    Attributes:
        shape: its sizes.
        dtype: its name in numpy.
        digest: as `digests.text` writes it.
    """

    shape: tuple[int, ...]
    dtype: str
    digest: str


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint says of itself.

    Attributes:
        format_version: of names and layout.
        step: attempts of a step behind it.
        attempt: of the run that wrote it.
        optimizer_step: accepted updates behind it.
        data_cursor: number of the first sample that the next step reads.
        time: when its arrays were taken, unix seconds.
        bytes: of its arrays together.
        leaves: its arrays by canonical name.
        extra: what else the run wants to find again, as JSON holds it.
    """

    format_version: int = FORMAT_VERSION
    step: int
    attempt: int
    optimizer_step: int
    data_cursor: int
    time: float
    bytes: int
    leaves: dict[str, Leaf]
    extra: dict[str, Any] = {}

    @property
    def place(self) -> str:
        """Name of the checkpoint's directory."""
        return place(self.step, self.attempt)


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """Why a checkpoint must not be restored.

    Attributes:
        reason: one sentence.
        by_attempt: the attempt that set it aside.
        time: when, unix seconds.
    """

    reason: str
    by_attempt: int
    time: float


class Good(msgspec.Struct, frozen=True, kw_only=True):
    """That clean training followed a checkpoint.

    Attributes:
        by_step: the last of the clean steps.
        by_attempt: the attempt that trained them.
        time: when, unix seconds.
    """

    by_step: int
    by_attempt: int
    time: float


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A finished checkpoint.

    Attributes:
        place: name of its directory.
        step: of the state.
        attempt: that wrote it.
        damage: what is wrong with meta.json; empty when nothing is.
        good: whether clean training followed.
        quarantine: why it must not be restored; empty when it may.
    """

    place: str
    step: int
    attempt: int
    damage: str = ""
    good: bool = False
    quarantine: str = ""

    @property
    def usable(self) -> bool:
        """Whether it may be restored."""
        return not self.damage and not self.quarantine

    @property
    def age(self) -> tuple[int, int]:
        """Sorts checkpoints, the newest last."""
        return self.attempt, self.step


def place(step: int, attempt: int) -> str:
    """Name of a checkpoint's directory."""
    return f"step-{step:08d}.attempt-{attempt:04d}"


class Catalogue:
    """The checkpoints under one root. Methods may be called from several threads of one process.

    Args:
        storage: whose root holds the checkpoints' directories.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.RLock()

    def entries(self) -> list[Entry]:
        """All finished checkpoints, the newest first.

        Raises:
            ValueError: one was written by a newer jaxllm.
        """
        return self._entries(self._files())

    def candidates(self, at_or_before: int | None = None, good: bool = False) -> list[Entry]:
        """Checkpoints that may be restored, the newest first.

        Args:
            at_or_before: the last step that may be behind them; any by default.
            good: only those that clean training followed.
        """
        return [
            entry
            for entry in self.entries()
            if entry.usable and (entry.good or not good) and (at_or_before is None or entry.step <= at_or_before)
        ]

    def unfinished(self) -> list[str]:
        """Places of writes that never came to their end, or are under way."""
        return sorted(place for place, rests in self._files().items() if META not in rests)

    def begun(self) -> bool:
        """Whether a checkpoint was ever finished here, even if none is left."""
        return bool(self._storage.list(COMMITTED)) or any(META in rests for rests in self._files().values())

    def meta(self, place: str) -> Meta:
        """What a checkpoint says of itself.

        Raises:
            DamagedError: meta.json does not hold what was written, or is another checkpoint's.
            ValueError: a newer jaxllm wrote it.
        """
        name = f"{place}/{META}"
        try:
            content = self._storage.read(name)
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error})") from error
        version = unseal(name, content, _Versioned).format_version
        if version > FORMAT_VERSION:
            raise ValueError(
                f"checkpoint {place}: format_version = {version}, and this jaxllm reads up to {FORMAT_VERSION}; "
                "update jaxllm"
            )
        meta = unseal(name, content, Meta)
        if meta.place != place:
            raise DamagedError(f"{name} is of {meta.place}")
        return meta

    def commit(self, meta: Meta) -> None:
        """Make a checkpoint exist, once its arrays are written and verified."""
        with self._lock:
            self._storage.write(f"{meta.place}/{META}", seal(meta))
            self._storage.create(COMMITTED, b"{}")

    def mark_good(self, step: int, attempt: int, through: int) -> list[Entry]:
        """Say that training was clean up to a step: checkpoints of enough steps before are good from now on.

        Args:
            step: the last clean step.
            attempt: the one that trained it.
            through: the last step whose checkpoints this is enough for.

        Returns:
            The checkpoints that were not good before.
        """
        mark = Good(by_step=step, by_attempt=attempt, time=time.time())
        with self._lock:
            fresh = [entry for entry in self.candidates(at_or_before=through) if not entry.good]
            for entry in fresh:
                self._storage.write(f"{entry.place}/{GOOD}", seal(mark))
        return fresh

    def quarantine(self, entries: Iterable[Entry], reason: str, attempt: int) -> None:
        """Keep checkpoints from being restored, and their files as evidence.

        Args:
            entries: which; one that is quarantined already stays as it is.
            reason: one sentence.
            attempt: the one that decides.
        """
        mark = Quarantine(reason=reason, by_attempt=attempt, time=time.time())
        with self._lock:
            for entry in entries:
                self._storage.create(f"{entry.place}/{QUARANTINED}", seal(mark))

    def next_attempt(self) -> int:
        """An attempt number that no checkpoint has, unfinished ones counted in."""
        return 1 + max((_numbers(place)[1] for place in self._files()), default=-1)

    def prune(self, keep: int, keep_every: int = 0, keep_good: int = 1, writing: Collection[str] = ()) -> list[str]:
        """Remove what retention does not ask for, and the leftovers of unfinished writes.

        The newest usable checkpoint and the newest good one always stay. So does the next that may become good:
        otherwise each would be removed before enough clean steps have followed it. So do damaged ones: what cannot be
        read now is not removed for that.

        Args:
            keep: newest usable checkpoints that stay, at least 1.
            keep_every: checkpoints of every so many steps stay; 0 means none.
            keep_good: newest good checkpoints that stay, at least 1.
            writing: places that are being written.

        Returns:
            Places removed.
        """
        with self._lock:
            files = self._files()
            entries = self._entries(files)
            usable = [entry for entry in entries if entry.usable]
            good = [entry for entry in usable if entry.good]
            waiting = [entry for entry in usable if not entry.good and (not good or entry.age > good[0].age)]
            kept = [*usable[: max(keep, 1)], *good[: max(keep_good, 1)], *waiting[-1:]]
            kept += [entry for entry in usable if keep_every and entry.step % keep_every == 0]
            kept += [entry for entry in entries if entry.quarantine][:KEEP_EVIDENCE]
            kept += [entry for entry in entries if entry.damage]
            gone = sorted(set(files) - {entry.place for entry in kept} - set(writing))
            for one in gone:
                self._remove(one, files[one])
        return gone

    def remove(self, place: str) -> None:
        """Remove a checkpoint, or what a write left of one."""
        with self._lock:
            self._remove(place, self._files().get(place, set()))

    def _remove(self, place: str, rests: Collection[str]) -> None:
        # Without meta.json it is no checkpoint; a quarantine mark goes last, for the case that meta.json comes back.
        for rest in sorted(rests, key=lambda rest: (rest != META, rest == QUARANTINED, rest)):
            self._storage.remove(f"{place}/{rest}")

    def _files(self) -> dict[str, set[str]]:
        """Files by place, each named relative to it."""
        files: dict[str, set[str]] = {}
        for name in self._storage.list("step-"):
            place, _, rest = name.partition("/")
            if rest and _PLACE.fullmatch(place):
                files.setdefault(place, set()).add(rest)
        return files

    def _entries(self, files: dict[str, set[str]]) -> list[Entry]:
        found = [self._entry(place, rests) for place, rests in files.items() if META in rests]
        return sorted(found, key=lambda entry: entry.age, reverse=True)

    def _entry(self, place: str, rests: set[str]) -> Entry:
        damage = quarantine = ""
        good = False
        try:
            self.meta(place)
        except DamagedError as error:
            damage = str(error)
        if QUARANTINED in rests:
            mark = self._mark(f"{place}/{QUARANTINED}", Quarantine)
            quarantine = mark.reason if mark else "the quarantine mark is damaged"
        elif GOOD in rests:
            good = self._mark(f"{place}/{GOOD}", Good) is not None
        step, attempt = _numbers(place)
        return Entry(place=place, step=step, attempt=attempt, damage=damage, good=good, quarantine=quarantine)

    def _mark[T](self, name: str, kind: type[T]) -> T | None:
        """A mark's content; None when it is damaged."""
        try:
            return unseal(name, self._storage.read(name), kind)
        except (DamagedError, OSError):
            return None


def _numbers(place: str) -> tuple[int, int]:
    """Step and attempt of a place."""
    match = _PLACE.fullmatch(place)
    assert match, place
    return int(match[1]), int(match[2])


class _Versioned(msgspec.Struct, frozen=True):
    format_version: int
