"""Tiny models on any mesh of simulated devices, batches of packed documents, and how to compare what comes out."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from jaxllm.config import (
    AttentionConfig,
    DataConfig,
    Experiment,
    LossConfig,
    MeshConfig,
    MLPConfig,
    ModelConfig,
    OptimConfig,
    PhaseConfig,
    PrecisionConfig,
    TrainConfig,
)
from jaxllm.config.optim import Constant
from jaxllm.layers.param import Recipe, Tree, leaves
from jaxllm.models.decoder import declarations, init
from jaxllm.train.assemble import Program, assemble
from jaxllm.train.gradients import accumulate
from jaxllm.train.objectives import Sums, pretrain

ROWS, LENGTH = 16, 32
MODEL = ModelConfig(
    vocab_size=128,
    d_model=64,
    num_layers=3,
    attention=AttentionConfig(num_heads=8, num_kv_heads=4),
    mlp=MLPConfig(d_ff=96),
    initializer_std=0.1,
)
"""Wide enough for 8 devices; its initial weights are large enough for attention to differ from an average."""


def experiment(
    model: ModelConfig = MODEL,
    mesh: MeshConfig | None = None,
    compute: str = "float32",
    optim: OptimConfig | None = None,
    **train: Any,
) -> Experiment:
    """An experiment in float32 on one device unless something else is said; `train` are fields of that section."""
    train.setdefault("precision", PrecisionConfig(compute=compute))  # pyright: ignore[reportArgumentType]
    train.setdefault("remat", "none")
    return Experiment(
        model=model,
        data=DataConfig(phases=(PhaseConfig(batch_size=ROWS, sequence_length=LENGTH, steps=8),)),
        mesh=mesh or MeshConfig(fsdp=1),
        train=TrainConfig(**train),
        optim=optim or OptimConfig(learning_rate=1e-2, schedule=Constant()),
    )
