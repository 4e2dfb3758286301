"""Learning rates against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import WSD, Constant, Cosine, OptimConfig
from jaxllm.train.schedule import schedule

PEAK = 0.004


def rates(shape: Constant | Cosine | WSD, num_steps: int, upto: int | None = None) -> np.ndarray:
    """The rate of every step, as fractions of the peak."""
    rate = jax.jit(schedule(OptimConfig(learning_rate=PEAK, schedule=shape), num_steps))
    made = [rate(jnp.int32(step)) for step in range(upto or num_steps)]
    assert {(value.dtype, value.shape) for value in made} == {(jnp.dtype("float32"), ())}
    return np.array(made, np.float64) / PEAK


def test_constant_warms_up_and_stays():
    assert rates(Constant(warmup_steps=4), 7) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1], rel=1e-6)
    assert rates(Constant(), 3) == pytest.approx([1, 1, 1], rel=1e-6)


def test_cosine_start_warmup_end_middle_last():
    # Peak at step 4, last step 12: a quarter of the half cosine is two steps.
    values = rates(Cosine(warmup_steps=5, final_fraction=0.1), 13)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], rel=1e-6)
    quarter = 0.1 + 0.9 * (1 + 2**-0.5) / 2
    assert values[[6, 8, 12]] == pytest.approx([quarter, 0.55, 0.1], rel=1e-6)
    assert np.all(np.diff(values[4:]) < 0)


def test_cosine_is_the_same_without_warmup_and_with_one_step_of_it():
    expected = [1.0, 0.75, 0.5, 0.25, 0.0]
    cosine = 0.5 * (1 + np.cos(np.pi * (1 - np.array(expected))))
    assert rates(Cosine(warmup_steps=0, final_fraction=0.0), 5) == pytest.approx(cosine, abs=1e-6)
    assert rates(Cosine(warmup_steps=1, final_fraction=0.0), 5) == pytest.approx(cosine, abs=1e-6)


def test_wsd_warms_up_stays_and_falls_over_the_last_steps():
    values = rates(WSD(warmup_steps=2, decay_fraction=0.4, final_fraction=0.2), 10)
    assert values == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2], rel=1e-6)


def test_wsd_falls_from_the_end_of_the_warmup_at_the_earliest():
    values = rates(WSD(warmup_steps=2, decay_fraction=1.0, final_fraction=0.0), 6)
    assert values == pytest.approx([0.5, 1, 0.75, 0.5, 0.25, 0], abs=1e-6)


def test_wsd_without_decay_is_constant():
    values = rates(WSD(warmup_steps=2, decay_fraction=0.0, final_fraction=0.2), 5)
    assert values == pytest.approx([0.5, 1, 1, 1, 1], rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "final"), [(Cosine(warmup_steps=3, final_fraction=0.3), 0.3), (WSD(warmup_steps=3), 0.0)]
)
def test_steps_behind_the_last_keep_its_rate(shape, final):
    assert rates(shape, 10, upto=14)[9:] == pytest.approx([final] * 5, abs=1e-6)


@pytest.mark.parametrize("shape", [Constant(), Cosine(warmup_steps=0), WSD(warmup_steps=0, decay_fraction=0.0)])
def test_a_run_of_one_step_uses_the_peak(shape):
    assert rates(shape, 1) == pytest.approx([1.0], rel=1e-6)


def test_llamas_cosine_over_a_quarter_of_a_million_steps():
    rate = schedule(OptimConfig(learning_rate=3e-4), 250_000)
    assert float(rate(jnp.int32(0))) == pytest.approx(3e-4 / 2000, rel=1e-6)
    assert float(rate(jnp.int32(1999))) == pytest.approx(3e-4, rel=1e-6)
    assert float(rate(jnp.int32(1999 + 124_000))) == pytest.approx(0.55 * 3e-4, rel=1e-6)
    assert float(rate(jnp.int32(249_999))) == pytest.approx(3e-5, rel=1e-6)


@pytest.mark.parametrize("shape", [Constant(warmup_steps=20), Cosine(warmup_steps=20), WSD(warmup_steps=20)])
def test_a_warmup_as_long_as_the_run_is_refused(shape):
    with pytest.raises(
        ValueError, match=r"^optim\.schedule\.warmup_steps = 20: .* 20 optimizer steps .*; use fewer than 20"
    ):
        schedule(OptimConfig(schedule=shape), 20)
    schedule(OptimConfig(schedule=shape), 21)
