"""The named counts of FLOPs against published utilisation and against counts by hand."""

import dataclasses

import msgspec
import pytest

from jaxllm.config import AttentionConfig, MLPConfig, ModelConfig
from jaxllm.models import PRESETS
from jaxllm.roofline.conventions import (
    MAIN,
    Convention,
    Counted,
    flops_per_token,
    formula,
    hardware_flops_per_token,
    mfu,
    recomputed_flops_per_token,
)
from jaxllm.roofline.transformer import ParameterCount, parameters

H100 = 989e12


def preset(name):
    return msgspec.convert(PRESETS[name], ModelConfig)


def gpt(d_model, num_layers, vocab, positions=0, tied=True, windows=()):
    """A GPT of full heads, a feed-forward layer of two D x 4 D matrices, and norms with two vectors."""
    return Counted(
        parameters=ParameterCount(
            embedding=vocab * d_model,
            head=0 if tied else vocab * d_model,
            attention=4 * num_layers * d_model**2,
            mlp=8 * num_layers * d_model**2,
        ),
        d_model=d_model,
        vocab_size=vocab,
        widths=(d_model,) * num_layers,
        windows=windows,
        positions=positions,
        tied=tied,
    )


def mpt(d_model, num_layers, total):
    """One of llm-foundry's, by the number of parameters that its table gives; learned positions are among them."""
    model = gpt(d_model, num_layers, 50_368)
    return dataclasses.replace(model, positions=total - model.parameters.total)


def test_flops_by_convention():
    model = preset("llama3-8b")
    matrices = 32 * (2 * 4096 * 40 * 128 + 3 * 4096 * 14336)
    rows, total = 128256 * 4096, 8_030_261_248
    square = 12 * 32 * 32 * 128 * 8192
    by_hand = {
        "palm": 6 * total + square,
        "torchtitan": 6 * (total - rows) + square,
        "causal": 6 * (matrices + rows) + square // 2,
        "scaling_book": 6 * total,
        "nanochat": 6 * (matrices + rows) + square,
        "nanogpt": 6 * total + square,
        "llm_c": 6 * total + square // 2,
        "megatron_gpt": 6 * (12 * 32 * 4096**2 + rows) + square,
        "megatron_2024": 6 * (matrices + rows) + square,
        "megatron": 6 * (matrices + rows) + square // 2,
        "olmo_core": 6 * (matrices + rows) + square,
        "lingua": 6 * (total - rows) + 7 * 32 * 4096 * 8192,
        "litgpt": 3 * (2 * total + 4 * 32 * 4096 * 8192),
        "picotron": 6 * total + square,
        "nanotron": 6 * (matrices + rows) + square,
        "gpt_neox": 6 * 12 * 32 * 4096**2 + square + 4.5 * rows,
        "llm_foundry": 3 * (2 * total + 4 * 32 * 4096 * 8192),
    }
    assert {str(way): flops_per_token(model, 8192, way) for way in Convention} == by_hand


def test_heads_wider_than_the_residual_stream_tell_conventions_apart():
    model = ModelConfig(
        vocab_size=1000,
        d_model=64,
        num_layers=3,
        attention=AttentionConfig(num_heads=8, num_kv_heads=2, head_dim=16),
        mlp=MLPConfig(d_ff=96),
        tie_embeddings=True,
    )
    total = parameters(model).total
    assert flops_per_token(model, 100, "palm") == 6 * total + 12 * 3 * 128 * 100
    assert flops_per_token(model, 100, "litgpt") == 6 * total + 12 * 3 * 64 * 100
    assert flops_per_token(model, 100, "llm_c") == 6 * total + 6 * 3 * 64 * 100
    assert flops_per_token(model, 100, "torchtitan") == flops_per_token(model, 100, "palm")
    assert flops_per_token(model, 100, "lingua") == 6 * total + 7 * 3 * 64 * 100


def test_flops_of_llama3_8b_to_all_digits():
    assert flops_per_token(preset("llama3-8b"), 8192, Convention.TORCHTITAN) == 57_914_449_920.0


