"""The ledger, and what policies make of it."""

import errno

import msgspec
import numpy as np
import pytest

from jaxllm.config import (
    CheckpointConfig,
    DataConfig,
    Falcon,
    Ladder,
    Off,
    Palm,
    PhaseConfig,
    Replay,
    Skip,
    dump,
    load,
    resolved,
)
from jaxllm.data.steps import Range, Steps
from jaxllm.models import PRESETS
from jaxllm.storage import LocalStorage
from jaxllm.train.guard.host import Guard
from jaxllm.train.guard.ledger import Dropped, Ledger, RolledBack, append, from_json, order, read, same
from jaxllm.train.guard.policy import Remedy, num_skipped, remedy, resolve
from tests.fakes import object_storage

DATA = DataConfig(phases=(PhaseConfig(sequence_length=64, batch_size=4, steps=1000),))
BACK = RolledBack(
    order="x", attempt=0, step=110, onset=100, flags=("spike",), policy="palm", rung=1, to_step=80, skipped=(320, 480)
)
DROP = Dropped(order="x", attempt=0, step=90, samples=(356, 360), flags=("loss_outlier",))


@pytest.fixture
def smallest_guard(tmp_path):
    experiment = load({"model": {"preset": "llama3-8b"}, "data": {"phases": [{"steps": 9}]}}, presets=PRESETS)
    said = []
    guard = Guard(experiment, Off(), LocalStorage(tmp_path), "digest", said.append)
    guard.open(None)
    return guard, LocalStorage(tmp_path), said


def raising(error):
    def create(*_):
        raise error

    return create


def later(entry, **changes):
    return msgspec.structs.replace(entry, **changes)


def test_entries_are_functions_of_a_run_s_path():
    ledger = Ledger([DROP, BACK, later(DROP, step=85, samples=(500, 504))])
    assert ledger.skipped == (Range(320, 480),)
    assert list(ledger.drops) == [85], "what a rollback has undone counts no more"
    wider = later(BACK, to_step=60, skipped=(240, 900), learning_rate_factor=0.7, lowered_until=200)
    ledger.entries.append(wider)
    assert ledger.skipped == (Range(240, 900),)
    assert ledger.drops == {}
    assert [ledger.learning_rate_factor(step) for step in (59, 60, 199, 200)] == [1, 0.7, 0.7, 1]
    ledger.entries.append(later(wider, to_step=100, learning_rate_factor=0.49, lowered_until=150))
    assert [ledger.learning_rate_factor(step) for step in (60, 99, 100, 149, 150)] == [0.7, 0.7, 0.49, 0.49, 0.7]
    assert from_json(ledger.as_json()) == ledger.entries


@pytest.mark.parametrize("kind", ["local", "object store"])
def test_entries_are_written_for_good(kind, tmp_path):
    storage = LocalStorage(tmp_path) if kind == "local" else object_storage()
    append(storage, 0, DROP)
    append(storage, 1, BACK)
    append(storage, 1, later(BACK, attempt=7))  # once more, after a kill
    assert all(same(one, other) for one, other in zip(read(storage), [DROP, BACK], strict=True))
    with pytest.raises(ValueError, match="the ledger of another run"):
        append(storage, 1, later(BACK, to_step=79))
    content = storage.read("ledger/000000.json")
    storage.write("ledger/000000.json", content.replace(b"356", b"357"))
    with pytest.raises(ValueError, match="damaged"):
        read(storage)
    storage.remove("ledger/000000.json")
    with pytest.raises(ValueError, match=r"000000\.json is missing"):
        read(storage)


def test_a_full_disk_stops_no_run_at_a_dropped_update(monkeypatch, smallest_guard):
    guard, storage, said = smallest_guard
    values = {"flags": 2, "alarm": 0, "onset": 0, "reasons": 0, "clean": 0, "skipped": 1.0, "loss": 9.0}
    rows = {"worst_rows": np.array([1]), "worst_losses": np.array([9.5])}
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "create", raising(OSError(errno.ENOSPC, "no space left on device")))
        guard.hear(3, {**values, **rows}, Range(8, 12), 0)
    assert "waits in memory" in said[0] and read(storage) == []
    guard.hear(5, {**values, **rows}, Range(16, 20), 0)
    assert [entry.step for entry in read(storage)] == [3, 5]


def test_the_order_of_samples_is_known_by_what_decides_it():
    known = order(DATA, "digest")
    assert known == order(msgspec.structs.replace(DATA, prefetch=9), "digest")
    assert known != order(msgspec.structs.replace(DATA, seed=1), "digest")
    assert known != order(msgspec.structs.replace(DATA, shuffle=False), "digest")
    assert known != order(DATA, "another")


def test_policies():
    assert remedy(Palm(rewind_steps=20), [], 100, 1.0) == Remedy(79, skip=Skip(batches=300))
    assert remedy(Falcon(), [], 100, 1.0) == Remedy(99, skip=Skip(tokens=1_000_000_000))
    assert remedy(Replay(rewind_steps=20), [], 100, 1.0) == Remedy(79)
    for policy in (Palm(max_rollbacks=1), Falcon(max_rollbacks=1), Replay(max_rollbacks=1), Ladder(max_rollbacks=1)):
        assert "used up" in remedy(policy, [BACK], 500, 1.0)


def test_a_replayed_spike_that_comes_back_is_no_hardware_s():
    past = [later(BACK, policy="replay", skipped=(0, 0))]
    assert "came back with the same data" in remedy(Replay(), past, 100, 1.0)
    assert isinstance(remedy(Replay(), past, 150, 1.0), Remedy), "another spike"


