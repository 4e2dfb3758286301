"""Serving: the book's table, DeepSeek-V3's reads at a concurrency, and what fits."""

import json

import msgspec
import pytest

from jaxllm.config import ModelConfig
from jaxllm.models import PRESETS
from jaxllm.plan import serving_answer
from jaxllm.plan.capacity import USABLE
from jaxllm.plan.prices import Price
from jaxllm.plan.serving import (
    Served,
    Setting,
    chips_needed,
    cost_per_million,
    decode,
    deepseek_v3,
    dense,
    expert_parallel,
    most_requests,
    prefill_seconds,
    token_parallel,
)
from jaxllm.plan.target import parse
from jaxllm.roofline.collectives import tree_all_to_all_seconds
from jaxllm.roofline.transformer import parameters

V3 = deepseek_v3()
LLAMA2_13B = msgspec.convert(PRESETS["llama2-13b"], ModelConfig)


@pytest.mark.parametrize(
    ("requests", "milliseconds", "tokens_per_second"),
    [
        (1, "4.98", "200.61"),
        (8, "12.13", "659.30"),
        (16, "20.30", "787.99"),
        (32, "36.65", "873.21"),
        (64, "69.33", "923.13"),
        (240, "249.09", "963.53"),
    ],
)
def test_the_books_table_of_llama2_13b(requests, milliseconds, tokens_per_second):
    # Chapter 7: eight v5e, 26e9 bytes of weights, 6.7e9 of cache a request.
    model = Served(name="", d_model=5120, dense=13_000_000_000, cache_values=335_000)
    step = decode(model, Setting(target=parse("v5e-8"), context=10_000), requests)
    assert f"{step.seconds * 1e3:.2f}" == milliseconds
    assert f"{step.tokens_per_second:.2f}" == tokens_per_second


def test_llama2_13b_from_its_config():
    model, setting = dense(LLAMA2_13B), Setting(target=parse("v5e-8"), context=8192)
    assert model.held == parameters(LLAMA2_13B).total == model.active + 32_000 * 5120
    assert setting.cache_bytes(model) == 6_710_886_400
    assert setting.weight_bytes(model.held) == 2 * 13_015_864_320
    usable = USABLE * 8 * 16e9
    assert most_requests(model, setting) == (usable - 26_031_728_640) // 6_710_886_400 == 13


def test_tied_embedding_is_read_as_the_head():
    model = dense(msgspec.convert(PRESETS["llama3.2-1b"], ModelConfig))
    assert model.rows == 0 and model.read(1) == 1_235_814_400


def test_prefill_of_the_book_and_its_attention():
    # Chapter 8: 70 billion parameters, 8,192 tokens, 16 v5e, 40 % MFU: 0.91 s, attention left out.
    plain = Served(name="", d_model=8192, dense=70_000_000_000, cache_values=1)
    setting = Setting(target=parse("v5e-16"), context=8192)
    assert prefill_seconds(plain, setting, 8192) == pytest.approx(0.9096, rel=1e-4)
    llama = dense(msgspec.convert(PRESETS["llama2-70b"], ModelConfig))
    assert llama.pair_flops == 80 * 4 * 8192
    flops = 2 * llama.active * 8192 + 80 * 4 * 8192 * 8192**2 / 2
    assert prefill_seconds(llama, setting, 8192) == pytest.approx(flops / (16 * 1.97e14 * 0.4))


def test_deepseek_v3_holds_671_gb_and_reads_37_for_one_token():
    setting = Setting(target=parse("h100x16"), context=4096, bits=8)
    assert V3.held == 671_026_404_352
    assert round(setting.weight_bytes(V3.held) / 1e9) == 671
    assert round(setting.weight_bytes(V3.read(1)) / 1e9) == 37
    assert V3.read(1) == pytest.approx(V3.active)
    # 61 layers of a latent vector of 512 and a rotary key of 64
    assert V3.cache_values == 35_136


def test_experts_read_at_a_concurrency():
    assert V3.experts_read(1) == pytest.approx(8)
    assert V3.experts_read(2) == pytest.approx(8 + 8 * 248 / 256)
    assert V3.experts_read(145) < 0.99 * 256 < V3.experts_read(146)
    assert V3.read(10**6) == V3.held - V3.rows


