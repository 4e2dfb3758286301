"""LoRA: at first nothing changes, apart is merged, any mesh gives one device's gradients, and the base gets none."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
import tiny

from jaxllm.config import (
    AXES,
    AdamW,
    AttentionConfig,
    Constant,
    LoRAConfig,
    LossConfig,
    MeshConfig,
    MLPConfig,
    ModelConfig,
    Muon,
    OptimConfig,
    PrecisionConfig,
    RunConfig,
    TuneConfig,
)
from jaxllm.layers.param import Recipe, leaves, tree_map
from jaxllm.models.decoder import Decoder, declarations, merge
from jaxllm.roofline.conventions import flops_per_token
from jaxllm.roofline.memory import state_bytes
from jaxllm.roofline.transformer import parameters
from jaxllm.train.step import make_gradients
from jaxllm.tune.lora import adapters, count, merged, targets

ROWS, LENGTH, RANK = 8, 16, 2
MODEL = ModelConfig(
    vocab_size=128,
    d_model=32,
    num_layers=2,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2),
    mlp=MLPConfig(d_ff=48),
    initializer_std=0.1,
)
BATCH = tiny.make_batch(ROWS, LENGTH)


def experiment(lora=True, **settings):
    config = tiny.experiment(MODEL, shape=(ROWS, LENGTH), **settings)
    tune = TuneConfig(lora=LoRAConfig(rank=RANK, alpha=3.0) if lora else None)
    return msgspec.structs.replace(config, tune=tune, run=RunConfig(init_from="base"))


def draw(running, zero=False):
    """Parameters of the model and of the adapters on a program's mesh; without `zero` B is not zero."""
    random, rules = np.random.default_rng(1), running.decoder.recipe.rules

    def place(leaf):
        std = leaf.std or (0.0 if zero else 0.1)
        value = np.float32(random.normal(0.0, std, leaf.shape))
        return jax.device_put(value, jax.NamedSharding(running.mesh, rules.storage(leaf.axes)))

    return tiny.place(running, tiny.make_params(MODEL)), tree_map(place, running.trained.declared)


@functools.cache
def logits(way):
    running = tiny.program(experiment())
    with jax.set_mesh(running.mesh):
        base, params = draw(running, zero=way == "zero")
        whole = base if way == "base" else running.trained.attach(params, base)
        if way == "merged":
            whole = jax.jit(lambda given: merged(given, running.decoder))(whole)
        forward = jax.jit(lambda given, tokens: merge(running.decoder, given)(tokens).logits)
        return np.asarray(forward(whole, jnp.asarray(BATCH["tokens"])))


def test_with_b_zero_the_logits_are_the_base_s_bit_for_bit():
    np.testing.assert_array_equal(logits("zero"), logits("base"))


def test_merged_is_apart():
    assert np.abs(logits("apart") - logits("base")).max() > 0.1
    np.testing.assert_allclose(logits("merged"), logits("apart"), rtol=0, atol=1e-5)


def differentiate(running, config):
    """(what is trained, batch, loss scale, base) -> gradients and losses of samples, as the step computes them."""
    return jax.jit(make_gradients(running.decoder, config.train, running.trained))


def loss_and_gradients(mesh=None, **settings):
    config = experiment(mesh=mesh, **settings)
    running = tiny.program(config)
    with jax.set_mesh(running.mesh):
        base, params = draw(running)
        gradients, rows, _ = differentiate(running, config)(params, running.put(BATCH), jnp.ones(()), base)
        return float(rows.loss.sum()), {name: np.asarray(value) for name, value in leaves(gradients)}


def test_loss_and_gradients_are_those_of_one_device():
    mesh = MeshConfig(fsdp=2, tensor=2, sequence_parallel=True)
    (loss, gradients), one = loss_and_gradients(mesh, accumulate=2), loss_and_gradients()
    assert loss == pytest.approx(one[0], rel=1e-6)
    tiny.assert_close(gradients, one[1], 1e-5)


def product_flops(text):
    """FLOPs of all matrix products in the text of a compiled module, loops counted once."""
    shapes = {
        name: [int(dim) for dim in dims.split(",") if dim]
        for name, dims in re.findall(r"(%[\w.\-]+) = \w+\[([\d,]*)\]", text)
    }
    found = re.findall(r"(%[\w.\-]+) = \S+ dot\((%[\w.\-]+), .*lhs_contracting_dims=\{([\d,]*)\}", text)
    return sum(
        2 * math.prod(shapes[result]) * math.prod(shapes[left][int(dim)] for dim in dims.split(","))
        for result, left, dims in found
    )


