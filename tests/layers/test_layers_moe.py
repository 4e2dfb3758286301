"""Mixtures of experts against a dense reference, in which every expert computes every token and gates choose."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding

from jaxllm import sharding
from jaxllm.config import ExpertsConfig, MeshConfig, MLPConfig
from jaxllm.layers import expert_blocks
from jaxllm.layers.dispatch import run_experts
from jaxllm.layers.expert_blocks import Weights, block_rows
from jaxllm.layers.moe import MoE
from jaxllm.layers.param import Recipe, leaves, nest, tree_map
from jaxllm.layers.router import balanced, choose, gates
from jaxllm.models.decoder import declarations, merge
from jaxllm.train.gradients import lay, prepare, reduce

ROWS, LENGTH, DIM, HIDDEN, EXPERTS = 8, 16, 32, 24, 8
SHARED = ExpertsConfig(num_experts=EXPERTS, experts_per_token=2, shared_d_ff=16)
GROUPED = ExpertsConfig(
    num_experts=EXPERTS,
    experts_per_token=3,
    scores="sigmoid",
    gate_scale=2.5,
    num_groups=4,
    groups_per_token=2,
    balancing_bias=True,
)
PLAIN = ExpertsConfig(num_experts=EXPERTS, experts_per_token=2, renormalise=False)

MATRICES = ("gate", "up", "down")

SKEWS = {"balanced": 0.0, "skewed": 2.5, "to two": 15.0}
"""What is added to the logits of experts 2 and 3, which lie on one device where each has two or more."""


def layer(experts, recipe):
    return MoE(MLPConfig(d_ff=HIDDEN), experts, DIM, 0.3, 0.2, recipe)


def inputs(experts, skew=0.0, seed=0):
    """Parameters by name, the residual stream and the documents of packed rows, of which one is half padding."""
    random = np.random.default_rng(seed)
    declared = dict(leaves(declarations(layer(experts, Recipe()))))
    params = {name: random.normal(0, leaf.std or 0.1, leaf.shape).astype(np.float32) for name, leaf in declared.items()}
    x_BTD = random.normal(size=(ROWS, LENGTH, DIM)).astype(np.float32)
    x_BTD[:, :, 0] = 1
    params["router.kernel"][0, 2:4] += skew
    segments_BT = np.cumsum(random.random((ROWS, LENGTH)) < 0.2, axis=1, dtype=np.int32) + 1
    segments_BT[-1, LENGTH // 2 :] = 0
    return params, x_BTD, segments_BT


def objective(y_BTD, shares_BE, log_squares_B):
    """Something in which every value of the layer's results counts differently."""
    weights_BTD = jnp.cos(jnp.arange(y_BTD.size, dtype=jnp.float32)).reshape(y_BTD.shape)
    weights_BE = jnp.sin(jnp.arange(shares_BE.size, dtype=jnp.float32)).reshape(shares_BE.shape)
    return jnp.sum(y_BTD * weights_BTD) + jnp.sum(shares_BE * weights_BE) + 0.1 * jnp.sum(log_squares_B)


def feed_forward(x_BTD, gate, up, down):
    hidden = jnp.einsum("btd,df->btf", x_BTD, gate)
    hidden = hidden / (1 + jnp.exp(-hidden)) * jnp.einsum("btd,df->btf", x_BTD, up)
    return jnp.einsum("btf,fd->btd", hidden, down)


def dense(config, params, x_BTD, segments_BT):
    """Output, shares, log squares and choices, of all experts; the choice by sorting."""
    logits = jnp.einsum("btd,de->bte", x_BTD, params["router.kernel"])
    sums = jnp.exp(logits).sum(-1, keepdims=True)
    scores = jnp.exp(logits) / sums if config.scores == "softmax" else 1 / (1 + jnp.exp(-logits))
    ranks = jax.lax.stop_gradient(scores) + params.get("router.bias", np.zeros(EXPERTS, np.float32))[None, None]
    if config.num_groups > 1:
        by_group = ranks.reshape(ROWS, LENGTH, config.num_groups, -1)
        worth = jnp.sort(by_group, axis=-1)[..., -2:].sum(-1, keepdims=True)
        least = jnp.sort(worth, axis=2)[:, :, -config.groups_per_token][:, :, None]
        ranks = jnp.where(worth >= least, by_group, -1e9).reshape(ranks.shape)
    chosen = ranks >= jnp.sort(ranks, axis=-1)[..., -config.experts_per_token][..., None]
    gates = jnp.where(chosen, scores, 0)
    if config.renormalise:
        gates = gates / gates.sum(-1, keepdims=True)
    each_EBTD = jax.vmap(feed_forward, (None, 0, 0, 0))(x_BTD, *(params[f"experts.{name}"] for name in MATRICES))
    y_BTD = config.gate_scale * jnp.einsum("ebtd,bte->btd", each_EBTD, gates)
    if config.shared_d_ff:
        y_BTD += feed_forward(x_BTD, *(params[f"shared.{name}"] for name in MATRICES))
    counts = (segments_BT > 0)[..., None]
    shares = jnp.where(counts, scores / scores.sum(-1, keepdims=True), 0).sum(1)
    log_squares = jnp.where(counts, jnp.log(sums) ** 2, 0).sum((1, 2))
    return y_BTD, shares, log_squares, (chosen & counts).sum(1)


