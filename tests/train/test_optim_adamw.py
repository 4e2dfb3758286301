"""AdamW, clipping and the embedding's shrink against numpy; which roles are decayed; every mesh like one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import AdamW, OptimConfig
from jaxllm.layers.param import Tree, leaves, tree_map
from jaxllm.train.optim import global_norm, make_optimizer
from tests.train.trees import ALL_ROLES, decoder_declarations, flat, lay, make_mesh, random_tree

DECAYED = {"period.0.down"}


def updates(config: OptimConfig, declared: Tree, params: Tree, gradients: list[Tree], rate: float = 0.1, **axes: int):
    """Directions of a few steps, parameters and the optimizer's state behind them."""
    mesh, rules = make_mesh(**axes)
    optimizer = make_optimizer(config, declared, rules)
    with jax.set_mesh(mesh):
        params = lay(params, declared, mesh, rules)
        state, update, directions = jax.jit(optimizer.init)(params), jax.jit(optimizer.update), []
        for gradient in gradients:
            direction, changed = update(lay(gradient, declared, mesh, rules), state, params)
            assert jax.tree.map(jax.typeof, changed) == jax.tree.map(jax.typeof, state)
            assert jax.tree.map(jax.typeof, direction) == jax.tree.map(jax.typeof, params)
            params, state = jax.tree.map(lambda p, d: p - rate * d, params, direction), changed
            directions.append(flat(direction))
        return directions, flat(params), state


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
    directions, _, _ = updates(OptimConfig(optimizer=rule, clip_norm=0.0), ALL_ROLES, params, gradients)
    expected = numpy_adamw(rule, flat(params), [flat(gradient) for gradient in gradients], 0.1, DECAYED)
    for step, (made, wanted) in enumerate(zip(directions, expected, strict=True)):
        for name, value in made.items():
            np.testing.assert_allclose(value, wanted[name], rtol=2e-5, atol=2e-6, err_msg=f"step {step}, {name}")


def test_decay_alone_moves_matrices_of_the_blocks_and_nothing_else():
    params = random_tree(ALL_ROLES, 0)
    still = tree_map(np.zeros_like, params)
    (direction,), _, _ = updates(OptimConfig(optimizer=AdamW(weight_decay=0.5)), ALL_ROLES, params, [still])
    for name, value in flat(params).items():
        np.testing.assert_array_equal(direction[name], 0.5 * value if name in DECAYED else 0 * value, err_msg=name)


