"""Products of sharded matrices: what each device holds, and which collective makes the product whole.

A product `left[rows, contraction] x right[contraction, columns]` with its dims sharded over mesh axes is one of four
cases (the book, chapter 3):

    1   the contraction is whole on both sides                nothing to communicate
    2   the contraction is sharded on one side                all-gather that side
    3   it is sharded alike on both sides                     multiply, then sum over the axis
    4   rows and columns are sharded over the same axis        impossible: all-gather one of them first

In the backward pass of one, an all-gather becomes a reduce-scatter and the other way round.

In case 2, `[B, D] x [D_X, F]` in bfloat16, either the weights are gathered, and every device multiplies all of them, or
each multiplies its slice and partial sums are all-reduced:

    gather weights     max(2 B D F / C,       2 D F / W)
    partial sums       max(2 B D F / (X C),   4 B F / W)

Sources: the book, chapter 3; formulas F23 and F24. Times are seconds, bandwidths bytes a second: W of both directions
together on a ring of TPUs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from jaxllm.roofline.intensity import Times

type Axes = Sequence[str]
"""Mesh axes that one dim of an array is sharded over; none where it is whole."""


def shard_bytes(shape: Sequence[int], spec: Sequence[Axes], mesh: Mapping[str, int], *, element_bytes: float) -> float:
    """Bytes that one device holds of an array. The book, chapter 3.

    Args:
        shape: of the whole array.
        spec: mesh axes of each dim; an axis appears once at most.
        mesh: devices along each mesh axis.
        element_bytes: of one element.
    """
    return element_bytes * math.prod(shape) / num_shards(spec, mesh)


def num_shards(spec: Sequence[Axes], mesh: Mapping[str, int]) -> int:
    """Pieces that an array is cut into; the mesh's other devices hold copies of these."""
    return math.prod(mesh[axis] for axes in spec for axis in axes)


def num_copies(spec: Sequence[Axes], mesh: Mapping[str, int]) -> int:
    """How often the mesh holds the whole array: the devices along axes that shard none of its dims."""
    return math.prod(mesh.values()) // num_shards(spec, mesh)


class Case(StrEnum):
    """What a product of sharded matrices asks for.

    Attributes:
        LOCAL: nothing (case 1).
        GATHER: an all-gather of an input's contraction (case 2).
        REDUCE: a sum of the result, by all-reduce or reduce-scatter (case 3).
        CONFLICT: an all-gather of rows or of columns (case 4).
    """

    LOCAL = "local"
    GATHER = "gather"
    REDUCE = "reduce"
    CONFLICT = "conflict"


@dataclass(frozen=True, kw_only=True)
class Product:
    """How a product of sharded matrices is done.

    Attributes:
        case: the first of conflict, gather, reduce that applies; local where none does.
        gather_left: axes over which the left matrix is gathered first.
        gather_right: axes over which the right one is.
        reduce: axes over which the result is summed.
    """

    case: Case
    gather_left: tuple[str, ...] = ()
    gather_right: tuple[str, ...] = ()
    reduce: tuple[str, ...] = ()


def product(*, rows: Axes = (), left: Axes = (), right: Axes = (), columns: Axes = ()) -> Product:
    """The case of `[rows, left] x [right, columns]`, and its collectives. The book, chapter 3 (F23).

    Where rows and columns share an axis, the columns are gathered. An axis of the contraction that only one side has is
    gathered there.

    Args:
        rows: mesh axes of the left matrix' rows.
        left: of its contraction.
        right: of the right matrix' contraction.
        columns: of its columns.
    """
    shared = tuple(axis for axis in columns if axis in rows)
    reduce = tuple(axis for axis in left if axis in right)
    gather_left = tuple(axis for axis in left if axis not in right)
    gather_right = (*(axis for axis in right if axis not in left), *shared)
    if shared:
        case = Case.CONFLICT
    elif gather_left or gather_right:
        case = Case.GATHER
    else:
        case = Case.REDUCE if reduce else Case.LOCAL
    return Product(case=case, gather_left=gather_left, gather_right=gather_right, reduce=reduce)


def transposed(collective: str) -> str:
    """What the backward pass of a collective is. The book, chapter 3 (F23).

    Args:
        collective: `all-gather`, `reduce-scatter`, `all-to-all` or `all-reduce`; the last two are their own.
    """
    return {"all-gather": "reduce-scatter", "reduce-scatter": "all-gather"}.get(collective, collective)


def flops_per_device(dims: Sequence[int], spec: Sequence[Axes], mesh: Mapping[str, int]) -> float:
    """Operations that one device does for a contraction: 2 x all dims, over the axes that shard any. Chapters 3, 4.

    Args:
        dims: every distinct dim once, batch and contracted ones too.
        spec: mesh axes of each dim. Devices along other axes do the same again.
        mesh: devices along each mesh axis.
    """
    return 2 * math.prod(dims) / num_shards(spec, mesh)


def gather_weights_times(rows: int, contraction: int, columns: int, *, peak: float, bandwidth: float) -> Times:
    """`[B, D] x [D_X, F]` with the weights gathered; bfloat16. The book, chapter 3, question 4 (F24)."""
    return Times(compute=2 * rows * contraction * columns / peak, transfer=2 * contraction * columns / bandwidth)


def partial_sums_times(
    rows: int, contraction: int, columns: int, *, devices: int, peak: float, bandwidth: float
) -> Times:
    """`[B, D] x [D_X, F]` with partial sums all-reduced; bfloat16. The book, chapter 3, question 4 (F24)."""
    return Times(compute=2 * rows * contraction * columns / (devices * peak), transfer=4 * rows * columns / bandwidth)


def partial_sums_win(rows: int, contraction: int, *, peak: float, bandwidth: float) -> bool:
    """Whether partial sums are faster than gathered weights, over many devices. The book, chapter 3 (F24).

    Below C / W rows both are bound by the network, and it is so from D > 2 B on; above, from D > 2 C / W on.

    Args:
        rows: B.
        contraction: D.
        peak: operations a second of one device.
        bandwidth: bytes a second of its collectives.
    """
    return contraction > 2 * min(rows, peak / bandwidth)


def partial_sums_device_limit(contraction: int, *, peak: float, bandwidth: float) -> float:
    """Devices up to which partial sums are bound by computing: D W / (2 C). The book, chapter 3 (F24)."""
    return contraction * bandwidth / (2 * peak)
