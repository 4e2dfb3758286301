"""Parameters, and attention's FLOPs, against published counts and the book's rows."""

import pytest

from jaxllm.config import AttentionConfig, BlockConfig, ExpertsConfig, MLPConfig, ModelConfig
from jaxllm.roofline.conventions import flops_per_token
from jaxllm.roofline.transformer import attention_flops, block_parameters, parameters


def decoder(d_model=4096, num_layers=32, num_heads=32, num_kv_heads=0, head_dim=0, d_ff=14336, vocab=128256, **rest):
    return ModelConfig(
        vocab_size=vocab,
        d_model=d_model,
        num_layers=num_layers,
        attention=AttentionConfig(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim),
        mlp=MLPConfig(d_ff=d_ff),
        **rest,
    )


LLAMA3_8B = decoder(num_kv_heads=8)
LLAMA32_1B = decoder(d_model=2048, num_layers=16, num_kv_heads=8, d_ff=8192, tie_embeddings=True)


def test_parameters_by_part():
    count = parameters(LLAMA3_8B)
    assert count.embedding == count.head == 128256 * 4096
    assert count.attention == 32 * 2 * 4096 * (32 + 8) * 128
    assert count.mlp == 32 * 3 * 4096 * 14336
    assert count.norm == (2 * 32 + 1) * 4096
    assert count.total == count.active == 8_030_261_248
    assert parameters(LLAMA32_1B).head == 0


def test_parameters_of_the_book():
    # Chapter 4, question 1, and the inference chapter's question 1; the book leaves out the last norm, and in the
    # second every norm.
    book = decoder(num_layers=64, d_ff=4 * 4096, vocab=32_000)
    assert parameters(book).total - 4096 == 17_442_537_472
    assert parameters(book).attention / (parameters(book).attention + parameters(book).mlp) == 0.25
    served = decoder(num_layers=64, num_kv_heads=8, head_dim=256, d_ff=16384, vocab=32128, tie_embeddings=True)
    assert parameters(served).total - parameters(served).norm == 18_385_207_296


def test_blocks_that_differ_are_counted_one_by_one():
    narrow = BlockConfig(attention=AttentionConfig(num_heads=8, num_kv_heads=2), mlp=MLPConfig(d_ff=64))
    wide = BlockConfig(attention=AttentionConfig(num_heads=4, head_dim=64), mlp=MLPConfig(d_ff=192))
    model = decoder(d_model=128, num_layers=6, vocab=256, prefix=(wide,), period=(narrow, wide))
    # wide, then narrow and wide in turn: three of each
    assert parameters(model).mlp == 3 * 128 * 3 * (64 + 192)
    assert parameters(model).attention == 2 * 128 * 3 * ((8 + 2) * 16 + (4 + 4) * 64)
    attention = 12 * 100 * 3 * (8 * 16 + 4 * 64)
    assert flops_per_token(model, 100, "palm") == 6 * parameters(model).total + attention


def test_attention_against_the_book():
    # With F = 4 D and N = K, attention's two products cost as much as the four projections at T = 2 D (question 5),
    # and as much as all matrices of the block at T = 8 D: 36,864 tokens for Gemma's D of 4608.
    model = decoder(d_ff=4 * 4096)
    assert attention_flops(model, model.default_block, 8192) == 6 * 4 * 4096 * 4096
    gemma = decoder(d_model=4608, num_heads=36, d_ff=4 * 4608)
    count = block_parameters(gemma, gemma.default_block)
    assert attention_flops(gemma, gemma.default_block, 36_864) == 6 * (count.attention + count.mlp)


def test_unknown_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"model\.vocab_size = 0"):
        parameters(decoder(vocab=0))


def test_mixtral_8x7b():
    """46.7 billion parameters, of which a token meets 12.9 (Jiang et al. 2024, section 2)."""
    model = ModelConfig(
        vocab_size=32000,
        d_model=4096,
        num_layers=32,
        attention=AttentionConfig(num_heads=32, num_kv_heads=8),
        mlp=MLPConfig(d_ff=14336, experts=ExpertsConfig(num_experts=8, experts_per_token=2)),
    )
    assert parameters(model).total == 46_702_792_704
    assert parameters(model).active == 12_879_925_248
