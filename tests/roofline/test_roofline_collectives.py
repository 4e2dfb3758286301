"""Collectives and sharded products: the book's rows S, the rules that join them, and counts by hand on small rings."""

import itertools
import math

import pytest

from jaxllm.roofline.collectives import (
    all_gather_link_share,
    all_gather_seconds,
    all_reduce_seconds,
    all_to_all_link_share,
    all_to_all_seconds,
    bus_bandwidth,
    expected_ragged_share,
    latency_bound_axis,
    latency_bound_bytes,
    ragged_share,
    reduce_scatter_seconds,
    ring_hop_seconds,
    ring_hops,
    send_seconds,
    sharded_over_node_seconds,
    tree_all_gather_seconds,
    tree_all_reduce_seconds,
    tree_all_to_all_seconds,
    tree_bandwidth,
)
from jaxllm.roofline.matmul_sharding import (
    Case,
    flops_per_device,
    gather_weights_times,
    num_copies,
    partial_sums_device_limit,
    partial_sums_times,
    partial_sums_win,
    product,
    shard_bytes,
    transposed,
)
from jaxllm.roofline.topology import TorusAxis, spanned, switch_tree

H100 = switch_tree((8, 32, 4), (450e9, 400e9, 12.8e12))
NODE = switch_tree((8,), (450e9,))


def rings(*sizes):
    return [TorusAxis(size=size, wraps=True) for size in sizes]


def lines(*sizes):
    return [TorusAxis(size=size, wraps=False) for size in sizes]


@pytest.mark.parametrize(
    ("row", "value", "exact", "book"),
    [
        ("S1", shard_bytes((128, 2048), (("x", "y"), ()), {"x": 2, "y": 8, "z": 2}, element_bytes=1), 16_384, 16_384),
        ("S1 all", 32 * shard_bytes((128, 2048), (("x", "y"), ()), {"x": 2, "y": 8}, element_bytes=1), 2**19, 2**19),
        ("S4", num_copies((("x",), (), ()), {"x": 4, "y": 8, "z": 2}), 16, 16),
        ("S5", all_gather_seconds(2 * 1024 * 4096, rings(4), link=4.5e10, elsewhere=4), 2.330168889e-5, 23e-6),
        ("S6", all_gather_seconds(2 * 1024 * 4096, rings(4, 4), link=4.5e10), 4.660337778e-5, 46e-6),
        ("S9", all_gather_seconds(2 * 128, rings(4), link=4.5e10), 2e-6, 2e-6),
        ("S10", partial_sums_device_limit(5100 * 7, peak=4.59e14, bandwidth=1.8e11), 7, 7),
        ("S13", tree_all_gather_seconds(2 * 4096 * 65_536, NODE), 1.04391566e-3, 1.04e-3),
        ("S14", tree_all_gather_seconds(2 * 1024 * 16_384, NODE), 6.52447289e-5, 65e-6),
        ("S14", sharded_over_node_seconds(2 * 1024 * 16_384, gpu=450e9, node=math.inf), 7.4565405e-5, 75e-6),
        ("S18", tree_bandwidth(switch_tree((8, 2), (450e9, 400e9))), 5.142857143e11, 514e9),
        ("leaf", tree_bandwidth(H100), 4.129032258e11, 413e9),
    ],
)
def test_rows(row, value, exact, book):
    assert value == pytest.approx(exact, rel=1e-6), row
    assert value == pytest.approx(book, rel=0.05), row


def test_a_small_array_waits_for_its_hops():
    # S3: on a line of 4 v5e a shard takes 0.73 us a hop, less than a hop's latency.
    assert ring_hop_seconds(2 * 256 * 256, 4, link=4.5e10, hop=0) == pytest.approx(7.2818e-7, rel=1e-4)
    assert all_gather_seconds(2 * 256 * 256, lines(4), link=4.5e10) == 3e-6
    # S9: both ways around a ring of four in two hops, each of which is latency only.
    assert ring_hops(4) == 2 and ring_hops(4, bidirectional=False) == 3
    assert ring_hop_seconds(2 * 128, 4, link=4.5e10) == 1e-6
    # I11: 45 kB a shard on v5e, 360 kB for eight, so that int8 activations of 16 x 8192 are bound by latency.
    assert latency_bound_bytes(link=4.5e10) == 45_000
    assert latency_bound_axis(360_000, link=4.5e10) == pytest.approx(8)
    assert latency_bound_axis(16 * 8192, link=4.5e10) < 8
    assert send_seconds(9e4, link=4.5e10, num_hops=3, num_ports=2) == pytest.approx(1e-6 + 3e-6)


