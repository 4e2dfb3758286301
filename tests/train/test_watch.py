"""Watching: norms by group, activations and logits by layer in every mesh, and that it changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import oracle
import pytest
import tiny

from jaxllm.config import Constant, MeshConfig, MLPConfig, OptimConfig, WatchConfig
from jaxllm.layers.param import leaves
from jaxllm.train.guard.rules import forget
from jaxllm.train.loss_scale import LossScale
from jaxllm.train.step import UNGUARDED
from jaxllm.train.watch import LAYERS, make_watch

WINDOW = msgspec.structs.replace(
    tiny.MODEL.default_block,
    attention=msgspec.structs.replace(tiny.MODEL.attention, window=4, query_scale=0.3),
    norm_placement="post",
)
MIXED = msgspec.structs.replace(tiny.GUARDED, num_layers=4, prefix=(WINDOW,), attention=tiny.MODEL.attention)
"""A prefix, a period of two blocks of which the first has its logits held small, and a remainder."""
MESHES = {
    "data 2 x fsdp 2 x tensor 2, 2 micro-batches": (MeshConfig(data=2, fsdp=2, tensor=2), 2),
    "context 4 x tensor 2, sequence parallel": (MeshConfig(fsdp=1, context=4, tensor=2, sequence_parallel=True), 1),
}


def look(model, mesh, accumulate):
    """What a program sees of a batch: its metrics, and logits by slot, layer and head."""
    config = tiny.experiment(model, mesh, accumulate=accumulate)
    running = tiny.program(config)
    watch = jax.jit(make_watch(running.decoder, config.train, running.trained))
    with jax.set_mesh(running.mesh):
        placed = tiny.place(running, tiny.make_params(model))
        metrics, logits = watch(placed, running.put(tiny.make_batch()))
    return jax.tree.map(np.asarray, (metrics, logits))


def plain(model):
    """The same, from the plain model of tests/oracle."""
    batch = tiny.make_batch()

    def function(given):
        seen = []
        oracle.logits(model, *given, batch["tokens"], batch["positions"], batch["segments"], seen)
        return seen

    return jax.device_get(jax.jit(function)(oracle.unstack(model, tiny.make_params(model))))


@pytest.fixture(scope="module")
def wanted():
    return plain(MIXED)


@pytest.mark.parametrize("name", MESHES)
def test_every_layer_is_seen_as_the_oracle_sees_it(name, wanted):
    metrics, logits = look(MIXED, *MESHES[name])
    assert set(metrics) == set(LAYERS)
    rms = [np.sqrt(np.mean(np.square(x))) for x, _ in wanted]
    np.testing.assert_allclose(metrics["activation_rms"], rms, rtol=1e-5)
    np.testing.assert_allclose(metrics["activation_max"], [np.abs(x).max() for x, _ in wanted], rtol=1e-5)
    by_head = np.stack([most for _, most in wanted])
    np.testing.assert_allclose(metrics["attention_logit_max"], by_head.max(axis=1), rtol=1e-5)
    for slot, layers in {"prefix.0": [0], "period.0": [1], "period.1": [2], "remainder.0": [3]}.items():
        np.testing.assert_allclose(logits[slot], by_head[layers], rtol=1e-5, err_msg=slot)


def test_every_layer_is_seen_through_the_stages_of_a_pipeline():
    model = msgspec.structs.replace(tiny.MODEL, num_layers=4)
    metrics, _ = look(model, MeshConfig(pipe=2, fsdp=1, tensor=2), 2)
    seen = plain(model)
    np.testing.assert_allclose(metrics["activation_rms"], [np.sqrt(np.mean(np.square(x))) for x, _ in seen], rtol=1e-5)
    np.testing.assert_allclose(metrics["activation_max"], [np.abs(x).max() for x, _ in seen], rtol=1e-5)
    np.testing.assert_allclose(metrics["attention_logit_max"], [most.max() for _, most in seen], rtol=1e-5)


def test_no_scores_of_a_whole_sequence_exist():
    length = 512
    running = tiny.program(tiny.experiment(tiny.MODEL, shape=(2, length)))
    with jax.set_mesh(running.mesh):
        compiled = running.watch.lower(running.abstract_state().params, running.abstract_batch(2, length))
    heads = tiny.MODEL.attention.num_heads
    assert f"x{length}x{length}xf32" not in compiled.as_text()
    assert f"x128x{length}xf32" in compiled.as_text(), f"scores of a block of queries and {heads} heads are there"


CLIP = 5e-3
"""Half of what Adam's first update of the norms would be."""


def steps(interval, num=3):
    """Metrics of some steps, and the last parameters."""
    model = msgspec.structs.replace(tiny.MODEL, num_layers=1, vocab_size=64, d_model=32, mlp=MLPConfig(d_ff=32))
    optim = OptimConfig(learning_rate=1e-2, schedule=Constant(), update_clip=CLIP)
    config = msgspec.structs.replace(tiny.experiment(model, shape=(4, 16), optim=optim), guard=UNGUARDED)
    running, found = tiny.program(msgspec.structs.replace(config, watch=WatchConfig(interval=interval))), []
    step = jax.jit(running.step)
    with jax.set_mesh(running.mesh):
        empty = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), running.abstract_state())
        state = dataclasses.replace(
            empty,
            params=tiny.place(running, tiny.make_params(model)),
            learning_rate_scale=jnp.ones(()),
            loss_scale=LossScale(jnp.ones(()), empty.loss_scale.clean_steps),
            guard=forget(running.rules),
        )
        for seed in range(num):
            state, metrics = step(state, running.put(tiny.make_batch(4, 16, 64, seed)))
            found.append({name: float(value) for name, value in metrics.items() if not value.shape})
    return found, dict(leaves(jax.tree.map(np.asarray, state.params)))


def test_groups_add_up_to_the_whole_and_watching_changes_no_bit():
    watched, params = steps(1)
    plain, plain_params = steps(0)
    names = ("embedding", "head", "norms", "attention", "mlp")
    for with_groups, without in zip(watched, plain, strict=True):
        groups = {name: value for name, value in with_groups.items() if "/" in name}
        assert set(groups) == {f"{kind}/{name}" for kind in ("grad_norm", "update_ratio") for name in names}
        assert {name: value.hex() for name, value in with_groups.items() if name not in groups} == {
            name: value.hex() for name, value in without.items()
        }
        squares = sum(groups[f"grad_norm/{name}"] ** 2 for name in names)
        assert squares**0.5 == pytest.approx(with_groups["grad_norm"], rel=1e-6)
    # Adam's first update is the learning rate for every value: far above what is allowed
    ratios = {name: watched[0][f"update_ratio/{name}"] for name in names}
    assert ratios == pytest.approx(dict.fromkeys(names, CLIP), rel=1e-4)
    assert {name: value.tobytes() for name, value in params.items()} == {
        name: value.tobytes() for name, value in plain_params.items()
    }
