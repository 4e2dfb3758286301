"""QK-clip: which heads it scales, by how much, and in which steps."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
import tiny

from jaxllm.config import (
    Constant,
    LoRAConfig,
    MeshConfig,
    OptimConfig,
    QKClipConfig,
    RunConfig,
    TuneConfig,
    WatchConfig,
)
from jaxllm.layers.param import leaves
from jaxllm.train.phase_steps import PhaseSteps
from jaxllm.train.qk_clip import QK_CLIPPED, make_qk_clip
from jaxllm.train.state import TrainState
from jaxllm.train.watch import make_watch

OWN_KEYS = msgspec.structs.replace(tiny.MODEL.attention, num_kv_heads=8, bias="all")
MODEL = msgspec.structs.replace(
    tiny.MODEL,
    num_layers=3,
    prefix=(msgspec.structs.replace(tiny.MODEL.default_block, attention=OWN_KEYS),),
)
"""A layer with a key head a query head and with biases, then two whose query heads share keys in pairs."""


def test_heads_above_the_threshold_come_down_to_it_and_others_stay():
    config = tiny.experiment(MODEL, MeshConfig(fsdp=2, tensor=2))
    running = tiny.program(config)
    watch = jax.jit(make_watch(running.decoder, config.train, running.trained))
    params = tiny.make_params(MODEL)
    with jax.set_mesh(running.mesh):
        placed, batch = tiny.place(running, params), running.put(tiny.make_batch())
        _, logits = watch(placed, batch)
        threshold = float(np.median(logits["prefix.0"]))
        clip = jax.jit(make_qk_clip(QKClipConfig(threshold=threshold), MODEL))
        state = TrainState(placed, {}, *(jnp.zeros(()) for _ in range(5)))
        clipped, metrics = clip(state, logits)
        _, after = watch(clipped.params, batch)
        broken = jax.tree.map(lambda x: x * jnp.where(jnp.arange(8)[None] % 2, jnp.inf, jnp.nan), logits)
        untouched, none = clip(state, broken)

    assert jax.tree.map(jax.typeof, clipped) == jax.tree.map(jax.typeof, state)
    before = {slot: np.asarray(value) for slot, value in logits.items()}
    assert metrics[QK_CLIPPED] == sum(int((value > threshold).sum()) for value in before.values()) > 4
    # the first layer's input stays as it was: its heads are at the threshold to the last digits
    np.testing.assert_allclose(after["prefix.0"], np.minimum(before["prefix.0"], threshold), rtol=1e-5)
    factors = {slot: np.minimum(1, threshold / value)[:, None, :, None] for slot, value in before.items()}
    wanted = {
        "prefix.0.attention.query": factors["prefix.0"] ** 0.5,
        "prefix.0.attention.key": factors["prefix.0"] ** 0.5,
        "prefix.0.attention.query_bias": factors["prefix.0"][:, 0] ** 0.5,
        "prefix.0.attention.key_bias": factors["prefix.0"][:, 0] ** 0.5,
        "period.0.attention.query": factors["period.0"],
    }
    old = dict(leaves(params))
    for name, value in leaves(clipped.params):
        np.testing.assert_allclose(value, old[name] * wanted.get(name, np.float32(1)), rtol=1e-6, err_msg=name)
    assert none[QK_CLIPPED] == 0
    for name, value in leaves(untouched.params):
        np.testing.assert_array_equal(value, old[name], err_msg=name)


@dataclasses.dataclass
class Compiled:
    """Something of a program, compiled: says when it is called, and returns what it is told to."""

    name: str
    calls: list
    result: object

    def lower(self, *_):
        return self

    def compile(self):
        return self

    def __call__(self, *_):
        self.calls.append(self.name)
        return self.result


@pytest.mark.parametrize(
    ("watch", "clip", "wanted"),
    [
        (0, None, ["s", "s", "s", "s", "s", "s"]),
        (3, None, ["s", "s", "ws", "s", "s", "ws"]),
        (0, 2, ["s", "wsc", "s", "wsc", "s", "wsc"]),
        (3, 2, ["s", "wsc", "ws", "wsc", "s", "wsc"]),
    ],
)
def test_a_step_is_watched_before_it_and_clipped_behind_it_when_due(watch, clip, wanted, monkeypatch):
    optim = OptimConfig(schedule=Constant(), qk_clip=clip and QKClipConfig(interval=clip))
    experiment = msgspec.structs.replace(tiny.experiment(optim=optim), watch=WatchConfig(interval=watch))
    calls = []
    program = dataclasses.replace(
        tiny.program(experiment),
        watch=Compiled("w", calls, ({"activation_rms": np.ones(3)}, {})),
        step=Compiled("s", calls, ("state", {"loss": 1.0})),
        qk_clip=Compiled("c", calls, ("clipped", {QK_CLIPPED: 2.0})),
    )
    steps = PhaseSteps(experiment, experiment.model, program)
    batch = {"tokens": np.zeros((2, 4), np.int32)}
    state = TrainState({}, {}, *(jnp.zeros(()) for _ in range(5)))
    monkeypatch.setattr(jax, "eval_shape", lambda *_: ({}, {}))
    assert steps.compile(state, batch, {}) and not steps.compile(state, batch, {})
    made, found = [], []
    for step in range(6):
        calls.clear()
        made.append(steps.run(step, state, batch, {}))
        found.append("".join(calls))
    assert found == wanted
    for step, ((state, metrics), done) in enumerate(zip(made, wanted, strict=True), start=1):
        assert state == ("clipped" if "c" in done else "state")
        assert (QK_CLIPPED in metrics) == ("c" in done)
        assert ("activation_rms" in metrics) == steps.is_watched(step) == (watch > 0 and step % watch == 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"run": RunConfig(init_from="base"), "tune": TuneConfig(lora=LoRAConfig())},
            "optim.qk_clip.threshold = 100.0: it scales weights that tune.lora does not train; leave one of them out",
        ),
        (
            {"model": tiny.GUARDED},
            "optim.qk_clip.threshold = 100.0: model.attention.qk_norm undoes what it scales, and bounds the logits by "
            "itself; leave one of them out",
        ),
    ],
)
def test_what_it_cannot_act_on_is_refused(change, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        msgspec.structs.replace(tiny.experiment(optim=OptimConfig(qk_clip=QKClipConfig())), **change)
