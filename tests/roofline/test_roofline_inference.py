"""The book's inference: rows I, and its table of LLaMA 2 13B served on eight v5e, to all printed digits."""

import math

import pytest

from jaxllm.roofline.attention import kv_cache_bytes
from jaxllm.roofline.counts import attention_parameters, mlp_parameters
from jaxllm.roofline.hardware import find_chip
from jaxllm.roofline.inference import (
    decode_seconds,
    decode_tensor_limit,
    decode_tensor_times,
    evicted_tokens,
    fewest_chips,
    flops_per_dollar,
    general_decode_seconds,
    largest_batch,
    optimal_stationary_2d,
    prefill_over_decode_servers,
    prefill_seconds,
    stationary_1d_seconds,
    stationary_2d_seconds,
    stationary_2d_threshold,
)
from jaxllm.roofline.topology import smallest_slice

V5E = 8.2e11


@pytest.mark.parametrize(
    ("batch", "milliseconds", "tokens_per_second"),
    [(1, 4.98, 200.61), (8, 12.13, 659.30), (16, 20.30, 787.99), (32, 36.65, 873.21), (64, 69.33, 923.13),
     (240, 249.09, 963.53)],
)  # fmt: skip
def test_serving_table_to_all_printed_digits(batch, milliseconds, tokens_per_second):
    # I3: 26 GB of weights and 6.7 GB of cache a sequence.
    seconds = decode_seconds(batch, kv_bytes=6.7e9, weight_bytes=26e9, chips=8, bandwidth=V5E)
    assert round(seconds * 1e3, 2) == milliseconds
    assert round(batch / seconds, 2) == tokens_per_second


I1 = {"kv_bytes": 8192 * 100e3, "weight_bytes": 30e9, "chips": 16, "bandwidth": V5E}


@pytest.mark.parametrize(
    ("row", "value", "exact", "book"),
    [
        ("I1 small", decode_seconds(4, **I1), 2.5363415e-3, 2.5e-3),
        (
            "I1 large",
            general_decode_seconds(256, num_parameters=30e9, peak=1.97e14, **I1),
            2.08574867e-2,
            21e-3,
        ),
        ("I2", kv_cache_bytes(8192, 40, 40, 128), 6_710_886_400, 6.7e9),
        ("I5", decode_tensor_limit(32, 16_384, hbm=8, ici=1), 64, 64),
        ("I6 cache", kv_cache_bytes(1, 64, 8, 256, element_bytes=1), 262_144, 262e3),
        ("I8", decode_seconds(0, kv_bytes=0, weight_bytes=18.4e9, chips=16, bandwidth=V5E), 1.402439e-3, 1.4e-3),
        ("I10", 2 * math.sqrt(8 * 4), 11.3137085, 11.3),
        ("I10 chips", stationary_2d_threshold(4096, 16_384), 72, 72),
        ("I18", prefill_seconds(70e9, 8192, chips=16, peak=1.97e14, utilisation=0.4), 0.909644670, 0.91),
        ("I20 H100", flops_per_dollar(9.9e14, 10.8), 3.3e17, 3.3e17),
        ("I20 v5p", flops_per_dollar(4.59e14, 4.2), 3.9342857e17, 3.9e17),
        ("I20 v5e", flops_per_dollar(1.97e14, 1.2), 5.91e17, 5.8e17),
    ],
)
def test_rows(row, value, exact, book):
    assert value == pytest.approx(exact, rel=1e-6), row
    assert value == pytest.approx(book, rel=0.05), row


def test_parameters_of_the_served_model():
    # I6, without norms.
    block = mlp_parameters(4096, 16_384) + attention_parameters(4096, 32, 8, 256)
    assert 64 * block + 32_128 * 4096 == 18_385_207_296


@pytest.mark.parametrize("batch", [1, 32, 119, 121, 4096])
def test_decode_is_never_faster_than_memory(batch):
    general = general_decode_seconds(batch, num_parameters=30e9, peak=1.97e14, **I1)
    memory = decode_seconds(batch, **I1)
    # int8 weights and bfloat16 products: bound by computing from 120 sequences on.
    assert general == pytest.approx(memory) if batch < 120 else general > memory


def test_decode_over_more_chips_until_the_collective_takes_longer():
    limit = decode_tensor_limit(16, 16_384, hbm=V5E, ici=9e10)
    assert limit == pytest.approx(16_384 / (16 * 9.1111111))
    both = decode_tensor_times(16, 4096, 16_384, devices=limit, hbm=V5E, ici=9e10)  # pyright: ignore
    assert both.compute == pytest.approx(both.transfer)


@pytest.mark.parametrize("d_ff", [4 * 4096, 3 * 4096])
def test_weights_that_stay_split_along_both_dims(d_ff):
    block = {"batch": 64, "d_model": 4096, "d_ff": d_ff, "bandwidth": 1.8e11}

    def seconds(model_devices, devices):
        return stationary_2d_seconds(**block, model_devices=model_devices, ff_devices=devices / model_devices)

    best, others = optimal_stationary_2d(256, 4096, d_ff)
    assert best * others == pytest.approx(256)
    assert all(seconds(best, 256) < seconds(best * factor, 256) for factor in (0.5, 0.9, 1.1, 2))
    # At the threshold both ways take as long.
    chips = stationary_2d_threshold(4096, d_ff)
    least = seconds(optimal_stationary_2d(chips, 4096, d_ff)[0], chips)
    assert least == pytest.approx(stationary_1d_seconds(64, 4096, bandwidth=1.8e11))


def test_the_book_s_split_at_four_times_the_width():
    best, others = optimal_stationary_2d(512, 4096, 16_384)
    assert (best, others) == pytest.approx((math.sqrt(512 / 8), math.sqrt(8 * 512)))
    seconds = stationary_2d_seconds(7, 4096, 16_384, model_devices=best, ff_devices=others, bandwidth=1e11)
    assert seconds == pytest.approx(math.sqrt(128) * 7 * 4096 / (math.sqrt(512) * 1e11))


def test_chips_and_batches_that_fit():
    v5e = find_chip("v5e")
    assert v5e is not None
    chips = fewest_chips(140e9, hbm=v5e.hbm_bytes)
    assert chips == 9 and smallest_slice(v5e, chips) == (4, 4)
    assert fewest_chips(32e9, hbm=16e9) == 2
    assert largest_batch(chips=8, hbm=16e9, weight_bytes=26e9, kv_bytes=6.7e9) == 15
    assert largest_batch(chips=1, hbm=16e9, weight_bytes=26e9, kv_bytes=6.7e9) < 0


def test_servers_and_caches_in_a_steady_state():
    assert evicted_tokens(32, 8192, 512) == 32 * (8192 + 512) / 512
    # One prompt takes 0.91 s to read; a step of 43 sequences takes 19 ms, a sequence 512 steps.
    servers = prefill_over_decode_servers(prefill=0.91, decode_step=0.019, batch=43, generated=512)
    assert servers / 0.91 == pytest.approx(43 / (0.019 * 512))