def test_gradients_of_the_base_are_never_computed():
    config = experiment(unroll=True, loss=LossConfig(chunk=64))
    running = tiny.program(config)
    with jax.set_mesh(running.mesh):
        params, batch = running.abstract_state().params, running.abstract_batch(ROWS, LENGTH)
        lowered = differentiate(running, config).lower(params, batch, 1.0, running.abstract_base())
    text = lowered.compile().as_text()
    size, added = parameters(MODEL), lora_parameters()
    matrices = size.attention + size.mlp
    square = 14 * LENGTH * MODEL.d_model * MODEL.num_layers  # 2 of them where the scores are computed again
    # 4 FLOPs a frozen parameter and token, 6 an adapter's. Nothing is trained before the first block's projections, so
    # that these need no gradient of their input; and of the loss's loop over two chunks only one is in the text.
    first = MODEL.d_model * (2 * MODEL.d_model + 3 * RANK)
    wanted = 4 * matrices + 4 * size.head / 2 + 6 * added + square - 2 * first
    assert product_flops(text) == ROWS * LENGTH * wanted
    assert flops_per_token(MODEL, LENGTH, "palm", added) == 4 * size.total + 6 * added + square * 12 / 14


def lora_parameters():
    sizes = dict.fromkeys(AXES, 1)
    return count(LoRAConfig(rank=RANK), MODEL, MeshConfig(), sizes).total


def shape(leaf):
    return leaf.shape


def test_only_adapters_are_optimised():
    running = tiny.program(experiment())
    with jax.set_mesh(running.mesh):
        state = running.abstract_state()
    values = lora_parameters()
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == values
    assert sum(leaf.size for leaf in jax.tree.leaves(state.optimizer)) == 2 * values + 1  # and Adam's count
    assert {leaf.role for _, leaf in leaves(running.trained.declared)} == {"matrix"}  # decayed and clipped as such
    names = {name.rpartition(".")[0] for name, _ in leaves(state.params)}
    muon = tiny.program(experiment(optim=OptimConfig(schedule=Constant(), optimizer=Muon())))
    with jax.set_mesh(muon.mesh):
        moments = muon.abstract_state().optimizer
    assert tree_map(shape, moments["muon"].momentum) == tree_map(shape, state.params)
    assert not moments["adam"].mu
    matrices = {name for name, leaf in leaves(declarations(running.decoder)) if leaf.role == "matrix"}
    assert names == matrices and len(matrices) == 7


def test_a_device_holds_its_share_of_the_adapters():
    mesh = MeshConfig(fsdp=2, tensor=2)
    running = tiny.program(experiment(mesh=mesh))
    with jax.set_mesh(running.mesh):
        state = running.abstract_state()

    def held(tree):
        return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))

    found = count(LoRAConfig(rank=RANK), MODEL, mesh, dict(running.mesh.shape))
    assert (found.parameters, found.optimizer) == (held(state.params), held(state.optimizer["adam"].mu))
    assert found.parameters < found.total
    plain, muon = (state_bytes(MODEL, PrecisionConfig(), rule, adapters=found) for rule in (AdamW(), Muon()))
    assert plain.parameters == 2 * parameters(MODEL).total + 4 * found.parameters
    assert (plain.gradients, plain.optimizer, muon.optimizer) == tuple(4 * n * found.optimizer for n in (1, 2, 1))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["matrix"], {"attention.query", "attention.key", "attention.value", "attention.output"}),
        (["attention.query", "attention.v*"], {"attention.query", "attention.value"}),
        (["mlp.*"], {"mlp.gate", "mlp.up", "mlp.down"}),
    ],
)
def test_targets_are_names_or_the_role(wanted, found):
    declared = declarations(Decoder(MODEL, Recipe()))
    chosen = targets(LoRAConfig(targets=tuple(wanted)), declared)
    assert {name.removeprefix("period.0.") for name in chosen} >= found
    assert len(chosen) == (7 if wanted == ["matrix"] else len(found))


@pytest.mark.parametrize("wanted", ["atention.query", "embedding.table", "norm.scale", "head"])
def test_a_target_that_matches_no_matrix_is_refused(wanted):
    with pytest.raises(ValueError, match=rf"tune\.lora\.targets = .*{wanted}.* nearest are .*attention\."):
        adapters(LoRAConfig(targets=("mlp.*", wanted)), Decoder(MODEL, Recipe()))


def test_a_pipeline_is_refused():
    with pytest.raises(ValueError, match=r"mesh\.pipe = 2: .*tune\.lora.* set mesh\.pipe = 1"):
        tiny.program(experiment(mesh=MeshConfig(pipe=2, fsdp=1)))


def test_initial_values_are_the_paper_s():
    model = msgspec.structs.replace(MODEL, d_model=128)
    decoder = Decoder(model, Recipe())
    with jax.set_mesh(tiny.program(experiment()).mesh):
        trained = adapters(LoRAConfig(rank=8, targets=("attention.output",)), decoder)
        found = jax.jit(trained.init)(jax.random.key(0))
    factors = found["period"]["0"]["attention"]["output"]
    assert factors["a"].shape == (2, 4, 32, 8) and factors["b"].shape == (2, 8, 128)
    assert float(factors["a"].std()) == pytest.approx((3 * 128) ** -0.5, rel=0.05)
    assert not np.array_equal(factors["a"][0], factors["a"][1])  # every layer draws its own
    assert not factors["b"].any()
