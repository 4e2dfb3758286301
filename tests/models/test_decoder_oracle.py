"""The decoder against a second, plain implementation of Llama: loss and every gradient, layer by layer."""

import jax
import msgspec
import numpy as np
import oracle
import pytest
import tiny

from jaxllm import sharding
from jaxllm.config import (
    AttentionConfig,
    BlockConfig,
    Llama3Scaling,
    LossConfig,
    MeshConfig,
    MLPConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
)
from jaxllm.layers.param import Recipe, leaves, nest
from jaxllm.models.decoder import Decoder, canonical_name, init, layer_numbers, merge

SCALED = RopeConfig(theta=100.0, scaling=Llama3Scaling(factor=4.0, original_max_positions=64))
"""Of 8 pairs of features some keep their frequency, some are stretched, some lie between, within 32 positions."""


def block(d_ff, theta):
    return BlockConfig(
        attention=AttentionConfig(num_heads=8, num_kv_heads=2, rope=RopeConfig(theta=theta)), mlp=MLPConfig(d_ff=d_ff)
    )


MODELS = {
    "grouped queries, own head": msgspec.structs.replace(tiny.MODEL, norm=NormConfig(epsilon=1e-2)),
    "a head a query, tied, Llama 3.1's rope": ModelConfig(
        vocab_size=96,
        d_model=64,
        num_layers=2,
        attention=AttentionConfig(num_heads=4, rope=SCALED),
        mlp=MLPConfig(d_ff=48),
        tie_embeddings=True,
        initializer_std=0.1,
    ),
    "prefix, period of two, remainder": ModelConfig(
        vocab_size=128,
        d_model=64,
        num_layers=6,
        attention=AttentionConfig(num_heads=8),
        mlp=MLPConfig(d_ff=64),
        prefix=(block(80, 50.0),),
        period=(block(48, 10.0), block(112, 1000.0)),
        initializer_std=0.1,
    ),
    "queries and keys normalised by head, then by projection; soft caps": tiny.GUARDED,
}


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_oracle_s(name):
    model, batch = MODELS[name], tiny.make_batch(rows=8, vocab_size=MODELS[name].vocab_size)
    config = tiny.experiment(model, shape=(8, tiny.LENGTH), loss=LossConfig(chunk=40, z_loss=1e-2))
    found = tiny.loss_and_gradients(config, batch)

    given = oracle.unstack(model, tiny.make_params(model))
    function = jax.jit(jax.value_and_grad(lambda given: oracle.loss(model, given[0], given[1], batch, 1e-2)))
    loss, (layers, outer) = function(given)

    assert found[0] == pytest.approx(float(loss), rel=1e-6)
    found_layers, found_outer = oracle.unstack(model, nest(found[1]))
    tiny.assert_close(found_outer, outer, 1e-5)
    for found_layer, layer in zip(found_layers, layers, strict=True):
        tiny.assert_close(found_layer, layer, 1e-5)


def test_logits_are_the_oracle_s_and_positions_count_from_0_by_default():
    model = tiny.GUARDED
    tokens = tiny.make_batch(rows=2)["tokens"]
    running = tiny.program(tiny.experiment(model))
    with jax.set_mesh(running.mesh):
        forward = jax.jit(lambda params, tokens: merge(running.decoder, params)(tokens).logits)
        found = forward(tiny.place(running, tiny.make_params(model)), tokens)
    positions = np.broadcast_to(np.arange(tiny.LENGTH), tokens.shape)
    wanted = oracle.logits(
        model, *oracle.unstack(model, tiny.make_params(model)), tokens, positions, segments=np.zeros_like(tokens)
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


def test_layers_are_numbered_first_to_last():
    model = MODELS["prefix, period of two, remainder"]
    numbered = {
        f"{group}.mlp.up": layer_numbers(model, f"{group}.mlp.up") for group in ("prefix.0", "period.0", "period.1")
    }
    assert numbered == {"prefix.0.mlp.up": (0,), "period.0.mlp.up": (1, 3), "period.1.mlp.up": (2, 4)}
    assert layer_numbers(model, "remainder.0.mlp.up") == (5,)
    assert layer_numbers(model, "norm.scale") == layer_numbers(model, "embedding.table") == ()


def test_canonical_names_say_nothing_of_the_stack():
    for group in ("prefix.0", "period.1", "remainder.12"):
        assert canonical_name(f"{group}.attention_norm.scale") == "layers.attention_norm.scale"
    assert canonical_name("head.kernel") == "head.kernel"


def initial(model, *ends):
    """Initial values of the parameters of some names, as one dict a layer, first to last."""
    decoder = Decoder(model, Recipe())

    def chosen(key):
        return {name: value for name, value in leaves(init(decoder, key)) if name.endswith(ends)}

    with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
        return oracle.unstack(model, nest(jax.jit(chosen)(jax.random.key(7))))[0]


def test_initial_values_do_not_depend_on_how_layers_are_stacked():
    model = msgspec.structs.replace(tiny.MODEL, num_layers=6)
    same = model.default_block
    stacked = msgspec.structs.replace(model, prefix=(same,), period=(same, same))
    assert (stacked.num_repeats, len(stacked.remainder)) == (2, 1)
    names = ("attention.key", "mlp.down")
    jax.tree.map(np.testing.assert_array_equal, initial(stacked, *names), initial(model, *names))


def test_initial_values_have_the_declared_spread_and_differ():
    layers = initial(tiny.MODEL, "mlp.up", "mlp.gate", "mlp.down", "mlp_norm.scale")
    cut = 0.9866  # the spread of a normal distribution cut at three deviations
    for layer in layers:
        assert np.std(layer["mlp.up"]) == pytest.approx(0.1 * cut, rel=0.03)
        assert np.std(layer["mlp.down"]) == pytest.approx(0.1 * cut / 6**0.5, rel=0.03)
        assert 0.28 < np.abs(layer["mlp.up"]).max() <= 0.3
        assert np.all(layer["mlp_norm.scale"] == 1)
    values = [layer[name] for layer in layers for name in ("mlp.up", "mlp.gate")]
    correlations = np.corrcoef([np.ravel(value) for value in values])
    np.testing.assert_allclose(correlations, np.eye(len(values)), atol=0.06)