@pytest.mark.parametrize(
    ("model", "length", "convention", "tokens_per_second", "percent"),
    [
        ("llama3-8b", 8192, "torchtitan", 6_667, 39.04),
        ("llama3-8b", 8192, "torchtitan", 5_762, 33.7),
        ("llama3-8b", 8192, "torchtitan", 5_605, 32.8),
        ("llama3-8b", 8192, "torchtitan", 6_514, 38.1),
        ("llama3-70b", 8192, "torchtitan", 597.3, 29.1),
        ("llama3-70b", 8192, "torchtitan", 652.4, 31.8),
        ("llama3.2-1b", 4096, "palm", 42_000, 38.3),
        ("llama3.2-1b", 4096, "causal", 42_000, 34.9),
        ("llama3.2-1b", 4096, "lingua", 42_000, 35.5),
        ("llama3.2-1b", 4096, "scaling_book", 42_000, 31.5),
    ],
)
def test_published_utilisation_on_h100(model, length, convention, tokens_per_second, percent):
    share = mfu(tokens_per_second, flops_per_token(preset(model), length, convention), H100)
    assert f"{100 * share:.{len(str(percent).partition('.')[2])}f}" == str(percent)


def test_the_same_speed_against_the_peak_of_another_board():
    share = mfu(42_000, flops_per_token(preset("llama3.2-1b"), 4096, "palm"), 756e12)
    assert f"{100 * share:.1f}" == "50.1"


def test_speed_that_a_share_of_the_peak_asks_for():
    speed = 0.4 * H100 / flops_per_token(preset("llama3.2-1b"), 4096, "palm")
    assert speed == pytest.approx(43_800, rel=2e-3)


@pytest.mark.parametrize(
    ("total", "length", "tokens_per_second", "percent"),
    [
        (1_315_950_592, 2048, 45_455, 41.82),
        (1_315_950_592, 2048, 44_402, 40.85),
        (1_320_144_896, 4096, 38_535, 40.26),
        (1_328_533_504, 8192, 29_157, 37.73),
    ],
)
def test_llm_foundry_on_h100(total, length, tokens_per_second, percent):
    # Its table has MFU and whole tokens/s; the first row's 41.84 is what the printed speed makes of 989e12.
    share = mfu(tokens_per_second, flops_per_token(mpt(2048, 24, total), length, "llm_foundry"), H100)
    assert 100 * share == pytest.approx(percent, rel=6e-4)
    if tokens_per_second == 45_455:
        assert f"{100 * share:.2f}" == "41.84"


def test_llm_foundry_counts_four_thirds_where_it_recomputes():
    # 760M on sequences of 65,536 tokens, A100, 4,143 tokens/s a GPU: 45.34 % MFU and 60.45 % HFU.
    model = mpt(1536, 24, 857_988_096)
    assert 100 * mfu(4_143, flops_per_token(model, 65_536, "llm_foundry"), 312e12) == pytest.approx(45.34, rel=2e-4)
    hardware = hardware_flops_per_token(model, 65_536, "llm_foundry", "block")
    assert 100 * mfu(4_143, hardware, 312e12) == pytest.approx(60.45, rel=2e-4)


@pytest.mark.parametrize(
    ("d_model", "num_layers", "tflops", "tokens_per_second"),
    [(2048, 24, 408.8, 36_260), (8192, 84, 419.7, 941), (12288, 96, 432.8, 389)],
)
def test_megatron_on_h100(d_model, num_layers, tflops, tokens_per_second):
    model, vocab, length = gpt(d_model, num_layers, 131_072), 131_072, 4096
    printed = 72 * num_layers * d_model**2 * (1 + length / (6 * d_model) + vocab / (12 * d_model * num_layers))
    assert flops_per_token(model, length, "megatron_gpt") == pytest.approx(printed, rel=1e-12)
    assert flops_per_token(model, length, "megatron_2024") == pytest.approx(printed, rel=1e-12)
    assert tflops * 1e12 / printed == pytest.approx(tokens_per_second, rel=2e-3)
    half = printed - 6 * num_layers * d_model * length
    assert flops_per_token(model, length, "megatron") == pytest.approx(half, rel=1e-12)


