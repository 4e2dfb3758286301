"""One writer: who gets the lock, who is told off, and what a lock survives."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from jaxllm.storage import LocalStorage, Storage
from jaxllm.train import lock as lock_module
from jaxllm.train.lock import Holder, Lock, LockLost
from tests.fakes import object_storage

WHAT = "run.directory = 'runs/small'"
ELSEWHERE = {"host": "otherhost", "boot": "boot-2", "machine": "machine-2", "namespace": "pid:[2]"}

CHILD = """
import sys, time
from jaxllm.storage import LocalStorage
from jaxllm.train.lock import Lock
assert not {"jax", "numpy"} & set(sys.modules)
lock = Lock(LocalStorage(sys.argv[1]), "run", lease_seconds=3600)
print("ready", flush=True)
for line in sys.stdin:
    if line == "release\\n":
        lock.release()
        print("released", flush=True)
        continue
    time.sleep(max(0.0, float(line) - time.monotonic()))
    try:
        lock.acquire()
        print("won", lock.token, flush=True)
    except ValueError as error:
        print("lost", error, flush=True)
"""


@pytest.fixture(params=["local", "object store"])
def storage(request, tmp_path) -> Storage:
    return LocalStorage(tmp_path / "root") if request.param == "local" else object_storage()


@pytest.fixture(autouse=True)
def machine(monkeypatch) -> None:
    """Containers often have no /etc/machine-id."""
    text = lock_module._text
    monkeypatch.setattr(lock_module, "_text", lambda path: "machine-1" if path == "/etc/machine-id" else text(path))


@pytest.fixture
def children():
    """Starts processes that take and release a lock when told to."""
    started: list[subprocess.Popen[str]] = []

    def start(directory) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(directory)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert read(child) == "ready"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def tell(child, line):
    child.stdin.write(f"{line}\n")
    child.stdin.flush()


def read(child) -> str:
    return child.stdout.readline().rstrip("\n")


def holder(**changes) -> Holder:
    """This process as a holder, changed."""
    return msgspec.structs.replace(lock_module._myself(0.25), key="another", **changes)


def put(storage: Storage, token: int, content: Holder | bytes) -> None:
    encoded = content if isinstance(content, bytes) else msgspec.json.encode(content)
    storage.write(f"lock/{token:08d}.json", encoded)


def get(storage: Storage, token: int) -> Holder:
    return msgspec.json.decode(storage.read(f"lock/{token:08d}.json"), type=Holder)


def never(note: str) -> None:
    pytest.fail(f"waited: {note}")


def test_tokens_grow_and_old_files_go(storage):
    for token in (1, 2, 3):
        with Lock(storage, WHAT) as lock:
            assert lock.token == token
            assert storage.list() == [f"lock/{token:08d}.json"]
            assert not get(storage, token).released
            lock.check()
        assert get(storage, token).released
        assert lock.token == 0


def test_a_live_holder_is_named_with_what_to_do(storage):
    with Lock(storage, WHAT):
        with pytest.raises(ValueError) as error:
            Lock(storage, WHAT).acquire(never)
        since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        host = re.escape(os.uname().nodename)
        sentence = f"{re.escape(WHAT)}: process {os.getpid()} on {host} has trained it since {since}; "
        assert re.fullmatch(sentence + "wait, stop it, or use another run.name", str(error.value))


def test_release_is_idempotent_and_leaves_others_alone(storage):
    first = Lock(storage, WHAT)
    first.release()
    assert storage.list() == []
    first.acquire()
    first.release()
    with Lock(storage, WHAT) as second:
        first.release()
        first.check()
        second.check()
        assert not get(storage, second.token).released


def test_a_lock_can_be_taken_again(storage):
    lock = Lock(storage, WHAT, lease_seconds=0.02)
    for _ in range(2):
        lock.acquire(never)
        wait_for(lambda: get(storage, lock.token).beats > 1)
        lock.release()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 2**22 + 1},
        {"start": 1},
        {"boot": "boot-2"},
        {**ELSEWHERE, "released": True},
    ],
    ids=["no such process", "its number belongs to another", "another boot", "released"],
)
def test_the_dead_are_known_at_once(storage, changes):
    put(storage, 7, holder(lease_seconds=3600, **changes))
    lock = Lock(storage, WHAT, lease_seconds=3600)
    lock.acquire(never)
    assert lock.token == 8
    lock.release()


@pytest.mark.parametrize(
    "changes",
    [
        ELSEWHERE,
        {"namespace": "pid:[2]"},
        {"boot": "boot-2", "machine": "machine-2"},
        {"boot": "boot-2", "machine": ""},
        {"boot": ""},
        {"start": None},
    ],
    ids=["elsewhere", "another namespace", "another machine of this name", "nameless machine", "no boot", "no start"],
)
def test_others_are_dead_after_a_silent_lease(storage, changes):
    put(storage, 7, holder(**changes))
    notes = []
    lock = Lock(storage, WHAT, lease_seconds=3600)
    lock.acquire(notes.append)
    assert lock.token == 8
    (note,) = notes
    assert note.startswith(f"{WHAT}: process {os.getpid()} on ") and "waiting up to 0 s" in note
    lock.release()


def test_others_are_alive_if_they_show_it(storage):
    other = holder(**ELSEWHERE)
    put(storage, 7, other)

    def beat(_: str) -> None:
        put(storage, 7, msgspec.structs.replace(other, beats=1))

    with pytest.raises(ValueError, match=r"process \d+ on otherhost has trained it since"):
        Lock(storage, WHAT).acquire(beat)
    assert storage.list() == ["lock/00000007.json"]


def test_a_beat_at_the_end_of_the_lease_counts(storage, monkeypatch):
    other = holder(**ELSEWHERE)
    put(storage, 7, other)
    looks = iter(range(1000))

    def sleep(_: float) -> None:
        if next(looks) == 15:
            put(storage, 7, msgspec.structs.replace(other, beats=1))

    now = iter(range(1000))
    monkeypatch.setattr(lock_module.time, "sleep", sleep)
    monkeypatch.setattr(lock_module.time, "monotonic", lambda: next(now) * other.lease_seconds / 16)
    with pytest.raises(ValueError, match="otherhost"):
        Lock(storage, WHAT).acquire()
    assert next(looks) == 16


def test_time_in_which_nobody_looked_is_no_silence(storage, monkeypatch):
    put(storage, 7, holder(**ELSEWHERE))
    looks, now = [], iter(range(0, 1_000_000, 1000))
    monkeypatch.setattr(lock_module.time, "sleep", looks.append)
    monkeypatch.setattr(lock_module.time, "monotonic", lambda: next(now))
    with Lock(storage, WHAT):
        assert len(looks) == 8


def test_whoever_releases_while_we_wait_is_followed(storage):
    other = holder(lease_seconds=0.4, **ELSEWHERE)
    put(storage, 7, other)
    lock = Lock(storage, WHAT)
    lock.acquire(lambda _: put(storage, 7, msgspec.structs.replace(other, released=True)))
    assert lock.token == 8
    lock.release()


@pytest.mark.parametrize("content", [b"", b'{"key": "a', b"[]", b"\xff\xfe"])
def test_a_broken_file_is_judged_by_the_lease(storage, content):
    put(storage, 3, content)
    notes = []
    lock = Lock(storage, WHAT, lease_seconds=0.1)
    lock.acquire(notes.append)
    assert lock.token == 4
    assert notes == [
        f"{WHAT}: an unknown process holds it (its file in lock/ cannot be read); waiting up to 0 s for a sign of life"
    ]
    lock.release()


def test_a_newer_token_is_a_fence(storage):
    lock = Lock(storage, WHAT, lease_seconds=3600)
    lock.acquire()
    put(storage, 2, holder(**ELSEWHERE))
    with pytest.raises(LockLost, match=r"process \d+ on otherhost has trained it since .* saves nothing more"):
        lock.check()
    lock.release()
    assert not get(storage, 2).released
    assert not get(storage, 1).released


def test_a_holder_notices_by_itself_that_it_is_none_any_more(storage):
    lock = Lock(storage, WHAT, lease_seconds=0.1)
    lock.acquire()
    assert not lock.lost
    put(storage, 2, holder(**ELSEWHERE))
    deadline = time.monotonic() + 30
    while not lock.lost:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(LockLost):
        lock.check()
    lock.release()


def test_a_lock_removed_by_hand_comes_back_unless_another_was_faster(storage):
    lock = Lock(storage, WHAT, lease_seconds=3600)
    lock.acquire()
    storage.remove("lock/00000001.json")
    lock.check()
    assert get(storage, 1).host == os.uname().nodename
    put(storage, 1, holder(**ELSEWHERE))
    with pytest.raises(LockLost, match="otherhost"):
        lock.check()
    lock.release()
    assert get(storage, 1).host == "otherhost"


def test_a_number_that_is_free_because_it_is_old_is_no_lock(storage):
    """Between our look and our file, others took two newer numbers and removed the one that we create."""
    put(storage, 4, holder(released=True))
    create = storage.create

    def late(name: str, content: bytes) -> bool:
        storage.remove("lock/00000004.json")
        put(storage, 6, holder())
        return create(name, content)

    storage.create = late
    with pytest.raises(ValueError, match="has trained it"):
        Lock(storage, WHAT).acquire(never)
    assert storage.list() == ["lock/00000006.json"]


def test_a_failing_storage_does_not_end_the_beats(storage):
    lock = Lock(storage, WHAT, lease_seconds=0.02)
    lock.acquire()
    write, failures = storage.write, threading.Semaphore(0)

    def fail(name: str, content: bytes) -> None:
        failures.release()
        raise OSError("no space left")

    storage.write = fail
    assert failures.acquire(timeout=60) and failures.acquire(timeout=60)
    storage.write = write
    beats = get(storage, 1).beats
    wait_for(lambda: get(storage, 1).beats > beats)
    lock.release()
    assert get(storage, 1).released


def test_of_two_processes_that_start_together_one_wins(tmp_path, children):
    pair = [children(tmp_path), children(tmp_path)]
    for token in range(1, 21):
        instant = time.monotonic() + 0.005
        for child in pair:
            tell(child, instant)
        answers = [read(child) for child in pair]
        (winner,) = [index for index, answer in enumerate(answers) if answer == f"won {token}"]
        assert f"lost run: process {pair[winner].pid} on " in answers[1 - winner]
        tell(pair[winner], "release")
        assert read(pair[winner]) == "released"


def test_a_killed_run_starts_again_at_once(tmp_path, children):
    child = children(tmp_path)
    tell(child, 0)
    assert read(child) == "won 1"
    with pytest.raises(ValueError, match=f"process {child.pid} on "):
        Lock(LocalStorage(tmp_path), WHAT).acquire(never)
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(ValueError, match=f"process {child.pid} on "):
        Lock(LocalStorage(tmp_path), WHAT).acquire(never)
    child.kill()
    # Dead, but not yet waited for by its parent: in a container that may last.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with Lock(LocalStorage(tmp_path), WHAT) as lock:
        assert lock.token == 2


def test_a_store_that_was_asked_twice_gives_the_lock_all_the_same(storage, monkeypatch):
    """Its first answer was lost on the way, and the second one says that the name is taken."""
    create = type(storage).create
    monkeypatch.setattr(type(storage), "create", lambda *arguments: create(*arguments) and False)
    with Lock(storage, WHAT) as lock:
        assert lock.token == 1
