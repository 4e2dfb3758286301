"""Attention over a sequence that devices share: plain attention, its gradient, and nothing of other documents."""

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm import sharding
from jaxllm.config import MeshConfig
from jaxllm.layers.attention import attend
from jaxllm.layers.context import balance, restore
from jaxllm.layers.kernels import Scoring
from jaxllm.layers.param import Recipe
from jaxllm.models.decoder import merge

RINGS = {
    "xla": ("xla", 8, 96, 16, 0.0, 0),
    "splash": ("splash", 2, 512, 64, 1.5, 0),
    "xla, window": ("xla", 4, 96, 16, 0.0, 20),
}
"""Kernel, devices, length, width of a head, soft cap, window. Two devices have no turn of the loop, eight have six."""


def ring(context):
    config = MeshConfig(fsdp=1, context=context)
    mesh = sharding.make_mesh(config, jax.devices()[:context])
    return mesh, sharding.make_rules(config, dict(mesh.shape))


def head_tail(context, length):
    """Positions in the order in which devices hold them."""
    chunks = np.arange(length).reshape(2 * context, -1)
    return np.concatenate([chunks[[i, 2 * context - 1 - i]].reshape(-1) for i in range(context)])


def seen_of(segments, window):
    """Which keys a query sees: bool[B, T, S]."""
    places = np.arange(segments.shape[1])
    near = places[:, None] - places[None] < (window or len(places))
    return np.tril(segments[:, :, None] == segments[:, None, :]) & near


def plain(q, k, v, segments, scoring):
    """Softmax attention over all pairs at once, heads repeated."""
    cap = scoring.cap
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[3] ** -0.5
    scores = jnp.tanh(scores / cap) * cap if cap else scores
    seen = seen_of(segments, scoring.window)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf)), v)


@pytest.fixture(scope="module", params=RINGS)
def attended(request):
    """Scoring, segments, probed positions, inputs; of a ring: result, gradients, gradients of the probed positions."""
    kernel, context, length, head_dim, cap, window = RINGS[request.param]
    scoring = Scoring(head_dim**-0.5, cap, window)
    random = np.random.default_rng(0)
    q, k, v, cotangent = (random.normal(size=(3, length, heads, head_dim)).astype(np.float32) for heads in (4, 2, 2, 4))
    # documents that end within a chunk, one over nearly all of the devices, and one of the whole row
    borders = np.array([[length // 5, length // 2 + 3], [7, length - 3], [length, length]])
    segments = (np.arange(length)[None, None] >= borders[:, :, None]).sum(axis=1).astype(np.int32) + 1
    probed = np.array([length // 2 + 1, length - 5, length - 1])
    probe = np.where((np.arange(length)[None] == probed[:, None])[:, :, None, None], cotangent, np.float32(0))
    mesh, rules = ring(context)
    order = head_tail(context, length)
    laid = NamedSharding(mesh, PartitionSpec(None, "context"))

    @jax.jit
    def differentiate(q, k, v, segments, cotangent):
        result, pull = jax.vjp(lambda q, k, v: attend(q, k, v, segments, kernel, Recipe(rules), scoring), q, k, v)
        return result, pull(cotangent)

    with jax.set_mesh(mesh):
        arrays = [jax.device_put(x[:, order], laid) for x in (q, k, v, segments, cotangent, probe)]
        found = *differentiate(*arrays[:5]), differentiate(*arrays[:4], arrays[5])[1]
    natural = jax.tree.map(lambda x: np.asarray(x)[:, np.argsort(order)], found)
    return scoring, segments, probed, (q, k, v), cotangent, *natural


def test_a_ring_computes_plain_attention_and_its_gradient(attended):
    scoring, segments, _, qkv, cotangent, result, gradients, _ = attended

    @jax.jit
    def differentiate(q, k, v):
        result, pull = jax.vjp(lambda q, k, v: plain(q, k, v, segments, scoring), q, k, v)
        return result, *pull(jnp.asarray(cotangent))

    names = ("result", "dq", "dk", "dv")
    tiny.assert_close(
        dict(zip(names, (result, *gradients), strict=True)),
        {name: np.asarray(value) for name, value in zip(names, differentiate(*qkv), strict=True)},
        1e-5,
    )


def test_a_position_depends_on_the_past_of_its_document_only_around_the_ring(attended):
    scoring, segments, probed, *_, (dq, dk, dv) = attended
    positions = np.arange(segments.shape[1])
    for row, t in enumerate(probed):
        seen = seen_of(segments, scoring.window)[row, t]
        assert seen.sum() > 1
        assert not np.any(dk[row, ~seen]) and not np.any(dv[row, ~seen]), f"position {t} reads what it must not"
        assert np.all(np.any(dk[row, seen] != 0, axis=(1, 2))) and np.all(np.any(dv[row, seen] != 0, axis=(1, 2)))
        assert not np.any(dq[row, positions != t]) and np.any(dq[row, t])


@pytest.mark.parametrize("context", [2, 5, 8])
def test_columns_are_balanced_and_restored(context):
    mesh, rules = ring(context)
    tokens = np.arange(3 * 4 * context, dtype=np.int32).reshape(3, -1)
    weights = tokens.astype(np.float32) / 7
    with jax.set_mesh(mesh):
        laid = NamedSharding(mesh, rules.activation("batch", "sequence"))
        batch = {"tokens": jax.device_put(tokens, laid), "weights": jax.device_put(weights, laid)}
        balanced = jax.jit(lambda batch: balance(batch, rules))(batch)
        back = jax.jit(lambda x: restore(x[:, :, None], rules))(balanced["weights"])
    order = head_tail(context, tokens.shape[1])
    np.testing.assert_array_equal(balanced["tokens"], tokens[:, order])
    np.testing.assert_array_equal(balanced["weights"], weights[:, order])
    np.testing.assert_array_equal(back[:, :, 0], weights)


def test_logits_come_in_natural_order():
    model = msgspec.structs.replace(tiny.MODEL, num_layers=1)
    params, batch = tiny.make_params(model), tiny.make_batch(rows=2)
    found = []
    for mesh in (MeshConfig(fsdp=1), MeshConfig(fsdp=1, context=4)):
        running = tiny.program(tiny.experiment(model, mesh, shape=(2, tiny.LENGTH)))
        with jax.set_mesh(running.mesh):
            function = jax.jit(lambda params, tokens, of=running: merge(of.decoder, params)(tokens).logits)
            laid = running.put(batch)
            found.append(np.asarray(function(tiny.place(running, params), laid["tokens"])))
    tiny.assert_close({"logits": found[1]}, {"logits": found[0]}, 1e-5)
