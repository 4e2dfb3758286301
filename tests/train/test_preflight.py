"""A run that does not fit into memory is refused before it is compiled, with the least change that makes it fit."""

import re

import jax
import msgspec
import pytest

from jaxllm import mesh_sizes
from jaxllm.config import Experiment, load
from jaxllm.models import PRESETS
from jaxllm.roofline import device
from jaxllm.train import preflight

GIB = 2**30


def llama(remat: str = "none", chunk: int = 0, batch_size: int = 8, accumulate: int = 1, **more) -> Experiment:
    """Llama 3.2 1B on sequences of 4,096 tokens."""
    tree = {
        "model": {"preset": "llama3.2-1b"},
        "data": {"phases": [{"sequence_length": 4096, "batch_size": batch_size, "steps": 100}]},
        "train": {"remat": remat, "accumulate": accumulate, "loss": {"chunk": chunk}},
        "optim": {"schedule": {"type": "cosine", "warmup_steps": 2}},
        **more,
    }
    return load(tree, presets=PRESETS)


def sizes_of(experiment: Experiment, num_devices: int) -> dict[str, int]:
    return mesh_sizes.resolve(experiment.mesh, num_devices)


def needed(experiment: Experiment, num_devices: int = 1) -> int:
    return sum(device.of_experiment(experiment, experiment.model, sizes_of(experiment, num_devices)).values())


def refusal(experiment: Experiment, limit: int, num_devices: int = 1) -> str:
    """The sentence; it fails where there is none."""
    with pytest.raises(ValueError, match="does not fit into memory") as caught:
        preflight.check(experiment, experiment.model, sizes_of(experiment, num_devices), limit)
    return str(caught.value)


def test_what_fits_is_not_refused():
    experiment = llama()
    for limit in (needed(experiment), int(needed(experiment) / 0.9), 0):
        preflight.check(experiment, experiment.model, sizes_of(experiment, 1), limit)
    refusal(experiment, needed(experiment) - 1)


def test_it_says_what_needs_the_memory():
    text = refusal(llama(), 64 * GIB)
    found = re.search(r"it needs ([\d.]+) GiB of 64.0 a device: (.*?); ", text)
    assert found
    parts = {name: float(size) for name, size in re.findall(r"(\w+) ([\d.]+)", found[2])}
    assert {"parameters", "optimizer", "gradients", "activations", "logits"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(float(found[1]), abs=0.3)
    assert parts["parameters"] == pytest.approx(1_235_814_400 * 4 / GIB, abs=0.06)
    assert parts["optimizer"] == pytest.approx(1_235_814_400 * 8 / GIB, abs=0.06)
    assert parts["logits"] == pytest.approx(8 * 4096 * 128256 * 4 / GIB, abs=0.06)


def test_the_change_that_it_names_is_enough_and_the_least():
    """Here the logits alone are too many; below that, recomputation; then micro-batches."""
    experiment = llama()
    chunked = llama(chunk=1024)
    text = refusal(experiment, needed(chunked))
    saved = (needed(experiment) - needed(chunked)) / GIB
    assert f"; train.loss.chunk = 1024 saves {saved:.1f}; --force tries all the same" in text
    one_row, recomputed = llama(chunk=1024, batch_size=1), llama(chunk=1024, batch_size=1, remat="dots")
    assert '; train.remat = "dots" saves' in refusal(one_row, needed(recomputed))


def test_micro_batches_as_few_as_fit():
    experiment, enough = (llama(batch_size=32, chunk=1024, remat="offload", accumulate=count) for count in (1, 4))
    assert needed(llama(batch_size=32, chunk=1024, remat="offload", accumulate=2)) > needed(enough)
    assert "; train.accumulate = 4 saves" in refusal(experiment, needed(enough))


def test_two_changes_where_one_is_not_enough():
    experiment, enough = llama(batch_size=4), llama(batch_size=4, chunk=1024, remat="block")
    for one in (llama(batch_size=4, remat="offload"), llama(batch_size=4, chunk=1024)):
        assert needed(one) > needed(enough)
    text = refusal(experiment, needed(enough))
    assert 'train.loss.chunk = 1024 and train.remat = "block" saves' in text


def test_where_nothing_helps_it_asks_for_more_devices():
    text = refusal(llama(), 10 * GIB)
    left = needed(llama(chunk=1024, remat="offload")) / GIB
    assert f'even with train.loss.chunk = 1024 and train.remat = "offload" it is {left:.1f}; spread' in text
    assert "spread it over more devices (mesh.fsdp, mesh.tensor)" in text
    text = refusal(llama(batch_size=1, remat="offload", chunk=1024), 10 * GIB)
    assert "even with" not in text and "spread it over more devices" in text


def test_shards_are_counted():
    spread = llama(chunk=1024, remat="block", mesh={"fsdp": -1})
    assert needed(spread, 8) < needed(spread, 1) / 4
    preflight.check(spread, spread.model, sizes_of(spread, 8), needed(spread, 8))
    one = msgspec.structs.replace(spread, mesh=msgspec.structs.replace(spread.mesh, zero=1))
    assert "mesh.zero = 3 saves" in refusal(one, needed(spread, 8), 8)


def test_of_this_machine_the_memory_is_known():
    devices = jax.local_devices()
    assert 0.1 * GIB < preflight.limit_of(devices) * len(devices) < 2**50
