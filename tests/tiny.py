"""Tiny models on any mesh of simulated devices, batches of packed documents, and how to compare what comes out."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax.sharding import NamedSharding

from jaxllm.config import (
    AttentionConfig,
    BlockConfig,
    Constant,
    DataConfig,
    Experiment,
    MeshConfig,
    MLPConfig,
    ModelConfig,
    OptimConfig,
    PhaseConfig,
    PrecisionConfig,
    TrainConfig,
)
from jaxllm.layers.param import Recipe, Tree, leaves, tree_map
from jaxllm.models.decoder import Decoder, declarations
from jaxllm.train.assemble import Program, assemble
from jaxllm.train.step import make_gradients

ROWS, LENGTH = 16, 32
MODEL = ModelConfig(
    vocab_size=128,
    d_model=64,
    num_layers=3,
    attention=AttentionConfig(num_heads=8, num_kv_heads=4),
    mlp=MLPConfig(d_ff=96),
    initializer_std=0.1,
)
"""Divisible by any mesh of 8 devices; the initial weights are large enough for attention to be far from an average."""


def _guarded(qk_norm: Literal["head", "projection"], soft_cap: float) -> BlockConfig:
    attention = msgspec.structs.replace(MODEL.attention, qk_norm=qk_norm, soft_cap=soft_cap)
    return msgspec.structs.replace(MODEL.default_block, attention=attention)


GUARDED = msgspec.structs.replace(
    MODEL,
    num_layers=2,
    period=(_guarded("head", 0.7), _guarded("projection", 0.0)),
    final_soft_cap=1.5,
    tie_embeddings=True,
)
"""With all that holds logits small, the caps low enough to bend most of them; and one table for embedding and head."""


def experiment(
    model: ModelConfig = MODEL,
    mesh: MeshConfig | None = None,
    optim: OptimConfig | None = None,
    precision: PrecisionConfig | None = None,
    shape: tuple[int, int] = (ROWS, LENGTH),
    **train: Any,
) -> Experiment:
    """An experiment in float32 on one device, unless something else is said; `train` are fields of that section."""
    settings = {"remat": "none", "precision": precision or PrecisionConfig(compute="float32"), **train}
    return Experiment(
        model=model,
        data=DataConfig(phases=(PhaseConfig(batch_size=shape[0], sequence_length=shape[1], steps=8),)),
        mesh=mesh or MeshConfig(fsdp=1),
        train=TrainConfig(**settings),
        optim=optim or OptimConfig(learning_rate=1e-2, schedule=Constant()),
    )


def program(config: Experiment) -> Program:
    """The functions of an experiment, on as many devices as its mesh has."""
    return assemble(config, config.model, jax.devices()[: math.prod(config.mesh.shape)])


def make_batch(rows: int = ROWS, length: int = LENGTH, vocab_size: int = 128, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens in packed documents; in every fourth row hardly a token counts, in the one before it all do."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocab_size, (rows, length + 1), dtype=np.int32)
    starts = random.random((rows, length)) < 3 / length
    starts[:, 0] = True
    places = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    counts = random.random((rows, length)) < np.resize([0.04, 0.4, 0.7, 1.0], rows)[:, None]
    return {
        "tokens": tokens[:, :-1].copy(),
        "targets": tokens[:, 1:].copy(),
        "weights": counts.astype(np.float32),
        "positions": places - first,
        "segments": np.cumsum(starts, axis=1, dtype=np.int32),
    }


def make_params(model: ModelConfig = MODEL, seed: int = 0) -> Tree:
    """Parameters on the host, drawn by numpy with the declared spread; norms are not all ones."""
    random = np.random.default_rng(seed)
    return tree_map(
        lambda leaf: random.normal(leaf.fill, leaf.std or 0.1, leaf.shape).astype(np.float32),
        declarations(Decoder(model, Recipe())),
    )


def place(running: Program, params: Tree) -> Tree:
    """Parameters on a program's mesh, as its storage table says."""
    rules = running.decoder.recipe.rules
    return tree_map(
        lambda value, leaf: jax.device_put(value, NamedSharding(running.mesh, rules.storage(leaf.axes))),
        params,
        declarations(running.decoder),
    )


def differentiate(running: Program, config: Experiment) -> Callable[..., tuple[Tree, Any, jax.Array]]:
    """(parameters, batch) -> what the step makes of them: gradients, the loss per sample, number of valid tokens."""
    gradients = make_gradients(running.decoder, config.train)

    def function(params: Tree, batch: Mapping[str, jax.Array]) -> tuple[Tree, Any, jax.Array]:
        return gradients(params, {name: x for name, x in batch.items() if name != "sources"}, jnp.ones(()))

    return function


@functools.cache
def _compiled(config: Experiment) -> tuple[Program, Callable[..., tuple[Tree, Any, jax.Array]]]:
    running = program(config)
    return running, jax.jit(differentiate(running, config))


def loss_and_gradients(
    config: Experiment, batch: Mapping[str, np.ndarray], params: Tree | None = None
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean loss, and gradients by dotted name, as an experiment's step computes them on its mesh."""
    losses, gradients = losses_and_gradients(config, batch, params)
    return float(losses.sum()), gradients


def losses_and_gradients(
    config: Experiment, batch: Mapping[str, np.ndarray], params: Tree | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """As `loss_and_gradients`, with what each sample adds to the mean loss, float32[B]."""
    running, function = _compiled(config)
    with jax.set_mesh(running.mesh):
        placed = place(running, params or make_params(config.model))
        gradients, rows, _ = function(placed, running.put(batch))
        return np.asarray(rows.loss + rows.z_loss), {name: np.asarray(value) for name, value in leaves(gradients)}


def assert_close(found: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float = 1e-5) -> None:
    """Each array within a tolerance of the other, in units of the other's largest entry."""
    assert found.keys() == wanted.keys()
    errors = {name: float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()) for name in wanted}
    assert max(errors.values()) <= tolerance, errors