@pytest.mark.parametrize("axes", [rings(4), rings(16, 8), rings(4, 4, 8), lines(8), [*rings(16), *lines(4)]])
@pytest.mark.parametrize("size", [1e3, 1e9])
def test_rules_that_join_collectives(axes, size):
    gather = all_gather_seconds(size, axes, link=9e10)
    scatter = reduce_scatter_seconds(size, axes, link=9e10)
    assert all_reduce_seconds(size, axes, link=9e10) == gather + scatter == 2 * gather
    assert all_gather_seconds(size * 8, axes, link=9e10, elsewhere=8) == gather
    assert all_gather_seconds(size, [*axes, *rings(1)], link=9e10) == gather


def test_bandwidth_of_rings_and_lines():
    assert all_gather_seconds(1e9, rings(8), link=5e10) == all_gather_seconds(1e9, rings(16), link=5e10) == 1e-2
    assert all_gather_seconds(1e9, rings(8, 16), link=5e10) == 5e-3
    # A line: seven hops of an eighth over one link.
    assert all_gather_seconds(1e9, lines(8), link=5e10) == pytest.approx(7 * 1e9 / 8 / 5e10)
    assert all_gather_seconds(8, lines(8), link=5e10, hop=2e-6) == 14e-6
    assert all_gather_seconds(8, rings(8, 4), link=5e10) == 6e-6
    assert all_gather_seconds(1e9, rings(1), link=5e10) == 0


def test_all_to_all():
    gather = all_gather_seconds(1e9, rings(8), link=5e10)
    assert all_to_all_seconds(1e9, rings(8), link=5e10) == gather / 4  # S12
    # V max / (4 N W): the longest side of 4 x 8 x 2.
    assert all_to_all_seconds(1e9, rings(4, 8, 2), link=5e10) == pytest.approx(1e9 * 8 / (4 * 64 * 1e11))
    # A line's middle has one link where a ring has two.
    assert all_to_all_seconds(1e9, lines(8), link=5e10) == 2 * all_to_all_seconds(1e9, rings(8), link=5e10)
    assert all_to_all_seconds(1e9, [*lines(4), *rings(8)], link=5e10) == pytest.approx(1e9 * 4 / (4 * 32 * 5e10))
    assert all_to_all_seconds(1e9, rings(1), link=5e10) == 0
    assert all_to_all_seconds(8e9, rings(8), link=5e10, elsewhere=8) == gather / 4


def crossings(devices, *, bidirectional):
    """Pieces of 1 / D^2 that cross the link from device 0 to device 1, each way it can go shared out evenly."""
    total = 0.0
    for source, target in itertools.permutations(range(devices), 2):
        ahead = (target - source) % devices
        forward = (-source) % devices < ahead
        if not bidirectional or ahead < devices / 2:
            total += forward
        elif ahead == devices / 2:
            total += forward / 2
    return total / devices**2


@pytest.mark.parametrize("devices", [2, 3, 4, 5, 8, 9])
def test_shares_of_one_link_are_those_of_a_count(devices):
    assert all_to_all_link_share(devices, bidirectional=False) == pytest.approx(crossings(devices, bidirectional=False))
    assert all_to_all_link_share(devices) == pytest.approx(crossings(devices, bidirectional=True))
    # S12: two to one, one way round.
    assert all_gather_link_share(devices) == 2 * all_to_all_link_share(devices, bidirectional=False)


def test_gather_over_a_sharded_array_within_a_scalable_unit():
    # S16: 256 GPUs. Up to eight inside, a node's shards share its links; beyond, the nodes they span add theirs.
    unit = H100[:2]
    size = 2 * 8192 * 32_768
    for inner in (1, 2, 4, 8):
        assert tree_all_gather_seconds(size, unit, inner=inner) == pytest.approx(size * 31 / (32 * 400e9))
    for inner in (16, 64):
        assert tree_all_gather_seconds(size, unit, inner=inner) == pytest.approx(size / (inner * 50e9), rel=0.05)
        assert sharded_over_node_seconds(size, gpu=450e9, node=400e9, inner=inner) == size / (inner * 50e9)
    # Three quarters of the shards come from elsewhere where the axis spans four nodes' worth.
    exact = tree_all_gather_seconds(size, spanned(unit, 4, inner=64), inner=64)
    assert exact == pytest.approx(size / 64 * 3 / 4 / 50e9)


@pytest.mark.parametrize("inner", [1, 8, 32, 64])
def test_trees_agree_with_the_formula_without_a_correction(inner):
    simple = sharded_over_node_seconds(1e9, gpu=450e9, node=400e9, inner=inner)
    precise = tree_all_gather_seconds(1e9, H100, inner=inner)
    assert 31 / 32 * simple * (1 - 1e-12) <= precise <= simple


