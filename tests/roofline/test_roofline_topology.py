"""Slices and trees: which shapes there are, which dims are rings, and the book's rows on pods and nodes."""

import math

import pytest

from jaxllm.roofline.hardware import CHIPS, find_chip
from jaxllm.roofline.topology import (
    check_slice,
    gpu_tree,
    nearest_sizes,
    num_hosts,
    num_links,
    slice_shapes,
    slice_sizes,
    smallest_slice,
    spanned,
    torus_axes,
    torus_bisection,
    tree_bisection,
)


def chip(name):
    found = find_chip(name)
    assert found is not None, name
    return found


@pytest.mark.parametrize(
    ("name", "hosts", "cores", "peak", "memory"),
    [("v5e", 32, 256, 5.0432e16, 4.096e12), ("v5p", 2240, 17_920, 4.11264e18, 8.6016e14)],
)
def test_pods_of_the_book(name, hosts, cores, peak, memory):
    # H2 and H3; the book takes 2e14 for v5e's 1.97e14.
    found = chip(name)
    chips = math.prod(found.torus.pod_shape)
    assert num_hosts(found, chips) == hosts
    assert chips * found.cores.count == cores
    assert chips * found.flops_per_second["bfloat16"] == pytest.approx(peak, rel=1e-6)
    assert chips * found.hbm_bytes == pytest.approx(memory, rel=1e-6)


def test_lanes_of_the_book():
    # H10.
    lanes = [chip(name).cores.count * chip(name).cores.vector_lanes for name in ("H100", "B200", "v5p")]
    assert lanes == [16_896, 18_944, 8_192]


@pytest.mark.parametrize(
    ("name", "chips", "shape"),
    [
        ("v5p", 4, (1, 2, 2)),
        ("v5p", 16, (2, 2, 4)),
        ("v5p", 32, (2, 4, 4)),
        ("v5p", 128, (4, 4, 8)),
        ("v5p", 512, (8, 8, 8)),
        ("v5p", 768, (8, 8, 12)),
        ("v5p", 6144, (16, 16, 24)),
        ("v5p", 8960, (16, 20, 28)),
        ("v4", 4096, (16, 16, 16)),
        ("tpu7x", 9216, (16, 24, 24)),
        ("v5e", 1, (1, 1)),
        ("v5e", 8, (2, 4)),
        ("v6e", 256, (16, 16)),
        ("v3", 1024, (32, 32)),
    ],
)
def test_the_default_shape_is_the_most_compact(name, chips, shape):
    assert slice_shapes(chip(name), chips)[0] == shape
    assert math.prod(shape) == chips


@pytest.mark.parametrize(
    ("name", "chips"), [("v5p", 2), ("v5p", 96), ("v5p", 9024), ("v4", 1), ("v5e", 2), ("v5e", 512)]
)
def test_sizes_that_no_slice_has(name, chips):
    assert slice_shapes(chip(name), chips) == ()
    assert chips not in slice_sizes(chip(name))


def test_slice_sizes():
    assert slice_sizes(chip("v5e")) == (1, 4, 8, 16, 32, 64, 128, 256)
    assert slice_sizes(chip("v3")) == (4, 8, 16, 32, 64, 128, 256, 512, 1024)
    assert slice_sizes(chip("v5p"))[:6] == (4, 8, 16, 32, 64, 128) and slice_sizes(chip("v5p"))[-1] == 8960
    assert nearest_sizes(chip("v5p"), 100) == (64, 128)
    assert nearest_sizes(chip("v5p"), 128) == (128,)
    assert nearest_sizes(chip("v5p"), 10_000) == (8960,)
    # The inference chapter: weights of 140 GB need 9 v5e, so a 4 x 4.
    assert smallest_slice(chip("v5e"), 9) == (4, 4)
    with pytest.raises(ValueError, match="TPU v5e: no slice has 300 chips; a pod has 256"):
        smallest_slice(chip("v5e"), 300)


@pytest.mark.parametrize(
    ("name", "shape", "rings"),
    [
        ("v5p", (4, 4, 8), (True, True, True)),
        ("v5p", (2, 2, 4), (False, False, False)),
        ("v5p", (2, 4, 4), (False, False, False)),
        ("v4", (8, 4, 4), (True, True, True)),
        ("v5e", (8, 16), (False, True)),
        ("v5e", (4, 8), (False, False)),
        ("v6e", (16, 16), (True, True)),
        ("v3", (16, 16), (False, False)),
        ("v3", (16, 32), (False, True)),
    ],
)
def test_wraparound(name, shape, rings):
    assert tuple(axis.wraps for axis in torus_axes(chip(name), shape)) == rings


