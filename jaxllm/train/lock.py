"""One writer for a run: a lock that one process at a time can hold, on anything that is a `Storage`.

    lock/00000001.json, lock/00000002.json, ...

The number is the fencing token (Kleppmann 2016, "How to do distributed locking"). Who wants the lock creates the number
after the newest, which succeeds for exactly one process; the newest number is never removed, so tokens only grow. The
holder rewrites its file every quarter of a lease with a higher count of beats, and before anything that must not be
written twice it calls `check`, which fails once there is a newer number.

A lock is free when its newest file says `released`, and when its holder is known to be dead:

    same boot, same pid namespace   no process has the holder's pid and start time: a killed run starts again at once
    same machine, another boot      nothing survives a boot (same: host name and /etc/machine-id)
    anything else                   the file did not change in a whole lease

A lease is counted by the clock of the one who waits, in periods in which it did look, so neither wrong clocks nor a
process that was itself stopped for a while can take a lock from someone alive. What cannot be read is judged by the
lease as well.
"""

import contextlib
import datetime
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

import msgspec

from jaxllm.storage import Storage

_NAME = re.compile(r"lock/(\d{8,})\.json")
_BEATS_PER_LEASE = 4
_LOOKS_PER_LEASE = 16


class LockLost(RuntimeError):
    """Someone else holds the lock now: what this process would write could overwrite theirs."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """What a lock file says.

    Attributes:
        key: random, of one acquisition.
        host: name of its machine.
        pid: of its process.
        start: of its process, in clock ticks since the boot; None where the system does not say.
        boot: of its machine, a random text; empty where the system does not say.
        namespace: that its pid counts in; empty where the system does not say.
        machine: a text that the machine keeps over boots; empty where the system does not say.
        since: when it took the lock, unix seconds by its own clock.
        lease_seconds: how long its file may stay unchanged while it lives.
        beats: how often it rewrote the file.
        released: whether it gave the lock back.
    """

    key: str
    host: str
    pid: int
    start: int | None
    boot: str
    namespace: str
    machine: str
    since: float
    lease_seconds: float
    beats: int = 0
    released: bool = False

    @property
    def life(self) -> Literal["alive", "dead", "unknown"]:
        """Whether its process still runs, as far as can be seen from here."""
        here = _myself(self.lease_seconds)
        if not (self.boot and here.boot):
            return "unknown"
        if self.boot == here.boot:
            return _life(self.pid, self.start) if self.namespace and self.namespace == here.namespace else "unknown"
        same_machine = self.machine and (self.machine, self.host) == (here.machine, here.host)
        return "dead" if same_machine else "unknown"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lock:
    """A lock on whatever lies beside it in a storage. A context manager: acquired inside, released at the end.

    Args:
        storage: where its files lie, under `lock/`.
        what: is locked, for messages: "run.directory = 'runs/small'".
        lease_seconds: how long a holder that cannot be seen from here may be silent before it counts as dead.
    """

    def __init__(self, storage: Storage, what: str, lease_seconds: float = 60) -> None:
        self._storage, self._what, self._lease = storage, what, lease_seconds
        self._mine: Holder | None = None
        self._token = 0
        self._lost = False
        # Held while the file is read and rewritten, so that a beat never undoes a release.
        self._turn = threading.Lock()
        self._stop = threading.Event()

    @property
    def token(self) -> int:
        """The number of this process's acquisition, above those of all before; 0 while it does not hold the lock."""
        return self._token

    @property
    def lost(self) -> bool:
        """Whether another process was seen to hold the lock: known after a quarter of a lease, and after `check`."""
        return self._lost

    def acquire(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Take the lock, after a lease at the most.

        Args:
            say: told, once, if it must be waited for.

        Raises:
            ValueError: another process holds the lock.
        """
        assert not self._mine
        seen, silence, said = (0, b""), 0.0, False
        while True:
            token, content, holder = self._newest()
            if (token, content) != seen:
                silence = 0.0
            lease = holder.lease_seconds if holder else self._lease
            life = holder.life if holder else "unknown"
            if not token or life == "dead" or (holder and holder.released) or silence >= lease:
                if self._take(token + 1):
                    return
                continue
            beats = token == seen[0] and content != seen[1]
            if life == "alive" or beats:
                raise ValueError(f"{self._what}: {_held(holder)}; wait, stop it, or use another run.name")
            if not said:
                say(f"{self._what}: {_held(holder)}; waiting up to {lease:.0f} s for a sign of life")
                said = True
            seen, began, period = (token, content), time.monotonic(), lease / _LOOKS_PER_LEASE
            time.sleep(period)
            # However late we woke up: what stopped us may have stopped the holder as well.
            silence += min(time.monotonic() - began, 2 * period)

    def check(self) -> None:
        """Show a sign of life; to be called before anything that must not be written twice.

        Does nothing in a process that did not take the lock: of several processes of a run, one does.

        Raises:
            LockLost: another process has taken the lock over.
            OSError: the storage fails.
        """
        with self._turn:
            if not self._mine or self._renew():
                return
            self._lost = True
        raise LockLost(
            f"{self._what}: {_held(self._newest()[2])}; this process was silent for a whole lease, or its lock file "
            "was removed, so it saves nothing more"
        )

    def release(self) -> None:
        """Give the lock back, if it is held. May be called twice, and from any thread."""
        with self._turn, contextlib.suppress(Exception):  # the lease runs out by itself
            self._stop.set()
            if self._mine:
                self._mine = msgspec.structs.replace(self._mine, released=True)
                self._renew()
            self._mine, self._token = None, 0

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _newest(self) -> tuple[int, bytes, Holder | None]:
        """Newest token, and what its file holds: bytes, and what they mean if they can be read; 0 without a file."""
        token = max(self._tokens(), default=0)
        try:
            content = self._storage.read(_name(token)) if token else b""
        except FileNotFoundError:  # a newer one came, or the lock was removed by hand
            return token, b"", None
        try:
            return token, content, msgspec.json.decode(content, type=Holder)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return token, content, None

    def _tokens(self) -> list[int]:
        matches = (_NAME.fullmatch(name) for name in self._storage.list("lock/"))
        return [int(match[1]) for match in matches if match]

    def _take(self, token: int) -> bool:
        """Try to create a token's file, and hold the lock from then on."""
        mine = _myself(self._lease)
        if not self._storage.create(_name(token), msgspec.json.encode(mine)):
            # An object store that was asked twice, the first answer being lost, finds what is ours.
            holder = self._newest()[2]
            if holder is None or holder.key != mine.key:
                return False
        if max(self._tokens(), default=0) != token:
            # While we came, others took a newer number, and removed the one that was free to us.
            self._storage.remove(_name(token))
            return False
        self._mine, self._token, self._stop = mine, token, threading.Event()
        threading.Thread(target=self._beat, args=(self._stop,), name="lock", daemon=True).start()
        for older in self._tokens():
            if older < token:
                self._storage.remove(_name(older))
        return True

    def _beat(self, stop: threading.Event) -> None:
        """Show signs of life until the lock is released or lost."""
        while not stop.wait(self._lease / _BEATS_PER_LEASE):
            with self._turn, contextlib.suppress(Exception):  # storages recover
                if stop.is_set():
                    return
                self._lost = not self._renew()
                if self._lost:
                    return

    def _renew(self) -> bool:
        """Rewrite the file with another beat if it is still the newest and ours; say whether it is."""
        assert self._mine
        self._mine = mine = msgspec.structs.replace(self._mine, beats=self._mine.beats + 1)
        content = msgspec.json.encode(mine)
        token, _, holder = self._newest()
        if token < self._token:  # removed by hand
            return not mine.released and self._storage.create(_name(self._token), content)
        if token > self._token or (holder and holder.key != mine.key):
            return False
        self._storage.write(_name(token), content)
        return True


def _name(token: int) -> str:
    return f"lock/{token:08d}.json"


def _held(holder: Holder | None) -> str:
    if holder is None:
        return "an unknown process holds it (its file in lock/ cannot be read)"
    since = datetime.datetime.fromtimestamp(holder.since).isoformat(" ", "seconds")
    return f"{holder} has trained it since {since}"


def _myself(lease_seconds: float) -> Holder:
    """What this process writes into its lock file."""
    return Holder(
        key=secrets.token_hex(8),
        host=socket.gethostname(),
        pid=os.getpid(),
        start=_start(os.getpid()),
        boot=_text("/proc/sys/kernel/random/boot_id"),
        namespace=_namespace(),
        machine=_text("/etc/machine-id"),
        since=time.time(),
        lease_seconds=lease_seconds,
    )


def _life(pid: int, start: int | None) -> Literal["alive", "dead", "unknown"]:
    """Whether a process of our own pid namespace runs, and is the one that started then."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "dead"
    except PermissionError:  # it is another user's
        pass
    now = _start(pid)
    if start is None or now is None:
        return "unknown"
    return "alive" if now == start else "dead"


def _start(pid: int) -> int | None:
    """When a process started; -1 for one that has ended and waits to be noticed, None where the system does not say."""
    # Field 2, the command, is in parentheses and may hold anything; 3 is the state, 22 the start.
    _, _, rest = _text(f"/proc/{pid}/stat").rpartition(")")
    fields = rest.split()
    if len(fields) < 20:
        return None
    return -1 if fields[0] in ("Z", "X") else int(fields[19])


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return ""
