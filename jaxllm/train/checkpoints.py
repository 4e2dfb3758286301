"""Checkpoints that can be trusted: written beside training, verified, and restored only when every bit is right.

    save     digests on the devices -> layers into host memory -> (in a thread) written and flushed -> read back and
             compared -> meta.json, which makes the checkpoint exist -> retention
    restore  the newest checkpoint whose arrays, on the devices and on whatever mesh, have the digests of meta.json;
             each one left out is named; where a checkpoint was ever finished, training never begins at step 0 by itself

`save` returns when the copy in host memory is complete: the state may be donated to the next step. One save is under
way at a time. What becomes of it is told by `poll`: a write that fails (a full disk) stops nothing.

In a run of several processes all call the same methods in the same order. Each reads back its share; process 0 writes
meta.json and the marks when all have, and its choice of what to restore is everyone's. Where a process cannot read a
checkpoint, none uses it.

One directory holds the parameters and another one the rest of the state, so that parameters can be read alone. On a
disk orbax makes it (`arrays`); in an object store every process writes files of its own (`pieces`). Either is read from
anywhere: checkpoints may be copied between disks and object stores.
"""

import dataclasses
import functools
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxllm.config import CheckpointConfig, ModelConfig
from jaxllm.layers.param import Tree
from jaxllm.storage import LocalStorage, Storage
from jaxllm.train import arrays, canonical, digests, pieces, processes
from jaxllm.train.catalogue import Catalogue, Entry, Leaf, Meta, place
from jaxllm.train.sealed import DamagedError, sentence
from jaxllm.train.state import TrainState

PARAMS, TRAINING = "params", "training"

_PATIENCE = 600.0
"""Seconds that process 0 waits for the others to read back their shares."""

_Share = dict[str, np.ndarray]
"""Digests of what a process has stored of each array, uint32[2]; they add up over the processes."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a save.

    Attributes:
        step: of the state.
        attempt: that saved it.
        bytes: of its arrays.
        seconds: from the call of `save` to the end.
        error: what went wrong, one sentence; empty when the checkpoint is durable. Only process 0 knows of all.
    """

    step: int
    attempt: int
    bytes: int
    seconds: float
    error: str = ""


