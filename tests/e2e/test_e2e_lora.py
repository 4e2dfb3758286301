"""Adapters on a base run, as a user goes: train, go on, merge, and every mistake on the way."""

import dataclasses
import json
import pathlib
import shutil

import jax
import msgspec
import numpy as np
import pytest
import tiny

from jaxllm import cli, sharding
from jaxllm.config import MeshConfig, dump, load, resolved
from jaxllm.data.store import open_store
from jaxllm.data.tokenizer import load_saved
from jaxllm.layers.param import Recipe, leaves
from jaxllm.models.decoder import Decoder
from jaxllm.storage import LocalStorage
from jaxllm.train import history
from jaxllm.train.checkpoints import Checkpoints
from jaxllm.train.initial import find_origin
from jaxllm.train.metrics import read_events, read_metrics
from tests.e2e.conftest import run
from tests.train.saved import ONE, make_state

LORA = ["train", "tiny.toml", "--run.name", "lora", "--run.init_from", "runs/base", "--tune.lora.rank", "3"]
LORA += ["--tune.lora.targets", '["attention.query", "mlp.down"]']
NAMES = {f"params.layers.{layer}.{name}" for layer in (0, 1) for name in ("attention.query", "mlp.down")}


def save_base(home: pathlib.Path, seed: int) -> pathlib.Path:
    """A base that only looks trained: random parameters of a step 8, in the attempt of the seed's number."""
    experiment = load(home / "tiny.toml", {"run.name": "base", "data.store": str(home / "store")})
    model = msgspec.structs.replace(experiment.model, vocab_size=384)
    params = jax.tree.map(lambda x: jax.device_put(x, jax.NamedSharding(ONE, jax.P())), tiny.make_params(model, seed))
    state = dataclasses.replace(make_state(8), params=params, optimizer={})
    place = home / "runs/base/checkpoints"
    checkpoints = Checkpoints(LocalStorage(place), model, experiment.checkpoint)
    tokenizer = open_store(experiment.data).manifest.tokenizer.sha256
    with jax.set_mesh(ONE):
        checkpoints.save(state, 8, seed, 64, {"tokenizer": tokenizer})
    checkpoints.wait()
    (home / "runs/base/config.toml").write_text(dump(resolved(experiment)))
    return place / f"step-00000008.attempt-{seed:04d}"


@pytest.fixture(scope="module")
def tuned(home: pathlib.Path) -> pathlib.Path:
    """A run of adapters on the base."""
    save_base(home, 0)
    out, _ = run(LORA, home)
    lines = {line[:10].strip(): line[10:] for line in out.splitlines()}
    assert lines["model"] == "44.1 k parameters, 960 of them trained" and lines["from"] == "runs/base, step 8"
    return home / "runs" / "lora"


def test_adapters_alone_are_saved_and_a_run_goes_on_bit_for_bit(home: pathlib.Path, tuned: pathlib.Path) -> None:
    meta = json.loads((tuned / "checkpoints/step-00000024.attempt-0000/meta.json").read_text())["content"]
    assert {name for name in meta["leaves"] if name.startswith("params.")} == {f"{n}.{f}" for n in NAMES for f in "ab"}
    assert meta["extra"]["init_from"]["step"] == 8
    shutil.rmtree(tuned / "checkpoints/step-00000024.attempt-0000")
    run(LORA, home)
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    first, again = ([one["loss"] for one in lines if one["attempt"] == n and one["step"] > 20] for n in (0, 1))
    assert first == again and len(again) == 4
    assert read_metrics(tuned)[-1]["loss"] != lines[0]["loss"]
    losses = [event["loss"] for event in read_events(tuned) if event["event"] == "finished"]
    assert losses[0] == losses[1]
    before = [event["attempt"] for event in read_events(tuned) if event["event"] == "evaluated" and not event["step"]]
    assert before == [0], "what the base is worth is said before the first step, and once"


