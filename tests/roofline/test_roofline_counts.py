"""The book's transformer accounting: rows X, and published parameter counts for layers the decoder may not have yet."""

import math

import pytest

from jaxllm.roofline.attention import (
    attended_pairs,
    attention_equals_projections,
    attention_flops,
    attention_intensity,
    attention_over_matrices,
    combine_chunks,
    kv_cache_bytes,
    latent_cache_bytes,
    output_dot,
    packed_pairs,
    pair_flops,
    windowed_cache_tokens,
)
from jaxllm.roofline.counts import (
    attention_parameters,
    contraction_flops,
    decoder_parameters,
    expected_experts_read,
    forward_flops,
    kept_activation_bytes,
    latent_attention_parameters,
    mlp_flops,
    mlp_parameters,
    moe_active_parameters,
    moe_critical_batch,
    moe_parameters,
    mtp_flops,
    mtp_parameters,
    projection_flops,
    remat_attention_flops,
    remat_flops,
    training_flops,
    unembedding_flops,
)
from jaxllm.roofline.training import model_utilisation

BOOK = {"num_layers": 64, "d_model": 4096, "d_ff": 16_384, "num_heads": 32, "kv_heads": 32, "head_dim": 128}


@pytest.mark.parametrize(
    ("row", "value", "exact", "book"),
    [
        ("X1 cache", kv_cache_bytes(1, 64, 32, 128, element_bytes=1), 524_288, 512 * 2**10),
        ("X3", attention_equals_projections(4096, 32, 32), 8192, 8192),
        ("X4 8k", 1 / attention_over_matrices(1, 8192, 32_768, 64, 64, 128), 65_536, 64e3),
        ("X4 4608", 1 / attention_over_matrices(1, 4608, 18_432, 36, 36, 128), 36_864, 36_864),
        ("X5 none", kept_activation_bytes(4_000_000, 8192, 64, "none"), 8.388608e13, 84e12),
        ("X5 block", kept_activation_bytes(4_000_000, 8192, 64, "block"), 4.194304e12, 4.2e12),
        ("X6", kv_cache_bytes(8192, 64, 64, 128, element_bytes=1), 8 * 2**30, 8 * 2**30),
        ("X8", moe_critical_batch(240.2439024 / 2, 256, 8), 3843.902438, 3840),
    ],
)
def test_rows(row, value, exact, book):
    assert value == pytest.approx(exact, rel=1e-6), row
    assert value == pytest.approx(book, rel=0.05), row


def test_the_decoder_of_the_book():
    # X1; the book's own "16B" comes from rounding every factor first.
    assert decoder_parameters(**BOOK, vocab_size=32_000) == 17_442_537_472
    attention, mlp = attention_parameters(4096, 32, 32, 128), mlp_parameters(4096, 16_384)
    assert attention / (attention + mlp) == 0.25
    tied = decoder_parameters(**BOOK, vocab_size=32_000, tied=True)
    assert tied == 17_442_537_472 - 4096 * 32_000


def test_utilisation_of_deepseek_v3():
    # X7: 14.8T tokens of 37B active parameters in 2.79M hours of H800, at 1.513e15 float8 operations a second.
    share = model_utilisation(37e9, 14.8e12 / (2.79e6 * 3600), devices=1, peak=1.513e15)
    assert share == pytest.approx(0.2162, abs=5e-5)
    assert share == pytest.approx(0.217, rel=0.05)


def test_flops_of_a_block():
    tokens = 4 * 512
    assert mlp_flops(tokens, 64, 256) == 18 * tokens * 64 * 256
    assert mlp_flops(tokens, 64, 256, gated=False) == 12 * tokens * 64 * 256
    assert projection_flops(tokens, 64, 8, 2, 16) == 12 * tokens * 64 * (8 + 2) * 16
    assert projection_flops(tokens, 64, 4, 4, 16) == 24 * tokens * 64 * 4 * 16
    assert unembedding_flops(tokens, 64, 1000) == 6 * tokens * 64 * 1000
    assert attention_flops(4, 512, 512, 8, 16) == 12 * 4 * 512 * 512 * 8 * 16
    assert attention_flops(4, 512, 512, 8, 16, training=False) == remat_attention_flops(4, 512, 8, 16)
    assert contraction_flops((3, 5, 7, 11)) == 2 * 1155
    assert contraction_flops((3, 5, 7, 11), training=True) == 6 * 1155
    assert training_flops(1e9, 1e6) == 3 * forward_flops(1e9, 1e6) == 6e15
    assert remat_flops(1e9, 1e6) == training_flops(1e9, 1e6) + forward_flops(1e9, 1e6)


def test_attention_intensity():
    # MHA S T / (S + T): half the sequence in prefill, one in decode; G query heads a key-value head make it G.
    assert attention_intensity(4096, 4096, 1) == 2048
    assert attention_intensity(1, 4096, 1) == pytest.approx(1, rel=1e-3)
    assert attention_intensity(1, 10**6, 8) == pytest.approx(8, rel=1e-4)
    assert attention_intensity(100, 300, 4) == pytest.approx(300 * 100 * 4 / (100 * 4 + 300))
    assert attention_intensity(64, 64, 3) == pytest.approx(64 * 3 / 4)


