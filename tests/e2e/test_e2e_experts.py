"""A run with experts changes its mesh in the middle."""

import pathlib
import shutil

import pytest

from jaxllm.config import load
from jaxllm.train.loop import train
from jaxllm.train.metrics import read_events, read_metrics

CONFIG = """
base = "tiny.toml"

[model]
num_layers = 1

[model.mlp]
d_ff = 32
experts = { num_experts = 8, experts_per_token = 2, balancing_bias = true }

[optim]
learning_rate = 1e-3
schedule = { type = "constant" }

[evaluation]
batches = 1
sample_tokens = 0
"""
KEPT, STEPS = 4, 24


def go(home: pathlib.Path, name: str, **mesh: int) -> pathlib.Path:
    """A run in this process: where it lies."""
    sizes = {f"mesh.{axis}": size for axis, size in mesh.items()}
    config = load(home / "experts.toml", {"run.directory": str(home / "runs" / name), **sizes})
    return pathlib.Path(str(train(config).directory))


def losses(directory: pathlib.Path) -> list[float]:
    return [record["loss"] for record in read_metrics(directory)]


def test_a_run_goes_on_where_experts_lie_otherwise(home: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty steps from a checkpoint of another mesh are the first mesh's; behind them there are none."""
    (home / "experts.toml").write_text(CONFIG)
    whole, changed = go(home, "whole", expert=4, fsdp=2), home / "runs" / "changed"
    shutil.copytree(whole, changed)
    for checkpoint in (changed / "checkpoints").glob("step-*"):
        if int(checkpoint.name.split(".")[0].removeprefix("step-")) > KEPT:
            shutil.rmtree(checkpoint)
    go(home, "changed", expert=2, tensor=2, fsdp=2)
    resumed = [event for event in read_events(changed) if event["event"] == "resumed"]
    assert [event["step"] for event in resumed] == [KEPT]
    assert len(losses(changed)) == len(losses(whole)) == STEPS
    assert losses(changed)[:KEPT] == losses(whole)[:KEPT]
    assert losses(changed)[KEPT:] != losses(whole)[KEPT:], "other sums have other last digits"
    assert max(abs(a - b) for a, b in zip(losses(changed), losses(whole), strict=True)) < 1e-4
    capsys.readouterr()
    go(home, "changed", expert=2, tensor=2, fsdp=2)
    assert f"already at its last step, {STEPS}" in " ".join(capsys.readouterr().out.split())
