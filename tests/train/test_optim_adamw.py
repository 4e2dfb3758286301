"""AdamW, clipping and the embedding's shrink against numpy; which roles are decayed; every mesh like one device."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from jaxllm.config import AdamW, OptimConfig
from jaxllm.layers.param import Tree, leaves, tree_map
from jaxllm.train.optim import global_norm, limit, make_optimizer
from tests.train.trees import ALL_ROLES, MESHES, flat, lay, make_mesh, names_of, norm_of, random_tree, scaled

DECAYED = {"period.0.down"}
BARE = AdamW(beta1=0.0, beta2=0.0, epsilon=2.0**20, weight_decay=0.0)
"""Its direction is the gradient over epsilon, so that what was done to the gradient shows."""
PARAMS = random_tree(ALL_ROLES, 0)
GRADIENTS = [random_tree(ALL_ROLES, seed) for seed in (1, 2, 3)]
MESHED = OptimConfig(embedding_gradient_scale=0.1)


@functools.cache
def functions(config: OptimConfig, axes: frozenset[tuple[str, int]], rate: float):
    """Jitted `init` and one step of descent, on a mesh."""
    _, rules = make_mesh(**dict(axes))
    optimizer = make_optimizer(config, ALL_ROLES, rules)

    def step(params: Tree, state: Any, gradient: Tree) -> tuple[Tree, Any, Tree]:
        direction, changed = cast(Any, optimizer.update)(gradient, state, params)
        assert jax.tree.map(jax.typeof, changed) == jax.tree.map(jax.typeof, state)
        assert jax.tree.map(jax.typeof, direction) == jax.tree.map(jax.typeof, gradient)
        return tree_map(lambda p, d: (p - rate * d).astype(p.dtype), params, direction), changed, direction

    return jax.jit(optimizer.init), jax.jit(step)


def updates(
    config: OptimConfig,
    params: Tree,
    gradients: list[Tree],
    rate: float = 0.1,
    dtype: str = "float32",
    axes: dict[str, int] | None = None,
):
    """Directions and states of a few steps, the state before them first."""
    init, step = functions(config, frozenset((axes or {}).items()), rate)
    mesh, rules = make_mesh(**(axes or {}))
    with jax.set_mesh(mesh):
        params = lay(params, ALL_ROLES, mesh, rules, dtype)
        directions, states = [], [init(params)]
        for gradient in gradients:
            params, state, direction = step(params, states[-1], lay(gradient, ALL_ROLES, mesh, rules))
            directions.append(flat(direction))
            states.append(state)
    return directions, states


def numpy_adamw(config: AdamW, params: dict, gradients: list[dict], rate: float, decayed: set[str]) -> list[dict]:
    """Directions, in float64."""
    params = {name: np.float64(value) for name, value in params.items()}
    m = {name: np.zeros_like(value) for name, value in params.items()}
    v = {name: np.zeros_like(value) for name, value in params.items()}
    directions = []
    for t, gradient in enumerate(gradients, start=1):
        direction = {}
        for name, value in params.items():
            g = np.float64(gradient[name])
            m[name] = config.beta1 * m[name] + (1 - config.beta1) * g
            v[name] = config.beta2 * v[name] + (1 - config.beta2) * g * g
            first, second = m[name] / (1 - config.beta1**t), v[name] / (1 - config.beta2**t)
            decay = config.weight_decay * value if name in decayed else 0.0
            direction[name] = first / (np.sqrt(second) + config.epsilon) + decay
            params[name] = value - rate * direction[name]
        directions.append(direction)
    return directions


def test_five_steps_as_in_numpy_and_decay_of_matrices_only():
    rule = AdamW(beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.3)
    params = random_tree(ALL_ROLES, 0)
    gradients = [random_tree(ALL_ROLES, seed) for seed in range(1, 6)]
    directions, _ = updates(OptimConfig(optimizer=rule, clip_norm=0.0), params, gradients)
    expected = numpy_adamw(rule, flat(params), [flat(gradient) for gradient in gradients], 0.1, DECAYED)
    for step, (made, wanted) in enumerate(zip(directions, expected, strict=True)):
        for name, value in made.items():
            np.testing.assert_allclose(value, wanted[name], rtol=2e-5, atol=2e-6, err_msg=f"step {step}, {name}")


def test_decay_alone_moves_matrices_of_the_blocks_and_nothing_else():
    params = random_tree(ALL_ROLES, 0)
    still = tree_map(np.zeros_like, params)
    (direction,), _ = updates(OptimConfig(optimizer=AdamW(weight_decay=0.5)), params, [still])
    for name, value in flat(params).items():
        np.testing.assert_array_equal(direction[name], 0.5 * value if name in DECAYED else 0 * value, err_msg=name)


def test_gradients_above_the_clip_norm_are_scaled_down_to_it_and_others_left_alone():
    config = OptimConfig(optimizer=BARE, clip_norm=10.0)
    plain = random_tree(ALL_ROLES, 1)
    for norm in (5.0, 40.0):
        gradient = scaled(plain, norm / norm_of(plain))
        (direction,), _ = updates(config, gradient, [gradient])
        for name, value in flat(gradient).items():
            wanted = min(1.0, 10.0 / norm) * value
            np.testing.assert_allclose(direction[name] / 2**-20, wanted, rtol=1e-4, atol=1e-7, err_msg=name)


def test_the_embeddings_gradient_is_alpha_times_the_plain_one_before_clipping():
    gradient = random_tree(ALL_ROLES, 1)
    shrunk = tree_map(lambda g, leaf: g * np.float32(0.125 if leaf.role == "embedding" else 1), gradient, ALL_ROLES)
    plain = OptimConfig(optimizer=BARE, clip_norm=0.5 * norm_of(shrunk))
    config = msgspec.structs.replace(plain, embedding_gradient_scale=0.125)
    (made,), _ = updates(config, gradient, [gradient])
    (wanted,), _ = updates(plain, gradient, [shrunk])
    for name, value in made.items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


@pytest.mark.parametrize("axes", [{}, *MESHES])
def test_updates_are_limited_relative_to_each_layer_of_a_parameter(axes):
    params = tree_map(lambda value: value.copy(), PARAMS)
    params["period"]["0"]["down"][1] *= 1e-6  # a layer so small that the floor holds for it
    update = scaled(GRADIENTS[0], 1e-3)
    update["period"]["0"]["down"][2] *= 1e3
    update["norm"]["scale"] *= 0
    mesh, rules = make_mesh(**axes)
    with jax.set_mesh(mesh):
        given = (lay(tree, ALL_ROLES, mesh, rules) for tree in (update, params))
        found = jax.jit(lambda update, params: limit(update, params, ALL_ROLES, 0.01))(*given)
    touched = set()
    for name, leaf in leaves(ALL_ROLES):
        layers = zip(*(dict(leaves(tree))[name] for tree in (found, update, params)), strict=True)
        layers = layers if leaf.stacked else [tuple(dict(leaves(tree))[name] for tree in (found, update, params))]
        for layer, (made, wanted, value) in enumerate(layers):
            rms, size = (np.sqrt(np.mean(np.square(x, dtype=np.float64))) for x in (value, wanted))
            factor = min(1.0, 0.01 * max(rms, 1e-3) / size) if size else 1.0
            touched |= {(name, layer)} if factor < 1 else set()
            np.testing.assert_allclose(np.asarray(made), factor * wanted, rtol=1e-5, err_msg=f"{name}, layer {layer}")
    assert touched == {("period.0.down", 1), ("period.0.down", 2)}


@functools.cache
def on_one_device() -> dict[str, np.ndarray]:
    return updates(MESHED, PARAMS, GRADIENTS)[0][-1]


@pytest.mark.parametrize("axes", MESHES)
def test_every_mesh_gives_the_updates_of_one_device(axes):
    directions, states = updates(MESHED, PARAMS, GRADIENTS, axes=axes)
    for name, value in on_one_device().items():
        np.testing.assert_allclose(directions[-1][name], value, rtol=0, atol=2e-6, err_msg=name)
    _, rules = make_mesh(**axes)
    for state in states:
        for moment in (state["adam"].mu, state["adam"].nu):
            for name, leaf in leaves(ALL_ROLES):
                assert dict(leaves(moment))[name].sharding.spec == rules.optimizer(leaf.axes), name


def test_links_and_their_states_have_stable_names():
    _, states = updates(MESHED, PARAMS, GRADIENTS)
    for count, state in enumerate(states):
        assert list(state) == ["embedding_scale", "clip", "adam", "weight_decay"]
        assert names_of(state["adam"].mu) == names_of(state["adam"].nu) == names_of(PARAMS)
        assert int(state["adam"].count) == count


def test_moments_of_bfloat16_parameters_are_kept_in_bfloat16_and_computed_in_float32():
    config = OptimConfig(optimizer=AdamW(weight_decay=0.0), clip_norm=0.0)
    directions, states = updates(config, PARAMS, GRADIENTS[:2], dtype="bfloat16")
    before, after = states[1]["adam"], states[2]["adam"]
    assert {leaf.dtype for leaf in jax.tree.leaves((after.mu, after.nu))} == {jnp.dtype("bfloat16")}
    for name, g in flat(GRADIENTS[1]).items():
        m = np.float32(0.9) * np.float32(dict(leaves(before.mu))[name]) + np.float32(0.1) * g
        v = np.float32(0.95) * np.float32(dict(leaves(before.nu))[name]) + np.float32(0.05) * g * g
        wanted = m / (1 - 0.9**2) / (np.sqrt(v / (1 - 0.95**2)) + 1e-8)
        np.testing.assert_allclose(directions[1][name], wanted, rtol=2e-5, atol=1e-6, err_msg=name)


def test_global_norm_of_any_layout_is_summed_in_float32():
    tree = random_tree(ALL_ROLES, 0, 300.0)  # squares pass float16's range
    for axes in ({}, {"data": 2, "fsdp": 2, "tensor": 2}):
        mesh, rules = make_mesh(**axes)
        with jax.set_mesh(mesh):
            for dtype, tolerance in (("float32", 1e-6), ("float16", 1e-4)):
                norm = jax.jit(global_norm)(lay(tree, ALL_ROLES, mesh, rules, dtype))
                assert (norm.dtype, norm.shape) == (jnp.float32, ())
                assert float(norm) == pytest.approx(norm_of(tree), rel=tolerance)
