"""The loss scale over a sequence of clean and overflowing steps."""

import functools

import jax
import jax.numpy as jnp

from jaxllm.config import LossScaleConfig
from jaxllm.train.loss_scale import LossScale, init_loss_scale, next_loss_scale


def sequence(config: LossScaleConfig, finite: list[bool]) -> list[tuple[float, int]]:
    update = jax.jit(functools.partial(next_loss_scale, config))
    state, seen = init_loss_scale(config), []
    for flag in finite:
        before = jax.tree.map(jax.typeof, state)
        state = update(state, jnp.bool_(flag))
        assert jax.tree.map(jax.typeof, state) == before
        seen.append((float(state.scale), int(state.clean_steps)))
    return seen


def test_starts_at_the_initial_scale():
    state = init_loss_scale(LossScaleConfig())
    assert isinstance(state, LossScale)
    assert (float(state.scale), int(state.clean_steps)) == (65536.0, 0)
    assert (state.scale.dtype, state.clean_steps.dtype) == (jnp.float32, jnp.int32)


def test_doubles_after_clean_steps_halves_on_overflow():
    config = LossScaleConfig(initial=8.0, growth_interval=3)
    seen = sequence(config, [True, True, True, True, False, True, True, False, True, True, True])
    assert seen == [(8, 1), (8, 2), (16, 0), (16, 1), (8, 0), (8, 1), (8, 2), (4, 0), (4, 1), (4, 2), (8, 0)]


def test_never_halves_below_the_minimum():
    config = LossScaleConfig(initial=5.0, growth_interval=1, minimum=2.0)
    assert sequence(config, [False, False, False, True]) == [(2.5, 0), (2.0, 0), (2.0, 0), (4.0, 0)]
