"""The benchmark of spikes: each trouble does what it says, and the quick run shows a spike, a way back and recovery."""

import json
import os
import pathlib
import subprocess
import sys
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.bench import spikes
from jaxllm.bench.trouble import KINDS, make
from jaxllm.config import RulesConfig
from jaxllm.data.steps import Range
from jaxllm.train.guard.rules import forget
from jaxllm.train.loss_scale import LossScale
from jaxllm.train.state import TrainState
from jaxllm.train.trouble import Trouble

FIRST, LENGTH, ROWS, TOKENS = 5, 3, 4, 32
DATA = [kind for kind, found in KINDS.items() if found.cause == "data"]
ONCE = [kind for kind, found in KINDS.items() if found.cause == "once"]


def trouble(kind):
    return make(kind, FIRST, LENGTH, ROWS, seed=1)


def batch(num=ROWS):
    tokens = np.arange(num * (TOKENS + 1), dtype=np.int32).reshape(num, -1) % 97 + 150
    weights = np.ones((num, TOKENS), np.float32)
    sources = np.zeros(num, np.int32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights, "sources": sources}


def same(one, other):
    return all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


@pytest.fixture(scope="module")
def quick():
    """What a user of the command line sees; compiled at the lowest level, on one device."""
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-m", "jaxllm", "bench", "spikes", "--quick", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_spike_is_found_and_the_run_brought_back(quick):
    result, _ = quick
    clean, guarded_clean, unguarded, guarded = result["runs"]
    assert not unguarded["recovered"] and unguarded["alarms"] == 0
    assert guarded["recovered"] and guarded["rollbacks"] == 1 and guarded["stopped"] == ""
    patience = result["size"]["patience"]
    assert patience < guarded["delay"] <= patience + 5, "three high steps make a spike, and it is waited for"
    assert guarded["skipped_tokens"] == result["size"]["skip_batches"] * 8 * 64
    assert guarded["lost_tokens"] > 0 and guarded["false_alarms"] == 0
    assert guarded_clean["loss"] == clean["loss"] and guarded_clean["excess"] == 0
    assert guarded_clean["alarms"] == guarded_clean["dropped"] == guarded_clean["rollbacks"] == 0


def test_all_claims_hold_and_people_can_read_them(quick):
    result, progress = quick
    assert len(result["claims"]) == 3 and all(claim["held"] and claim["num"] == 1 for claim in result["claims"])
    assert [line.split()[0] for line in progress.splitlines()] == ["1/4", "2/4", "3/4", "4/4"]
    lines = spikes.text(result).splitlines()
    assert sum(line.startswith("yes ") for line in lines) == 3
    (row,) = [line for line in lines if line.startswith("  guard") and " steps " in line]
    assert "1/1" in row and f"{100 * result['runs'][3]['excess']:+.2f}" in row


@pytest.mark.parametrize("kind", DATA)
def test_data_is_spoiled_by_sample_and_nowhere_else(kind):
    first = FIRST * ROWS
    before, across = trouble(kind).rows(Range(first - ROWS, first), batch()), Range(first + 2, first + 2 + ROWS)
    assert same(before, batch())
    spoiled = trouble(kind).rows(across, batch())
    assert not same(spoiled, batch())
    assert same(trouble(kind).rows(across, batch()), spoiled), "the same again when the samples are read again"
    after = first + LENGTH * ROWS
    edge = trouble(kind).rows(Range(after - 1, after + 3), batch())
    assert same({name: value[1:] for name, value in edge.items()}, {name: value[1:] for name, value in batch().items()})
    single = trouble(kind).rows(Range(first + 3, first + 4), {name: value[1:2] for name, value in batch().items()})
    assert same(single, {name: value[1:2] for name, value in spoiled.items()}), "whatever process reads the row"


def test_what_the_data_kinds_do():
    rows = {kind: trouble(kind).rows(Range(FIRST * ROWS, (FIRST + LENGTH) * ROWS), batch(12)) for kind in DATA}
    assert len(np.unique(rows["repeat"]["tokens"])) == len(np.unique(rows["repeat"]["targets"])) == 1
    assert np.array_equal(rows["random"]["tokens"][:, 1:], rows["random"]["targets"][:, :-1])
    assert rows["random"]["tokens"].min() < 100, "bytes that the text does not have"
    assert np.array_equal(rows["shuffle"]["tokens"], batch(12)["tokens"])
    assert np.array_equal(np.sort(rows["shuffle"]["targets"]), np.sort(batch(12)["targets"]))
    assert np.isnan(rows["nan"]["weights"]).any(axis=1).all()
    wrong = (rows["ramp"]["targets"] != batch(12)["targets"]).mean(axis=1)
    assert wrong[0] < 0.3 < 0.8 < wrong[-1]


