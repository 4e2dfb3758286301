"""Experts in a whole model: on meshes, under the balancing losses, and with biases that a step moves."""

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import tiny

from jaxllm.config import ExpertsConfig, LossConfig, MeshConfig, MLPConfig, OptimConfig
from jaxllm.layers.router import Load
from jaxllm.train.balance import balance_loss

EXPERTS = ExpertsConfig(num_experts=4, experts_per_token=2, shared_d_ff=32, balancing_bias=True)
LAYER = msgspec.structs.replace(tiny.MODEL.default_block, mlp=MLPConfig(d_ff=48, experts=EXPERTS))
MODEL = msgspec.structs.replace(tiny.MODEL, num_layers=1, period=(LAYER,))
STACK = msgspec.structs.replace(MODEL, num_layers=2)
"""Two layers with experts, in one stack."""

LOSS = LossConfig(balance=0.1, sequence_balance=0.1, router_z_loss=0.01)
SHAPE = (8, 32)


def test_loss_and_every_gradient_are_one_device_s_on_a_mesh():
    batch, found = tiny.make_batch(*SHAPE), []
    for mesh in (MeshConfig(fsdp=1), MeshConfig(fsdp=2, expert=2)):
        config = tiny.experiment(MODEL, mesh, shape=SHAPE, loss=LOSS)
        loss, gradients = tiny.loss_and_gradients(config, batch)
        assert not gradients.pop("period.0.mlp.router.bias").any()
        found.append((loss, gradients))
    assert abs(found[0][0] - found[1][0]) < 1e-5
    tiny.assert_close(found[1][1], found[0][1])


def a_load(choices_BE, shares_BE):
    """Of one layer."""
    arrays = (choices_BE, shares_BE, np.full(len(choices_BE), 8.0), np.zeros(len(choices_BE)))
    return {"period.0": Load(*(jnp.asarray(x, jnp.float32)[None] for x in arrays))}


def test_balance_is_one_where_all_are_alike_and_the_number_of_experts_where_one_has_all():
    """Two rows of four tokens, two choices each; the second row counts three times as much as the first."""
    weights_BT = jnp.asarray([[1.0] * 4, [3.0] * 4]) / 16
    segments_BT = jnp.ones((2, 4), jnp.int32)

    def balance(choices_BE, shares_BE, **config):
        return np.asarray(balance_loss(a_load(choices_BE, shares_BE), weights_BT, segments_BT, LossConfig(**config)))

    alike, lopsided = [2.0, 2.0, 2.0, 2.0], [8.0, 0.0, 0.0, 0.0]
    even, uneven = [1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(balance([alike] * 2, [even] * 2, balance=0.5).sum(), 0.5, rtol=1e-6)
    np.testing.assert_allclose(balance([lopsided] * 2, [uneven] * 2, balance=0.5).sum(), 2.0, rtol=1e-6)
    rows = balance([alike, lopsided], [even, uneven], sequence_balance=1.0)
    np.testing.assert_allclose(rows, [0.25 * 1, 0.75 * 4], rtol=1e-6)
    np.testing.assert_allclose(balance([alike] * 2, [even] * 2, router_z_loss=1.0), [0.25 * 2, 0.75 * 2], rtol=1e-6)


def test_a_step_moves_biases_against_its_batch_s_load_unless_it_is_dropped():
    """Biases begin at zero, so that the first step's load is the router's own."""
    optim = OptimConfig(learning_rate=1e-2, schedule=tiny.Constant(), balancing_rate=0.01)
    running = tiny.program(tiny.experiment(STACK, optim=optim, shape=SHAPE))
    step = jax.jit(running.step.__wrapped__)
    with jax.set_mesh(running.mesh):
        begin = jax.jit(running.init.__wrapped__)(jax.random.key(0))
        batch = running.put(tiny.make_batch(*SHAPE))
        for drop in (False, True):
            state, metrics = step(begin, {**batch, "drop": running.scalar(np.bool_(drop))})
            bias_RE = np.asarray(state.params["period"]["0"]["mlp"]["router"]["bias"])
            load_RE = np.asarray(metrics["expert_load"])
            assert load_RE.shape == (2, 4) and not (load_RE == 1).any()
            np.testing.assert_allclose(bias_RE, 0 if drop else 0.01 * np.sign(1 - load_RE), atol=1e-8)
            np.testing.assert_allclose(metrics["max_violation"], load_RE.max(axis=1) - 1, rtol=1e-6)
            np.testing.assert_array_equal(metrics["dropped_tokens"], [0, 0])
            np.testing.assert_allclose(metrics["bias_spread"], np.ptp(bias_RE, axis=1), atol=1e-8)
    assert set(begin.optimizer["adam"].mu["period"]["0"]["mlp"]["router"]) == {"kernel"}
