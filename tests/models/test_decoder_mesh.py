"""One experiment, any mesh: the same initial values, loss and gradients, and no device holds more than its share."""

import jax
import numpy as np
import pytest
import tiny

from jaxllm.config import MeshConfig
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
}

BATCH = tiny.make_batch()


@pytest.fixture(scope="module")
def one():
    """Loss and gradients of one device."""
    return tiny.loss_and_gradients(tiny.experiment(), BATCH)


@pytest.mark.parametrize("name", MESHES)
def test_loss_and_gradients_are_those_of_one_device(name, one):
    loss, gradients = tiny.loss_and_gradients(tiny.experiment(mesh=MESHES[name]), BATCH)
    assert loss == pytest.approx(one[0], rel=1e-6)
    tiny.assert_close(gradients, one[1], 1e-5)


def bytes_on_one_device(tree):
    device = jax.devices()[0]
    return sum(
        shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards if shard.device == device
    )


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
def test_initial_state_has_the_same_values_and_is_shared_out(name):
    mesh = MESHES[name]
    running = tiny.program(tiny.experiment(mesh=mesh))
    with jax.set_mesh(running.mesh):
        state = tiny.quick_jit(running.init)(jax.random.key(0))
    for (path, value), (_, wanted) in zip(leaves(state.params), leaves(tiny.start()), strict=True):
        np.testing.assert_array_equal(value, wanted, path)
    assert bytes_on_one_device(state.params) == share(mesh, over_fsdp=mesh.zero == 3)
    assert bytes_on_one_device(state.optimizer) == pytest.approx(2 * share(mesh, over_fsdp=True), rel=0.01)


@pytest.mark.parametrize("name", MESHES)
def test_a_step_returns_a_state_laid_as_it_came(name):
    running = tiny.program(tiny.experiment(mesh=MESHES[name]))
    with jax.set_mesh(running.mesh):
        state = running.abstract_state()
        after, _ = jax.eval_shape(running.step, state, running.abstract_batch(tiny.ROWS, tiny.LENGTH))
    before_leaves, after_leaves = jax.tree.leaves(state), jax.tree.leaves(after)
    assert [(x.shape, x.dtype, x.sharding.spec) for x in after_leaves] == [
        (x.shape, x.dtype, x.sharding.spec) for x in before_leaves
    ]
