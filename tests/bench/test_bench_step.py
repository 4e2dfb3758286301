"""The step's measurement: its numbers belong together."""

import json

import pytest

from jaxllm.bench import step
from jaxllm.config import load


def test_a_measurement_is_whole_and_consistent() -> None:
    experiment = load(
        {
            "model": {
                "vocab_size": 128,
                "d_model": 32,
                "num_layers": 1,
                "attention": {"num_heads": 2},
                "mlp": {"d_ff": 64},
            },
            "data": {"phases": [{"sequence_length": 16, "batch_size": 8, "steps": 10}]},
            "optim": {"schedule": {"type": "constant"}},
        }
    )
    result = json.loads(json.dumps(step.measure(experiment, num_steps=3)))
    assert result["tokens_per_second"] * result["step_seconds"] == pytest.approx(8 * 16)
    low, high = result["step_seconds_quartiles"]
    assert 0 < low <= result["step_seconds"] <= high
    assert result["devices"] == 8 and result["argument_bytes"] > 0 and "mfu" not in result
    assert f"{result['tokens_per_second']:,.0f}" in step.text(result)
    with pytest.raises(ValueError, match="--steps 0"):
        step.measure(experiment, num_steps=0)
