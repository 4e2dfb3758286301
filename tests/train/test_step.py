"""One step: what it changes and reports, what it drops, and in which dtypes it keeps things."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxllm.config import AdamW, Constant, LossConfig, LossScaleConfig, MeshConfig, OptimConfig, PrecisionConfig
from jaxllm.layers.param import leaves
from jaxllm.train.digests import text
from jaxllm.train.objectives import Rows
from jaxllm.train.step import by_source

PEAK, DECAY = 0.02, 0.2
OPTIM = OptimConfig(learning_rate=PEAK, schedule=Constant(warmup_steps=4), optimizer=AdamW(weight_decay=DECAY))

GOLDEN = {
    "loss": 5.1237583,
    "z_loss": 0.026910130,
    "grad_norm": 2.5042288,
    "param_norm": 35.481491,
    "update_norm": 1.6487499,
    "tokens": 281,
}
"""Metrics of the first step of the tiny model in float32, initial weights included."""


class Run:
    """A program and the states it goes through; every state is kept on the host, as a step takes its argument away."""

    def __init__(self, quick=True, **settings):
        self.config = tiny.experiment(**{"optim": OPTIM, "loss": LossConfig(chunk=64, z_loss=1e-3), **settings})
        self.program = tiny.program(self.config)
        self._step = jax.jit(self.program.step) if quick else self.program.step
        self._init = self.program.init
        self._evaluate = jax.jit(self.program.evaluate)

    def init(self):
        with jax.set_mesh(self.program.mesh):
            return self._init(jax.random.key(0))

    def step(self, state, batch=None):
        """The next state, and the metrics as numbers."""
        with jax.set_mesh(self.program.mesh):
            state, metrics = self._step(state, self.program.put(batch or tiny.make_batch()))
        digest = int(text(metrics.pop("batch_digest")), 16)
        return state, {
            "batch_digest": digest,
            **{name: float(value) for name, value in metrics.items() if not value.ndim},
        }

    def evaluate(self, params):
        with jax.set_mesh(self.program.mesh):
            return self._evaluate(params, self.program.put(tiny.make_batch()))


def keep(tree):
    """A copy on the host."""
    return jax.tree.map(np.array, tree)


def assert_identical(found, wanted):
    """The same dtypes and bits."""
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.atleast_1d(a).view(np.uint8), np.atleast_1d(b).view(np.uint8)),
        found,
        wanted,
    )


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(value.astype(np.float64))) for value in jax.tree.leaves(tree)))


@pytest.fixture(scope="module")
def plain():
    """One device, float32, compiled as a run compiles it."""
    return Run(quick=False)


@pytest.fixture(scope="module")
def first(plain):
    """The first state, the second, and the metrics between them."""
    state = plain.init()
    before = keep(state)
    after, metrics = plain.step(state)
    return before, keep(after), metrics


def test_golden_metrics(first):
    found = {name: first[2][name] for name in GOLDEN}
    assert found == pytest.approx(GOLDEN, rel=2e-5), (
        "The metrics of one step have moved. If the model, its initial weights, the loss or the update were changed on "
        "purpose, say so in the commit and copy the numbers found into GOLDEN; if not, something broke, or a new "
        f"version of jax draws other random numbers. Found: {found}"
    )


def test_the_first_update_is_adamw_s(plain, first):
    before, after, metrics = first
    _, gradients = tiny.loss_and_gradients(plain.config, tiny.make_batch(), before.params)
    assert metrics["grad_norm"] == pytest.approx(norm(gradients), rel=1e-5)
    assert metrics["grad_norm"] > 1, "the gradient is clipped"
    clip = 1 / metrics["grad_norm"]
    decays = {name for name in gradients if "period" in name and "norm" not in name}
    old, new = dict(leaves(before.params)), dict(leaves(after.params))
    for name, gradient in gradients.items():
        direction = clip * gradient / (np.abs(clip * gradient) + 1e-8) + (DECAY if name in decays else 0) * old[name]
        settled = np.abs(clip * gradient) > 1e-5  # of smaller ones the sign is a matter of rounding
        assert np.mean(settled) > 0.5
        np.testing.assert_allclose(
            (new[name] - old[name])[settled], (-PEAK / 4 * direction)[settled], rtol=1e-3, atol=1e-6, err_msg=name
        )
    adam = after.optimizer["adam"]
    tiny.assert_close(dict(leaves(adam.mu)), {name: 0.1 * clip * value for name, value in gradients.items()}, 1e-5)
    tiny.assert_close(
        dict(leaves(adam.nu)), {name: 0.05 * (clip * value) ** 2 for name, value in gradients.items()}, 1e-5
    )


def test_metrics_are_of_what_happened(plain, first):
    before, after, metrics = first
    batch = tiny.make_batch()
    assert metrics["tokens"] == batch["weights"].sum()
    assert metrics["learning_rate"] == pytest.approx(PEAK / 4)
    assert metrics["param_norm"] == pytest.approx(norm(before.params), rel=1e-5)
    change = jax.tree.map(lambda a, b: a.astype(np.float64) - b, after.params, before.params)
    assert metrics["update_norm"] == pytest.approx(norm(change), rel=1e-4)
    loss, _ = tiny.loss_and_gradients(plain.config, batch, before.params)
    assert metrics["loss"] + metrics["z_loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["z_loss"] > 1e-3
    assert (metrics["skipped"], metrics["optimizer_step"], metrics["loss_scale"]) == (0, 1, 1)
    assert (after.step, after.optimizer_step) == (1, 1)


def test_evaluation_computes_the_loss_of_training(plain, first):
    sums = plain.evaluate(tiny.place(plain.program, first[0].params))
    assert float(sums["loss"] / sums["tokens"]) == pytest.approx(first[2]["loss"], rel=1e-6)
    assert sums["tokens"] == first[2]["tokens"]


def test_the_state_is_donated(plain):
    state = plain.init()
    plain.step(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.optimizer)))


def test_a_step_that_is_not_finite_is_dropped_and_the_next_goes_on(plain, first):
    batch = tiny.make_batch()
    poisoned = batch | {"weights": np.where(batch["weights"] > 0, np.float32(np.nan), 0)}
    state, metrics = plain.step(plain.init(), poisoned)
    before, after, _ = first
    assert np.isnan(metrics["loss"])
    assert (metrics["skipped"], metrics["optimizer_step"], metrics["update_norm"]) == (1, 0, 0)
    found = keep(state)
    assert (found.guard.broken, found.guard.num_losses) == (1, 0)
    assert_identical(found, dataclasses.replace(before, step=np.array(1, np.int32), guard=found.guard))
    state, metrics = plain.step(state)
    found = keep(state)
    assert (metrics["skipped"], metrics["learning_rate"]) == (0, first[2]["learning_rate"])
    assert_identical(found, dataclasses.replace(after, step=np.array(2, np.int32), guard=found.guard))


def test_the_rate_is_scaled_by_the_state_and_counted_in_updates(plain, first):
    state = plain.init()
    state = dataclasses.replace(state, learning_rate_scale=0.5 * state.learning_rate_scale)
    state, metrics = plain.step(state)
    assert metrics["learning_rate"] == pytest.approx(0.5 * PEAK / 4)
    assert metrics["update_norm"] == pytest.approx(0.5 * first[2]["update_norm"], rel=1e-5)
    _, metrics = plain.step(state)
    assert metrics["learning_rate"] == pytest.approx(0.5 * PEAK / 2)


def test_the_loss_falls(plain, first):
    state = plain.init()
    for _ in range(8):
        state, metrics = plain.step(state)
    assert metrics["loss"] < 0.5 * first[2]["loss"]


def test_float16_finds_its_scale_and_drops_what_overflows(first):
    loss_scale = LossScaleConfig(initial=2.0**24, growth_interval=2)
    optim = OptimConfig(learning_rate=PEAK, schedule=Constant(warmup_steps=4), loss_scale=loss_scale)
    run = Run(precision=PrecisionConfig(compute="float16"), optim=optim)
    state = run.init()
    before, scale, attempts = keep(state), 2.0**24, 0
    while True:
        state, metrics = run.step(state)
        attempts += 1
        assert metrics["loss_scale"] == scale
        kept = keep(state)
        if not metrics["skipped"]:
            break
        scale /= 2
        assert not np.isfinite(metrics["grad_norm"])
        assert metrics["loss"] == pytest.approx(first[2]["loss"], rel=2e-3), "the scale is not in the loss"
        assert_identical((kept.params, kept.optimizer), (before.params, before.optimizer))
        assert (kept.step, kept.optimizer_step, kept.loss_scale.scale) == (attempts, 0, scale)
    assert 2 < attempts < 12
    assert metrics["loss"] == pytest.approx(first[2]["loss"], rel=2e-3)
    assert metrics["grad_norm"] == pytest.approx(first[2]["grad_norm"], rel=1e-2)
    assert (kept.step, kept.optimizer_step, kept.loss_scale.scale) == (attempts, 1, scale)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(kept.params)} == {"float32"}
    state, _ = run.step(state)
    assert float(state.loss_scale.scale) == 2 * scale, "two clean steps double it"


def test_bfloat16_compute_keeps_float32_weights(plain, first):
    run = Run(precision=PrecisionConfig(compute="bfloat16"))
    state, metrics = run.step(plain.init())
    after = keep(state)
    adam = after.optimizer["adam"]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((after.params, adam.mu, adam.nu))} == {"float32"}
    weight = after.params["period"]["0"]["mlp"]["up"]
    assert np.mean(weight != weight.astype(jnp.bfloat16).astype(np.float32)) > 0.9, "more than bfloat16 can hold"
    assert metrics["loss"] == pytest.approx(first[2]["loss"], rel=2e-3)
    assert metrics["loss"] != first[2]["loss"]
    assert metrics["grad_norm"] == pytest.approx(first[2]["grad_norm"], rel=1e-2)


def test_bfloat16_parameters_train(first):
    run = Run(precision=PrecisionConfig(parameters="bfloat16", compute="bfloat16"))
    state, metrics = run.step(run.init())
    adam = state.optimizer["adam"]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((state.params, adam.mu, adam.nu))} == {"bfloat16"}
    start = metrics["loss"]
    assert start == pytest.approx(first[2]["loss"], rel=5e-3)
    for _ in range(8):
        state, metrics = run.step(state)
    assert metrics["loss"] < 0.5 * start


def test_a_step_on_a_mesh_is_one_device_s(first):
    run = Run(mesh=MeshConfig(data=2, fsdp=2, tensor=2, sequence_parallel=True, zero=2), accumulate=2)
    state, metrics = run.step(run.init())
    after = keep(state)
    assert metrics == pytest.approx(first[2], rel=1e-5)
    for name in ("mu", "nu"):
        found, wanted = (dict(leaves(getattr(kept.optimizer["adam"], name))) for kept in (after, first[1]))
        tiny.assert_close(found, wanted, 1e-5)


def test_losses_by_source_are_means_over_its_tokens_and_a_broken_source_breaks_no_other():
    batch = tiny.make_batch() | {"sources": np.array([0, 2] * 8, np.int32)}
    losses = np.arange(tiny.ROWS, dtype=np.float32)
    losses[1] = np.nan
    running = tiny.program(tiny.experiment(mesh=MeshConfig(data=2, fsdp=2, tensor=2)))
    num_tokens = batch["weights"].sum()
    with jax.set_mesh(running.mesh):
        placed = running.put(batch | {"losses": losses / num_tokens})
        rows = Rows(placed["losses"], placed["losses"])
        found = jax.jit(lambda given, parts: by_source(given, parts, jnp.asarray(num_tokens), 3))(placed, rows)
    valid = batch["weights"].sum(axis=1)
    assert found["source_tokens"].tolist() == [valid[::2].sum(), 0, valid[1::2].sum()]
    wanted = [losses[::2].sum() / valid[::2].sum(), 0, np.nan]
    assert found["source_loss"].tolist() == pytest.approx(wanted, rel=1e-5, nan_ok=True)


def test_the_digest_tells_batches_apart(plain, first):
    batch = tiny.make_batch()
    for name in batch:
        changed = batch | {name: batch[name].copy()}
        changed[name][3, 5] += 1
        _, metrics = plain.step(plain.init(), changed)
        assert metrics["batch_digest"] != first[2]["batch_digest"], name
    swapped = batch | {"tokens": batch["targets"], "targets": batch["tokens"]}
    assert plain.step(plain.init(), swapped)[1]["batch_digest"] != first[2]["batch_digest"]
