"""Norm, rope, look-up and products one by one: written-out gradients, frequencies, and sums in low precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny

from jaxllm import sharding
from jaxllm.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MeshConfig,
    NormConfig,
    RopeConfig,
    YarnScaling,
)
from jaxllm.layers import linear
from jaxllm.layers.alibi import slopes, tilts
from jaxllm.layers.embed import Embedding
from jaxllm.layers.norm import Norm
from jaxllm.layers.param import Recipe
from jaxllm.layers.rope import frequencies, magnitude, rotate


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
        yield


def filled(layer, **values):
    """A layer with arrays in the place of its declarations."""
    for name, value in values.items():
        setattr(layer, name, type(getattr(layer, name))(value))
    return layer


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_norm_and_its_gradient(size):
    random = np.random.default_rng(0)
    x, dy = (random.normal(size=(2, 5, 16)) for _ in range(2))
    scale, epsilon, x = random.normal(size=16), 1e-3, x * size

    def found(x, scale):
        return filled(Norm(NormConfig(epsilon=epsilon), 16, Recipe()), scale=scale)(x)

    result, pull = jax.vjp(found, jnp.asarray(x, jnp.float32), jnp.asarray(scale, jnp.float32))
    dx, dscale = pull(jnp.asarray(dy, jnp.float32))
    # in float64, and written from the definition: y_i = s_i x_i / r, r = sqrt(mean(x^2) + epsilon)
    root = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon)
    g = dy * scale
    wanted_dx = g / root - x * np.sum(g * x, axis=-1, keepdims=True) / (16 * root**3)
    tiny.assert_close(
        {"y": np.asarray(result), "dx": np.asarray(dx), "dscale": np.asarray(dscale)},
        {"y": scale * x / root, "dx": wanted_dx, "dscale": np.sum(dy * x / root, axis=(0, 1))},
        2e-6,
    )


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(),
        RopeConfig(theta=500_000.0),
        RopeConfig(theta=500_000.0, scaling=Llama3Scaling()),
        RopeConfig(theta=500_000.0, scaling=Llama3Scaling(factor=32.0)),
        RopeConfig(scaling=LinearScaling(factor=4.0)),
        RopeConfig(scaling=YarnScaling(factor=4.0, original_max_positions=2048)),
        RopeConfig(scaling=YarnScaling(factor=8.0, original_max_positions=512, beta_fast=20.0, truncate=False)),
        RopeConfig(scaling=DynamicScaling(factor=4.0, original_max_positions=2048)),
        RopeConfig(
            scaling=LongRopeScaling(
                short_factor=tuple(np.linspace(1, 3, 64)),
                long_factor=tuple(np.linspace(1, 40, 64)),
                original_max_positions=2048,
            )
        ),
    ],
)
def test_frequencies_are_those_of_the_releases(rope):
    for length in (2048, 2049, 10_000):
        wanted = 2 * np.pi / oracle.wavelengths(rope, 128, length)
        np.testing.assert_allclose(frequencies(rope, 128, length), wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("scaling", "wanted"),
    [
        (None, 1.0),
        (LinearScaling(factor=4.0), 1.0),
        (YarnScaling(factor=4.0, original_max_positions=2048), 1.1386294361119891),
        (YarnScaling(factor=4.0, original_max_positions=2048, mscale=0.707, mscale_all_dim=0.707), 1.0),
        (YarnScaling(factor=4.0, original_max_positions=2048, attention_factor=1.5), 1.5),
        # Phi-3-mini-128k: 131,072 positions after 4,096
        (LongRopeScaling(short_factor=(1.0,), long_factor=(2.0,), original_max_positions=4096, factor=32.0),
         1.1902380714238083),
        (LongRopeScaling(short_factor=(1.0,), long_factor=(2.0,), original_max_positions=4096, attention_factor=1.25),
         1.25),
    ],
)  # fmt: skip
def test_sines_and_cosines_grow_as_the_releases_have_it(scaling, wanted):
    assert magnitude(RopeConfig(scaling=scaling)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(theta=50.0, fraction=0.5, interleaved=True),
        RopeConfig(theta=50.0, scaling=DynamicScaling(factor=4.0, original_max_positions=20)),
        RopeConfig(
            theta=50.0,
            fraction=0.75,
            scaling=LongRopeScaling(
                short_factor=(1.0,) * 6, long_factor=tuple(range(1, 7)), original_max_positions=20, factor=4.0
            ),
        ),
    ],
)
def test_heads_are_turned_as_the_oracle_turns_them_up_to_the_length_of_pretraining_and_past_it(rope):
    random = np.random.default_rng(0)
    x, dy = (jnp.asarray(random.normal(size=(2, 5, 3, 16)), jnp.float32) for _ in range(2))
    rows = [np.array([[0, 1, 2, 3, longest], [0, 1, 0, 4, 7]], np.int32) for longest in (19, 20, 63)]

    @jax.jit
    def both(x, dy, given):
        turns = [functools.partial(rotate, positions_BT=positions, config=rope) for positions in given]
        turns += [functools.partial(oracle.turn, positions_BT=positions, rope=rope) for positions in rows]
        results = [jax.vjp(turn, x) for turn in turns]
        return [y for y, _ in results], [pull(dy)[0] for _, pull in results]

    for values in both(x, dy, [jnp.asarray(positions) for positions in rows]):
        for found, wanted in zip(values[:3], values[3:], strict=True):
            tiny.assert_close({"x": np.asarray(found)}, {"x": np.asarray(wanted)}, 3e-6)
        assert np.abs(values[0] - values[2]).max() > 0.1


@pytest.mark.parametrize("num_heads", [1, 4, 6, 12, 71, 112])
def test_alibi_s_slopes_are_those_of_the_paper_s_code(num_heads):
    np.testing.assert_allclose(slopes(num_heads), oracle.slopes(num_heads), rtol=1e-14)


def test_falcon_s_tilts_are_rounded_twice():
    positions = np.array([[0, 3, 257, 1000]], np.int32)
    found = tilts(jnp.asarray(positions), 6, 0.25, falcon=True)
    wanted = oracle.alibi("falcon_alibi", 6, 16, positions)[:, :, 0].swapaxes(1, 2)
    np.testing.assert_allclose(found, wanted, rtol=1e-7)
    assert np.any(np.asarray(found) != 0.25 * np.asarray(tilts(jnp.asarray(positions), 6, 0.25, falcon=False)))


def test_llama_3_1_keeps_short_waves_and_stretches_long_ones():
    plain = frequencies(RopeConfig(theta=500_000.0), 128)
    ratio = frequencies(RopeConfig(theta=500_000.0, scaling=Llama3Scaling()), 128) / plain
    turns = 8192 * plain / (2 * np.pi)
    assert np.all(ratio[turns > 4] == 1) and np.sum(turns > 4) > 20
    np.testing.assert_allclose(ratio[turns < 1], 1 / 8)
    between = ratio[(turns >= 1) & (turns <= 4)]
    assert len(between) > 3 and np.all(np.diff(between) < 0) and np.all((between > 1 / 8) & (between < 1))


def test_rope_depends_on_distance_only():
    random = np.random.default_rng(0)
    q, k = (jnp.asarray(random.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def score(t, s):
        turned = (rotate(x, jnp.full((1, 1), place), RopeConfig(theta=100.0)) for x, place in ((q, t), (k, s)))
        return float(jnp.vdot(*turned))

    assert score(37, 30) == pytest.approx(score(7, 0), abs=1e-5)
    assert abs(score(37, 30) - score(30, 37)) > 0.1


@pytest.mark.parametrize("num_inputs", [1, 2])
def test_the_cpu_s_bfloat16_product_is_the_plain_one(num_inputs, monkeypatch):
    """With its gradients: sums in float32, rounded once."""
    random = np.random.default_rng(0)
    x_shape, w_shape, y_shape = {
        1: ((2, 24, 32), (32, 4, 8), (2, 24, 4, 8)),
        2: ((2, 24, 4, 8), (4, 8, 32), (2, 24, 32)),
    }[num_inputs]
    x, w, dy = (jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in (x_shape, w_shape, y_shape))
    recipe, outputs = Recipe(compute="bfloat16"), (None,) * (len(w_shape) - num_inputs)

    def run() -> dict[str, np.ndarray]:
        result, pull = jax.vjp(lambda x, w: linear.contract(x, w, outputs, recipe, num_inputs), x, w)
        dx, dw = pull(dy)
        return {name: np.asarray(v, np.float32) for name, v in (("y", result), ("dx", dx), ("dw", dw))}

    special = run()
    called = []
    monkeypatch.setattr(linear, "_on_one_cpu", lambda *_: called.append(1))
    plain = run()
    assert called, "the plain path was taken the second time"
    tiny.assert_close(special, plain, 2.0**-8)


def test_the_embedding_s_gradient_of_a_frequent_token_does_not_stop_growing():
    tokens = jnp.zeros((1, 4097), jnp.int32).at[0, 0].set(3)

    def total(table):
        layer = filled(Embedding(8, 4, 1.0, Recipe(compute="bfloat16")), table=table)
        return jnp.sum(layer(tokens).astype(jnp.float32))

    gradient = jax.grad(total)(jnp.ones((8, 4)))
    np.testing.assert_array_equal(gradient[:, 0], [4096, 0, 0, 1, 0, 0, 0, 0])