def test_megatron_gpt_takes_every_model_for_a_gpt():
    model = preset("llama2-7b")
    printed = 72 * 32 * 4096**2 * (1 + 4096 / (6 * 4096) + 32_000 / (12 * 4096 * 32))
    assert flops_per_token(model, 4096, "megatron_gpt") == pytest.approx(printed, rel=1e-12)
    neox = 24 * 3 * 32 * 4096**2 * (1 + 4096 / (6 * 4096) + 32_000 / (16 * 4096 * 32))
    assert flops_per_token(model, 4096, "gpt_neox") == pytest.approx(neox, rel=1e-12)
    assert hardware_flops_per_token(model, 4096, "gpt_neox", "block") == pytest.approx(neox * 4 / 3, rel=1e-12)


def test_learned_positions_and_windows():
    model = gpt(768, 12, 50_257, positions=1024 * 768)
    total = 12 * 12 * 768**2 + 50_257 * 768
    assert flops_per_token(model, 1024, "nanogpt") == 6 * total + 12 * 12 * 768 * 1024
    assert flops_per_token(model, 1024, "palm") == 6 * (total + 1024 * 768) + 12 * 12 * 768 * 1024
    assert flops_per_token(model, 1024, "llm_c") == 6 * (total + 1024 * 768) + 6 * 12 * 768 * 1024
    # nanochat's pattern of one full block after three of half a window; the last block is full
    windows = (1024, 1024, 1024, 0) * 3
    local = gpt(768, 12, 32_768, tied=False, windows=windows)
    matrices = 12 * 12 * 768**2 + 32_768 * 768
    assert flops_per_token(local, 2048, "nanochat") == 6 * matrices + 12 * 768 * (9 * 1024 + 3 * 2048)
    assert flops_per_token(local, 512, "nanochat") == 6 * matrices + 12 * 768 * 12 * 512
    assert flops_per_token(local, 2048, "olmo_core") == flops_per_token(local, 2048, "nanochat")


def test_nanochat_run_by_its_total():
    # 4.3308e19 FLOPs in 10,949 s on eight H100: with one "token" of all of them, the same division
    assert f"{100 * mfu(1 / 10_949, 4.3308e19, 8 * H100):.1f}" == "50.0"


def test_hardware_flops_by_what_is_computed_again():
    model = preset("llama3-8b")
    count = parameters(model)
    forward = 4 * 32 * 4096 * 8192
    blocks = 2 * (count.attention + count.mlp)
    for way in ("palm", "torchtitan", "megatron_2024"):
        assert recomputed_flops_per_token(model, 8192, way, "none") == 0
        assert recomputed_flops_per_token(model, 8192, way, "dots") == forward
        assert recomputed_flops_per_token(model, 8192, way, "block") == forward + blocks
        assert recomputed_flops_per_token(model, 8192, way, "offload") == forward + blocks
    assert recomputed_flops_per_token(model, 8192, "causal", "block") == forward / 2 + blocks
    assert recomputed_flops_per_token(model, 8192, "lingua", "block") == pytest.approx(forward / 2 + blocks)
    assert recomputed_flops_per_token(model, 8192, "scaling_book", "block") == blocks
    assert recomputed_flops_per_token(model, 8192, "nanotron", "block") == 0
    # The book's 8 N D: blocks twice forward, of a model that is nearly all blocks.
    big = preset("llama3.1-405b")
    assert hardware_flops_per_token(big, 1, "scaling_book", "block") / parameters(big).total == pytest.approx(
        8, rel=3e-3
    )


def test_adapters_alone_cost_four_a_frozen_weight():
    model = preset("llama3-8b")
    total, square = parameters(model).total, 12 * 32 * 4096 * 8192
    assert flops_per_token(model, 8192, "litgpt", adapters=1000) == 4 * total + square + 6000
    assert formula("palm", adapters=True) == "palm: 4 x active parameters + full-square attention + 6 x adapters"


def test_convention_is_one_of_the_named():
    with pytest.raises(ValueError, match="convention = 'full': use one of palm, torchtitan, causal, scaling_book"):
        flops_per_token(preset("llama3-8b"), 8192, "full")
    assert all(convention.formula for convention in Convention)
    assert set(MAIN) < set(Convention)
