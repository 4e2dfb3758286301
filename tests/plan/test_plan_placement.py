"""Meshes lie on the torus as jax lays them, and transfers take the book's time."""

import numpy as np
import pytest
from jax._src import mesh_utils

from jaxllm.config import AXES
from jaxllm.plan.placement import lay, place
from jaxllm.plan.target import parse
from jaxllm.roofline.collectives import all_gather_seconds, all_reduce_seconds, tree_all_gather_seconds
from jaxllm.roofline.communication import Transfer
from jaxllm.roofline.topology import TorusAxis, spanned

ONE = dict.fromkeys(AXES, 1)


def transfer(kind, *axes, size=1e9):
    return Transfer(kind=kind, axes=axes, size=int(size), count=1, what="weights")


@pytest.mark.parametrize("shape", [(4, 4, 8), (8, 8), (16, 16), (2, 2, 4), (4, 8, 12)])
def test_as_jax_lays_it(shape):
    """Three axes of every size that divides the slice."""
    num = int(np.prod(shape))
    for tensor in (size for size in (1, 2, 4, 8, 16, 24) if num % size == 0):
        for data in (size for size in (1, 2, 4, 6) if num // tensor % size == 0):
            sizes = (data, num // tensor // data, tensor)
            _, assigned = mesh_utils._create_device_mesh_for_nd_torus(
                np.arange(num).reshape(shape), sizes, allow_split_physical_axes=True
            )
            ours = np.ones_like(assigned)
            for axis, pieces in enumerate(lay(tuple(TorusAxis(size=size, wraps=True) for size in shape), sizes)):
                for piece in pieces:
                    ours[piece.dim, axis] = piece.axis.size
            assert (ours == assigned).all(), (shape, sizes)


def test_whole_dims_take_the_books_time():
    target = parse("v5p:4x4x8")
    placement = place(target, ONE | {"fsdp": 32, "tensor": 4}, ONE)
    link, torus = target.chip.ici_bytes_per_second, target.torus
    assert placement.seconds(transfer("all-gather", "fsdp")) == pytest.approx(
        all_gather_seconds(1e9, [torus[1], torus[2]], link=link)
    )
    assert placement.seconds(transfer("all-reduce", "tensor")) == pytest.approx(
        all_reduce_seconds(1e9, [torus[0]], link=link)
    )
    assert placement.describe("fsdp") == "y (ring) x z (ring)"


def test_parts_of_a_dim_are_lines_and_share_links():
    """Of a ring of 16 the inner axis of 4 gets a line; the outer one's steps are 4 links long."""
    target = parse("v6e-256")
    placement = place(target, ONE | {"data": 4, "fsdp": 16, "tensor": 4}, ONE)
    link = target.chip.ici_bytes_per_second
    assert placement.seconds(transfer("all-gather", "tensor")) == pytest.approx(1e9 / (link * 4 / 3))
    assert placement.seconds(transfer("all-gather", "data")) == pytest.approx(1e9 / (2 * link / 4))
    assert placement.describe("tensor") == "4 of x (line)"


def test_gpus_stay_in_a_node_as_long_as_it_lasts():
    target = parse("h100x64")
    placement = place(target, ONE | {"fsdp": 8, "tensor": 8}, ONE)
    assert placement.seconds(transfer("all-gather", "tensor")) == pytest.approx(1e9 * 7 / 8 / 450e9)
    # eight groups gather side by side, each over its own share of the node's 400 GB/s
    assert placement.seconds(transfer("all-gather", "fsdp")) == pytest.approx(1e9 * 7 / 8 / 50e9)
    whole = place(target, ONE | {"fsdp": 64}, ONE)
    expected = tree_all_gather_seconds(1e9, spanned(target.switches, 64))
    assert whole.seconds(transfer("all-gather", "fsdp")) == pytest.approx(expected)
    assert [placement.describe("tensor"), placement.describe("fsdp")] == ["within a node", "across nodes"]


def test_slices_are_crossed_with_a_share_each():
    target = parse("v6e-256 x 4")
    placement = place(target, ONE | {"data": 8, "fsdp": 128}, ONE | {"data": 4})
    within = place(parse("v6e-256"), ONE | {"data": 2, "fsdp": 128}, ONE).seconds(transfer("all-reduce", "data"))
    across = 2 * (1e9 / 2) * 3 / 4 / target.chip.dcn_bytes_per_second
    assert placement.seconds(transfer("all-reduce", "data")) == pytest.approx(within + across)