def test_shapes_that_cannot_be_are_refused_with_their_neighbours():
    with pytest.raises(ValueError, match="TPU v5p: there is no slice of shape 3x4x5; near it there are 2x4x4, 4x4x4"):
        check_slice(chip("v5p"), (3, 4, 5))
    with pytest.raises(ValueError, match="TPU v5e: 4x4x4 has 3 dims; give 2, as in 4x4"):
        check_slice(chip("v5e"), (4, 4, 4))
    with pytest.raises(ValueError, match="there is no slice of shape 0x4"):
        check_slice(chip("v5e"), (0, 4))
    with pytest.raises(ValueError, match="H100 SXM: only TPUs come in slices"):
        slice_shapes(chip("H100"), 8)
    with pytest.raises(ValueError, match="TPU v5e: TPUs are joined by a torus"):
        gpu_tree(chip("v5e"), 8)


def test_links_and_cuts():
    ring, line = torus_axes(chip("v5p"), (4, 4, 4)), torus_axes(chip("v5e"), (4, 4))
    assert num_links(ring) == 3 * 64 and num_links(line) == 2 * 4 * 3
    # 16 rings are cut twice, 4 lines once; both ways.
    assert torus_bisection(ring, 9e10) == 16 * 2 * 2 * 9e10
    assert torus_bisection(line, 4.5e10) == 4 * 2 * 4.5e10
    assert torus_bisection(torus_axes(chip("v5p"), (4, 4, 8)), 1) == 64


def test_a_superpod_of_h100():
    levels = gpu_tree(chip("H100"), 1024)
    assert [(level.degree, level.below, level.bytes_per_second) for level in levels] == [
        (8, 1, 450e9),
        (32, 8, 400e9),
        (4, 256, 12.8e12),
    ]
    assert tree_bisection(levels) == 51.2e12
    assert tree_bisection(gpu_tree(chip("H100"), 8)) == 3.6e12  # H13: 8 x 450 GB/s either way
    # Beyond what the vendor builds, one more level joins as many units.
    assert [level.degree for level in gpu_tree(chip("H100"), 16_384)] == [8, 32, 64]
    assert [level.degree for level in gpu_tree(chip("GB200"), 1152)] == [72, 8, 2]


def test_small_trees():
    assert gpu_tree(chip("H100"), 1) == ()
    assert [level.degree for level in gpu_tree(chip("H100"), 4)] == [4]
    assert [level.degree for level in gpu_tree(chip("H100"), 16)] == [8, 2]
    assert [level.bytes_per_second for level in gpu_tree(chip("RTX 4090"), 16)] == [31.5e9, 12.5e9]
    assert [(level.degree, level.below) for level in gpu_tree(chip("GH200"), 4)] == [(4, 1)]


@pytest.mark.parametrize(
    ("size", "inner", "degrees"),
    [(8, 1, (8, 1, 1)), (4, 1, (4, 1, 1)), (4, 2, (4, 1, 1)), (32, 8, (1, 32, 1)), (128, 4, (2, 32, 2)),
     (64, 16, (1, 16, 4)), (4, 256, (1, 1, 4)), (1024, 1, (8, 32, 4)), (1, 16, (1, 1, 1))],
)  # fmt: skip
def test_what_an_axis_spans(size, inner, degrees):
    levels = spanned(gpu_tree(chip("H100"), 1024), size, inner=inner)
    assert tuple(level.degree for level in levels) == degrees
    assert math.prod(degrees) == size


def test_every_chip_says_how_it_is_joined():
    for entry in CHIPS:
        assert (entry.torus is None) == (entry.ici_bytes_per_second is None) == (entry.node is not None), entry.name
        assert 1e9 < entry.host_bytes_per_second < 1e12 and 1e9 < entry.dcn_bytes_per_second < 1e11, entry.name
        assert entry.torus is None or len(entry.torus.pod_shape) == len(entry.torus.host_shape), entry.name


def test_vector_units_explain_the_float32_peak():
    # NVIDIA counts a fused multiply and add a lane and cycle; clocks are between 0.9 and 2.7 GHz.
    for entry in CHIPS:
        if entry.node:
            clock = entry.flops_per_second["float32"] / (2 * entry.cores.count * entry.cores.vector_lanes)
            assert 1.2e9 < clock < 2.7e9, entry.name