class Checkpoints:
    """The checkpoints of a run.

    Args:
        storage: `checkpoints/` of the run.
        model: whose layers the names count.
        config: what is kept.
        say: is told what was left out and what failed, one sentence each.
        fence: called before a checkpoint is committed or removed; raises if this process must not write any more.
        flush: called in every process before a checkpoint is committed: what was logged must be as durable.
    """

    def __init__(
        self,
        storage: Storage,
        model: ModelConfig,
        config: CheckpointConfig,
        say: Callable[[str], None] = _log.warning,
        fence: Callable[[], None] = lambda: None,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = storage.root if isinstance(storage, LocalStorage) else None
        self._storage, self._model, self._config, self._say = storage, model, config, say
        self._fence, self._flush = fence, flush
        self.catalogue = Catalogue(storage)
        self._thread: threading.Thread | None = None
        self._outcomes: list[Outcome] = []

    def save(
        self,
        state: TrainState,
        step: int,
        attempt: int,
        data_cursor: int,
        extra: Mapping[str, Any] | None = None,
        good_through: int = -1,
    ) -> None:
        """Take a copy of a state and begin to write it; first wait for the write before.

        Args:
            state: may be donated or changed as soon as this returns.
            step: attempts behind it.
            attempt: of the run; a step is saved once in an attempt.
            data_cursor: number of the first sample that the next step reads.
            extra: what else the run wants to find again, as JSON holds it.
            good_through: checkpoints up to this step are good from now on; they are marked between the write before
                this one and this one, so that which are good never depends on how long a write took.
        """
        self.wait()
        began, now = time.monotonic(), time.time()
        found = canonical.digests(self._model, canonical.named(state))
        copy = canonical.cut(self._model, state)
        meta = Meta(
            step=step,
            attempt=attempt,
            optimizer_step=int(copy["optimizer_step"]),
            data_cursor=data_cursor,
            time=now,
            bytes=sum(array.nbytes for array in copy.values()),
            leaves={
                name: Leaf(shape=array.shape, dtype=str(array.dtype), digest=found[name])
                for name, array in copy.items()
            },
            extra=dict(extra or {}),
        )
        self._thread = threading.Thread(
            target=self._finish, args=(copy, meta, began, good_through), name="checkpoint", daemon=True
        )
        self._thread.start()

    def poll(self) -> list[Outcome]:
        """What became of the saves that ended since the last call, without waiting."""
        ended, self._outcomes = self._outcomes, []
        return ended

    def wait(self) -> None:
        """Return when no write is under way. Call it before the process ends, or the last checkpoint is lost."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def restore(
        self, abstract: TrainState, at_or_before: int | None = None, good: bool = False
    ) -> tuple[TrainState, Meta] | None:
        """The newest checkpoint whose every array is what was saved.

        The devices never hold more than the state.

        Args:
            abstract: shapes and shardings to restore onto, of any mesh.
            at_or_before: the last step that may be behind it; any by default.
            good: only a checkpoint that clean training followed.

        Returns:
            The state and what its checkpoint says of itself; None where no checkpoint was ever finished.

        Raises:
            ValueError: one sentence, when there were checkpoints and none can be restored, when the model or the
                optimizer is not what was saved, or when a newer jaxllm wrote a checkpoint.
        """
        found = self._walk(canonical.named(abstract), at_or_before, good)
        return found and (jax.tree.unflatten(jax.tree.structure(abstract), found[0]), found[1])

    def restore_params(
        self, abstract: Tree, at_or_before: int | None = None, good: bool = False
    ) -> tuple[Tree, Meta] | None:
        """The parameters alone, of the newest checkpoint that holds what was saved; otherwise like `restore`."""
        leaves = [(f"{PARAMS}.{name}", leaf) for name, leaf in canonical.named(abstract)]
        found = self._walk(leaves, at_or_before, good)
        return found and (jax.tree.unflatten(jax.tree.structure(abstract), found[0]), found[1])

    # Saving, in the thread

    def _finish(self, copy: dict[str, jax.Array], meta: Meta, began: float, good_through: int) -> None:
        """Write, verify and commit a copy; whatever happens, leave an outcome."""
        error, share = "", _Share()
        try:
            with suppress(OSError):  # a mark is worth no checkpoint
                if good_through >= 0 and processes.is_first():
                    self.catalogue.mark_good(meta.step, meta.attempt, good_through)
            share = self._write(copy, meta)
            self._flush()
        except Exception as failure:  # of any type: orbax, TensorStore and the file system have many
            error = sentence(failure)
        copy.clear()
        error = self._conclude(meta, error, share)
        if error:
            self._say(f"the checkpoint of step {meta.step} was not saved ({error}); training goes on without it")
        self._outcomes.append(Outcome(meta.step, meta.attempt, meta.bytes, time.monotonic() - began, error))

    def _write(self, copy: dict[str, jax.Array], meta: Meta) -> _Share:
        """Store arrays, and read this process's share of them back: in an object store, what it wrote itself."""
        share = _Share()
        for tree in (PARAMS, TRAINING):
            part = {name: copy.pop(name) for name in list(copy) if _tree(name) == tree}
            if self._root is None:
                share |= pieces.write(self._storage, f"{meta.place}/{tree}", part)
            else:
                directory = self._root / meta.place / tree
                assert not directory.exists(), f"{directory} is written already"
                arrays.write(str(directory), part)
            part.clear()  # orbax copies what it writes: memory holds one and a third of the state, with Adam
        if self._root is None:
            return share
        arrays.sync(self._root / meta.place)
        for index, (name, leaf) in enumerate(meta.leaves.items()):
            if index % jax.process_count() == jax.process_index():
                found = digests.text(arrays.read_digest(str(self._root / meta.place / _tree(name)), name))
                if found != leaf.digest:
                    raise DamagedError(f"{name} read back from {meta.place} is not what was written")
        return share

    def _conclude(self, meta: Meta, error: str, share: _Share) -> str:
        """Commit a checkpoint or remove it, and apply retention; returns what went wrong."""
        try:
            if jax.process_index():
                report = {"error": error, "share": {name: value.tolist() for name, value in share.items()}}
                self._storage.write(_report(meta.place, jax.process_index()), json.dumps(report).encode())
                return error
            error = self._gather(meta.place, share) or error  # waits in any case: the others may still be writing
            if not error and self._root is None:
                _compare(meta, share)
            self._fence()
            if not error:
                self.catalogue.commit(meta)
        except Exception as failure:
            error = error or sentence(failure)
        try:
            self._fence()
            config = self._config
            self.catalogue.prune(config.keep, config.keep_every, config.keep_good)
            if self._root is not None:
                _remove_empty(self._root)
        except Exception as failure:
            self._say(f"old checkpoints were not removed ({sentence(failure)})")
        return error

    def _gather(self, place: str, share: _Share) -> str:
        """Wait for the reports of all other processes, and add their shares to this one; the first error among them."""
        end = time.monotonic() + _PATIENCE
        waiting = set(range(1, jax.process_count()))
        while waiting:
            listed = set(self._storage.list(f"{place}/{_REPORTS}"))
            for process in [one for one in waiting if _report(place, one) in listed]:
                report = json.loads(self._storage.read(_report(place, process)))
                if report["error"]:
                    return f"process {process}: {report['error']}"
                for name, value in report["share"].items():
                    share[name] = share.get(name, np.zeros(2, np.uint32)) + np.array(value, np.uint32)
                waiting.remove(process)
            if time.monotonic() > end:
                return f"process {min(waiting)} did not report within {_PATIENCE:.0f} s"
            time.sleep(0.05 if self._root else 1.0)  # an object store counts requests
        return ""

    # Restoring

    def _walk(
        self, leaves: list[tuple[str, Any]], at_or_before: int | None, good: bool
    ) -> tuple[list[jax.Array], Meta] | None:
        """Try one checkpoint after the other, the newest first."""
        self._report_unusable()
        left, reasons = self.catalogue.candidates(at_or_before, good), []
        while chosen := _choose(left):
            left = [entry for entry in left if entry.place != chosen]
            values, meta, trouble = self._try(chosen, leaves)
            if values is not None and meta is not None:
                return values, meta
            reasons.append(f"{chosen}: {trouble}")
            self._say(f"checkpoint {chosen} is left out: {trouble}; going back to the one before it")
        if not processes.first_s(int(self.catalogue.begun()))[0]:
            return None
        what = f"good checkpoint{f' at or before step {at_or_before}' if at_or_before is not None else ''}"
        raise ValueError(
            f"{self._storage}: no {what if good or at_or_before is not None else 'checkpoint'} can be restored"
            + (f" ({'; '.join(reasons)})" if reasons else "")
            + "; training does not begin again at step 0 by itself: mend the files, or use another run.name"
        )

    def _report_unusable(self) -> None:
        for name in self.catalogue.unfinished():
            self._say(f"checkpoint {name} was never finished, or has lost its meta.json: it is left out")
        for entry in self.catalogue.entries():
            if entry.damage:
                self._say(f"checkpoint {entry.place} is left out: {entry.damage}")

    def _try(self, chosen: str, leaves: list[tuple[str, Any]]) -> tuple[list[jax.Array] | None, Meta | None, str]:
        """Read a checkpoint and compare its digests; values only if all processes have all of it right."""
        values: list[jax.Array] | None = None
        meta, trouble = None, ""
        try:
            meta = self.catalogue.meta(chosen)
        except DamagedError as error:
            trouble = str(error)
        if not processes.everywhere(meta is not None):
            return None, None, trouble or "another process cannot read its meta.json"
        assert meta is not None
        self._check(meta, leaves)
        try:
            values = self._read(chosen, leaves)
        except Exception as error:  # of any type: damage shows in many ways
            trouble = f"it cannot be read ({sentence(error)})"
        if not processes.everywhere(values is not None):
            return None, None, trouble or "another process cannot read it"
        arrays_read = [(name, value) for (name, _), value in zip(leaves, values or [], strict=True)]
        found = canonical.digests(self._model, arrays_read)
        wrong = [name for name, one in found.items() if one != meta.leaves[name].digest]
        if wrong:
            others = f" and {len(wrong) - 1} more arrays are" if len(wrong) > 1 else " is"
            trouble = f"{wrong[0]}{others} not what was saved: files changed after they were written"
        if not processes.everywhere(not wrong):
            return None, None, trouble or "another process reads other arrays than were saved"
        return values, meta, ""

    def _read(self, chosen: str, leaves: list[tuple[str, Any]]) -> list[jax.Array]:
        """The arrays of a state."""
        with ExitStack() as stack:
            readers, values = {}, []
            for name, leaf in leaves:
                tree, layers = _tree(name), canonical.layer_names(self._model, name)
                readers[tree] = readers.get(tree) or self._reader(f"{chosen}/{tree}", stack)
                values.append(readers[tree](layers or [name], leaf, stacked=bool(layers)))
        return values

    def _reader(self, directory: str, stack: ExitStack) -> Callable[..., jax.Array]:
        """What reads the arrays of a directory, until the stack ends."""
        if files := pieces.files(self._storage, directory):
            return pieces.Reader(self._storage, files).read
        if self._root is not None:
            return functools.partial(arrays.read, str(self._root / directory))
        # orbax wrote it, on a disk: it is read from one
        copy = LocalStorage(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxllm-")))
        for name in self._storage.list(f"{directory}/"):
            copy.write(name, self._storage.read(name))
        return functools.partial(arrays.read, str(copy.root / directory))

    def _check(self, meta: Meta, leaves: list[tuple[str, Any]]) -> None:
        """Refuse a state that is not the one that was saved.

        Raises:
            ValueError: naming the array.
        """
        for name, leaf in leaves:
            layers = canonical.layer_names(self._model, name)
            shape, dtype = leaf.shape[1:] if layers else leaf.shape, str(leaf.dtype)
            for layer in layers or [name]:
                saved = meta.leaves.get(layer)
                if saved is None or (saved.shape, saved.dtype) != (shape, dtype):
                    held = f"is {saved.dtype}{list(saved.shape)}" if saved else "is not there"
                    raise ValueError(
                        f"checkpoint {meta.place}: {layer} {held}, and the experiment has {dtype}{list(shape)}; "
                        "take back the model, optimizer and precision it was trained with"
                    )


_REPORTS = "written-"


def _report(place: str, process: int) -> str:
    """Where a process says how its share of a write went."""
    return f"{place}/{_REPORTS}{process:05d}.json"


def _tree(name: str) -> str:
    """Which directory an array belongs to."""
    return PARAMS if name.startswith(f"{PARAMS}.") else TRAINING


def _compare(meta: Meta, stored: _Share) -> None:
    """Refuse a checkpoint whose stored arrays are not those of the devices."""
    for name, leaf in meta.leaves.items():
        if name not in stored or digests.text(stored[name]) != leaf.digest:
            raise DamagedError(f"{name} read back from {meta.place} is not what was written")


def _choose(left: list[Entry]) -> str:
    """The place of process 0's first candidate; empty when it has none."""
    step, attempt = processes.first_s(*((left[0].step, left[0].attempt) if left else (-1, -1)))
    return place(step, attempt) if step >= 0 else ""


def _remove_empty(root: Path) -> None:
    """Remove directories that hold nothing: an object store has none, and orbax leaves some when it is interrupted."""
    for parent, _, _ in os.walk(root, topdown=False):
        if Path(parent) != root and not os.listdir(parent):
            os.rmdir(parent)
