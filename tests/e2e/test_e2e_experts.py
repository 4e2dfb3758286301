"""A run with experts changes its mesh in the middle."""

import pathlib
import shutil

from jaxllm.train.metrics import read_events, read_metrics
from tests.e2e.conftest import run

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


def mesh(**sizes: int) -> list[str]:
    return [word for axis, size in sizes.items() for word in (f"--mesh.{axis}", str(size))]


def losses(directory: pathlib.Path) -> list[float]:
    return [record["loss"] for record in read_metrics(directory)]


def test_a_run_goes_on_where_experts_lie_otherwise(home: pathlib.Path) -> None:
    """Twenty steps from a checkpoint of another mesh are those that the first mesh takes."""
    (home / "experts.toml").write_text(CONFIG)
    whole, changed = home / "runs" / "whole", home / "runs" / "changed"
    run(["train", "experts.toml", "--run.name", "whole", *mesh(expert=4, fsdp=2)], home, devices=8)
    shutil.copytree(whole, changed)
    for checkpoint in (changed / "checkpoints").glob("step-*"):
        if int(checkpoint.name.split(".")[0].removeprefix("step-")) > KEPT:
            shutil.rmtree(checkpoint)
    run(
        ["train", "experts.toml", "--run.name", "changed", *mesh(expert=2, tensor=2, fsdp=2)],
        home,
        devices=8,
    )
    resumed = [event for event in read_events(changed) if event["event"] == "resumed"]
    assert [event["step"] for event in resumed] == [KEPT]
    assert len(losses(changed)) == len(losses(whole)) == STEPS
    assert losses(changed)[:KEPT] == losses(whole)[:KEPT]
    assert losses(changed)[KEPT:] != losses(whole)[KEPT:], "other sums have other last digits"
    assert max(abs(a - b) for a, b in zip(losses(changed), losses(whole), strict=True)) < 1e-4
