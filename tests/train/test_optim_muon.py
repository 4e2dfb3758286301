"""Muon against a singular value decomposition in numpy; layers apart; every mesh like one device, no work repeated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import AdamW, Muon, OptimConfig
from jaxllm.layers.param import Declaration, Tree, leaves, tree_map
from jaxllm.models.decoder import nest
from jaxllm.train.muon import newton_schulz
from jaxllm.train.optim import make_optimizer
from tests.train.trees import ALL_ROLES, decoder_declarations, flat, lay, make_mesh, random_tree

PLAIN = Muon(weight_decay=0.0)
MESHES = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 2, "expert": 2, "tensor": 2},
    {"fsdp": 8},
    {"tensor": 4},
]


def updates(
    rule: Muon | AdamW, declared: Tree, params: Tree, gradients: list[Tree], compute: str = "float32", **axes: int
):
    """Directions of a few steps with the same parameters, and the state behind them."""
    mesh, rules = make_mesh(**axes)
    optimizer = make_optimizer(OptimConfig(optimizer=rule, clip_norm=0.0), declared, rules, compute)
    with jax.set_mesh(mesh):
        params = lay(params, declared, mesh, rules)
        state, update, directions = jax.jit(optimizer.init)(params), jax.jit(optimizer.update), []
        for gradient in gradients:
            direction, changed = update(lay(gradient, declared, mesh, rules), state, params)
            assert jax.tree.map(jax.typeof, changed) == jax.tree.map(jax.typeof, state)
            assert jax.tree.map(jax.typeof, direction) == jax.tree.map(jax.typeof, params)
            state = changed
            directions.append(flat(direction))
        return directions, state


def matrices_of(declared: Tree) -> dict[str, Declaration]:
    return {name: leaf for name, leaf in leaves(declared) if leaf.role == "matrix"}


def as_matrices(value: np.ndarray, leaf: Declaration) -> np.ndarray:
    """[layers, inputs, outputs]."""
    first_output = leaf.stacked + leaf.num_inputs
    return value.reshape(
        int(np.prod(leaf.shape[: leaf.stacked])), int(np.prod(leaf.shape[leaf.stacked : first_output])), -1
    )


def numpy_muon(rule: Muon, leaf: Declaration, gradients: list[np.ndarray]) -> np.ndarray:
    """The last direction: the quintic of Jordan et al. on the singular values of Nesterov's momentum, in float64."""
    momentum = np.zeros_like(gradients[0], np.float64)
    for gradient in gradients:
        momentum = rule.momentum * momentum + gradient
    nesterov = as_matrices(gradients[-1] + rule.momentum * momentum, leaf)
    u, s, vt = np.linalg.svd(nesterov, full_matrices=False)
    s = s / np.sqrt(np.sum(s**2, axis=1, keepdims=True))
    for _ in range(rule.newton_schulz_steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    scale = rule.update_rms * max(nesterov.shape[1:]) ** 0.5
    return (scale * (u * s[:, None, :]) @ vt).reshape(leaf.shape)


def test_three_steps_as_with_a_singular_value_decomposition():
    declared = decoder_declarations()
    params, gradients = random_tree(declared, 0), [random_tree(declared, seed) for seed in (1, 2, 3)]
    directions, _ = updates(PLAIN, declared, params, gradients)
    for step, direction in enumerate(directions, start=1):
        for name, leaf in matrices_of(declared).items():
            wanted = numpy_muon(PLAIN, leaf, [flat(gradient)[name] for gradient in gradients[:step]])
            np.testing.assert_allclose(direction[name], wanted, rtol=0, atol=2e-5, err_msg=f"step {step}, {name}")


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
def test_updates_are_nearly_orthogonal_and_of_the_asked_root_mean_square(compute):
    declared = decoder_declarations()
    params, gradient = random_tree(declared, 0), random_tree(declared, 1, 1e-4)
    (direction,), _ = updates(PLAIN, declared, params, [gradient], compute)
    for name, leaf in matrices_of(declared).items():
        update, g = as_matrices(direction[name], leaf), as_matrices(flat(gradient)[name], leaf)
        u, _, vt = np.linalg.svd(g, full_matrices=False)
        orthogonal = u @ vt
        values = np.linalg.svd(update / (PLAIN.update_rms * max(update.shape[1:]) ** 0.5), compute_uv=False)
        assert 0.65 < values.min() <= values.max() < 1.25, name
        for layer, nearest in zip(update, orthogonal, strict=True):
            cosine = np.sum(layer * nearest) / np.linalg.norm(layer) / np.linalg.norm(nearest)
            assert cosine > 0.97, name
            # The size differs from the asked one only as far as the singular values differ from 1.
            assert np.sqrt(np.mean(layer**2)) == pytest.approx(PLAIN.update_rms, rel=0.15), name


def test_update_rms_is_exact_for_singular_values_of_one():
    """An orthogonal gradient: all singular values are equal, so the update is it times the scalar iteration."""
    declared = {"down": Declaration((24, 8), ("mlp", "embed"), "matrix")}
    gradient = {"down": np.float32(np.linalg.qr(np.random.default_rng(0).standard_normal((24, 8)))[0])}
    (direction,), _ = updates(PLAIN, declared, gradient, [gradient])
    s = 8**-0.5
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert np.sqrt(np.mean(direction["down"] ** 2)) == pytest.approx(PLAIN.update_rms * s, rel=1e-5)
    np.testing.assert_allclose(direction["down"], PLAIN.update_rms * s * 24**0.5 * gradient["down"], atol=1e-5)


def test_a_gradients_size_does_not_matter_and_zero_stays_zero():
    declared = {"down": Declaration((12, 8), ("mlp", "embed"), "matrix").stack(3)}
    gradient = random_tree(declared, 0)
    scaled = {"down": gradient["down"] * np.float32([1e-9, 0.0, 1e9])[:, None, None]}
    (plain,), _ = updates(PLAIN, declared, gradient, [gradient])
    (made,), _ = updates(PLAIN, declared, gradient, [scaled])
    np.testing.assert_allclose(made["down"][[0, 2]], plain["down"][[0, 2]], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(made["down"][1], 0.0)


def test_a_gradient_of_rank_one_is_not_blown_up():
    declared = {"down": Declaration((12, 8), ("mlp", "embed"), "matrix")}
    rng = np.random.default_rng(0)
    gradient = {"down": np.float32(np.outer(rng.standard_normal(12), rng.standard_normal(8)))}
    (direction,), _ = updates(PLAIN, declared, gradient, [gradient])
    assert np.linalg.norm(direction["down"], 2) < 1.25 * PLAIN.update_rms * 12**0.5


def test_stacked_layers_are_orthogonalised_apart():
    declared, one = decoder_declarations(num_layers=3), decoder_declarations(num_layers=1)
    params, gradient = random_tree(declared, 0), random_tree(declared, 1)
    (direction,), _ = updates(PLAIN, declared, params, [gradient])
    for layer in range(3):
        alone = tree_map(lambda g, leaf, n=layer: g[n : n + 1] if leaf.stacked else g, gradient, declared)
        (wanted,), _ = updates(PLAIN, one, alone, [alone])
        for name in matrices_of(declared):
            np.testing.assert_allclose(direction[name][layer], wanted[name][0], rtol=0, atol=2e-6, err_msg=name)


def test_other_roles_have_adams_update_and_matrices_no_second_moment():
    params, gradients = random_tree(ALL_ROLES, 0), [random_tree(ALL_ROLES, seed) for seed in (1, 2)]
    muon, state = updates(Muon(beta1=0.8, weight_decay=0.4), ALL_ROLES, params, gradients)
    adamw, _ = updates(AdamW(beta1=0.8, weight_decay=0.4), ALL_ROLES, params, gradients)
    others = [name for name in flat(params) if name != "period.0.down"]
    for name in others:
        np.testing.assert_array_equal(muon[-1][name], adamw[-1][name], err_msg=name)
    assert list(state) == ["muon", "adam", "weight_decay"]
    assert list(dict(leaves(state["muon"].momentum))) == ["period.0.down"]
    assert [list(dict(leaves(moment))) for moment in (state["adam"].mu, state["adam"].nu)] == [others, others]
    leaf = dict(leaves(ALL_ROLES))["period.0.down"]
    orthogonal = numpy_muon(Muon(), leaf, [flat(gradient)["period.0.down"] for gradient in gradients])
    wanted = orthogonal + 0.4 * flat(params)["period.0.down"]
    np.testing.assert_allclose(muon[-1]["period.0.down"], wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("axes", MESHES)
def test_every_mesh_gives_the_updates_of_one_device(axes):
    declared = decoder_declarations(num_layers=3)  # three layers fill neither two devices nor eight
    params, gradients = random_tree(declared, 0), [random_tree(declared, seed) for seed in (1, 2)]
    alone, _ = updates(Muon(), declared, params, gradients)
    sharded, state = updates(Muon(), declared, params, gradients, **axes)
    for step in range(2):
        for name, value in alone[step].items():
            np.testing.assert_allclose(sharded[step][name], value, rtol=0, atol=1e-5, err_msg=name)
    _, rules = make_mesh(**axes)
    for name, leaf in matrices_of(declared).items():
        momentum = dict(leaves(state["muon"].momentum))[name]
        assert momentum.sharding.spec == rules.optimizer(leaf.axes), name


def compiled(declared: Tree, **axes: int):
    mesh, rules = make_mesh(**axes)
    optimizer = make_optimizer(OptimConfig(optimizer=Muon()), declared, rules)
    with jax.set_mesh(mesh):
        params = lay(random_tree(declared, 0), declared, mesh, rules)
        return jax.jit(optimizer.update).lower(params, optimizer.init(params), params).compile()


def test_devices_share_the_work_and_none_gathers_a_stack():
    declared = nest(matrices_of(decoder_declarations(num_layers=4)))
    alone, sharded = compiled(declared), compiled(declared, fsdp=2, tensor=2)
    assert sharded.cost_analysis()["flops"] < 0.27 * alone.cost_analysis()["flops"]
    text = sharded.as_text()
    assert "all-to-all" in text
    assert "all-gather" not in text
    assert sharded.memory_analysis().temp_size_in_bytes < 0.5 * alone.memory_analysis().temp_size_in_bytes


def test_bfloat16_products_give_nearly_the_float32_result():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 24, 40)), jnp.float32)
    exact, rounded = newton_schulz(x, 5), newton_schulz(x.astype(jnp.bfloat16), 5)
    assert (exact.dtype, rounded.dtype) == (jnp.float32, jnp.bfloat16)
    error = jnp.linalg.norm(rounded.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
    assert 1e-4 < float(error) < 0.03
