"""One experiment, any mesh: the same initial values, loss and gradients, and no device holds more than its share."""

import math

import jax
import msgspec
import numpy as np
import pytest
import tiny

from jaxllm.config import AttentionConfig, MeshConfig
from jaxllm.layers.param import leaves

MESHES = {
    "data 8": MeshConfig(data=8, fsdp=1),
    "fsdp 8": MeshConfig(fsdp=8),
    "data 2 x fsdp 2 x tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp 2 x tensor 4": MeshConfig(fsdp=2, tensor=4),
    "fsdp 2 x tensor 4, sequence parallel": MeshConfig(fsdp=2, tensor=4, sequence_parallel=True),
    "data 2 x fsdp 2 x expert 2": MeshConfig(data=2, fsdp=2, expert=2),
    "data 2 x fsdp 2 x tensor 2, zero 1": MeshConfig(data=2, fsdp=2, tensor=2, zero=1),
    "fsdp 4 x tensor 2, zero 2": MeshConfig(fsdp=4, tensor=2, zero=2),
    "fsdp 2 x context 4": MeshConfig(fsdp=2, context=4),
    "fsdp 2 x context 2 x tensor 2, sequence parallel": MeshConfig(fsdp=2, context=2, tensor=2, sequence_parallel=True),
}


@pytest.fixture(scope="module")
def one():
    """Loss and gradients of one device."""
    return tiny.loss_and_gradients(tiny.experiment(), tiny.make_batch())


@pytest.mark.parametrize("name", MESHES)
def test_loss_and_gradients_are_those_of_one_device(name, one):
    loss, gradients = tiny.loss_and_gradients(tiny.experiment(mesh=MESHES[name]), tiny.make_batch())
    assert loss == pytest.approx(one[0], rel=1e-6)
    tiny.assert_close(gradients, one[1], 1e-5)


@pytest.fixture(scope="module")
def guarded():
    """Likewise, with norms of queries and keys, with soft caps, and with one table for embedding and head."""
    return tiny.loss_and_gradients(tiny.experiment(tiny.GUARDED), tiny.make_batch())


@pytest.mark.parametrize("name", ["data 2 x fsdp 2 x tensor 2", "fsdp 2 x context 2 x tensor 2, sequence parallel"])
def test_norms_soft_caps_and_a_tied_head_are_those_of_one_device(name, guarded):
    loss, gradients = tiny.loss_and_gradients(tiny.experiment(tiny.GUARDED, MESHES[name]), tiny.make_batch())
    assert loss == pytest.approx(guarded[0], rel=1e-6)
    tiny.assert_close(gradients, guarded[1], 1e-5)


def share(mesh, over_fsdp):
    """Bytes of one device in float32 by the written rule: matrices split over fsdp, expert and tensor; norms whole."""
    model = tiny.MODEL
    attention, width = model.attention, model.d_model
    head_dim = width // attention.num_heads
    layer = width * head_dim * 2 * (attention.num_heads + attention.num_kv_heads) + 3 * width * model.mlp.d_ff
    matrices = model.num_layers * layer + 2 * model.vocab_size * width
    norms = (2 * model.num_layers + 1) * width
    return 4 * (matrices // (mesh.tensor * (mesh.fsdp * mesh.expert if over_fsdp else 1)) + norms)


@pytest.mark.parametrize("name", MESHES)
def test_a_device_holds_its_share_before_and_after_a_step(name):
    mesh = MESHES[name]
    running = tiny.program(tiny.experiment(mesh=mesh))
    with jax.set_mesh(running.mesh):
        before = running.abstract_state()
        after, _ = jax.eval_shape(running.step, before, running.abstract_batch(tiny.ROWS, tiny.LENGTH))

    def held(tree):
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    assert held(before.params) == share(mesh, over_fsdp=mesh.zero == 3)
    assert held(before.optimizer) == pytest.approx(2 * share(mesh, over_fsdp=True), rel=1e-3)  # and Adam's count
    types = [[(x.shape, x.dtype, x.sharding.spec) for x in jax.tree.leaves(state)] for state in (before, after)]
    assert types[0] == types[1]


@pytest.fixture(scope="module")
def initial():
    """Initial parameters of one device."""
    alone = tiny.program(tiny.experiment())
    with jax.set_mesh(alone.mesh):
        return dict(leaves(alone.init(jax.random.key(0)).params))


@pytest.mark.parametrize(
    "name", ["data 2 x fsdp 2 x tensor 2", "data 2 x fsdp 2 x expert 2", "fsdp 4 x tensor 2, zero 2"]
)
def test_initial_values_are_those_of_one_device_and_lie_where_the_types_say(name, initial):
    mesh = MESHES[name]
    running = tiny.program(tiny.experiment(mesh=mesh))
    with jax.set_mesh(running.mesh):
        promised = running.abstract_state()
        state = running.init(jax.random.key(0))
    for path, value in leaves(state.params):
        np.testing.assert_array_equal(value, initial[path], path)
    first = jax.devices()[0]
    for tree, over_fsdp, copies in ((state.params, mesh.zero == 3, 1), (state.optimizer, True, 2)):
        shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
        held = sum(shard.data.nbytes for shard in shards if shard.device == first)
        assert held == pytest.approx(copies * share(mesh, over_fsdp), rel=1e-3)
    assert jax.tree.all(jax.tree.map(lambda x, shape: x.sharding == shape.sharding, state, promised))


def test_splash_on_a_mesh_is_xla_on_one_device():
    attention = AttentionConfig(num_heads=8, num_kv_heads=4, head_dim=64)
    losses, gradients = {}, {}
    batch = tiny.make_batch(rows=2, length=128)
    for name, kernel, mesh in (
        ("reference", "xla", None),
        ("one device", "splash", None),
        ("mesh", "splash", MeshConfig(fsdp=2, tensor=4)),
    ):
        model = msgspec.structs.replace(
            tiny.MODEL, num_layers=2, attention=msgspec.structs.replace(attention, kernel=kernel)
        )
        config = tiny.experiment(model, mesh=mesh, shape=(2, 128))
        losses[name], gradients[name] = tiny.loss_and_gradients(config, batch)
    for name in ("one device", "mesh"):
        assert losses[name] == pytest.approx(losses["reference"], rel=1e-6)
        tiny.assert_close(gradients[name], gradients["reference"], 1e-5)