def test_requests_slow_each_other_until_all_experts_are_read():
    # A short context, so that weights are what counts.
    setting = Setting(target=parse("h100x32"), context=1, bits=8)
    steps = [decode(V3, setting, requests) for requests in (1, 2, 8, 32, 128, 512, 1024)]
    alone = [1 / step.seconds for step in steps]
    assert alone[0] > 1.5 * alone[1] > 1.5 * alone[2] > 1.5 * alone[3] > 1.5 * alone[4]
    # All 670 GB are read: eight times the requests cost each of them next to nothing.
    assert alone[6] == pytest.approx(alone[4], rel=0.02)
    assert steps[6].tokens_per_second == pytest.approx(8 * steps[4].tokens_per_second, rel=0.02)
    assert {step.bound for step in steps} == {"weights"}


def test_products_bind_past_the_critical_batch():
    # A dense model in 16 bits on a v5e is bound by computing from 240 tokens on.
    model = Served(name="", d_model=1, dense=10**9, cache_values=0)
    setting = Setting(target=parse("v5e-1"), context=1)
    assert decode(model, setting, 240).bound == "weights"
    assert decode(model, setting, 241).bound == "products"
    assert decode(model, Setting(target=parse("v5e-1"), context=1, bits=8), 121).bound == "products"


def test_chips_and_bits():
    target = parse("h100x8")
    needed = [chips_needed(V3, Setting(target=target, context=1, bits=bits)) for bits in (16, 8, 4)]
    assert needed == [19, 10, 5]  # of 72 GB usable each
    setting = Setting(target=target, context=8192, bits=8)
    # 0.576 GB of cache a request
    assert chips_needed(V3, setting, 1000) == 18
    half = Setting(target=target, context=8192, bits=8, cache_bits=8)
    assert half.cache_bytes(V3) == setting.cache_bytes(V3) / 2
    with pytest.raises(ValueError, match="bits = 5: use one of 16, 8, 4"):
        Setting(target=target, context=1, bits=5)
    with pytest.raises(ValueError, match="context = 0"):
        Setting(target=target, context=0)


def test_cost_of_a_million_tokens():
    # Eight chips at 2 an hour and 1,000 tokens a second: 16 / 3.6 of money for a million.
    assert cost_per_million(2, 8, 1000) == pytest.approx(4.4444, rel=1e-4)


def test_experts_split_over_chips():
    setting = Setting(target=parse("h100x64"), context=4096, bits=8)
    experts, tokens = expert_parallel(V3, setting, 512), token_parallel(V3, setting, 512)
    routed = 58 * 256 * V3.expert
    assert tokens.held_bytes == V3.held and tokens.exchange == 0
    assert experts.held_bytes == pytest.approx(V3.held - routed * 63 / 64)
    assert tokens.read == pytest.approx(V3.read(8) / 3.35e12)
    assert experts.read == pytest.approx((V3.dense + routed / 64) / 3.35e12, rel=1e-3)
    # Each way of each of 58 layers, a token goes to 64 (1 - (63 / 64)^8) chips as expected, in bfloat16.
    size = 2 * 7168 * 512 * 64 * (1 - (63 / 64) ** 8)
    assert experts.exchange == pytest.approx(2 * 58 * tree_all_to_all_seconds(size, setting.target.switches))
    assert experts.seconds < tokens.seconds


def test_experts_of_one_chip_need_no_exchange():
    alone = Setting(target=parse("h100x1"), context=1)
    assert expert_parallel(V3, alone, 16) == token_parallel(V3, alone, 16)


def test_experts_travel_on_a_torus_too():
    tpu = Setting(target=parse("v6e-64"), context=1, bits=8)
    twice = expert_parallel(V3, tpu, 4096).exchange / expert_parallel(V3, tpu, 2048).exchange
    assert twice == pytest.approx(2)


def test_answer_in_numbers_and_in_words():
    found = serving_answer.answer(
        V3, Setting(target=parse("h100x16"), context=4096, bits=8), price=Price(dollars_per_hour=2.5, source="a list")
    )
    assert json.loads(json.dumps(found)) == found
    assert found["decode"][-1]["requests"] == found["most_requests"]
    words = serving_answer.text(found)
    assert "671 GB of weights" in words and "reads 36.6 GB" in words and "From 146 on" in words
    assert "$2.5 an hour and chip (a list)" in words and "by experts" in words
    last = found["decode"][-1]
    assert last["dollars_per_million_tokens"] == pytest.approx(2.5 * 16 / 3600 / last["tokens_per_second"] * 1e6)


def test_answer_where_nothing_fits():
    small = serving_answer.answer(V3, Setting(target=parse("h100x8"), context=4096, bits=8))
    assert small["decode"] == [] and small["most_requests"] == 0
    assert "These chips cannot serve it: the weights do not fit." in serving_answer.text(small)
    long = serving_answer.answer(dense(LLAMA2_13B), Setting(target=parse("rtx4090x2"), context=10**6))
    assert "no cache of a request fits beside the weights" in serving_answer.text(long)
