"""What families are made of, against the oracle and on meshes: norms, activations, biases, branches, positions."""

import jax
import numpy as np
import oracle
import pytest
import tiny

from jaxllm.config import AttentionConfig, BlockConfig, MeshConfig, MLPConfig, ModelConfig, NormConfig, RopeConfig
from jaxllm.layers.param import Recipe, leaves, nest
from jaxllm.models.decoder import Decoder, declarations
from jaxllm.roofline.transformer import parameters

LAYER_NORM = NormConfig(kind="layer", epsilon=1e-3)
OFFSET_NORM = NormConfig(epsilon=1e-3, unit_offset=True)


def gemma(window, theta):
    """A layer of Gemma 2 or 3: windows and frequencies by slot."""
    attention = AttentionConfig(
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        qk_norm="head",
        query_scale=0.3,
        soft_cap=2.0,
        window=window,
        rope=RopeConfig(theta=theta),
    )
    mlp = MLPConfig(d_ff=64, activation="gelu_tanh")
    return BlockConfig(attention=attention, mlp=mlp, norm=OFFSET_NORM, norm_placement="both")


FALCON_RW = BlockConfig(
    attention=AttentionConfig(num_heads=6, head_dim=5, positions="falcon_alibi", window=9, bias="all"),
    mlp=MLPConfig(d_ff=64, gated=False, activation="gelu", bias=True),
    norm=LAYER_NORM,
)
FALCON = BlockConfig(
    attention=AttentionConfig(num_heads=4, num_kv_heads=2),
    mlp=MLPConfig(d_ff=64, gated=False, activation="gelu"),
    norm=LAYER_NORM,
    branches="parallel_shared_norm",
)
GLM = BlockConfig(
    attention=AttentionConfig(
        num_heads=4, num_kv_heads=2, bias="qkv", rope=RopeConfig(theta=50.0, fraction=0.5, interleaved=True)
    ),
    mlp=MLPConfig(d_ff=64, bias=True),
    norm_placement="both",
)
OLMO2 = BlockConfig(
    attention=AttentionConfig(num_heads=4, qk_norm="projection"),
    mlp=MLPConfig(d_ff=64, activation="gelu"),
    norm_placement="post",
)


def stack(*blocks, repeats=1, **fields):
    """A model of these layers; its own default is the first."""
    first = {name: getattr(blocks[0], name) for name in blocks[0].__struct_fields__}
    shape = {"vocab_size": 128, "d_model": 32, "num_layers": repeats * len(blocks), "initializer_std": 0.2}
    return ModelConfig(**first, **shape, period=blocks, **fields)


MODELS = {
    "GPT-2 and BLOOM": stack(
        BlockConfig(
            attention=AttentionConfig(num_heads=4, positions="alibi", bias="all"),
            mlp=MLPConfig(d_ff=64, gated=False, activation="gelu_tanh", bias=True),
            norm=LAYER_NORM,
            branches="parallel",
        ),
        repeats=2,
        learned_positions=48,
        embedding_norm=True,
        tie_embeddings=True,
    ),
    "Gemma 2 and 3": stack(
        gemma(5, 10.0), gemma(0, 100.0), embedding_scale=32**0.5, tie_embeddings=True, final_soft_cap=4.0
    ),
    "Falcon-RW and Falcon": stack(FALCON_RW, FALCON),
    "GLM and OLMo 2": stack(GLM, OLMO2),
}
"""Layers of two families each; GPT-2's positions beside BLOOM's, and their branches in parallel."""


@pytest.mark.parametrize("name", MODELS)
def test_the_decoder_declares_what_is_counted(name):
    model = MODELS[name]
    declared = [leaf for _, leaf in leaves(declarations(Decoder(model, Recipe())))]
    count = parameters(model)
    assert sum(leaf.size for leaf in declared) == count.total
    assert sum(leaf.size for leaf in declared if leaf.role == "bias") == count.bias
    assert sum(leaf.size for leaf in declared if leaf.role == "norm") == count.norm
    assert sum(leaf.size for leaf in declared if leaf.role == "matrix") == count.attention + count.mlp


@pytest.fixture(scope="module")
def alone():
    """Loss and gradients of one device by model, computed when they are asked for."""
    made = {}

    def result(name):
        if name not in made:
            made[name] = tiny.loss_and_gradients(config(name), batch())
        return made[name]

    return result


def config(name, mesh=None):
    return tiny.experiment(MODELS[name], mesh, shape=(8, tiny.LENGTH))


def batch():
    return tiny.make_batch(rows=8)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_oracle_s(name, alone):
    model, found = MODELS[name], alone(name)
    given = oracle.unstack(model, tiny.make_params(model))
    loss, (layers, outer) = jax.jit(jax.value_and_grad(lambda given: oracle.loss(model, given[0], given[1], batch())))(
        given
    )
    assert found[0] == pytest.approx(float(loss), rel=1e-6)
    found_layers, found_outer = oracle.unstack(model, nest(found[1]))
    wanted = outer | {f"{i}.{key}": value for i, layer in enumerate(layers) for key, value in layer.items()}
    got = found_outer | {f"{i}.{key}": value for i, layer in enumerate(found_layers) for key, value in layer.items()}
    compare(name, got, wanted)


def compare(name, found, wanted):
    """Gradients; that of keys' biases is zero but for rounding where no rope turns them: all scores of a query move."""
    blocks = MODELS[name].blocks
    still = [key for key in wanted if key.endswith("key_bias") and "alibi" in blocks[0].attention.positions]
    for key in still:
        assert np.abs(found[key]).max() < 1e-6 > np.abs(wanted[key]).max()
    assert found.keys() == wanted.keys()
    kept = [key for key in wanted if key not in still]
    tiny.assert_close({key: found[key] for key in kept}, {key: wanted[key] for key in kept}, 1e-5)


MESHES = {
    "tensor, context": MeshConfig(fsdp=2, tensor=2, context=2, sequence_parallel=True),
    "pipe": MeshConfig(pipe=2, fsdp=2, tensor=2),
}


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("GPT-2 and BLOOM", "tensor, context"),
        ("Gemma 2 and 3", "tensor, context"),
        ("GPT-2 and BLOOM", "pipe"),
    ],
)
def test_loss_and_gradients_on_a_mesh_are_those_of_one_device(name, mesh, alone):
    loss, gradients = tiny.loss_and_gradients(config(name, MESHES[mesh]), batch())
    assert loss == pytest.approx(alone(name)[0], rel=1e-6)
    compare(name, gradients, alone(name)[1])
