"""A run into poisoned data: it goes back and around it, by itself, whatever happens meanwhile, and leaves its story."""

import json
import pathlib
import random

import pytest

from jaxllm.storage import LocalStorage
from jaxllm.train.catalogue import Catalogue
from jaxllm.train.guard.ledger import Ledger, read, same
from jaxllm.train.metrics import read_events, read_metrics
from tests.e2e.conftest import WORDS, run, start

STEPS, BATCH, LENGTH = 76, 8, 32
FIRST_BAD, NUM_BAD = 52, 16
KILLED = """
import os, signal
from jaxllm.cli import main
from jaxllm.train.guard.host import Guard
def enter_and_die(self, entry):
    enter(self, entry)
    os.kill(os.getpid(), signal.SIGKILL)
enter, Guard.enter = Guard.enter, enter_and_die
main()
"""
"""A trainer that dies when it has written down what to do about a spike, and done nothing yet."""

CONFIG = """
base = "tiny.toml"

[model]
num_layers = 1

[data]
sources = [{{ path = "{text}", documents = "line" }}]
store = ""
shuffle = false
phases = [{{ sequence_length = {length}, batch_size = {batch}, steps = {steps} }}]

[optim]
learning_rate = 1e-2

[evaluation]
batches = 1
sample_tokens = 0

[checkpoint]
interval = 6
good_after = 6
keep_good = 4

[guard]
rules = {{ window = 64, patience = 2 }}
policy = {{ type = "palm", rewind_steps = 8, skip_batches = 30 }}
"""