def test_gradients_above_the_clip_norm_are_scaled_down_to_it():
    # With one step and a large epsilon Adam's direction is its gradient over epsilon, so that clipping shows.
    rule = AdamW(beta1=0.0, beta2=0.0, epsilon=1e6, weight_decay=0.0)
    params, gradient = random_tree(ALL_ROLES, 0), random_tree(ALL_ROLES, 1)
    norm = np.sqrt(sum(np.sum(np.float64(value) ** 2) for value in flat(gradient).values()))
    for clip_norm, factor in ((0.5 * norm, 0.5), (2.0 * norm, 1.0), (0.0, 1.0)):
        config = OptimConfig(optimizer=rule, clip_norm=float(clip_norm))
        (direction,), _, _ = updates(config, ALL_ROLES, params, [gradient])
        for name, value in flat(gradient).items():
            np.testing.assert_allclose(1e6 * direction[name], factor * value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_embeddings_gradient_is_alpha_times_the_plain_one_before_clipping():
    rule = AdamW(beta1=0.0, beta2=0.0, epsilon=1e6, weight_decay=0.0)
    params, gradient = random_tree(ALL_ROLES, 0), random_tree(ALL_ROLES, 1)
    shrunk = tree_map(lambda g, leaf: g * np.float32(0.125 if leaf.role == "embedding" else 1), gradient, ALL_ROLES)
    norm = float(np.sqrt(sum(np.sum(np.float64(value) ** 2) for value in flat(shrunk).values())))
    for clip_norm in (0.0, 0.5 * norm):
        config = OptimConfig(optimizer=rule, clip_norm=clip_norm, embedding_gradient_scale=0.125)
        plain = OptimConfig(optimizer=rule, clip_norm=clip_norm)
        (made,), _, _ = updates(config, ALL_ROLES, params, [gradient])
        (wanted,), _, _ = updates(plain, ALL_ROLES, params, [shrunk])
        for name, value in made.items():
            np.testing.assert_array_equal(value, wanted[name], err_msg=name)


@pytest.mark.parametrize(
    "axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "expert": 2, "tensor": 2}, {"fsdp": 8}]
)
def test_every_mesh_gives_the_updates_of_one_device(axes):
    declared = decoder_declarations()
    params, gradients = random_tree(declared, 0, 0.1), [random_tree(declared, seed) for seed in (1, 2, 3)]
    config = OptimConfig(embedding_gradient_scale=0.1)
    _, alone, _ = updates(config, declared, params, gradients, rate=1e-2)
    _, sharded, state = updates(config, declared, params, gradients, rate=1e-2, **axes)
    for name, value in alone.items():
        np.testing.assert_allclose(sharded[name], value, rtol=0, atol=1e-6, err_msg=name)
    _, rules = make_mesh(**axes)
    for moment in (state["adam"].mu, state["adam"].nu):
        for name, leaf in leaves(declared):
            assert dict(leaves(moment))[name].sharding.spec == rules.optimizer(leaf.axes), name


def test_links_and_their_states_have_stable_names():
    config = OptimConfig(clip_norm=1.0, embedding_gradient_scale=0.5)
    params = random_tree(ALL_ROLES, 0)
    _, _, state = updates(config, ALL_ROLES, params, [params])
    assert list(state) == ["embedding_scale", "clip", "adam", "weight_decay"]
    assert [list(dict(leaves(moment))) for moment in (state["adam"].mu, state["adam"].nu)] == [list(flat(params))] * 2
    assert int(state["adam"].count) == 1


def test_moments_of_bfloat16_parameters_are_kept_in_bfloat16_and_computed_in_float32():
    rule = AdamW(weight_decay=0.0)
    mesh, rules = make_mesh()
    optimizer = make_optimizer(OptimConfig(optimizer=rule, clip_norm=0.0), ALL_ROLES, rules)
    gradients = [random_tree(ALL_ROLES, seed) for seed in (1, 2)]
    with jax.set_mesh(mesh):
        params = lay(random_tree(ALL_ROLES, 0), ALL_ROLES, mesh, rules, "bfloat16")
        state = optimizer.init(params)
        _, state = optimizer.update(lay(gradients[0], ALL_ROLES, mesh, rules), state, params)
        kept = state["adam"]
        direction, state = optimizer.update(lay(gradients[1], ALL_ROLES, mesh, rules), state, params)
    for name, value in leaves(direction):
        g = flat(gradients[1])[name]
        m = np.float32(0.9) * np.float32(dict(leaves(kept.mu))[name]) + np.float32(0.1) * g
        v = np.float32(0.95) * np.float32(dict(leaves(kept.nu))[name]) + np.float32(0.05) * g * g
        wanted = m / (1 - 0.9**2) / (np.sqrt(v / (1 - 0.95**2)) + 1e-8)
        np.testing.assert_allclose(value, wanted, rtol=2e-5, err_msg=name)
        assert value.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((state["adam"].mu, state["adam"].nu))} == {jnp.dtype("bfloat16")}


def test_global_norm_of_any_layout_is_summed_in_float32():
    declared = decoder_declarations()
    tree = random_tree(declared, 0, 30.0)
    expected = np.sqrt(sum(np.sum(np.float64(value) ** 2) for value in flat(tree).values()))
    for axes in ({}, {"data": 2, "fsdp": 2, "tensor": 2}):
        mesh, rules = make_mesh(**axes)
        with jax.set_mesh(mesh):
            norm = jax.jit(global_norm)(lay(tree, declared, mesh, rules))
            assert (norm.dtype, norm.shape) == (jnp.float32, ())
            assert float(norm) == pytest.approx(expected, rel=1e-6)
            half = jax.jit(global_norm)(lay(tree, declared, mesh, rules, "float16"))  # squares pass float16's range
            assert float(half) == pytest.approx(expected, rel=1e-3)
