"""Micro-batches of unequal numbers of valid tokens add up to the gradient of the whole batch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxllm.config import MeshConfig, PrecisionConfig
from jaxllm.layers import linear
from jaxllm.layers.param import leaves

MESHES = {
    "one device": MeshConfig(fsdp=1),
    "data 2 x fsdp 2 x tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "data 2 x fsdp 2 x tensor 2, zero 2": MeshConfig(data=2, fsdp=2, tensor=2, zero=2),
}


@pytest.fixture(scope="module")
def whole():
    """Loss and gradients of the batch in one piece, on one device."""
    losses, gradients = tiny.losses_and_gradients(tiny.experiment(), tiny.make_batch())
    return losses.sum(), gradients, losses


@pytest.mark.parametrize("name", MESHES)
def test_four_micro_batches_are_one_batch(name, whole):
    batch = tiny.make_batch()
    valid = batch["weights"].reshape(-1, 4, tiny.LENGTH).sum(axis=(0, 2))
    assert valid.max() > 10 * valid.min(), "micro-batches count very differently"
    losses, gradients = tiny.losses_and_gradients(tiny.experiment(mesh=MESHES[name], accumulate=4), batch)
    assert losses.sum() == pytest.approx(whole[0], rel=1e-6)
    assert losses == pytest.approx(whole[2], rel=1e-5), "each sample's loss, in the batch's order"
    tiny.assert_close(gradients, whole[1], 1e-5)


def test_reduction_in_bfloat16_rounds_and_no_more(whole):
    precision = PrecisionConfig(compute="float32", reduction="bfloat16")
    config = tiny.experiment(mesh=MESHES["data 2 x fsdp 2 x tensor 2"], precision=precision, accumulate=4)
    loss, gradients = tiny.loss_and_gradients(config, tiny.make_batch())
    assert loss == pytest.approx(whole[0], rel=1e-6)
    tiny.assert_close(gradients, whole[1], 4 * 2.0**-8)
    with pytest.raises(AssertionError):
        tiny.assert_close(gradients, whole[1], 1e-5)


def test_a_batch_without_a_valid_token_has_a_gradient_of_0():
    batch = tiny.make_batch()
    loss, gradients = tiny.loss_and_gradients(tiny.experiment(), batch | {"weights": np.zeros_like(batch["weights"])})
    assert loss == 0
    assert not any(np.any(value) for value in gradients.values())


@pytest.mark.parametrize(("zero", "parts"), [(1, 1), (2, 4), (3, 4)])
def test_gradients_that_wait_for_the_next_micro_batch_are_held_as_zero_says(zero, parts):
    """A device holds all of them (ZeRO 1), or its share over fsdp (ZeRO 2 and 3)."""
    config = tiny.experiment(mesh=MeshConfig(data=2, fsdp=4, zero=zero), accumulate=2)
    running = tiny.program(config)
    with jax.set_mesh(running.mesh):
        params = running.abstract_state().params
        function = tiny.differentiate(running, config)
        program = jax.make_jaxpr(function)(params, running.abstract_batch(tiny.ROWS, tiny.LENGTH))
    shapes = {leaf.shape for _, leaf in leaves(params)}
    scan = next(equation for equation in program.eqns if equation.primitive.name == "scan")
    carried: list[Any] = [variable.aval for variable in scan.outvars if getattr(variable.aval, "shape", None) in shapes]
    assert len(carried) == len(list(leaves(params)))
    for aval in carried:
        held = math.prod(aval.sharding.shard_shape(aval.shape))
        is_norm = aval.shape[-1:] == aval.shape or aval.shape == (tiny.MODEL.num_layers, tiny.MODEL.d_model)
        assert held == aval.size // (1 if is_norm else parts), aval
        assert aval.dtype == jnp.float32


def test_bfloat16_on_one_cpu_is_float32_but_for_rounding(whole, monkeypatch):
    """Its matrix products have a form of their own there, which must not be less exact than the plain one."""
    batch, config = tiny.make_batch(), tiny.experiment(precision=PrecisionConfig(compute="bfloat16"))

    def compute():
        running = tiny.program(config)
        with jax.set_mesh(running.mesh):
            placed = tiny.place(running, tiny.make_params())
            gradients, rows, _ = jax.jit(tiny.differentiate(running, config))(placed, running.put(batch))
        assert float(rows.loss.sum()) == pytest.approx(whole[0], abs=4e-3)
        return {name: np.linalg.norm(value - whole[1][name]) / norms[name] for name, value in leaves(gradients)}

    norms = {name: np.linalg.norm(value) for name, value in whole[1].items()}
    special = compute()
    monkeypatch.setattr(linear, "_on_one_cpu", lambda *_: False)
    plain = compute()
    assert special != plain
    for name, error in special.items():
        # some forty roundings of at most 2^-9 one after the other, at random
        assert 0 < error < 40**0.5 * 2**-8, name
        assert error < 1.1 * plain[name], name
