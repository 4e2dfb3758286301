"""The executable that a plan's compiler leaves, found by the run that it was made for."""

import pathlib

import jax
import jax.numpy as jnp
import msgspec

import jaxllm
from jaxllm.data.store import open_store
from jaxllm.plan.compile import Machine, confirm
from jaxllm.train import programs
from jaxllm.train.assemble import resolve_vocabulary
from jaxllm.train.history import events
from jaxllm.train.metrics import read_events
from tests import quick
from tests.e2e.conftest import run

ASKED = {"data.phases.0.steps": "1", "optim.schedule.warmup_steps": "0", "watch.interval": "0"}


def test_a_run_takes_the_exported_step(home: pathlib.Path, monkeypatch) -> None:
    cache = home / "exported" / "cache"
    given = jaxllm.load_experiment(home / "tiny.toml", ASKED)
    model = resolve_vocabulary(given.model, open_store(given.data).tokenizer.vocab_size)
    monkeypatch.setenv("XLA_FLAGS", quick.FLAGS)
    confirm(msgspec.structs.replace(given, model=model), Machine(platform="cpu", shape=(1,)), str(cache.parent))
    asked = [f"--{name}={value}" for name, value in ASKED.items()]
    out, err = run(["train", "tiny.toml", *asked, "--run.name=a", f"--run.compilation_cache={cache}"], home)
    assert "the step's program was taken from there" in (out + err).replace("\n", " ")
    found = {event["event"]: event for event in read_events(home / "runs" / "a")}
    assert found["started"]["compilation_cache"] == str(cache)
    assert found["compiled"]["taken"] is True
    assert f"compiled    taken from {cache}" in events(home / "runs" / "a")


def test_another_program_is_not_taken_for_it(tmp_path: pathlib.Path) -> None:
    def taken(factor: float) -> int:
        before = programs.num_taken()
        jax.jit(lambda x: jnp.sin(factor * x)).lower(1.0).compile()
        return programs.num_taken() - before

    with programs.kept(str(tmp_path)):
        assert [taken(2.0), taken(2.0), taken(3.0)] == [0, 1, 0]
    assert jax.config.jax_compilation_cache_dir != str(tmp_path)
