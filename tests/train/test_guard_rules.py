"""The guard's rules: on made-up curves, and on published ones where they are at hand."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from jaxllm.config import RulesConfig
from jaxllm.train.guard import detect

CURVES = Path(__file__).parents[3] / "shared" / "data" / "logs"


def noise(seed: int, num: int = 600, sigma: float = 0.05) -> np.ndarray:
    """A clean curve: it falls from 6 to 3 and wobbles."""
    draw = np.random.default_rng(seed)
    return 3 + 3 * np.exp(-np.arange(num) / 80) + draw.normal(0, sigma, num)


@pytest.mark.parametrize("seed", range(4))
def test_a_clean_curve_is_left_alone(seed):
    found = detect(noise(seed, 3000), np.exp(np.random.default_rng(seed).normal(0, 0.2, 3000)))
    assert found.spikes == ()
    assert found.dropped.sum() <= 3


def test_one_high_step_is_dropped_and_no_spike():
    losses = noise(0)
    losses[400] += 2
    found = detect(losses)
    assert np.flatnonzero(found.dropped).tolist() == [400]
    assert found.spikes == ()


def test_a_lasting_rise_is_a_spike_from_its_first_step():
    losses = noise(0)
    losses[400:] += 1.5
    found = detect(losses)
    assert [spike.onset for spike in found.spikes] == [400]
    assert found.spikes[0].due == 402 + RulesConfig().patience
    assert "spike" in found.spikes[0].flags
    assert np.flatnonzero(found.dropped).tolist() == [400, 401, 402, 403, 404], "no more in a row than max_drops"


def test_a_spike_that_passes_by_itself_is_waited_for():
    losses = noise(0)
    losses[400:410] += 1.5
    assert detect(losses).spikes == ()
    assert len(detect(losses, config=RulesConfig(patience=4)).spikes) == 1


def test_a_slow_rise_is_drift_that_began_after_the_best_mean():
    losses = noise(0, 1500)
    losses[600:] += np.arange(900) * (1 / 600)
    (found, *_) = detect(losses).spikes
    assert "drift" in found.flags
    assert 560 <= found.onset <= 700
    assert found.due < 900


def test_what_is_not_finite_is_dropped_and_never_remembered():
    losses, norms = noise(0), np.ones(600)
    losses[300], norms[350] = math.nan, math.inf
    found = detect(losses, norms)
    assert np.flatnonzero(found.dropped).tolist() == [300, 350]
    assert found.spikes == ()
    assert np.isfinite(found.limits[100:]).all()


def test_a_streak_of_broken_steps_is_trouble_before_any_window_is_full():
    losses = noise(0, 60)
    losses[20:] = math.nan
    (found,) = detect(losses).spikes
    assert (found.onset, found.due) == (20, 20 + 4 + RulesConfig().patience)
    assert found.flags == ("broken", "streak", "due")


def test_gradient_norms_are_judged_by_their_logarithm():
    norms = np.exp(np.random.default_rng(1).normal(0, 0.1, 600))
    norms[400] = 20
    found = detect(noise(0), norms)
    assert np.flatnonzero(found.dropped).tolist() == [400]
    # A level that lasts is no outlier any more, and no reason to go back.
    norms[400:] = 20 * norms[:200]
    found = detect(noise(0), norms)
    assert found.dropped[400:405].all()
    assert not found.dropped[500:].any()
    assert found.spikes == ()


def test_a_policy_that_lives_with_a_level_meets_it_once():
    losses = noise(0, 1200)
    losses[400:] += 1.5
    assert len(detect(losses).spikes) == 1


@pytest.mark.parametrize("losses, norms", [([1.0, 2.0], [1.0]), ([[1.0]], None)])
def test_curves_of_other_shapes_are_refused(losses, norms):
    with pytest.raises(ValueError, match="one number a step"):
        detect(losses, norms)


# Published curves


def logged(name: str) -> tuple[list[float], list[float] | None]:
    path = CURVES / name
    if not path.exists():
        pytest.skip("the published curves are not here")
    text = path.read_text()  # in the tables "nan" is a step that was not logged
    if path.suffix == ".log":
        rows = re.findall(r"^s:\d+ trl:(\S+)(?: lr:\S+ norm:(\S+))?$", text, re.M)
        norms = [float(norm) for _, norm in rows if norm]
        return [float(loss) for loss, _ in rows], norms or None
    if path.suffix == ".tsv":
        cells = [line.split("\t")[1] for line in text.splitlines()[1:]]
        return [float(cell) for cell in cells if cell not in ("", "nan")], None
    values = json.loads(text)["lm loss"]["values"]
    return [value for _, value in sorted((int(step), value) for step, value in values.items() if value != "nan")], None


@pytest.mark.parametrize(
    "name",
    [
        "llmc_gpt2_124M_main.log",
        "gpt2_124M_adamw.log",
        "megatron_gpt3_15b_h100.tsv",
        "modded_gpt2_1p5B.tsv",
        "modded_gpt2_scaleshortcuts_932bbe0e.tsv",
    ],
)
def test_published_clean_curves_are_never_rolled_back(name):
    losses, norms = logged(name)
    found = detect(losses, norms)
    assert found.spikes == ()
    if "modded" in name:
        above = [losses[at] - np.median(losses[max(0, at - 128) : at]) for at in np.flatnonzero(found.dropped)]
        assert min(above) >= 0.5, "only true outliers"
    else:
        assert found.dropped.mean() < 0.003


@pytest.mark.parametrize("hardware, steps", [("a100", [4050, 4055]), ("h100", [3800, 3850, 4260])])
def test_published_spikes_of_mixtral_are_dropped(hardware, steps):
    losses, _ = logged(f"megatron_mixtral8x7b_{hardware}.json")
    values = json.loads((CURVES / f"megatron_mixtral8x7b_{hardware}.json").read_text())["lm loss"]["values"]
    logged_steps = sorted(int(step) for step, value in values.items() if value != "nan")
    dropped = {logged_steps[at] for at in np.flatnonzero(detect(losses).dropped)}
    assert set(steps) <= dropped
