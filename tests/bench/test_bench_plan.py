"""Predictions beside published steps: what `jaxllm bench plan` claims."""

import json

import pytest

from jaxllm import cli
from jaxllm.bench import plan
from jaxllm.plan.efficiency import CALIBRATION


@pytest.fixture(scope="module")
def result():
    return plan.measure()


def test_a_family_that_was_left_out_is_predicted_within_ten_percent(result):
    assert len(result["rows"]) >= 25 and len(result["by_family"]) >= 4
    assert result["mean_held_out_error"] <= 0.10
    assert result["mean_held_out_error"] < result["mean_constant_mfu_error"]
    assert result["mean_held_out_error"] <= 0.5 * result["mean_held_out_constant_mfu_error"]


def test_the_calibration_in_use_is_the_fitted_one(result):
    """When rows or the model of a step change: put what `jaxllm bench plan --json` fits into plan/efficiency.py."""
    assert result["calibration"] == result["in_use"]
    assert result["mean_error"] < result["mean_held_out_error"]


def test_nothing_is_faster_than_physics(result):
    for row in result["rows"]:
        assert row["bound_seconds"] < row["published_seconds"], row
        assert row["bound_seconds"] < row["predicted_seconds"], row


def test_published_rates_give_published_utilisation(result):
    """torchtitan's check vector: 6,667 tokens a second are 39.04 % as it counts."""
    row = next(row for row in result["rows"] if row["model"] == "Llama 3 8B" and row["target"] == "h100x8")
    assert row["published_mfu"] == pytest.approx(0.3904, abs=1e-4)


def test_what_the_command_prints(result, monkeypatch, capsys):
    monkeypatch.setattr(plan, "measure", lambda: result)
    for arguments in (["bench", "plan"], ["bench", "plan", "--json"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
        out = capsys.readouterr().out
    assert json.loads(out)["in_use"]["memory"] == CALIBRATION.memory
    text = plan.text(result)
    assert f"family left out     {result['mean_held_out_error']:.1%}" in text
    assert "Not usable:" in text and "float8" in text
