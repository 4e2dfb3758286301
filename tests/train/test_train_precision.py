"""bfloat16 compute trains as float32 does: the same losses within 0.02 nats, on real text, over seeds."""

import os
import sysconfig

import jax
import numpy as np
import pytest

from jaxllm.config import Experiment, load
from jaxllm.data.batches import Batches
from jaxllm.data.store import build
from jaxllm.train.assemble import assemble

NUM_SEEDS = int(os.environ.get("NUM_SEEDS", "1"))
"""The whole proof takes three."""


def experiment(tmp_path: object, compute: str) -> Experiment:
    library = sysconfig.get_path("stdlib")
    return load(
        {
            "model": {
                "vocab_size": 384,
                "d_model": 64,
                "num_layers": 2,
                "attention": {"num_heads": 2, "num_kv_heads": 1},
                "mlp": {"d_ff": 160},
            },
            "data": {
                "sources": [{"path": f"{library}/[a-d]*.py", "name": "library"}],
                "tokenizer": {"type": "bytes"},
                "store": f"{tmp_path}/store",
                "phases": [{"sequence_length": 64, "batch_size": 16, "steps": 120}],
            },
            "train": {"remat": "none", "precision": {"compute": compute}},
            "optim": {"learning_rate": 3e-3, "schedule": {"type": "cosine", "warmup_steps": 20}},
        }
    )


@pytest.mark.filterwarnings("ignore:.*donated buffers.*")
def test_bfloat16_trains_as_float32_does(tmp_path: object) -> None:
    last: dict[str, list[float]] = {}
    for compute in ("float32", "bfloat16"):
        config = experiment(tmp_path, compute)
        batches = Batches(build(config.data), config.data)
        program = assemble(config, config.model, jax.devices()[:1])
        with jax.set_mesh(program.mesh):
            for seed in range(NUM_SEEDS):
                state, losses = program.init(jax.random.key(seed)), []
                for step in range(batches.num_steps):
                    batch = program.put(batches.batch(batches.cursor(step)))
                    state, metrics = program.step(state, batch)
                    losses.append(metrics["loss"])
                last.setdefault(compute, []).append(float(np.mean(jax.device_get(losses[-50:]))))
    print(last)
    assert max(last["float32"]) < 3.0, "it learns: bytes of Python code start at 5.9 nats"
    for plain, low in zip(last["float32"], last["bfloat16"], strict=True):
        assert low == pytest.approx(plain, abs=0.02)
