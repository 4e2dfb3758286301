"""Files that grow by one JSON object a line: appended to on a disk, written as whole objects in an object store.

On a disk a line is written by one system call, so a killed process leaves at most one unfinished line, the last.
Opening the file again cuts that line off.

An object cannot grow. There lines wait in memory for some seconds; then a thread writes the object again with all that
it has. So that this costs the same however long a run is, an object of 4 MiB is left alone and another one begun; and
every process that opens the file again begins one:

    metrics.jsonl, metrics.jsonl.0001, metrics.jsonl.0002, ...

Each is created by exactly one process and written by no other: one that has lost the run, and does not know it yet,
takes nothing back of what its successor wrote.
"""

import atexit
import collections
import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from jaxllm.storage import LocalStorage, Place, Storage, open_storage

_BLOCK = 1 << 16
_PART = 4 << 20
"""Bytes from which on an object is left alone."""

_log = logging.getLogger(__name__)


class Lines(Protocol):
    """A file that grows by one JSON object a line. Where it cannot be written, lines wait in memory."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. Values: numbers, texts, lists and mappings of them, NumPy or JAX arrays."""
        ...

    def sync(self) -> None:
        """Return when what was written would survive the loss of this machine's power. From any thread.

        Raises:
            OSError: an object store does not take it.
        """
        ...

    def close(self) -> None:
        """Sync and close."""
        ...


def open_lines(place: Place, name: str, seconds: float = 5.0) -> Lines:
    """A file of a run's directory, to append to.

    Args:
        place: the directory.
        name: of the file.
        seconds: how long lines may wait before they are written to an object store.
    """
    storage = open_storage(place)
    return JsonLines(storage.path(name)) if isinstance(storage, LocalStorage) else ObjectLines(storage, name, seconds)


def read_parts(place: Place, name: str) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the parts of a file; of a file on a disk there is one. Nothing where there is none."""
    storage, number = open_storage(place), 0
    while True:
        try:
            yield (part := _part_name(name, number)), storage.read(part)
        except (FileNotFoundError, NotADirectoryError):
            return
        number += 1


class JsonLines:
    """A file that grows by one JSON object a line; made, with its directory, if absent, and repaired if torn.

    A disk that is full stops nothing: lines wait in memory, the newest 65,536 of them, and follow when there is room.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._waiting: collections.deque[bytes] = collections.deque(maxlen=_BLOCK)
        self._failing = False
        _cut_unfinished_line(self._descriptor)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. Values: numbers, texts, lists and mappings of them, NumPy or JAX arrays."""
        self._waiting.append(_encode(record))
        try:
            while self._waiting:
                self._append(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if not self._failing:
                _log.warning("%s: %s; what belongs there waits in memory", self._path, error.strerror)
            self._failing = True
        else:
            if self._failing:
                _log.warning("%s can be written again, and what waited is there", self._path)
            self._failing = False

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        rest = line
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            os.ftruncate(self._descriptor, size)  # no torn line in the middle
            raise

    def sync(self) -> None:
        """Return when what was written would survive a loss of power, as far as the disk has room."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            _log.warning("%s: %s", self._path, error.strerror)

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ObjectLines:
    """See the module; as `Lines` says.

    Args:
        storage: of the run.
        name: of the file.
        seconds: how long lines may wait.
    """

    def __init__(self, storage: Storage, name: str, seconds: float = 5.0):
        self._storage, self._file, self._seconds = storage, name, seconds
        self._fresh: list[bytes] = []
        self._guard = threading.Lock()  # of the fresh lines: never held while the store is waited for
        self._turn = threading.Lock()  # of all else
        self._part, self._name, self._stored, self._failing = bytearray(), "", True, False
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._store, name=name, daemon=True)
        self._thread.start()
        atexit.register(self.close)  # what led to an exception is worth most

    def write(self, record: Mapping[str, Any]) -> None:
        """See `Lines.write`."""
        line = _encode(record)
        with self._guard:
            self._fresh.append(line)
        self._wake.set()

    def sync(self) -> None:
        """See `Lines.sync`."""
        with self._turn:
            with self._guard:
                fresh, self._fresh = self._fresh, []
            self._part += b"".join(fresh)
            self._stored = self._stored and not fresh
            if self._stored:
                return
            try:
                self._name = self._name or self._claim()
                self._storage.write(self._name, bytes(self._part))
            except OSError as error:
                if not self._failing:
                    _log.warning("%s/%s: %s; it waits in memory", self._storage, self._file, error.strerror)
                self._failing = True
                raise
            if self._failing:
                _log.warning("%s/%s can be written again, and what waited is there", self._storage, self._file)
            self._stored, self._failing = True, False
            if len(self._part) >= _PART:
                self._part, self._name = bytearray(), ""

    def close(self) -> None:
        """See `Lines.close`."""
        if self._closed.is_set():
            return
        atexit.unregister(self.close)
        self._closed.set()
        self._wake.set()
        self._thread.join()
        try:
            self.sync()
        except OSError:
            _log.warning("%s/%s: its last lines are lost", self._storage, self._file)

    def _store(self) -> None:
        """Write what is fresh, again and again."""
        while self._wake.wait() and not self._closed.wait(self._seconds):
            self._wake.clear()
            try:
                self.sync()
            except OSError:
                self._wake.set()

    def _claim(self) -> str:
        """The name of a new part, which is this process's."""
        taken = [one.removeprefix(self._file) for one in self._storage.list(self._file)]
        number = max((int(one[1:] or 0) for one in taken if not one or one[1:].isdecimal()), default=-1) + 1
        while not self._storage.create(_part_name(self._file, number), b""):
            number += 1
        return _part_name(self._file, number)


def _part_name(file: str, number: int) -> str:
    return f"{file}.{number:04d}" if number else file


def _encode(record: Mapping[str, Any]) -> bytes:
    line = json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n"
    # A lone surrogate has no UTF-8; its backslash form happens to be JSON's own escape.
    return line.encode("utf-8", "backslashreplace")


def plain(value: Any) -> Any:
    """What JSON can hold of a value: numbers that are not finite become strings, arrays lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | str):
        return value
    return plain(value.tolist())


def _cut_unfinished_line(descriptor: int) -> None:
    """Truncate a file after its last newline."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
