"""The book's rooflines: rows R and H of its worked examples, with exact values and its own rounding."""

import math

import pytest

from jaxllm.roofline.hardware import find_chip
from jaxllm.roofline.intensity import (
    VMEM_OVER_HBM,
    attainable,
    batched_matvec_intensity,
    critical_batch,
    critical_intensity,
    dot_product_intensity,
    elementwise_times,
    exact_critical_batch,
    matmul_bytes,
    matmul_flops,
    matmul_intensity,
    split_contraction_threshold,
    split_contraction_times,
    thresholds,
    tiled_matmul_bytes,
    tiled_matmul_intensity,
    times,
    vector_flops_per_second,
)


def chip(name):
    found = find_chip(name)
    assert found is not None, name
    return found


V5E = {"peak": 1.97e14, "bandwidth": 8.2e11}


@pytest.mark.parametrize(
    ("row", "value", "exact", "book"),
    [
        ("R1 H100", times(1e12, 0, peak=9.89e14, bandwidth=1).compute, 1.0111223e-3, 1.01e-3),
        ("R1 v6e", times(1e12, 0, peak=9.1e14, bandwidth=1).compute, 1.0989011e-3, 1.1e-3),
        ("R2", critical_batch(**V5E), 240.2439024, 240),
        ("R4", split_contraction_threshold(peak=1.97e14, link=4.5e10), 8755.555556, 8755),
        ("R5", critical_batch(peak=3.94e14, bandwidth=8.2e11, weight_bytes=1), 240.2439024, 240),
        ("R6", critical_batch(**V5E, weight_bytes=1), 120.1219512, 120),
        ("R9", critical_batch(peak=9.89e14, bandwidth=3.35e12), 295.2238806, 295),
        ("R10 H100", critical_batch(peak=990e12, bandwidth=3.35e12), 295.5223881, 295),
        ("R10 B200", critical_batch(peak=2250e12, bandwidth=8e12), 281.25, 281),
        ("R10 H100 fp8", critical_intensity(peak=2 * 990e12, bandwidth=3.35e12), 591.0447761, 590),
        ("R10 B200 fp8", critical_intensity(peak=2 * 2250e12, bandwidth=8e12), 562.5, 562),
        ("R13 short", elementwise_times(65_536, peak=33.5e12, bandwidth=3.35e12).lower, 2.3475582e-7, 0.23e-6),
        ("R13 long", elementwise_times(2**30, peak=33.5e12, bandwidth=3.35e12).lower, 3.846239e-3, 3.84e-3),
        ("R14", critical_intensity(peak=33.5e12, bandwidth=3.35e12), 10.0, 10),
        ("H1", times(0, 2 * 200e9, peak=1, bandwidth=32 * 1.23e12).transfer, 1.0162602e-2, 10e-3),
        ("H4", critical_batch(peak=9.2e14, bandwidth=1.6e10), 57_500, 57_500),
        ("H9", vector_flops_per_second(2 * 4096, 1.75e9), 1.4336e13, 1.4e13),
        ("H11 base", vector_flops_per_second(132 * 128, 1.59e9), 2.686464e13, 26.9e12),
        ("H11 boost", vector_flops_per_second(132 * 128, 1.98e9), 3.345408e13, 33.5e12),
        ("H12", 80e12 / vector_flops_per_second(148 * 128, 1, fused=True), 2.1114865e9, 2.1e9),
    ],
)
def test_rows(row, value, exact, book):
    assert value == pytest.approx(exact, rel=1e-6), row
    assert value == pytest.approx(book, rel=0.05), row


def test_int8_from_vmem():
    # H6: 10.96 with activations and result counted, "more than 11" in the book.
    fast = VMEM_OVER_HBM * 8.2e11
    one = {"activation_bytes": 1, "weight_bytes": 1, "output_bytes": 1}
    assert exact_critical_batch(16_384, 4096, peak=3.94e14, bandwidth=fast, **one) == pytest.approx(10.96, abs=5e-3)


def test_dot_products_and_matvecs_stay_at_their_limits():
    assert dot_product_intensity(10) == 19 / 42  # R3
    assert dot_product_intensity(10**9) == pytest.approx(0.5, rel=1e-6)
    assert batched_matvec_intensity(512, 4096, 4096) == pytest.approx(2, rel=1e-3)  # R8
    assert batched_matvec_intensity(3, 5, 7) == 2 * 3 * 5 * 7 / (15 + 105 + 21)
    assert elementwise_times(12, peak=1, bandwidth=1).ratio == 1 / 12  # R14


