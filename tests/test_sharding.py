"""Meshes and rules: every refusal's sentence, slices, shares, and meshes whose devices are absent."""

import math
import re
import time

import jax
import msgspec
import numpy as np
import pytest
import tiny

from jaxllm import mesh_sizes, sharding
from jaxllm.config import AXES, BlockConfig, ExpertsConfig, MeshConfig, MLPConfig, ModelConfig, PhaseConfig
from jaxllm.layers.param import Recipe
from jaxllm.models import PRESETS
from jaxllm.models.decoder import Decoder, declarations
from jaxllm.sharding import Rules
from jaxllm.train.optim import make_optimizer
from jaxllm.train.state import init_state


def sizes(**axes):
    return dict.fromkeys(AXES, 1) | axes


@pytest.mark.parametrize(
    ("mesh", "devices", "sentence"),
    [
        (
            MeshConfig(data=4, fsdp=2, tensor=2),
            8,
            "mesh.data = 4, mesh.fsdp = 2, mesh.tensor = 2: this needs 16 devices and there are 8; "
            "make the axes smaller, or simulate devices with XLA_FLAGS=--xla_force_host_platform_device_count=16",
        ),
        (
            MeshConfig(tensor=2),
            1,
            "mesh.tensor = 2: this needs 2 devices and there is 1; make the axes smaller, "
            "or simulate devices with XLA_FLAGS=--xla_force_host_platform_device_count=2",
        ),
        (MeshConfig(tensor=3), 8, "mesh.tensor = 3: the axes multiply to 3, which does not divide 8 devices"),
        (
            MeshConfig(data=3, fsdp=1),
            8,
            "mesh.data = 3: the axes multiply to 3, which does not divide 8 devices; "
            "set one axis to -1 to use what is left",
        ),
        (
            MeshConfig(data=2, fsdp=2),
            8,
            "mesh.data = 2, mesh.fsdp = 2: the axes multiply to 4, which uses only 4 of 8; "
            "set one axis to -1 to use what is left",
        ),
        (
            MeshConfig(data=3, fsdp=1, slices=2),
            3,
            "mesh.slices = 2: only mesh.data and mesh.pipe may cross slices, and neither (3, 1) is a multiple of it; "
            "raise mesh.data",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, devices, sentence):
    for make in (
        lambda: sharding.make_mesh(mesh, jax.devices()[:devices]),
        lambda: sharding.make_abstract_mesh(mesh, devices),
    ):
        with pytest.raises(ValueError) as raised:
            make()
        assert str(raised.value) == sentence


def test_one_axis_takes_what_is_left():
    assert mesh_sizes.resolve(MeshConfig(tensor=2), 8) == sizes(fsdp=4, tensor=2)
    assert mesh_sizes.resolve(MeshConfig(data=-1, fsdp=2, tensor=4), 64) == sizes(data=8, fsdp=2, tensor=4)
    assert mesh_sizes.resolve(MeshConfig(), 1) == sizes()


SIX = MLPConfig(d_ff=96, experts=ExpertsConfig(num_experts=6, experts_per_token=2, shared_d_ff=2))


@pytest.mark.parametrize(
    ("change", "axes", "sentence"),
    [
        ({"vocab_size": 130}, {"tensor": 4}, "mesh.tensor = 4 does not divide model.vocab_size = 130"),
        ({}, {"fsdp": 6}, "mesh.fsdp x mesh.expert = 6 does not divide model.d_model = 64"),
        ({}, {"fsdp": 32, "expert": 4}, "mesh.fsdp x mesh.expert = 128 does not divide model.d_model = 64"),
        ({}, {"tensor": 16}, "mesh.tensor = 16 does not divide model.attention.num_heads = 8"),
        ({}, {"tensor": 8}, "mesh.tensor = 8 does not divide model.attention.num_kv_heads = 4"),
        ({"mlp": MLPConfig(d_ff=98)}, {"tensor": 4}, "mesh.tensor = 4 does not divide model.mlp.d_ff = 98"),
        ({"mlp": SIX}, {"expert": 4}, "mesh.expert = 4 does not divide model.mlp.experts.num_experts = 6"),
        ({"mlp": SIX}, {"tensor": 4}, "mesh.tensor = 4 does not divide model.mlp.experts.shared_d_ff = 2"),
    ],
)
def test_a_model_that_does_not_split_is_refused(change, axes, sentence):
    model = msgspec.structs.replace(tiny.MODEL, **change)
    with pytest.raises(ValueError, match=rf"^{re.escape(sentence)}; choose a divisor of \d+$"):
        mesh_sizes.check_model(model, sizes(**axes))
    mesh_sizes.check_model(model, sizes(data=7))


def test_a_pipeline_of_experts_is_refused():
    model = msgspec.structs.replace(tiny.MODEL, num_layers=4, mlp=SIX)
    with pytest.raises(ValueError, match=r"mesh\.pipe = 2: a pipeline does not balance experts .*; set mesh\.pipe = 1"):
        mesh_sizes.check_model(model, sizes(pipe=2))


def test_every_block_of_a_model_is_checked():
    odd = BlockConfig(attention=tiny.MODEL.attention, mlp=MLPConfig(d_ff=90))
    model = msgspec.structs.replace(tiny.MODEL, prefix=(odd,))
    with pytest.raises(ValueError, match=r"mesh\.tensor = 4 does not divide model\.mlp\.d_ff = 90"):
        mesh_sizes.check_model(model, sizes(tensor=4))


def test_a_batch_that_does_not_split_is_refused():
    mesh = sizes(data=2, fsdp=2, tensor=4)
    with pytest.raises(ValueError) as raised:
        mesh_sizes.check_batch(12, 2, 64, mesh, sequence_parallel=False)
    assert str(raised.value) == (
        "data.phases.0.batch_size = 12: mesh.data x mesh.fsdp x mesh.expert = 4 does not divide a micro-batch "
        "(batch_size 12 / train.accumulate 2 = 6 samples); use a multiple of 8"
    )
    with pytest.raises(ValueError) as raised:
        mesh_sizes.check_batch(16, 2, 62, mesh, sequence_parallel=True)
    assert str(raised.value) == (
        "data.phases.0.sequence_length = 62: it must be a multiple of 4 "
        "(2 x mesh.context, and mesh.context x mesh.tensor with mesh.sequence_parallel)"
    )
    with pytest.raises(ValueError, match=r"^data\.phases\.0\.sequence_length = 36: it must be a multiple of 8 \("):
        mesh_sizes.check_batch(16, 2, 36, sizes(context=4), sequence_parallel=False)
    with pytest.raises(ValueError, match=r"^data\.phases\.0\.sequence_length = 66: it must be a multiple of 12 \("):
        mesh_sizes.check_batch(16, 2, 66, sizes(context=2, tensor=3), sequence_parallel=True)
    mesh_sizes.check_batch(16, 2, 66, sizes(context=3, tensor=4), sequence_parallel=False)
    mesh_sizes.check_batch(16, 2, 62, mesh, sequence_parallel=False)
    mesh_sizes.check_batch(16, 2, 64, mesh, sequence_parallel=True)


def test_assembling_refuses_what_does_not_fit():
    for mesh, part in (
        (MeshConfig(fsdp=1, tensor=8), "num_kv_heads = 4"),
        (MeshConfig(data=2, fsdp=4), "batch_size = 12"),
    ):
        config = tiny.experiment(mesh=mesh, shape=(12, tiny.LENGTH))
        with pytest.raises(ValueError, match=part):
            tiny.program(config)


def test_assembling_looks_at_every_phase():
    config = tiny.experiment()
    phases = (*config.data.phases, PhaseConfig(batch_size=12, sequence_length=64, steps=1))
    config = msgspec.structs.replace(
        config, mesh=MeshConfig(fsdp=8), data=msgspec.structs.replace(config.data, phases=phases)
    )
    with pytest.raises(ValueError, match=r"^data\.phases\.1\.batch_size = 12: .* use a multiple of 8$"):
        tiny.program(config)


def test_two_dims_on_one_axis_are_refused():
    rules = Rules(live=frozenset({"tensor", "fsdp"}))
    with pytest.raises(ValueError) as raised:
        rules.storage(("mlp", "vocab"))
    assert str(raised.value) == (
        "parameter dims ('mlp', 'vocab'): mesh axis 'tensor' would shard both 'mlp' and 'vocab'"
    )
    with pytest.raises(ValueError, match=r"activation dims .* 'tensor' would shard both 'residual' and 'heads'"):
        Rules(live=frozenset({"tensor"}), sequence_parallel=True).activation("batch", "residual", "heads")
    assert Rules(live=frozenset({"fsdp"})).storage(("mlp", "vocab")).partitions == (None, None)


def test_zero_decides_what_lies_over_fsdp():
    tables = {}
    for zero in (1, 2, 3):
        rules = Rules(live=frozenset({"fsdp"}), zero=zero)
        specs = (rules.storage, rules.gradient, rules.optimizer, rules.compute)
        tables[zero] = [spec(("embed", "mlp")).partitions[0] for spec in specs]
    assert tables == {
        1: [None, None, "fsdp", None],
        2: [None, "fsdp", "fsdp", None],
        3: ["fsdp", "fsdp", "fsdp", None],
    }


def test_data_crosses_slices_and_nothing_else_does():
    mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=1, tensor=2, slices=2))
    slices = np.vectorize(lambda device: device.id // 4)(mesh.devices)  # devices 0 to 3 stand for a slice
    by_data = slices.reshape(4, 2)
    np.testing.assert_array_equal(by_data, [[0, 0], [0, 0], [1, 1], [1, 1]])
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))
    assert mesh_sizes.slice_sizes(MeshConfig(slices=2), sizes(data=4, fsdp=8)) == sizes(data=2)
    assert mesh_sizes.slice_sizes(MeshConfig(slices=2), sizes(data=3, pipe=4)) == sizes(pipe=2)


