"""Rooflines: how long work takes that computes and moves bytes, and from which size on computing is what takes long.

With C operations a second and W bytes a second, f operations on b bytes take at least max(f / C, b / W), if computing
and moving overlap fully, and at most their sum, which is at most twice that. Intensity is f / b; what is above C / W
is bound by computing, and what is below reaches f / b x W operations a second.

A matrix product [B, D] x [D, F] does 2 B D F operations on a B D + w D F + o B F bytes. For B far below D and F that is
2 B / w operations a byte, so it is bound by computing from B = C w / (2 W) on: 240 tokens on v5e in bfloat16, 120 with
int8 weights and bfloat16 products, 240 with int8 products.

The same ratio against a network's bandwidth gives the tokens a device needs before collectives of weights hide behind
computing.

Arguments are counts, bytes, operations a second and bytes a second; times are seconds.

Sources: the book, chapter 1 (rooflines), chapter 2's and the GPU chapter's questions; formulas F1 to F13.
"""

import math
from dataclasses import dataclass

from jaxllm.roofline.hardware import Chip

VMEM_OVER_HBM = 22
"""Bandwidth from VMEM to the matrix units of a TPU, over that of HBM, about (the book, chapter 2)."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """What one piece of work takes.

    Attributes:
        compute: seconds of computing.
        transfer: seconds of moving bytes, from memory or over a network.
    """

    compute: float
    transfer: float

    @property
    def lower(self) -> float:
        """Seconds where both overlap fully (F3)."""
        return max(self.compute, self.transfer)

    @property
    def upper(self) -> float:
        """Seconds where they do not overlap; at most twice the lower bound (F4)."""
        return self.compute + self.transfer

    @property
    def compute_bound(self) -> bool:
        """Whether computing takes longer than moving."""
        return self.compute > self.transfer

    @property
    def ratio(self) -> float:
        """Computing over moving: above 1 the transfers can hide."""
        return self.compute / self.transfer if self.transfer else math.inf


def times(flops: float, size: float, *, peak: float, bandwidth: float) -> Times:
    """So many operations on so many bytes. The book, chapter 1 (F1, F2).

    Args:
        flops: operations.
        size: bytes moved.
        peak: operations a second.
        bandwidth: bytes a second.
    """
    return Times(compute=flops / peak, transfer=size / bandwidth)


def attainable(intensity: float, *, peak: float, bandwidth: float) -> float:
    """Operations a second at an intensity of so many operations a byte: min(C, I W). The book, chapter 1 (F6)."""
    return min(peak, intensity * bandwidth)


def critical_intensity(*, peak: float, bandwidth: float) -> float:
    """Operations a byte from which on computing binds: C / W, the roofline's ridge. The book, chapter 1 (F5)."""
    return peak / bandwidth


def dot_product_intensity(length: int, *, element_bytes: float = 2) -> float:
    """Operations a byte of x . y: (2 N - 1) / (w (2 N + 1)), towards 1 / 2 in bfloat16. The book, chapter 1 (F7)."""
    return (2 * length - 1) / (element_bytes * (2 * length + 1))


def matmul_flops(rows: int, contraction: int, columns: int) -> int:
    """Operations of [B, D] x [D, F]: 2 B D F. The book, chapter 1 (F8)."""
    return 2 * rows * contraction * columns


def matmul_bytes(
    rows: int,
    contraction: int,
    columns: int,
    *,
    activation_bytes: float = 2,
    weight_bytes: float = 2,
    output_bytes: float = 2,
) -> float:
    """Bytes of [B, D] x [D, F], read and written once. The book, chapter 1 (F8).

    Args:
        rows: B.
        contraction: D.
        columns: F.
        activation_bytes: of an element of the left matrix, as are the next of the right one and of the result.
        weight_bytes: see there.
        output_bytes: see there.
    """
    inputs = activation_bytes * rows * contraction + weight_bytes * contraction * columns
    return inputs + output_bytes * rows * columns


def matmul_intensity(
    rows: int,
    contraction: int,
    columns: int,
    *,
    activation_bytes: float = 2,
    weight_bytes: float = 2,
    output_bytes: float = 2,
) -> float:
    """Operations a byte of [B, D] x [D, F]; about B in bfloat16 for B far below D and F. The book, chapter 1 (F8)."""
    size = matmul_bytes(
        rows,
        contraction,
        columns,
        activation_bytes=activation_bytes,
        weight_bytes=weight_bytes,
        output_bytes=output_bytes,
    )
    return matmul_flops(rows, contraction, columns) / size


def critical_batch(*, peak: float, bandwidth: float, weight_bytes: float = 2) -> float:
    """Rows from which on a product with large weights is bound by computing: C w / (2 W). The book, chapter 1 (F9).

    Args:
        peak: operations a second in the dtype that is multiplied.
        bandwidth: bytes a second that weights arrive with: from HBM, VMEM, over PCIe.
        weight_bytes: of one weight as it arrives.
    """
    return peak * weight_bytes / (2 * bandwidth)


