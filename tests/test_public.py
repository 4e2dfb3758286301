"""`import jaxllm`: its functions, before and after the rooms of the same names are imported."""

import pytest

from jaxllm.config import load


def test_functions_stay_functions_once_their_rooms_are_imported():
    """A package that is imported takes the place of the function of its name."""
    import jaxllm.plan.search
    import jaxllm.train.loop

    experiment = load(_tree())
    with pytest.raises(ValueError, match="no chip known here; did you mean"):
        jaxllm.plan(experiment, target="h10x8")
    for _ in range(2):
        with pytest.raises(ValueError, match="write an object store's URL with two slashes"):
            jaxllm.train(load({**_tree(), "run": {"directory": "s3:/one-slash"}}))


def _tree():
    phase = {"sequence_length": 8, "batch_size": 1, "steps": 1}
    model = {"d_model": 8, "num_layers": 1, "attention": {"num_heads": 1}, "mlp": {"d_ff": 8}}
    return {"model": model, "data": {"phases": [phase]}}
