"""Every device reads only its bytes, and what it gets is its part of what one device alone would get."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from parity import GOLDEN, on
from test_hf_roundtrip import contents

from jaxllm.config import AttentionConfig, BlockConfig, ExpertsConfig, MeshConfig, MLPConfig, ModelConfig, NormConfig
from jaxllm.hf.load import load_tensors, match, read_config, read_piece
from jaxllm.hf.names import entries
from jaxllm.hf.safetensors import open_tensors
from jaxllm.hf.save import save
from jaxllm.layers.param import Recipe, leaves, nest
from jaxllm.models.decoder import Decoder, declarations

MESH, EXPERTS_MESH = MeshConfig(fsdp=2, tensor=4), MeshConfig(fsdp=2, expert=2, tensor=2)
ATTENTION = AttentionConfig(num_heads=4)
LAYER_NORM = NormConfig(kind="layer")
MODELS = {
    "llama": ModelConfig(
        vocab_size=64,
        d_model=16,
        num_layers=3,
        attention=AttentionConfig(num_heads=8, num_kv_heads=4),
        mlp=MLPConfig(d_ff=24),
    ),
    "phi3": ModelConfig(
        family="phi3",
        vocab_size=64,
        d_model=16,
        num_layers=2,
        attention=AttentionConfig(num_heads=8, num_kv_heads=4),
        mlp=MLPConfig(d_ff=24),
    ),
    "gpt2": ModelConfig(
        family="gpt2",
        vocab_size=64,
        d_model=16,
        num_layers=2,
        attention=AttentionConfig(num_heads=4, num_kv_heads=4, positions="none", bias="all"),
        mlp=MLPConfig(d_ff=24, gated=False, activation="gelu_tanh", bias=True),
        norm=LAYER_NORM,
        learned_positions=20,
        tie_embeddings=True,
    ),
    "falcon": ModelConfig(
        family="falcon",
        vocab_size=64,
        d_model=16,
        num_layers=2,
        attention=AttentionConfig(num_heads=8, num_kv_heads=4),
        mlp=MLPConfig(d_ff=24, gated=False, activation="gelu"),
        norm=LAYER_NORM,
        branches="parallel",
    ),
    "deepseek": ModelConfig(
        family="deepseek",
        vocab_size=64,
        d_model=16,
        num_layers=3,
        attention=ATTENTION,
        mlp=MLPConfig(d_ff=8, experts=ExpertsConfig(num_experts=4, experts_per_token=2, shared_d_ff=16)),
        prefix=(BlockConfig(attention=ATTENTION, mlp=MLPConfig(d_ff=24), norm=NormConfig()),),
    ),
}
"""One of each way that tensors hold parameters, divisible by the mesh."""


def draw(config):
    """Random parameters, by leaf on the host, and as a tree under the ambient mesh."""
    generator = np.random.default_rng(0)
    drawn = {
        name: generator.normal(size=declared.shape).astype(np.float32)
        for name, declared in leaves(declarations(Decoder(config, Recipe())))
    }
    whole = NamedSharding(jax.sharding.get_mesh(), P())
    return drawn, nest({name: jax.device_put(value, whole) for name, value in drawn.items()})


def mesh_of(config):
    return EXPERTS_MESH if config.mlp.experts else MESH


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """A model, its parameters, and a directory of them."""
    config, directory = MODELS[request.param], tmp_path_factory.mktemp("saved") / request.param
    with jax.set_mesh(on()[0]):
        drawn, tree = draw(config)
        save(directory, config, tree, dtype="float32", length=20)
    return config, drawn, directory


def test_arrays_on_a_mesh_are_those_of_one_device_and_are_read_once(saved, tmp_path):
    config, params, directory = saved
    tensors = open_tensors(directory)
    mesh, recipe = on(mesh_of(config), jax.devices())
    with jax.set_mesh(mesh):
        tree = load_tensors(tensors, recipe, config)
        save(tmp_path / "again", config, tree, dtype="float32", length=20)
    for name, array in leaves(tree):
        np.testing.assert_array_equal(np.asarray(array), np.asarray(params[name]), err_msg=name)
    split = [array for _, array in leaves(tree) if array.addressable_shards[0].data.size * 8 == array.size]
    assert len(split) > len(params) // 3, "most of the model lies over all devices"
    assert tensors.bytes_read == sum(array.nbytes for _, array in leaves(tree))
    assert contents(tmp_path / "again") == contents(directory)


def test_a_process_reads_its_share(saved):
    config, _, directory = saved
    tensors, places = open_tensors(directory), match(open_tensors(directory), config)
    mesh, recipe = on(mesh_of(config), jax.devices())
    ours, wanted, everything = set(mesh.devices.flat[:4]), 0, 0
    for name, declared in leaves(declarations(Decoder(config, recipe))):
        spec = recipe.rules.storage(declared.axes)
        pieces = NamedSharding(mesh, spec).devices_indices_map(declared.shape)
        for index in {index for device, index in pieces.items() if device in ours}:
            ranges = tuple(slice(*one.indices(size)[:2]) for one, size in zip(index, declared.shape, strict=True))
            wanted += read_piece(tensors, places[name], ranges, np.dtype(np.float32)).nbytes
        everything += 4 * declared.size
    assert tensors.bytes_read == wanted
    assert 0.5 * everything <= wanted < 0.6 * everything


def test_an_entry_is_declared_for_every_parameter(saved):
    config, params, _ = saved
    parts = [part for entry in entries(config) for part in entry.parts]
    assert {part.leaf for part in parts} == set(params)
    assert sum(np.prod(part.shape) for part in parts) == sum(array.size for array in params.values())


def test_half_precision_is_read_as_it_is():
    mesh, _ = on()
    tensors = open_tensors(GOLDEN / "llama/sharded_bfloat16")
    with jax.set_mesh(mesh):
        tree = load_tensors(tensors, Recipe(parameters="bfloat16"), read_config(tensors.directory))
    assert {str(array.dtype) for _, array in leaves(tree)} == {"bfloat16"}
