"""A pipeline: loss and gradients of one device, no stage holds more than its share, and what is refused."""

import math

import jax
import msgspec
import numpy as np
import pytest
import tiny

from jaxllm.config import AdamW, Constant, MeshConfig, Muon, OptimConfig
from jaxllm.layers.param import leaves
from jaxllm.train.pipeline import bubble

MODEL = msgspec.structs.replace(tiny.MODEL, num_layers=4)
MESHES = {
    "pipe 2": (MeshConfig(pipe=2, fsdp=1), 2),
    "pipe 4, 8 micro-batches": (MeshConfig(pipe=4, fsdp=1), 8),
    "pipe 2 x fsdp 2 x tensor 2": (MeshConfig(pipe=2, fsdp=2, tensor=2), 4),
    "pipe 2 x data 2 x tensor 2, sequence parallel": (
        MeshConfig(pipe=2, data=2, fsdp=1, tensor=2, sequence_parallel=True),
        1,
    ),
}
"""Each with its number of micro-batches."""


@pytest.fixture(scope="module")
def one():
    """Losses of the samples and gradients on one device."""
    return tiny.losses_and_gradients(tiny.experiment(MODEL), tiny.make_batch())


@pytest.mark.parametrize(
    ("name", "schedule"), [(name, "1f1b") for name in MESHES] + [("pipe 4, 8 micro-batches", "gpipe")]
)
def test_loss_and_gradients_are_those_of_one_device(name, schedule, one):
    mesh, num_micro = MESHES[name]
    config = tiny.experiment(MODEL, mesh=mesh, accumulate=num_micro, pipeline=schedule)
    losses, gradients = tiny.losses_and_gradients(config, tiny.make_batch())
    assert losses.sum() == pytest.approx(one[0].sum(), rel=1e-6)
    np.testing.assert_allclose(losses, one[0], rtol=1e-5, atol=1e-9)  # sample by sample, in the batch's order
    tiny.assert_close(gradients, one[1], 1e-5)


def test_norms_of_queries_and_keys_and_soft_caps_are_those_of_one_device():
    model = msgspec.structs.replace(tiny.GUARDED, period=tiny.GUARDED.period[:1])
    one = tiny.loss_and_gradients(tiny.experiment(model), tiny.make_batch())
    config = tiny.experiment(model, MeshConfig(pipe=2, fsdp=1, tensor=2), accumulate=2)
    loss, gradients = tiny.loss_and_gradients(config, tiny.make_batch())
    assert loss == pytest.approx(one[0], rel=1e-6)
    tiny.assert_close(gradients, one[1], 1e-5)


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()])
def test_a_device_holds_its_share_before_and_after_a_step(optimizer):
    mesh, num_micro = MESHES["pipe 2 x fsdp 2 x tensor 2"]
    optim = OptimConfig(optimizer=optimizer, schedule=Constant())
    running = tiny.program(tiny.experiment(MODEL, mesh=mesh, accumulate=num_micro, optim=optim))
    with jax.set_mesh(running.mesh):
        before = running.abstract_state()
        after, _ = jax.eval_shape(running.step, before, running.abstract_batch(tiny.ROWS, tiny.LENGTH))

    def held(x):
        return math.prod(x.sharding.shard_shape(x.shape))

    for name, value in leaves(before.params):
        pieces = math.prod(value.shape) / held(value)
        if name.startswith("period") and "norm" in name:
            assert pieces == 2, name  # layers over stages
        else:
            assert pieces == (1 if name == "norm.scale" else 8), name
    types = [[(x.shape, x.dtype, x.sharding.spec) for x in jax.tree.leaves(state)] for state in (before, after)]
    assert types[0] == types[1]


@pytest.mark.parametrize(("schedule", "lengths"), [("1f1b", [3, 8, 3]), ("gpipe", [3, 8, 8, 3])])
def test_the_bubble_is_stages_less_one_over_micro_batches(schedule, lengths):
    """Ticks of the program: filling and draining take as many passes as there are stages less one, and no more."""
    mesh, num_micro = MESHES["pipe 4, 8 micro-batches"]
    config = tiny.experiment(MODEL, mesh=mesh, accumulate=num_micro, pipeline=schedule)
    running = tiny.program(config)
    with jax.set_mesh(running.mesh):
        params, batch = running.abstract_state().params, running.abstract_batch(tiny.ROWS, tiny.LENGTH)
        traced = jax.make_jaxpr(tiny.differentiate(running, config))(params, batch)
    assert [eqn.params["length"] for eqn in traced.eqns if eqn.primitive.name == "scan"] == lengths
    forward, backward = lengths[0] + lengths[1], lengths[-2] + lengths[-1]
    assert forward == backward == num_micro * (1 + bubble(4, num_micro))


def test_evaluation_goes_through_the_stages(one):
    config = tiny.experiment(MODEL, mesh=MESHES["pipe 2 x fsdp 2 x tensor 2"][0])
    running, batch = tiny.program(config), tiny.make_batch()
    with jax.set_mesh(running.mesh):
        sums = jax.jit(running.evaluate)(tiny.place(running, tiny.make_params(MODEL)), running.put(batch))
    assert float(sums["loss"]) / batch["weights"].sum() == pytest.approx(one[0].sum(), rel=1e-6)


def test_layers_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"mesh.pipe = 4 does not divide model.num_layers = 3"):
        tiny.program(tiny.experiment(mesh=MeshConfig(pipe=4, fsdp=1)))
    block = MODEL.default_block
    period = msgspec.structs.replace(MODEL, num_layers=5, period=(block, block))
    with pytest.raises(ValueError, match=r"mesh.pipe = 2: .* of the 5 layers 1 stand outside"):
        tiny.program(tiny.experiment(period, mesh=MeshConfig(pipe=2, fsdp=1)))