@functools.cache
def reference(config):
    def loss(params, x_BTD, segments_BT):
        y_BTD, shares, log_squares, choices = dense(config, params, x_BTD, segments_BT)
        return objective(y_BTD, shares, log_squares), (choices, y_BTD)

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


def wanted(config, skew):
    """Choices, output and gradients of the dense reference."""
    (dparams, dx), (choices, y_BTD) = reference(config)(*inputs(config, skew))
    return np.asarray(choices), {"y": np.asarray(y_BTD), "x": np.asarray(dx), **jax.tree.map(np.asarray, dparams)}


@functools.cache
def compiled(config, mesh_config):
    """A mesh, and on it the function that makes the same of the layer, gradients laid as a step has them."""
    mesh = sharding.make_mesh(mesh_config, jax.devices()[: math.prod(mesh_config.shape)])
    recipe = Recipe(sharding.make_rules(mesh_config, dict(mesh.shape)))
    module, rules = layer(config, recipe), recipe.rules
    declared = declarations(module)

    def loss(params, x_BTD, segments_BT):
        y_BTD, load = merge(module, params)(x_BTD, segments_BT)
        whole = (
            jax.reshard(x, rules.activation(*(None,) * x.ndim)) for x in (y_BTD, load.shares_BE, load.log_squares_B)
        )
        return objective(*whole), (load.choices_BE, y_BTD)

    def run(params, x_BTD, segments_BT):
        prepared = tree_map(lambda value, leaf: prepare(value, leaf, recipe), params, declared)
        (dparams, dx), aux = jax.grad(loss, argnums=(0, 1), has_aux=True)(prepared, x_BTD, segments_BT)
        return reduce(lay(dparams, declared, recipe), declared, recipe), dx, aux

    return mesh, rules, declared, jax.jit(run)


