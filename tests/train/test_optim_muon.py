"""Muon against a singular value decomposition in numpy; layers apart; every mesh like one device, no work repeated."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from jaxllm.config import AdamW, Muon, OptimConfig
from jaxllm.layers.param import Declaration, Tree, leaves, tree_map
from jaxllm.train.optim import make_optimizer
from tests.train.trees import ALL_ROLES, MESHES, flat, lay, make_mesh, names_of, random_tree, scaled

PLAIN = Muon(weight_decay=0.0)
MATRICES: Tree = {
    "query": Declaration((32, 4, 8), ("embed", "heads", "head_dim"), "matrix").stack(3),
    "output": Declaration((4, 8, 32), ("heads", "head_dim", "embed"), "matrix", num_inputs=2).stack(3),
    "up": Declaration((32, 48), ("embed", "mlp"), "matrix").stack(3),
    "down": Declaration((48, 32), ("mlp", "embed"), "matrix").stack(3),
}
"""Square by two inputs or two outputs, wide, tall; three layers fill neither two devices nor eight."""


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


def as_matrices(value: np.ndarray, leaf: Declaration) -> np.ndarray:
    """[layers, inputs, outputs]."""
    first_output = leaf.stacked + leaf.num_inputs
    return value.reshape(
        int(np.prod(leaf.shape[: leaf.stacked])), int(np.prod(leaf.shape[leaf.stacked : first_output])), -1
    )


def gradients_of(declared: Tree, seed: int) -> Tree:
    """Gradients whose singular values lie between 0.1 and 1, so that rounding is not blown up."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Declaration) -> np.ndarray:
        u, s, vt = np.linalg.svd(as_matrices(rng.standard_normal(leaf.shape), leaf), full_matrices=False)
        s = np.broadcast_to(np.linspace(0.1, 1.0, s.shape[1]), s.shape)
        return ((u * s[:, None, :]) @ vt).reshape(leaf.shape).astype(np.float32)

    return tree_map(draw, declared)


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
    gradients = [gradients_of(MATRICES, seed) for seed in (1, 2, 3)]
    directions, _ = updates(PLAIN, MATRICES, gradients[0], gradients)
    for step, direction in enumerate(directions, start=1):
        for name, leaf in MATRICES.items():
            wanted = numpy_muon(PLAIN, leaf, [gradient[name] for gradient in gradients[:step]])
            np.testing.assert_allclose(direction[name], wanted, rtol=0, atol=1e-5, err_msg=f"step {step}, {name}")


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
def test_updates_are_nearly_orthogonal_and_of_the_asked_root_mean_square(compute):
    gradient = scaled(gradients_of(MATRICES, 1), 1e-6)  # float16 would lose most of it
    (direction,), _ = updates(PLAIN, MATRICES, gradient, [gradient], compute)
    for name, leaf in MATRICES.items():
        update = as_matrices(direction[name], leaf)
        values = np.linalg.svd(update / (PLAIN.update_rms * max(update.shape[1:]) ** 0.5), compute_uv=False)
        assert 0.65 < values.min() <= values.max() < 1.25, name
        u, _, vt = np.linalg.svd(as_matrices(gradient[name], leaf), full_matrices=False)
        for layer, nearest in zip(update, u @ vt, strict=True):
            cosine = np.sum(layer * nearest) / np.linalg.norm(layer) / np.linalg.norm(nearest)
            assert cosine > 0.98, name
            # The size differs from the asked one only as far as the singular values differ from 1.
            assert 0.8 < np.sqrt(np.mean(layer**2)) / PLAIN.update_rms < 1.1, name


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
    scaled = {"down": gradient["down"] * np.array([1e-9, 0.0, 1e9], np.float32)[:, None, None]}
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
    stack = {"query": MATRICES["query"]}
    layers = {str(n): Declaration((32, 4, 8), ("embed", "heads", "head_dim"), "matrix") for n in range(3)}
    gradient = gradients_of(stack, 0)
    alone = {str(n): gradient["query"][n] for n in range(3)}
    (direction,), _ = updates(PLAIN, stack, gradient, [gradient])
    (wanted,), _ = updates(PLAIN, layers, alone, [alone])
    for n in range(3):
        np.testing.assert_allclose(direction["query"][n], wanted[str(n)], rtol=0, atol=1e-6)


def test_other_roles_have_adams_update_and_matrices_no_second_moment():
    params, gradients = random_tree(ALL_ROLES, 0), [random_tree(ALL_ROLES, seed) for seed in (1, 2)]
    muon, state = updates(Muon(beta1=0.8, weight_decay=0.4), ALL_ROLES, params, gradients)
    adamw, _ = updates(AdamW(beta1=0.8, weight_decay=0.4), ALL_ROLES, params, gradients)
    others = [name for name in flat(params) if name != "period.0.down"]
    for name in others:
        np.testing.assert_array_equal(muon[-1][name], adamw[-1][name], err_msg=name)
    assert list(state) == ["muon", "adam", "weight_decay"]
    assert names_of(state["muon"].momentum) == {"period.0.down"}
    assert names_of(state["adam"].mu) == names_of(state["adam"].nu) == set(others)
    leaf = dict(leaves(ALL_ROLES))["period.0.down"]
    orthogonal = numpy_muon(Muon(), leaf, [flat(gradient)["period.0.down"] for gradient in gradients])
    wanted = orthogonal + 0.4 * flat(params)["period.0.down"]
    np.testing.assert_allclose(muon[-1]["period.0.down"], wanted, rtol=0, atol=2e-5)


@functools.cache
def on_one_device() -> list[dict[str, np.ndarray]]:
    return updates(Muon(), MATRICES, gradients_of(MATRICES, 0), [gradients_of(MATRICES, seed) for seed in (1, 2)])[0]


@pytest.mark.parametrize("axes", MESHES)
def test_every_mesh_gives_the_updates_of_one_device(axes):
    params, gradients = gradients_of(MATRICES, 0), [gradients_of(MATRICES, seed) for seed in (1, 2)]
    sharded, state = updates(Muon(), MATRICES, params, gradients, **axes)
    for made, wanted in zip(sharded, on_one_device(), strict=True):
        for name, value in wanted.items():
            np.testing.assert_allclose(made[name], value, rtol=0, atol=2e-6, err_msg=name)
    _, rules = make_mesh(**axes)
    for name, leaf in MATRICES.items():
        assert state["muon"].momentum[name].sharding.spec == rules.optimizer(leaf.axes), name


def compiled(declared: Tree, **axes: int) -> Any:
    mesh, rules = make_mesh(**axes)
    optimizer = make_optimizer(OptimConfig(optimizer=Muon()), declared, rules)
    with jax.set_mesh(mesh):
        params = lay(random_tree(declared, 0), declared, mesh, rules)
        return jax.jit(optimizer.update).lower(params, optimizer.init(params), params).compile()


def test_devices_share_the_work_and_none_gathers_a_stack():
    declared = {"down": Declaration((96, 64), ("mlp", "embed"), "matrix").stack(4)}
    alone, sharded = compiled(declared), compiled(declared, fsdp=2, tensor=2)
    assert sharded.cost_analysis()["flops"] < 0.27 * alone.cost_analysis()["flops"]
    assert sharded.memory_analysis().temp_size_in_bytes < 0.5 * alone.memory_analysis().temp_size_in_bytes
    text = sharded.as_text()
    assert "all-to-all" in text
    assert "all-gather" not in text