def exact_critical_batch(
    contraction: int,
    columns: int,
    *,
    peak: float,
    bandwidth: float,
    activation_bytes: float = 2,
    weight_bytes: float = 2,
    output_bytes: float = 2,
) -> float:
    """`critical_batch` with activations and result counted too; infinite where no batch is large enough (F10).

    Args:
        contraction: D of [B, D] x [D, F].
        columns: F.
        peak: operations a second.
        bandwidth: bytes a second.
        activation_bytes: of an element of the left matrix, as are the next of the right one and of the result.
        weight_bytes: see there.
        output_bytes: see there.
    """
    compute_a_row = 2 * contraction * columns / peak
    transfer_a_row = (activation_bytes * contraction + output_bytes * columns) / bandwidth
    if compute_a_row <= transfer_a_row:
        return math.inf
    return weight_bytes * contraction * columns / bandwidth / (compute_a_row - transfer_a_row)


def tiled_matmul_bytes(
    rows: int,
    contraction: int,
    columns: int,
    *,
    row_tile: int,
    contraction_tile: int,
    column_tile: int,
    element_bytes: float = 2,
) -> float:
    """Bytes of [M, K] x [K, N] where tiles are read for every product they are in. The book, chapter 1 (F11).

    Every pair of tiles is read once, and the result written once. The tiles cover the matrices, the last ones partly.
    """
    num_rows, num_columns = math.ceil(rows / row_tile), math.ceil(columns / column_tile)
    num_contractions = math.ceil(contraction / contraction_tile)
    pair = row_tile * contraction_tile + contraction_tile * column_tile
    return element_bytes * (num_rows * num_columns * num_contractions * pair + rows * columns)


def tiled_matmul_intensity(row_tile: int, column_tile: int, *, element_bytes: float = 2) -> float:
    """Operations a byte of a tiled product, the result left out: m n / (m + n) in bfloat16. Chapter 1 (F11)."""
    return 2 * row_tile * column_tile / (element_bytes * (row_tile + column_tile))


def batched_matvec_intensity(rows: int, contraction: int, columns: int, *, element_bytes: float = 1) -> float:
    """Operations a byte where every row meets a matrix of its own: 2 in int8 at most. The book, chapter 1 (F12)."""
    size = rows * (contraction + contraction * columns + columns) * element_bytes
    return matmul_flops(rows, contraction, columns) / size


def split_contraction_times(rows: int, contraction: int, columns: int, *, peak: float, link: float) -> Times:
    """[B, D] x [D, F] with D halved over two chips, which then exchange partial sums. The book, chapter 1 (F13).

    Args:
        rows: B.
        contraction: D.
        columns: F.
        peak: operations a second of one chip.
        link: bytes a second between them, one way; the partial sums are in bfloat16.
    """
    return Times(compute=rows * contraction * columns / peak, transfer=2 * rows * columns / link)


def split_contraction_threshold(*, peak: float, link: float) -> float:
    """D from which on `split_contraction_times` is bound by computing: 2 C / W. The book, chapter 1 (F13)."""
    return 2 * peak / link


def elementwise_times(
    length: int, *, peak: float, bandwidth: float, num_arrays: int = 3, element_bytes: float = 4
) -> Times:
    """An operation on two arrays element by element. The book, GPU chapter, quiz 1.

    Args:
        length: elements of one array.
        peak: operations a second of the vector units.
        bandwidth: bytes a second.
        num_arrays: read and written.
        element_bytes: of one element.
    """
    return Times(compute=length / peak, transfer=num_arrays * length * element_bytes / bandwidth)


def vector_flops_per_second(num_lanes: int, clock: float, *, fused: bool = False) -> float:
    """Peak of vector units, one operation a lane and cycle. The book, chapter 2 (appendix A) and GPU chapter.

    Args:
        num_lanes: of all cores: `chip.cores.count * chip.cores.vector_lanes`.
        clock: cycles a second.
        fused: whether a fused multiply and add counts as two operations, as vendors count.
    """
    return num_lanes * clock * (2 if fused else 1)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Tokens from which on a chip computes longer than it moves weights, by where these come from.

    Attributes:
        memory: tokens of a product, with weights from HBM in the dtype that is multiplied.
        inner: tokens a device, with weights gathered over one axis of a TPU slice, or within a node of GPUs.
        outer: with weights gathered further: tokens of a whole TPU slice, over the data-centre network; tokens a GPU,
            beyond its node.
    """

    memory: float
    inner: float
    outer: float


def thresholds(chip: Chip, dtype: str = "bfloat16") -> Thresholds:
    """The critical numbers of tokens of a chip. The book, chapters 1 and 5 and GPU chapter.

    Weights and gradients travel in two bytes, whatever they are multiplied in.

    Raises:
        ValueError: the chip's matrix units do not take the dtype.
    """
    if dtype not in chip.flops_per_second:
        known = ", ".join(chip.flops_per_second)
        raise ValueError(f"{chip.name}: its matrix units do not take {dtype}; use one of {known}")
    peak = chip.flops_per_second[dtype]
    width = {"float32": 4, "tensorfloat32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "float8": 1, "float4": 0.5}[
        dtype
    ]
    if chip.node:
        inner = chip.nvlink_bytes_per_second or chip.host_bytes_per_second
        outer = chip.node.egress_bytes_per_second
    else:
        inner, outer = 2 * (chip.ici_bytes_per_second or 0), chip.dcn_bytes_per_second
    return Thresholds(
        memory=critical_batch(peak=peak, bandwidth=chip.hbm_bytes_per_second, weight_bytes=width),
        inner=peak / inner,
        outer=peak / outer,
    )
