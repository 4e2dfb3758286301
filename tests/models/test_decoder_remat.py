"""What the backward pass computes again changes memory, and neither the loss nor a gradient."""

import dataclasses

import jax
import msgspec
import numpy as np
import oracle
import pytest
import tiny

from jaxllm.config import MeshConfig
from jaxllm.layers.param import nest

SHAPE = (8, 128)
MESH = MeshConfig(data=2, fsdp=2, tensor=2)
STRAIGHT = msgspec.structs.replace(tiny.MODEL, prefix=(tiny.MODEL.default_block,) * 3)
"""The same three layers, with no loop to run them."""

CASES = {
    "none": {},
    "dots": {"remat": "dots"},
    "block": {"remat": "block"},
    "offload": {"remat": "offload"},
    "none, unrolled": {"unroll": True},
    "block, unrolled": {"remat": "block", "unroll": True},
    "block, prefix": {"remat": "block", "model": STRAIGHT},
    "none, mesh": {"mesh": MESH},
    "dots, mesh": {"remat": "dots", "mesh": MESH},
    "block, mesh": {"remat": "block", "mesh": MESH},
    "offload, mesh": {"remat": "offload", "mesh": MESH},
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What a case computes, layer by layer, and the bytes of a device's temporary arrays."""

    loss: float
    gradients: dict[str, np.ndarray]
    temporary_bytes: int


@pytest.fixture(scope="module")
def results():
    """The cases, computed when they are asked for."""
    made: dict[str, Result] = {}

    def result(name):
        if name not in made:
            case = dict(CASES[name])
            model = case.pop("model", tiny.MODEL)
            made[name] = compute(model, case)
        return made[name]

    return result


def compute(model, case):
    config = tiny.experiment(model, shape=SHAPE, **case)
    running, params = tiny.program(config), tiny.make_params()
    if model is STRAIGHT:
        layers, outer = oracle.unstack(tiny.MODEL, params)
        stacked = {f"prefix.{i}.{name}": value[None] for i, layer in enumerate(layers) for name, value in layer.items()}
        params = nest({**outer, **stacked})
    with jax.set_mesh(running.mesh):
        given = tiny.place(running, params), running.put(tiny.make_batch(*SHAPE))
        compiled = jax.jit(tiny.differentiate(running, config)).lower(*given).compile()
        gradients, rows, _ = compiled(*given)
        layers, outer = oracle.unstack(model, gradients)
        flat = outer | {f"{i}.{name}": value for i, layer in enumerate(layers) for name, value in layer.items()}
        arrays = {name: np.asarray(value) for name, value in flat.items()}
        return Result(float(rows.loss.sum()), arrays, compiled.memory_analysis().temp_size_in_bytes)


@pytest.mark.parametrize("name", [name for name in CASES if name != "none"])
def test_loss_and_gradients_are_the_same(name, results):
    assert results(name).loss == pytest.approx(results("none").loss, rel=1e-6)
    tiny.assert_close(results(name).gradients, results("none").gradients, 2e-6)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("dots", "none"),
        ("block", "dots"),
        ("offload", "none"),
        ("block, unrolled", "none, unrolled"),
        ("block, prefix", "none, unrolled"),
        ("dots, mesh", "none, mesh"),
        ("block, mesh", "dots, mesh"),
        ("offload, mesh", "none, mesh"),
    ],
)
def test_it_keeps_less(less, more, results):
    assert results(less).temporary_bytes < 0.9 * results(more).temporary_bytes