def parameters(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """All parameters of a run without adapters."""
    origin = find_origin("", directory, print)
    mesh = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = origin.read(Decoder(origin.model, Recipe()), mesh, "float32")[0]
    return {name: np.asarray(value) for name, value in leaves(params)}


def test_merged_parameters_are_a_run_to_start_from(home: pathlib.Path, tuned: pathlib.Path) -> None:
    out, _ = run(["merge", "runs/lora", "runs/merged"], home)
    assert out == "runs/merged: step 24 of runs/lora, adapters merged\n"
    assert "step-00000024" in history.checkpoints(home / "runs/merged")
    base, merged = parameters(home / "runs/base"), parameters(home / "runs/merged")
    changed = {name for name in base if not np.array_equal(base[name], merged[name])}
    assert changed == {"period.0.attention.query", "period.0.mlp.down"}
    # of rank 3 as asked: each layer's change is a product of two narrow matrices
    for name in changed:
        for layer in (merged[name] - base[name]).reshape(2, base[name].shape[1], -1):
            singular = np.linalg.svd(layer, compute_uv=False)
            assert singular[2] > 1e-5 > 100 * singular[3]
    origin = find_origin("", home / "runs/merged", print)
    assert origin.experiment.tune.lora is None and origin.experiment.run.init_from == ""
    assert origin.newest.extra["tokenizer"] == load_saved(home / "runs/merged/tokenizer").digest
    assert origin.experiment.run.path == "runs/merged"


FROM_BASE = ["--run.init_from", "runs/base"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "tiny.toml", "--tune.lora.rank", "4"], ["run.init_from = ''", "tune.lora", "runs/base"]),
        (["train", "tiny.toml", "--run.init_from", "runs/none"], ["run.init_from = 'runs/none'", "config.toml"]),
        (["train", "tiny.toml", "--run.init_from", "runs/lora"], ["adapters only", "jaxllm merge runs/lora"]),
        (["train", "tiny.toml", *FROM_BASE, "--run.name", "base"], ["run.init_from", "(was "]),
        (["train", "tiny.toml", *FROM_BASE, "--model.mlp.d_ff", "96"], ["model.mlp.d_ff = 96", "64 there"]),
        (["train", "tiny.toml", *FROM_BASE, "--model.vocab_size", "512"], ["model.vocab_size = 512", "384 there"]),
        (["train", "tiny.toml", *FROM_BASE, "--tune.lora.targets", '["mlp.dwn"]'], ["'mlp.dwn'", "mlp.down"]),
        (
            ["train", "tiny.toml", *FROM_BASE, "--tune.lora.rank", "2", "--model.attention.rope.theta", "5e5"],
            ["model.attention.rope.theta = 500000.0"],
        ),
        (
            ["train", "tiny.toml", *FROM_BASE, "--data.store", "", "--data.tokenizer.type", "sentencepiece"],
            ["tokenizer"],
        ),
        ([*LORA, "--tune.lora.alpha", "4"], ["tune.lora.alpha = 4.0 (was 16.0)"]),
        (["merge", "runs/base", "runs/x"], ["runs/base", "trains all parameters"]),
        (["merge", "runs/lora", "runs/base"], ["runs/base is not empty"]),
        (["merge", "runs/lora", "runs/x", "--force"], ["--force"]),
    ],
)
def test_a_mistake_gets_one_sentence(
    home: pathlib.Path,
    tuned: pathlib.Path,
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(home)
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, *(["--mesh.data", "8"] if arguments[0] == "train" else [])])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert not (home / "runs/x").exists() and not (home / "runs/tiny").exists()


def test_another_base_is_refused(
    home: pathlib.Path, tuned: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    other = save_base(home, 1)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["merge", "runs/lora", "runs/x"])
    err = capsys.readouterr().err
    shutil.rmtree(other)
    assert stopped.value.code == 2 and err.count("\n") == 1, err
    assert "run.init_from = 'runs/base'" in err and "step 8" in err, err
