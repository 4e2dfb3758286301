"""A run as a user makes it: to the end, killed, interrupted, gone on with on another mesh."""

import json
import pathlib
import signal

import pytest

from jaxllm.config import load
from jaxllm.data.batches import Batches
from jaxllm.data.store import open_store
from jaxllm.train.metrics import read_events, read_metrics
from tests.e2e.conftest import run, start, wait_for_step

STEPS = 24


def losses(directory: pathlib.Path) -> list[str]:
    """The loss of each step's last attempt, as bits."""
    return [float(record["loss"]).hex() for record in read_metrics(directory)]


@pytest.fixture(scope="module")
def unbroken(home: pathlib.Path) -> pathlib.Path:
    """A run that nothing disturbed."""
    out, _ = run(["train", "tiny.toml", "--run.name", "unbroken"], home)
    directory = home / "runs" / "unbroken"
    assert "held-out" in out and "unigram" in out and str(pathlib.Path("runs/unbroken/report.html")) in out
    return directory


def test_a_run_leaves_its_contract(unbroken: pathlib.Path) -> None:
    records, events = read_metrics(unbroken), read_events(unbroken)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    wanted = {"attempt", "step", "optimizer_step", "loss", "perplexity", "grad_norm", "param_norm", "update_norm"}
    wanted |= {"learning_rate", "tokens_seen", "tokens_per_second", "step_seconds", "data_seconds", "skipped"}
    wanted |= {"tflops_per_device", "memory_bytes", "data_cursor", "batch_digest"}
    assert wanted <= set(records[-1])
    assert records[-1]["tokens_seen"] == STEPS * 8 * 32 and records[-1]["data_cursor"] == (STEPS - 1) * 8
    names = [event["event"] for event in events]
    assert names[0] == "started" and names[-1] == "finished" and names.count("evaluated") == 1
    assert "<html" in (unbroken / "report.html").read_text()
    environment = json.loads((unbroken / "environment.json").read_text())
    assert environment[0]["attempt"] == 0 and environment[0]["versions"]["jax"]
    kept = sorted(path.parent.name for path in unbroken.glob("checkpoints/*/meta.json"))
    # the newest two, and the oldest that clean steps may still make good
    assert kept == [f"step-{step:08d}.attempt-0000" for step in (4, 20, 24)]


def test_a_step_s_documents_are_found_again(home: pathlib.Path, unbroken: pathlib.Path) -> None:
    found = json.loads(run(["data", "where", str(unbroken), "7", "--json"], home)[0])
    assert found["logged"] is True and found["digest"] == read_metrics(unbroken)[6]["batch_digest"]
    assert [row["sample"] for row in found["rows"]] == list(range(48, 56))
    lines = (home / "text.txt").read_text().splitlines()
    data = load(unbroken / "config.toml").data
    batch = Batches(open_store(data), data).batch(48)
    for tokens, weights, row in zip(batch["tokens"], batch["weights"], found["rows"], strict=True):
        spans = [
            (lines[int(one["document"].rpartition(":")[2]) - 1].encode()[slice(*one["tokens"])], one["tokens"])
            for one in row["documents"]
        ]
        letters = b"".join(text for text, _ in spans)
        assert bytes(tokens[tokens < 256].tolist()) == letters
        assert sum(stop - start for _, (start, stop) in spans) == len(weights)


def test_a_killed_run_goes_on_bit_for_bit(home: pathlib.Path, unbroken: pathlib.Path) -> None:
    directory = home / "runs" / "killed"
    for step in (6, 14):
        process = start(["train", "tiny.toml", "--run.name", "killed"], home)
        wait_for_step(directory, step)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run(["train", "tiny.toml", "--run.name", "killed"], home)
    assert losses(directory) == losses(unbroken)
    assert max(record["attempt"] for record in read_metrics(directory)) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    home: pathlib.Path, unbroken: pathlib.Path, number: signal.Signals
) -> None:
    name = f"stopped-{number.name}"
    process = start(["train", "tiny.toml", "--run.name", name, "--checkpoint.interval", "0"], home)
    wait_for_step(home / "runs" / name, 5)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 75, out + err
    assert f"Stopped by {number.name}" in out and "the same command goes on" in out
    out, _ = run(["train", "tiny.toml", "--run.name", name, "--checkpoint.interval", "0"], home)
    assert "resumed" in out
    assert losses(home / "runs" / name) == losses(unbroken)