def test_a_mesh_of_two_slices_computes_what_one_does():
    batch = tiny.make_batch()
    one = tiny.loss_and_gradients(tiny.experiment(), batch)
    two = tiny.loss_and_gradients(tiny.experiment(mesh=MeshConfig(data=2, fsdp=2, tensor=2, slices=2)), batch)
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    tiny.assert_close(two[1], one[1], 1e-5)


def test_a_large_model_s_state_is_laid_over_absent_devices_at_once():
    """Shapes and shardings of Llama 3 70B's training state on 256 devices; the test machine has 8."""
    model = msgspec.convert(PRESETS["llama3-70b"], ModelConfig)
    config = MeshConfig(data=2, fsdp=16, tensor=8, slices=2)
    start = time.process_time()
    mesh = sharding.make_abstract_mesh(config, 256)
    mesh_sizes.check_model(model, dict(mesh.shape))
    rules = sharding.make_rules(config, dict(mesh.shape))
    decoder = Decoder(model, Recipe(rules))
    settings = tiny.experiment().optim
    optimizer = make_optimizer(settings, declarations(decoder), rules)
    with jax.sharding.use_abstract_mesh(mesh):
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(lambda key: init_state(decoder, optimizer, settings.loss_scale, key), key)
    assert time.process_time() - start < 2

    values = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    assert values == 70_553_706_496
    norms = (2 * 80 + 1) * 8192
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state.params))
    assert held == (values - norms) // 128 + norms
    moments = state.optimizer["adam"]
    assert [x.sharding.spec for x in jax.tree.leaves(moments.mu)] == [
        x.sharding.spec for x in jax.tree.leaves(state.params)
    ]