def found(config, skew, mesh_config):
    """Choices, output and gradients of the layer on a mesh, and its parameters as they lie there."""
    mesh, rules, declared, run = compiled(config, mesh_config)
    params, x_BTD, segments_BT = inputs(config, skew)

    def place(x, spec):
        return jax.device_put(x, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        placed = tree_map(lambda x, leaf: place(x, rules.storage(leaf.axes)), nest(params), declared)
        x_BTD = place(x_BTD, rules.activation("batch", "residual", None))
        dparams, dx, (choices, y_BTD) = run(placed, x_BTD, place(segments_BT, rules.activation("batch", "sequence")))
    arrays = {"y": y_BTD, "x": dx, **dict(leaves(dparams))}
    return np.asarray(choices), {name: np.asarray(x) for name, x in arrays.items()}, placed


def check(config, skew, mesh_config):
    choices, arrays, placed = found(config, skew, mesh_config)
    wanted_choices, wanted_arrays = wanted(config, skew)
    np.testing.assert_array_equal(choices, wanted_choices)
    still = {name for name in arrays if name == "router.bias"}
    assert not any(arrays[name].any() or wanted_arrays[name].any() for name in still)
    for name in still:
        del arrays[name], wanted_arrays[name]
    tiny.assert_close(arrays, wanted_arrays)
    return choices, placed


MESHES = {
    "one device": (SHARED, MeshConfig(fsdp=1)),
    "expert 8": (SHARED, MeshConfig(fsdp=1, expert=8)),
    "expert 4, data 2": (GROUPED, MeshConfig(data=2, fsdp=1, expert=4)),
    "expert 2, fsdp 2, tensor 2": (SHARED, MeshConfig(fsdp=2, expert=2, tensor=2, sequence_parallel=True)),
}


@pytest.mark.parametrize("mesh", MESHES)
def test_output_and_every_gradient_are_the_dense_reference_s(mesh):
    """Whatever the load: where all choose the experts of one device, it takes several rounds to get there."""
    for skew in SKEWS.values():
        choices, _ = check(MESHES[mesh][0], skew, MESHES[mesh][1])
        among_two = choices[:, 2:4].sum() / choices.sum()
        assert (among_two == 1) if skew == SKEWS["to two"] and MESHES[mesh][0] is SHARED else (0.1 < among_two < 1)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_experts_run_alike_on_every_platform(monkeypatch, platform):
    """By blocks of a platform's size, or by its kernel. One expert has no rows; what tokens without experts get, as
    they fill the rounds of an exchange, is not read."""
    monkeypatch.setattr(expert_blocks, "platform", lambda: platform)
    random = np.random.default_rng(0)
    experts_NK = random.integers(0, 5, (300, 2), np.int32)
    experts_NK = np.where(experts_NK == 3, 4, experts_NK)
    experts_NK[200:] = 5
    x_ND, gates_NK = random.normal(size=(300, DIM)), random.uniform(size=(300, 2))
    weights = Weights(*(random.normal(size=(5, *dims)) for dims in ((DIM, HIDDEN), (DIM, HIDDEN), (HIDDEN, DIM))))
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (x_ND, gates_NK, weights))

    def ours(x_ND, gates_NK, weights):
        return run_experts(x_ND, jnp.asarray(experts_NK), gates_NK, weights, "silu")

    def every(x_ND, gates_NK, weights):
        each_END = jax.vmap(feed_forward, (None, 0, 0, 0))(x_ND[None], *weights)[:, 0]
        chosen_NKE = experts_NK[..., None] == np.arange(5)
        return jnp.einsum("end,nk,nke->nd", each_END, gates_NK, chosen_NKE.astype(np.float32))

    def results(run):
        def pull(x_ND, gates_NK, weights):
            y_ND, pull = jax.vjp(run, x_ND, gates_NK, weights)
            dx_ND, dgates_NK, dweights = pull(jnp.cos(jnp.arange(y_ND.size, dtype=jnp.float32)).reshape(y_ND.shape))
            return y_ND[:200], dx_ND[:200], dgates_NK[:200], *dweights

        return jax.jit(pull)(*arrays)

    assert block_rows(600, 5, DIM, HIDDEN) == {"cpu": 160, "gpu": 256, "tpu": 0}[platform]
    for found, wanted in zip(results(ours), results(every), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_blocks_of_narrow_experts_are_smaller():
    assert block_rows(2**14, 8, 256, 352) == 512
    assert block_rows(2**14, 8, 256, 64) == 256
    assert block_rows(2**9, 8, 256, 352) == block_rows(2**9, 8, 256, 64) == 80


def test_gates_are_the_scores_where_they_are_not_renormalised():
    check(PLAIN, 0.0, MeshConfig(fsdp=1))


def test_a_device_holds_its_experts_and_of_them_its_share():
    _, placed = check(SHARED, 0.0, MESHES["expert 2, fsdp 2, tensor 2"][1])
    held = {name: math.prod(x.sharding.shard_shape(x.shape)) / x.size for name, x in leaves(placed)}
    assert held == {
        "router.kernel": 1 / 4,  # fsdp and expert
        **{f"experts.{name}": 1 / 8 for name in MATRICES},
        **{f"shared.{name}": 1 / 8 for name in MATRICES},
    }


def test_a_bias_is_moved_against_the_load_and_by_no_more_than_the_rate():
    bias = jnp.asarray([[0.5, 0.0, -0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    choices = jnp.asarray([[9.0, 1.0, 5.0, 5.0], [2.0, 2.0, 2.0, 2.0]])
    wanted = [[0.4, 0.1, -0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(balanced(bias, choices, 0.1), wanted, atol=1e-7)


def test_a_bias_decides_the_choice_and_not_the_gate():
    """Expert 5's bias is large: every token chooses it, and weighs it by its score."""
    config = ExpertsConfig(num_experts=EXPERTS, experts_per_token=1, renormalise=False, balancing_bias=True)
    scores = jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, (1, 6, EXPERTS)), jnp.float32)
    chosen = choose(scores + 10 * (np.arange(EXPERTS) == 5)[None, None], config)
    assert (np.asarray(chosen) == 5).all()
    np.testing.assert_array_equal(gates(scores, chosen, config)[..., 0], scores[..., 5])
