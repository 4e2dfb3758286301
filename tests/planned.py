"""A small experiment to plan for."""

import jaxllm

TREE = {
    "run": {"name": "small"},
    "model": {
        "vocab_size": 4096,
        "d_model": 512,
        "num_layers": 6,
        "attention": {"num_heads": 8, "num_kv_heads": 4},
        "mlp": {"d_ff": 1536},
    },
    "data": {"phases": [{"sequence_length": 1024, "batch_size": 48, "tokens": 10**9}]},
}


EXPERTS = {"model.mlp.experts.num_experts": 12, "model.mlp.experts.experts_per_token": 3}
"""Overrides that make the model one of experts."""


def experiment(**overrides):
    """The experiment; `data__phases__0__batch_size=8` sets data.phases.0.batch_size."""
    return jaxllm.load_experiment(TREE, {name.replace("__", "."): value for name, value in overrides.items()})