def test_reductions_on_trees():
    gather = tree_all_gather_seconds(1e9, H100)
    assert gather == pytest.approx(1e9 / 412.9032258e9)
    assert tree_all_reduce_seconds(1e9, H100) == 2 * gather
    assert tree_all_reduce_seconds(1e9, NODE, in_network=True) == 1e9 / 450e9
    assert tree_all_reduce_seconds(1e9, H100, in_network=True) == 1e9 / 400e9
    assert tree_all_reduce_seconds(1e9, H100, in_network=True, inner=256) == pytest.approx(1e9 / 12.8e12)
    assert tree_all_reduce_seconds(1e9, (), in_network=True) == tree_all_gather_seconds(1e9, ()) == 0
    # Measured: bytes, seconds and a ring's 2 (N - 1) / N.
    assert bus_bandwidth(1e9, 2 * 1e9 * 7 / (8 * 370e9), 8) == pytest.approx(370e9)


def test_all_to_all_on_trees():
    assert tree_all_to_all_seconds(1e9, NODE) == pytest.approx(1e9 * 7 / (450e9 * 64))
    # Two nodes: V (M - 1) / (M^2 W), four times as slow as within one.
    assert tree_all_to_all_seconds(1e9, switch_tree((8, 2), (450e9, 400e9))) == pytest.approx(1e9 / (4 * 400e9))
    # 32 nodes of one GPU each of an axis outside eight: every node's eight GPUs share its cards.
    outside = tree_all_to_all_seconds(8e9, spanned(H100[:2], 32, inner=8), inner=8)
    assert outside == pytest.approx(8e9 * 31 / 32**2 / 400e9)
    assert tree_all_to_all_seconds(1e9, ()) == 0


def test_tokens_that_go_to_few():
    assert ragged_share(4, 8) == pytest.approx(4 / 8 * 7 / 8)
    assert ragged_share(16, 8) == pytest.approx(7 / 8)
    # All draws of two of three devices, repeats allowed: those that differ from one's own, counted once.
    draws = [len({first, second} - {0}) for first, second in itertools.product(range(3), repeat=2)]
    assert expected_ragged_share(2, 3) == pytest.approx(sum(draws) / len(draws) / 3)
    assert expected_ragged_share(1, 64) == pytest.approx(ragged_share(1, 64))


def test_cases_of_sharded_products():
    assert product(rows=("x",), columns=("y",)).case is Case.LOCAL
    gathered = product(rows=("x",), right=("x",))
    assert (gathered.case, gathered.gather_right, gathered.reduce) == (Case.GATHER, ("x",), ())
    assert product(left=("y",)).gather_left == ("y",)
    summed = product(rows=("x",), left=("y",), right=("y",))
    assert (summed.case, summed.reduce) == (Case.REDUCE, ("y",))
    mixed = product(left=("y",), right=("y", "z"))
    assert (mixed.case, mixed.gather_right, mixed.reduce) == (Case.GATHER, ("z",), ("y",))
    both = product(rows=("x",), columns=("x",))
    assert (both.case, both.gather_right) == (Case.CONFLICT, ("x",))
    assert transposed("all-gather") == "reduce-scatter" and transposed("reduce-scatter") == "all-gather"
    assert transposed("all-to-all") == "all-to-all"


def test_flops_of_sharded_products():
    # X2: [B_X, D_Y] x [D_Y, F] on {4, 8, 4}; the third axis repeats the work.
    mesh = {"x": 4, "y": 8, "z": 4}
    each = flops_per_device((64, 128, 256), (("x",), ("y",), ()), mesh)
    assert each == 2 * 64 * 128 * 256 / (4 * 8)
    assert each * 4 * 8 * 4 == 2 * 64 * 128 * 256 * 4
    # S11: a weight and a batch of the book.
    assert shard_bytes((8192, 32_768), ((), ()), {}, element_bytes=2) == 536_870_912
    assert shard_bytes((128, 8192), ((), ()), {}, element_bytes=2) == 2_097_152


@pytest.mark.parametrize("rows", [64, 1024, 2000, 4096])
@pytest.mark.parametrize("contraction", [1024, 4096, 5000, 8192])
def test_partial_sums_win_where_they_take_less_time(rows, contraction):
    v5p = {"peak": 4.59e14, "bandwidth": 1.8e11}
    gather = gather_weights_times(rows, contraction, 4096, **v5p)
    sums = partial_sums_times(rows, contraction, 4096, devices=10**6, **v5p)
    assert partial_sums_win(rows, contraction, **v5p) == (sums.lower < gather.lower)
    assert gather.compute_bound == (rows > 2550)  # S10
    limit = partial_sums_device_limit(contraction, **v5p)
    at_limit = partial_sums_times(rows, contraction, 4096, devices=limit, **v5p)  # pyright: ignore
    assert at_limit.compute == pytest.approx(at_limit.transfer)