def test_a_ladder_goes_up_with_spikes_that_follow_soon():
    ladder, past = Ladder(rewind_steps=10, skip_batches=40, calm_steps=200), []
    seen = []
    for onset in (100, 120, 140, 160):
        chosen = remedy(ladder, past, onset, 1.0)
        seen.append((chosen.rung, chosen.widen, chosen.learning_rate_factor, chosen.lowered_steps))
        past.append(later(BACK, policy="ladder", onset=onset, step=onset + 8, rung=chosen.rung))
    assert seen == [(1, 1.0, 1.0, 0), (2, 3.0, 1.0, 0), (3, 9.0, 1.0, 0), (4, 1.0, 0.7, 2000)]
    assert "neither skipping data" in remedy(ladder, past, 180, 0.7)
    assert remedy(ladder, past, 168 + 201, 1.0).rung == 1, "after calm steps from the start again"


def test_a_spike_that_comes_back_at_the_same_step_with_other_data_is_not_the_data_s():
    ladder = Ladder(rewind_steps=10, skip_batches=40, calm_steps=200)
    back = later(BACK, policy="ladder", onset=100, step=108, to_step=80)
    for onset in (96, 100, 104):
        assert remedy(ladder, [back], onset, 1.0)[1:] == (4, Skip(batches=40), 1.0, 0.7, 2000)
    for onset in (84, 95, 105):
        assert remedy(ladder, [back], onset, 1.0).rung == 2
    near = later(back, to_step=95)
    assert remedy(ladder, [near], 100, 1.0).rung == 2, "the data behind the skip may be bad too"
    lowered = later(back, rung=4)
    assert "not the data but what belongs to the step" in remedy(ladder, [back, lowered], 101, 0.7)


def test_skips_in_all_units():
    steps = Steps(DATA)
    assert num_skipped(Skip(batches=30), 3.0, steps, 10, 1000) == 90
    assert num_skipped(Skip(tokens=1000), 1.0, steps, 10, 1000) == 4  # 256 tokens a batch
    assert num_skipped(Skip(fraction=0.0101), 1.0, steps, 10, 1000) == 11


@pytest.mark.parametrize(
    "policy, checkpoint, sentence",
    [
        (Palm(), CheckpointConfig(), "it goes back to checkpoints; set checkpoint.interval"),
        (
            Palm(rewind_steps=500),
            CheckpointConfig(interval=100, good_after=100),
            "guard.policy.rewind_steps = 500: the good checkpoints that are kept reach back 200 steps; set "
            "checkpoint.keep_good = 5, or rewind less",
        ),
        (
            Falcon(skip_batches=1000),
            CheckpointConfig(interval=100),
            "guard.policy.skip_batches = 1000: it leaves out the data of 1,000 steps, and the run has 1,000; skip "
            "less, such as skip_batches = 10",
        ),
        (Falcon(), CheckpointConfig(interval=100), "guard.policy.skip_tokens = 1000000000: "),
        (Palm(skip_fraction=0.9999), CheckpointConfig(interval=100), "guard.policy.skip_fraction = 0.9999: "),
    ],
)
def test_a_policy_that_cannot_work_is_refused(policy, checkpoint, sentence):
    with pytest.raises(ValueError) as caught:
        resolve(policy, checkpoint, DATA)
    assert sentence in str(caught.value)


def test_only_a_run_of_the_same_experiment_is_followed(tmp_path):
    def experiment(**run):
        data = {"phases": [{"steps": 9}]}
        return load({"model": {"preset": "llama3-8b"}, "data": data, "run": run}, presets=PRESETS)

    here, there = experiment(name="here"), LocalStorage(tmp_path)
    guard = Guard(here, Off(), LocalStorage(tmp_path / "here"), "digest", [].append)
    with pytest.raises(ValueError, match=r"guard\.follow = .*: it holds no run, for it has no config\.toml; name a"):
        guard.followed(there, here)
    there.write("config.toml", dump(resolved(experiment(name="there", seed=3))).encode())
    with pytest.raises(ValueError, match=r"run\.seed = 0 here and 3 there, and only the same experiment takes"):
        guard.followed(there, here)
    there.write("config.toml", b"[build]\njobs = 3\n")
    with pytest.raises(ValueError, match=r"config\.toml: build = \{jobs = 3\}: unknown field"):
        guard.followed(there, here)
    there.write("config.toml", dump(resolved(experiment(name="there"))).encode())
    append(there, 0, later(BACK, order=order(here.data, "digest")))
    assert [entry.attempt for entry in guard.followed(there, here)] == [-1]


def test_enough_are_kept_where_nothing_is_refused():
    for keep_good in range(2, 8):
        for rewind in range(0, 800, 50):
            checkpoint = CheckpointConfig(interval=100, good_after=50, keep_good=keep_good)
            try:
                resolve(Palm(rewind_steps=rewind), checkpoint, DATA)
            except ValueError:
                assert rewind > 50 + (keep_good - 1) * 100
            else:
                newest_good = 1000 - 50  # the worst: a checkpoint that has just become good when trouble begins
                assert newest_good - (keep_good - 1) * 100 <= 1000 - rewind


def test_without_a_word_it_is_a_ladder_where_one_fits():
    assert resolve(None, CheckpointConfig(), DATA) == Off()
    assert resolve(None, CheckpointConfig(interval=100), DATA) == Ladder()
    assert resolve(None, CheckpointConfig(interval=100, good_after=10, keep_good=1), DATA) == Off()