@pytest.mark.parametrize(("length", "window"), [(1, 0), (7, 0), (7, 3), (7, 7), (7, 100), (8, 1)])
def test_pairs_under_a_mask(length, window):
    width = window or length
    count = sum(1 for query in range(length) for key in range(query + 1) if query - key < width)
    assert attended_pairs(length, window=window) == count
    assert attended_pairs(length, causal=False) == length**2


def test_packed_documents_see_themselves_only():
    assert packed_pairs([3, 5]) == 6 + 15
    assert packed_pairs([3, 5], window=2) == 5 + 9
    # Over full squares this is the count of `attention_flops`.
    assert 64 * pair_flops(8, 16, 16) == attention_flops(1, 8, 8, 8, 16)
    assert pair_flops(8, 192, 128, training=False) == 2 * 8 * 320


def test_caches():
    assert latent_cache_bytes(1, 61, 512, 64) == 70_272  # DeepSeek-V3: 70 KB a token
    assert windowed_cache_tokens(8192, window=1024) == 1024
    assert windowed_cache_tokens(512, window=1024) == windowed_cache_tokens(512) == 512


def softmax_chunk(scores, values):
    greatest = max(scores)
    weights = [math.exp(score - greatest) for score in scores]
    sums = [sum(weight * value[dim] for weight, value in zip(weights, values, strict=True)) for dim in range(2)]
    return greatest, sum(weights), sums


def test_chunks_of_keys_combine_to_the_whole_softmax():
    scores = [0.3, 700.0, -2.0, 699.5, 698.0]
    values = [(1.0, 2.0), (-1.0, 0.5), (3.0, 3.0), (0.25, -4.0), (2.0, 2.0)]
    whole = softmax_chunk(scores, values)
    joined = combine_chunks(softmax_chunk(scores[:2], values[:2]), softmax_chunk(scores[2:], values[2:]))
    assert joined[:2] == pytest.approx(whole[:2]) and joined[2] == pytest.approx(whole[2])
    # The sum over keys of weight x gradient of the weight is the output times its gradient.
    output, gradient = [value / whole[1] for value in whole[2]], [0.7, -1.3]
    weights = [math.exp(score - whole[0]) / whole[1] for score in scores]
    slopes = [gradient[0] * value[0] + gradient[1] * value[1] for value in values]
    by_keys = sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
    assert output_dot(output, gradient) == pytest.approx(by_keys)


def test_deepseek_v3_has_671_billion_parameters_and_37_active():
    d_model, vocab = 7168, 129_280
    attention = latent_attention_parameters(
        d_model, 128, query_latent=1536, kv_latent=512, nope_dim=128, rotary_dim=64, value_dim=128
    )
    assert attention == 187_105_280
    # Four norms a block (two of latent vectors), and the last one.
    rest = 61 * (attention + 2 * d_model + 1536 + 512) + 3 * mlp_parameters(d_model, 18_432) + d_model
    total = rest + 58 * moe_parameters(d_model, 2048, 256, shared_d_ff=2048) + 2 * vocab * d_model
    active = rest + 58 * moe_active_parameters(d_model, 2048, 256, 8, shared_d_ff=2048) + vocab * d_model
    assert total == pytest.approx(671.03e9, rel=1e-4)
    assert active == pytest.approx(36.6e9, rel=0.02)
    # Its module for one further token has 14 billion, the shared embedding and head counted: 11.5 of its own.
    block = attention + 2 * d_model + 1536 + 512 + moe_parameters(d_model, 2048, 256, shared_d_ff=2048)
    assert mtp_parameters(d_model, block) + 2 * vocab * d_model == pytest.approx(13.5e9, rel=0.01)
    assert mtp_flops(10, 64, 1000, 77) == 60 * (2 * 64 * 64 + 77) + 60 * 64 * 1000


def test_mixtral_has_47_billion_parameters_and_13_active():
    attention = attention_parameters(4096, 32, 8, 128)
    rest = 32 * (attention + 2 * 4096) + 4096 + 2 * 32_000 * 4096
    assert rest + 32 * moe_parameters(4096, 14_336, 8) == 46_702_792_704
    assert rest + 32 * moe_active_parameters(4096, 14_336, 8, 2) == 12_879_925_248


def test_queries_without_a_latent_vector():
    sizes = {"kv_latent": 512, "nope_dim": 128, "rotary_dim": 64, "value_dim": 128}
    # DeepSeek-V2-Lite: queries straight from the residual stream.
    assert latent_attention_parameters(2048, 16, query_latent=0, **sizes) == (
        2048 * 16 * 192 + 2048 * (512 + 64) + 512 * 16 * 256 + 16 * 128 * 2048
    )


def test_experts_that_a_batch_reads():
    assert expected_experts_read(256, 8, 1) == pytest.approx(8)
    assert expected_experts_read(256, 8, 64) == pytest.approx(256 * (1 - (248 / 256) ** 64))
    assert expected_experts_read(8, 8, 5) == 8
