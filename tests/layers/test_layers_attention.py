"""Attention sees the past of its own document, and nothing else, with every kernel that runs here."""

import logging

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
import tiny

from jaxllm import sharding
from jaxllm.config import AttentionConfig, MeshConfig
from jaxllm.layers.attention import attend, choose
from jaxllm.layers.kernels import Scoring
from jaxllm.layers.param import Recipe
from jaxllm.models.decoder import merge

KERNELS = {
    "xla": ("xla", 300, 16, 0.0, 0),
    "splash": ("splash", 640, 64, 1.5, 0),
    "xla, window": ("xla", 300, 16, 0.0, 130),
    "splash, window": ("splash", 640, 64, 0.0, 130),
}
"""Kernel, length of three or of five blocks of queries, width of a head, soft cap (`xla` has one elsewhere), window."""


def packed(rows, length):
    """Segments of three documents a row, with borders inside a block of queries, on its edge, and elsewhere by row."""
    borders = np.array([[length // 5 + 7 * row, 256] for row in range(rows)])
    return (np.arange(length)[None, None] >= borders[:, :, None]).sum(axis=1).astype(np.int32) + 1


def inputs(length, head_dim, rows=4):
    random = np.random.default_rng(0)
    shapes = [(rows, length, heads, head_dim) for heads in (4, 2, 2, 4)]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.fixture(scope="module", params=KERNELS)
def attended(request):
    """Length, segments, probed positions, inputs, result and gradients of one probed position a row."""
    kernel, length, head_dim, cap, window = KERNELS[request.param]
    scoring = Scoring(head_dim**-0.5, cap, window)
    q, k, v, cotangent = inputs(length, head_dim)
    segments = packed(4, length)
    probed = np.array([length - 1, 290, 256, 100])
    cotangent[np.arange(length)[None] != probed[:, None]] = 0.0

    @jax.jit
    def differentiate(q, k, v):
        result, pull = jax.vjp(
            lambda q, k, v: attend(q, k, v, jnp.asarray(segments), kernel, Recipe(), scoring), q, k, v
        )
        return result, pull(jnp.asarray(cotangent))

    with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
        result, gradients = differentiate(q, k, v)
    return segments, probed, (q, k, v), cotangent, np.asarray(result), [np.asarray(x) for x in gradients], scoring


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


def test_every_block_computes_plain_attention_and_its_gradient(attended):
    segments, _, qkv, cotangent, result, gradients, scoring = attended

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


def test_a_position_depends_on_the_past_of_its_document_only(attended):
    segments, probed, _, _, _, (dq, dk, dv), scoring = attended
    positions = np.arange(segments.shape[1])
    for row, t in enumerate(probed):
        seen = seen_of(segments, scoring.window)[row, t]
        assert not np.any(dk[row, ~seen]) and not np.any(dv[row, ~seen]), f"position {t} reads what it must not"
        assert np.all(np.any(dv[row, seen] != 0, axis=(1, 2))), f"position {t} does not read all that it may"
        assert not np.any(dq[row, positions != t])
        if seen.sum() > 1:
            assert np.all(np.any(dk[row, seen] != 0, axis=(1, 2))) and np.any(dq[row, t])


@pytest.fixture(scope="module")
def forward():
    """A decoder's hidden states as a function of embeddings, positions and segments, and probed gradients."""
    model = msgspec.structs.replace(tiny.MODEL, num_layers=2)
    running = tiny.program(tiny.experiment(model, shape=(4, 300)))
    params = tiny.make_params(model)

    @jax.jit
    def function(x, positions, segments, cotangent):
        decoder = merge(running.decoder, params)
        result, pull = jax.vjp(lambda x: decoder.final(decoder.blocks(x, positions, segments)[0]), x)
        return result, pull(cotangent)[0]

    def run(*arrays):
        with jax.set_mesh(running.mesh):
            return [np.asarray(x) for x in function(*arrays)]

    return run


def test_a_decoder_s_position_depends_on_the_past_of_its_document_only(forward):
    random = np.random.default_rng(1)
    segments, probed = packed(4, 300), np.array([299, 290, 200, 64])
    positions = np.broadcast_to(np.arange(300, dtype=np.int32), (4, 300))
    x = random.normal(size=(4, 300, 64)).astype(np.float32)
    cotangent = random.normal(size=x.shape).astype(np.float32)
    cotangent[positions != probed[:, None]] = 0.0
    _, dx = forward(x, positions, segments, cotangent)
    for row, t in enumerate(probed):
        seen = (np.arange(300) <= t) & (segments[row] == segments[row, t])
        assert seen.sum() > 1
        assert not np.any(dx[row, ~seen])
        assert np.all(np.any(dx[row, seen] != 0, axis=1))


def test_a_packed_document_is_computed_as_if_it_were_alone(forward):
    random = np.random.default_rng(2)
    first, second = (random.normal(size=(length, 64)).astype(np.float32) for length in (170, 130))
    packed_row = np.concatenate([first, second])
    alone = np.concatenate([second, random.normal(size=(170, 64)).astype(np.float32)])
    x = np.stack([packed_row, alone, packed_row, alone])
    ranges = [np.concatenate([np.arange(a), np.arange(b)]) for a, b in ((170, 130), (130, 170))]
    segments = [np.repeat([1, 2], lengths) for lengths in ((170, 130), (130, 170))]
    result, _ = forward(x, np.array(ranges * 2, np.int32), np.array(segments * 2, np.int32), np.zeros_like(x))
    tiny.assert_close({"document": result[0, 170:]}, {"document": result[1, :130]}, 1e-5)
    assert np.abs(result[0, :130] - result[1, :130]).max() > 0.1


@pytest.mark.parametrize(
    ("kernel", "platform", "length", "head_dim", "dtype", "reason"),
    [
        ("splash", "cpu", 300, 64, "float32", "splash needs a sequence length that is a multiple of 128, not 300"),
        ("splash", "tpu", 256, 80, "bfloat16", "splash needs heads whose width is a multiple of 64, not 80"),
        ("splash", "gpu", 256, 64, "bfloat16", "splash is a TPU kernel"),
        ("cudnn", "cpu", 256, 64, "bfloat16", "cudnn is a GPU kernel"),
        ("cudnn", "gpu", 256, 64, "float32", "cudnn computes in bfloat16 or float16, not float32"),
        ("cudnn", "gpu", 256, 256, "bfloat16", "cudnn needs heads at most 128 wide and a multiple of 8, not 256"),
        ("cudnn", "gpu", 255, 64, "bfloat16", "cudnn with packed documents needs an even sequence length, not 255"),
    ],
)
def test_a_kernel_asked_for_by_name_computes_or_stops(kernel, platform, length, head_dim, dtype, reason):
    with pytest.raises(ValueError) as raised:
        choose(kernel, platform, length, head_dim, dtype)
    assert str(raised.value) == f'model.attention.kernel = "{kernel}": {reason}; use "auto"'


@pytest.mark.parametrize(
    ("kernel", "platform", "reason"),
    [
        (
            "splash",
            "tpu",
            "over mesh.context = 4 splash needs a sequence length that is a multiple of 1024, not 1536",
        ),
        ("cudnn", "gpu", "cudnn has no public gradient over part of the keys, which mesh.context = 4 needs"),
    ],
)
def test_a_kernel_asked_for_by_name_runs_in_a_ring_or_stops(kernel, platform, reason):
    with pytest.raises(ValueError) as raised:
        choose(kernel, platform, 1536, 64, "bfloat16", 4)
    assert str(raised.value) == f'model.attention.kernel = "{kernel}": {reason}; use "auto"'
    assert choose("splash", "tpu", 2048, 64, "bfloat16", 4) == "splash"


@pytest.mark.parametrize(
    ("platform", "dtype", "kernel"),
    [
        ("tpu", "bfloat16", "splash"),
        ("tpu", "float32", "splash"),
        ("gpu", "bfloat16", "cudnn"),
        ("cpu", "float32", "xla"),
    ],
)
def test_auto_is_the_platform_s_own(platform, dtype, kernel):
    assert choose("auto", platform, 256, 128, dtype) == kernel


def test_a_soft_cap_is_honoured_or_refused():
    sentence = "cudnn has no soft cap of logits, which model.attention.soft_cap = 50 asks for"
    with pytest.raises(ValueError, match=sentence):
        choose("cudnn", "gpu", 256, 128, "bfloat16", cap=50.0)
    assert choose("auto", "gpu", 256, 128, "bfloat16", cap=50.0) == "xla"
    assert choose("auto", "tpu", 256, 128, "bfloat16", cap=50.0) == "splash"


def test_a_window_and_alibi_are_honoured_or_refused():
    with pytest.raises(ValueError, match=r"cudnn adds nothing to logits, which ALiBi in model\.attention"):
        choose("cudnn", "gpu", 256, 128, "bfloat16", alibi=True)
    sentence = r"splash knows no window \(model.attention.window = 64\) over mesh.context = 2"
    with pytest.raises(ValueError, match=sentence):
        choose("splash", "tpu", 1024, 128, "bfloat16", 2, window=64)
    assert choose("auto", "tpu", 256, 128, "bfloat16", alibi=True) == "xla"
    assert choose("auto", "tpu", 256, 128, "bfloat16", window=64) == "splash"
    assert choose("auto", "gpu", 256, 128, "bfloat16", window=64) == "cudnn"


def test_auto_falls_back_with_one_sentence(caplog):
    choose.cache_clear()
    with caplog.at_level(logging.WARNING, logger="jaxllm"):
        assert [choose("auto", "tpu", 100, 64, "bfloat16") for _ in range(2)] == ["xla", "xla"]
    assert [record.getMessage() for record in caplog.records] == [
        "attention runs as plain XLA, slower and with more memory: "
        "splash needs a sequence length that is a multiple of 128, not 100"
    ]


def test_a_run_stops_before_it_starts_where_its_kernel_cannot_run():
    attention = AttentionConfig(num_heads=8, kernel="splash")
    with pytest.raises(ValueError, match=r'model\.attention\.kernel = "splash".* not 32; use "auto"'):
        tiny.program(tiny.experiment(msgspec.structs.replace(tiny.MODEL, attention=attention)))