def test_matmul():
    assert matmul_flops(3, 5, 7) == 210
    assert matmul_bytes(3, 5, 7) == 2 * (15 + 35 + 21)
    assert matmul_bytes(3, 5, 7, activation_bytes=2, weight_bytes=1, output_bytes=4) == 30 + 35 + 84
    assert matmul_intensity(512, 2**15, 2**15) == pytest.approx(512, rel=0.05)
    # A square product has 2 n^3 operations on 6 n^2 bytes.
    assert matmul_intensity(96, 96, 96) == 32


@pytest.mark.parametrize(("contraction", "columns"), [(4096, 16_384), (8192, 8192), (1024, 512)])
def test_the_exact_crossing_is_where_both_times_are_equal(contraction, columns):
    width = {"activation_bytes": 2, "weight_bytes": 1, "output_bytes": 4}
    batch = exact_critical_batch(contraction, columns, **V5E, **width)
    both = times(
        2 * batch * contraction * columns,
        2 * batch * contraction + contraction * columns + 4 * batch * columns,
        **V5E,
    )
    assert both.compute == pytest.approx(both.transfer, rel=1e-12)
    assert batch > critical_batch(**V5E, weight_bytes=1)


def test_narrow_matrices_never_compute_longer():
    assert exact_critical_batch(64, 64, **V5E) == math.inf
    assert exact_critical_batch(10**9, 10**9, **V5E) == pytest.approx(critical_batch(**V5E), rel=1e-3)


def test_tiles():
    # 2 x 3 x 2 pairs of tiles of 4 x 8 and 8 x 16, and a result of 8 x 48.
    size = tiled_matmul_bytes(8, 16, 48, row_tile=4, contraction_tile=8, column_tile=16)
    assert size == 2 * (2 * 3 * 2 * (4 * 8 + 8 * 16) + 8 * 48)
    assert tiled_matmul_intensity(128, 256) == 128 * 256 / (128 + 256)
    large = tiled_matmul_bytes(4096, 2**20, 4096, row_tile=128, contraction_tile=512, column_tile=256)
    assert matmul_flops(4096, 2**20, 4096) / large == pytest.approx(tiled_matmul_intensity(128, 256), rel=1e-3)


def test_two_chips_share_a_contraction():
    both = split_contraction_times(17, 8755.555555555555, 33, peak=1.97e14, link=4.5e10)  # pyright: ignore
    assert both.compute == pytest.approx(both.transfer)
    assert both.transfer == 2 * 17 * 33 / 4.5e10


@pytest.mark.parametrize(("flops", "size"), [(1e12, 1e9), (1e9, 1e12), (1e12, 1e12), (0, 1)])
def test_bounds(flops, size):
    both = times(flops, size, **V5E)
    assert both.lower <= both.upper <= 2 * both.lower
    assert both.compute_bound == (flops > size * critical_intensity(**V5E))
    assert attainable(flops / size, **V5E) == pytest.approx(flops / both.lower)


def test_thresholds_by_chip():
    # Section by section: chapter 1, 5, and the GPU chapter; its H100 has 990e12 where the datasheet has 989e12.
    v5e, v5p = thresholds(chip("v5e")), thresholds(chip("v5p"))
    assert v5e.memory == pytest.approx(240.24, rel=1e-4) and v5e.inner == pytest.approx(2188.89, rel=1e-5)
    assert v5p.inner == 2550 and v5p.outer == 73_440
    h100, b200 = thresholds(chip("H100")), thresholds(chip("B200"))
    assert (h100.memory, h100.inner, h100.outer) == pytest.approx((295.2, 2200, 2475), rel=2e-3)
    assert (b200.memory, b200.inner, b200.outer) == (281.25, 2500, 5625)
    # NVL72's rack has 3600 GB/s: 625 with the book's 2250e12, GB200 itself has 2500e12.
    assert 2250e12 / chip("GB200").node.egress_bytes_per_second == 625  # pyright: ignore
    assert thresholds(chip("v5e"), "int8").memory == pytest.approx(240.24, rel=1e-4)
    with pytest.raises(ValueError, match="TPU v5p: its matrix units do not take float8; use one of bfloat16, int8"):
        thresholds(chip("v5p"), "float8")
    # Boards on PCIe have no links of their own.
    assert thresholds(chip("RTX 4090")).inner == pytest.approx(165.2e12 / 31.5e9)
