"""A run of three phases as a user makes it: to the end, killed beside each border, interrupted."""

import json
import pathlib
import signal

import pytest

from jaxllm.config import load
from jaxllm.data.batches import Batches
from jaxllm.data.store import open_store
from jaxllm.data.tokenizer import load_saved
from jaxllm.train.metrics import read_events, read_metrics
from tests.e2e.conftest import run, start, wait_for_step

STEPS = 24


def losses(directory: pathlib.Path) -> list[str]:
    """The loss of each step's last attempt, as bits."""
    return [float(record["loss"]).hex() for record in read_metrics(directory)]


@pytest.fixture(scope="module")
def unbroken(home: pathlib.Path) -> pathlib.Path:
    """A run that nothing disturbed."""
    out, _ = run(["train", "phases.toml", "--run.name", "unbroken"], home)
    directory = home / "runs" / "unbroken"
    assert "data.phases.2 begins: 2 samples of 64 tokens a step; digits 100.0 %" in out
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
    assert [records[step - 1]["tokens_seen"] for step in (8, 16, 24)] == [2048, 3072, 4096]
    assert [records[step - 1]["data_cursor"] for step in (8, 9, 17, 24)] == [56, 64, 80, 94]
    assert {"loss/foxes", "loss/digits"} <= {name for record in records[:8] for name in record}
    assert "loss/foxes" not in records[-1]
    for record in records:
        tokens = {name: record.get(f"tokens/{name}", 0) for name in ("foxes", "digits")}
        assert sum(tokens.values()) == record["tokens"]
        parts = [num * record[f"loss/{name}"] for name, num in tokens.items() if num]
        assert sum(parts) / record["tokens"] == pytest.approx(record["loss"], rel=1e-5)
    assert records[-1]["loss/digits"] == pytest.approx(records[-1]["loss"], rel=1e-6)
    names = [event["event"] for event in events]
    assert names[0] == "started" and names[-1] == "finished" and names.count("evaluated") == 3
    assert [event["step"] for event in events if event["event"] == "phase"] == [8, 16]
    report = (unbroken / "report.html").read_text()
    assert "<html" in report and "Loss by source" in report and "new phase" in report
    environment = json.loads((unbroken / "environment.json").read_text())
    assert environment[0]["attempt"] == 0 and environment[0]["versions"]["jax"]
    assert load_saved(unbroken / "tokenizer").vocab_size == 257
    kept = sorted(path.parent.name for path in unbroken.glob("checkpoints/*/meta.json"))
    # the newest two, and the oldest that clean steps may still make good
    assert kept == [f"step-{step:08d}.attempt-0000" for step in (4, 20, 24)]


def test_a_step_s_documents_are_found_again(home: pathlib.Path, unbroken: pathlib.Path) -> None:
    found = json.loads(run(["data", "where", str(unbroken), "7", "--json"], home)[0])
    assert found["logged"] is True and found["digest"] == read_metrics(unbroken)[6]["batch_digest"]
    assert [row["sample"] for row in found["rows"]] == list(range(48, 56))
    lines = {name: (home / f"{name}.txt").read_text().splitlines() for name in ("foxes", "digits")}
    data = load(unbroken / "config.toml").data
    batch = Batches(open_store(data), data).batch(48)
    for tokens, weights, row in zip(batch["tokens"], batch["weights"], found["rows"], strict=True):
        spans = [
            (
                lines[row["source"]][int(one["document"].rpartition(":")[2]) - 1].encode()[slice(*one["tokens"])],
                one["tokens"],
            )
            for one in row["documents"]
        ]
        letters = b"".join(text for text, _ in spans)
        assert bytes(tokens[tokens < 256].tolist()) == letters
        assert sum(stop - start for _, (start, stop) in spans) == len(weights)


KILLED = """
import os, pathlib, signal, sys, time
from jaxllm.cli import main
from jaxllm.train.records import Records

log, last = Records.step, int(sys.argv.pop())

def step(self, record):
    log(self, record)
    if record["step"] == last:
        while not list(pathlib.Path("runs/killed/checkpoints").glob(f"step-{last // 4 * 4:08}*/meta.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

Records.step = step
main()
"""


def test_three_phases_killed_beside_each_border_go_on_bit_for_bit(home: pathlib.Path, unbroken: pathlib.Path) -> None:
    killed = home / "runs" / "killed"
    for step in (7, 18):
        process = start(["train", "phases.toml", "--run.name", "killed", str(step)], home, code=KILLED)
        out, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, out + err
    run(["train", "phases.toml", "--run.name", "killed"], home)
    assert losses(killed) == losses(unbroken)
    records = read_metrics(killed)
    assert [record["attempt"] for record in records] == [0] * 4 + [1] * 12 + [2] * 8
    for found, wanted in zip(records, read_metrics(unbroken), strict=True):
        for name in ("batch_digest", "data_cursor", "tokens_seen", "loss/foxes", "loss/digits"):
            assert found.get(name) == wanted.get(name), name
    begun = [event for event in read_events(killed) if event["event"] == "phase"]
    assert [(event["attempt"], event["step"], event["phase"]) for event in begun] == [(1, 8, 1), (1, 16, 2), (2, 16, 2)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    home: pathlib.Path, unbroken: pathlib.Path, number: signal.Signals
) -> None:
    name = f"stopped-{number.name}"
    process = start(["train", "phases.toml", "--run.name", name, "--checkpoint.interval", "0"], home)
    wait_for_step(home / "runs" / name, 5)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 75, out + err
    assert f"Stopped by {number.name}" in out and "the same command goes on" in out
    out, _ = run(["train", "phases.toml", "--run.name", name, "--checkpoint.interval", "0"], home)
    assert "resumed" in out
    assert losses(home / "runs" / name) == losses(unbroken)