@pytest.fixture(scope="module")
def place(home: pathlib.Path) -> pathlib.Path:
    """The directory of the other tests, with a poisoned text and a config that trains on it."""
    draw = random.Random(1)
    lines = [" ".join(draw.choices(WORDS, k=30)) for _ in range(300)]
    size, position = 0, 0
    while size < FIRST_BAD * BATCH * LENGTH:
        size += len(lines[position]) + 1
        position += 1
    bad = ["".join(chr(draw.randrange(33, 127)) for _ in range(200)) for _ in range(NUM_BAD * BATCH * LENGTH // 200)]
    text = home / "poisoned.txt"
    text.write_text("\n".join(lines[:position] + bad + lines[position:]) + "\n")
    config = CONFIG.format(text=text, length=LENGTH, batch=BATCH, steps=STEPS)
    (home / "guard.toml").write_text(config)
    return home


@pytest.fixture(scope="module")
def guarded(place: pathlib.Path) -> pathlib.Path:
    """The run that nobody disturbs."""
    out, _ = run(["train", "guard.toml", "--run.name", "guarded"], place)
    assert "A spike began at step" in " ".join(out.split())
    return place / "runs" / "guarded"


def losses(directory: pathlib.Path) -> list[str]:
    return [float(record["loss"]).hex() for record in read_metrics(directory)]


def entries(directory: pathlib.Path) -> list:
    return read(LocalStorage(directory))


def assert_same_ledger(one: pathlib.Path, other: pathlib.Path) -> None:
    first, second = entries(one), entries(other)
    assert len(first) == len(second)
    assert all(map(same, first, second))


def test_it_goes_back_and_around_the_data(guarded: pathlib.Path) -> None:
    (rollback,) = Ledger(entries(guarded)).rollbacks
    assert FIRST_BAD - 8 <= rollback.onset <= FIRST_BAD + 4
    assert rollback.to_step <= rollback.onset - 1 - 8
    assert rollback.step - rollback.onset <= 8
    start_sample, stop_sample = rollback.skipped
    assert start_sample == rollback.to_step * BATCH
    assert stop_sample == start_sample + 30 * BATCH

    records = read_metrics(guarded)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    cursors = [record["data_cursor"] for record in records]
    assert not [cursor for cursor in cursors if start_sample <= cursor < stop_sample]
    assert cursors == sorted(set(cursors))
    assert max(record["loss"] for record in records[-20:]) < 2.5, "trained on, as if nothing had been"
    dropped = [record for record in records if record["skipped"]]
    assert all(record["loss"] > record["loss_limit"] for record in dropped)


def test_what_came_of_it_is_told(guarded: pathlib.Path, place: pathlib.Path) -> None:
    events = read_events(guarded)
    names = [event["event"] for event in events if event["event"] not in ("saved", "evaluated", "skipped")]
    assert names == ["started", "spiked", "rolled_back", "finished"]
    (rollback,) = Ledger(entries(guarded)).rollbacks
    catalogue = Catalogue(LocalStorage(guarded / "checkpoints"))
    aside = [entry for entry in catalogue.entries() if entry.quarantine]
    assert {entry.step for entry in aside} == set(range(rollback.to_step + 6, rollback.step + 1, 6)[-2:])
    assert f"began at step {rollback.onset}" in aside[0].quarantine

    spiked = next(event for event in events if event["event"] == "spiked")
    dossier = json.loads((guarded / spiked["dossier"]).read_text())
    assert {"loss", "grad_norm"} <= {signal["signal"] for signal in dossier["signals"]}
    poison = (place / "poisoned.txt").read_text()
    pieces = [sample["text"][4:12] for sample in dossier["samples"]]
    assert len(pieces) == 8 and sum(piece in poison and not piece.islower() for piece in pieces) >= 6

    out, _ = run(["events", str(guarded)], place)
    assert "rolled_back" in out and dossier["samples"][0]["text"][:10] in out
    out, _ = run(["checkpoints", str(guarded)], place)
    assert out.count("quarantined: a spike began") == len(aside)
    meta = catalogue.meta(catalogue.candidates()[0].place)
    assert len(meta.extra["ledger"]) == len(entries(guarded))


def test_killed_in_the_midst_of_it_the_run_goes_the_same_way(place: pathlib.Path, guarded: pathlib.Path) -> None:
    process = start(["train", "guard.toml", "--run.name", "killed"], place, code=KILLED)
    out, err = process.communicate(timeout=300)
    assert process.returncode == -9, out + err
    killed = place / "runs" / "killed"
    assert len(Ledger(entries(killed)).rollbacks) == 1
    run(["train", "guard.toml", "--run.name", "killed"], place)
    assert losses(killed) == losses(guarded)
    assert_same_ledger(killed, guarded)


def test_another_mesh_decides_the_same(place: pathlib.Path, guarded: pathlib.Path) -> None:
    run(["train", "guard.toml", "--run.name", "meshed", "--mesh.fsdp", "2", "--mesh.tensor", "2"], place, devices=4)
    assert_same_ledger(place / "runs" / "meshed", guarded)


def test_a_ledger_is_followed_bit_for_bit(place: pathlib.Path, guarded: pathlib.Path) -> None:
    off = ["--guard.policy.type", "off", "--guard.drop", "false"]
    run(["train", "guard.toml", "--run.name", "following", *off, "--guard.follow", str(guarded)], place)
    following = place / "runs" / "following"
    assert losses(following) == losses(guarded)
    assert [event["event"] for event in read_events(following) if event["event"] == "rolled_back"] == []
    assert all(entry.attempt == -1 for entry in entries(following))


def test_a_policy_that_is_used_up_stops_the_run(place: pathlib.Path) -> None:
    few = ["--guard.policy.max_rollbacks", "1", "--guard.policy.skip_batches", "1"]
    out, _ = run(["train", "guard.toml", "--run.name", "stopped", *few], place, code=3)
    assert "Stopped by the guard" in out
    assert read_events(place / "runs" / "stopped")[-1]["event"] == "stopped"
    assert (place / "runs" / "stopped" / "report.html").exists()


def test_the_ledger_of_other_data_is_refused_at_start(place: pathlib.Path, guarded: pathlib.Path) -> None:
    wrong = ["--data.seed", "1", "--guard.policy.type", "off", "--guard.drop", "false", "--guard.follow", str(guarded)]
    _, err = run(["train", "guard.toml", "--run.name", "refused", *wrong], place, code=2)
    assert "is about other data" in err
    assert len(err.splitlines()) == 1
    assert not (place / "runs" / "refused").exists()