def test_the_learning_rate_s_trouble_comes_back_with_its_steps():
    one = trouble("learning_rate")
    assert [one.learning_rate(step) for step in (4, 5, 7, 8, 5)] == [1, 30, 30, 1, 30]


def state():
    params = {"period": {"0": {"mlp": {"down": jnp.ones((2, 4, 3)), "up": jnp.ones((2, 3, 4))}}}}
    adam = optax.ScaleByAdamState(jnp.ones((), jnp.int32), params, params)
    number, one = jnp.zeros((), jnp.int32), jnp.ones(())
    return TrainState(
        params, OrderedDict(adam=adam), number, number, one, LossScale(one, number), forget(RulesConfig())
    )


@pytest.mark.parametrize("kind", ONCE)
def test_a_fault_of_the_state_happens_once(kind):
    one, whole = trouble(kind), state()
    assert one.state(FIRST - 1, whole) is whole
    changed = one.state(FIRST, whole)
    assert changed is not whole
    assert one.state(FIRST, whole) is whole, "a rolled back run does not meet it again"
    mlp, moments = changed.params["period"]["0"]["mlp"], changed.optimizer["adam"]
    down, up = np.asarray(mlp["down"]), np.asarray(mlp["up"])
    assert np.all(up == 1) and np.all(down[1] == 1) and np.all(np.asarray(moments.mu["period"]["0"]["mlp"]["up"]) == 1)
    assert np.all(down[0] != 1) == (kind == "weights") and (np.abs(down[0] - 1).max() > 5) == (kind == "weights")
    assert bool(np.all(np.asarray(moments.nu["period"]["0"]["mlp"]["up"]) == 0)) == (kind == "moment")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_disturbs_in_one_way(kind):
    one, whole = trouble(kind), state()
    changed = {
        "data": not same(one.rows(Range(FIRST * ROWS, FIRST * ROWS + ROWS), batch()), batch()),
        "steps": one.learning_rate(FIRST) != 1,
        "once": one.state(FIRST, whole) is not whole,
    }
    assert changed == {cause: cause == KINDS[kind].cause for cause in changed}


def test_no_trouble_changes_nothing():
    rows, whole = batch(), state()
    assert Trouble().rows(Range(0, ROWS), rows) is rows and Trouble().state(3, whole) is whole
    assert Trouble().learning_rate(3) == 1


def outcome(kind, mode, **facts):
    usual = {"seed": 0, "loss": 2.0, "excess": 0.0, "recovered": True, "stopped": "", "reported": True, "alarms": 0}
    return {"kind": kind, "mode": mode, "rollbacks": 0, "dropped": 0, "losses": {1: "0x1p+1"}, **usual, **facts}


@pytest.mark.parametrize(
    ("kind", "guarded", "unguarded", "held"),
    [
        ("random", {"recovered": True}, {"recovered": False}, True),
        ("random", {"recovered": False}, {"recovered": False}, False),
        ("random", {"recovered": False}, {"recovered": True}, False),
        ("weights", {"recovered": False}, {"recovered": False}, False),
        ("nan", {"loss": float("nan"), "stopped": "so"}, {}, False),
        ("learning_rate", {"recovered": False, "stopped": "so", "rollbacks": 3}, {"recovered": False}, True),
        ("learning_rate", {"recovered": False, "stopped": "so", "reported": False}, {"recovered": False}, False),
        ("learning_rate", {"recovered": False}, {"recovered": False}, False),
        ("learning_rate", {"stopped": "so", "rollbacks": 7}, {}, False),
        (spikes.CLEAN, {"alarms": 1}, {}, False),
        (spikes.CLEAN, {"dropped": 1}, {}, False),
        (spikes.CLEAN, {"losses": {1: "0x1.000002p+1"}}, {}, False),
        (spikes.CLEAN, {}, {}, True),
    ],
)
def test_a_claim_can_fail(kind, guarded, unguarded, held):
    found = spikes.claims([outcome(kind, "unguarded", **unguarded), outcome(kind, "guard", **guarded)])
    assert found and all(claim["held"] for claim in found) == held


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [({"kinds": ["quake"]}, r"^--kinds quake: the kinds .* repeat, random"), ({"num_seeds": 0}, "^--seeds 0: ")],
)
def test_what_cannot_be_measured_is_one_sentence(asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        spikes.measure(spikes.QUICK, **asked)
