"""How chips are joined: the shapes a TPU slice may have and its wraparound links, and the switch levels above GPUs.

A TPU slice is a box of chips, each with a link to both neighbours along every dim (two or three of them). A dim with a
wraparound link is a ring; one without is a line, with half the bandwidth and twice the hops. v4, v5p and TPU7x slices
are whole cubes of 4 x 4 x 4, joined by optical switches, so that every dim is a ring; or a part of one cube, with none.
v5e and v6e slices close a dim where it is the full side of 16.

GPUs are the leaves of a fat tree: of a node all pairs are joined at the GPU's full bandwidth, and every level above
offers a node what its network cards take.

Sources: the book, chapter 2 (TPU networking) and the GPU chapter (networking, beyond the node);
cloud.google.com/tpu/docs for the shapes that can be had. Bandwidths are bytes a second one way, as in `hardware`.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

from jaxllm.roofline.hardware import Chip, Torus


@dataclass(frozen=True, kw_only=True)
class TorusAxis:
    """One dim of a slice, or a mesh axis that takes one whole.

    Attributes:
        size: chips along it.
        wraps: whether its ends are joined.
    """

    size: int
    wraps: bool

    @property
    def hops(self) -> float:
        """Steps until everyone has heard from everyone: X / 2 around a ring both ways, X - 1 along a line."""
        return self.size / 2 if self.wraps else self.size - 1

    def bandwidth(self, link: float) -> float:
        """Bytes a second that a chip takes in along it: both links of a ring, one at the end of a line.

        Args:
            link: bytes a second of one link, one way.
        """
        return 2 * link if self.wraps else link


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of a tree of switches.

    Attributes:
        degree: children of one switch.
        below: GPUs of one child.
        bytes_per_second: of the link from one child to it, one way.
    """

    degree: int
    below: int
    bytes_per_second: float


def switch_tree(degrees: Sequence[int], links: Sequence[float]) -> tuple[Level, ...]:
    """A tree from its children at each level, from the node up, and the bandwidth of the link to one child."""
    below = itertools.accumulate(degrees[:-1], operator.mul, initial=1)
    return tuple(
        Level(degree=degree, below=gpus, bytes_per_second=link)
        for degree, gpus, link in zip(degrees, below, links, strict=True)
    )


def _torus(chip: Chip) -> Torus:
    if chip.torus is None:
        raise ValueError(f"{chip.name}: only TPUs come in slices; give a number of GPUs instead of a shape")
    return chip.torus


def slice_shapes(chip: Chip, num_chips: int) -> tuple[tuple[int, ...], ...]:
    """The shapes that a slice of so many chips may have, the most compact first, which is the one to take by default.

    Compact means the smallest sum of sides, then the least long side: `v5p`, 128 chips -> (4, 4, 8).

    Returns:
        Chips along each dim, in rising order; none where there is no such slice.

    Raises:
        ValueError: the chip is a GPU.
    """
    torus = _torus(chip)
    found = [shape for shape in _factors(num_chips, len(torus.pod_shape)) if _is_slice(torus, shape)]
    return tuple(sorted(found, key=lambda shape: (sum(shape), max(shape))))


def _factors(number: int, num_dims: int) -> list[tuple[int, ...]]:
    """Every way to write a number as so many factors in rising order."""
    if num_dims == 1:
        return [(number,)]
    firsts = (first for first in range(1, math.isqrt(number) + 1) if number % first == 0)
    return [(first, *rest) for first in firsts for rest in _factors(number // first, num_dims - 1) if first <= rest[0]]


def _is_slice(torus: Torus, shape: Sequence[int]) -> bool:
    small, *_, large = ordered = tuple(sorted(shape))
    if math.prod(shape) == 1:
        return torus.single_chip
    if len(shape) == 2:
        # Sides are powers of two, one at most twice the other.
        return small >= 2 and large in (small, 2 * small) and large & (large - 1) == 0 and large <= max(torus.pod_shape)
    if all(size % torus.wrap_multiple == 0 for size in shape):
        # Optical switches join cubes in any box, as long as the pod has as many.
        return math.prod(shape) <= math.prod(torus.pod_shape)
    return ordered in ((1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4))


def slice_sizes(chip: Chip) -> tuple[int, ...]:
    """Every number of chips that a slice can have, rising.

    Raises:
        ValueError: the chip is a GPU.
    """
    torus = _torus(chip)
    pod = math.prod(torus.pod_shape)
    small = [2**power for power in range(pod.bit_length())]
    if len(torus.pod_shape) == 2:
        return tuple(size for size in small if slice_shapes(chip, size))
    # Any number of cubes is a slice, at least as a row of them.
    cube = torus.wrap_multiple**3
    return (*(size for size in small if size < cube and slice_shapes(chip, size)), *range(cube, pod + 1, cube))


def check_slice(chip: Chip, shape: Sequence[int]) -> None:
    """Whether a slice may have this shape, in any order of its dims.

    Raises:
        ValueError: it may not, or the chip is a GPU.
    """
    torus = _torus(chip)
    name = "x".join(map(str, shape))
    if len(shape) != len(torus.pod_shape):
        raise ValueError(
            f"{chip.name}: {name} has {len(shape)} dims; give {len(torus.pod_shape)}, as in {_example(chip)}"
        )
    if min(shape) < 1 or not _is_slice(torus, shape):
        near = nearest_sizes(chip, math.prod(shape))
        shapes = ", ".join("x".join(map(str, option)) for size in near for option in slice_shapes(chip, size)[:2])
        raise ValueError(f"{chip.name}: there is no slice of shape {name}; near it there are {shapes}")


def _example(chip: Chip) -> str:
    return "x".join(map(str, slice_shapes(chip, 16)[0]))


def nearest_sizes(chip: Chip, num_chips: int) -> tuple[int, ...]:
    """The slice sizes next to a number of chips: itself, or one below and one above, where there are such.

    Raises:
        ValueError: the chip is a GPU.
    """
    sizes = slice_sizes(chip)
    if num_chips in sizes:
        return (num_chips,)
    below = [size for size in sizes if size < num_chips]
    above = [size for size in sizes if size > num_chips]
    return (*below[-1:], *above[:1])


def smallest_slice(chip: Chip, num_chips: int) -> tuple[int, ...]:
    """The shape of the smallest slice with at least so many chips.

    Raises:
        ValueError: a pod has fewer, or the chip is a GPU.
    """
    sizes = [size for size in slice_sizes(chip) if size >= num_chips]
    if not sizes:
        raise ValueError(f"{chip.name}: no slice has {num_chips} chips; a pod has {slice_sizes(chip)[-1]}")
    return slice_shapes(chip, sizes[0])[0]


def torus_axes(chip: Chip, shape: Sequence[int]) -> tuple[TorusAxis, ...]:
    """The dims of a slice with their wraparound links.

    Raises:
        ValueError: there is no slice of this shape, or the chip is a GPU.
    """
    check_slice(chip, shape)
    torus = _torus(chip)
    closed = [size % torus.wrap_multiple == 0 for size in shape]
    if len(shape) == 3:
        closed = [all(closed)] * 3
    return tuple(TorusAxis(size=size, wraps=wraps) for size, wraps in zip(shape, closed, strict=True))


def num_hosts(chip: Chip, num_chips: int) -> int:
    """Hosts of so many chips of a slice, or nodes of so many GPUs."""
    per_host = math.prod(chip.torus.host_shape) if chip.torus else chip.node.size if chip.node else 1
    return -(-num_chips // per_host)


def num_links(axes: Sequence[TorusAxis]) -> int:
    """Links between chips of a slice: along each dim X to a ring and X - 1 to a line."""
    chips = math.prod(axis.size for axis in axes)
    # A ring of two would be the same pair joined twice.
    return sum(chips // axis.size * (axis.size if axis.wraps else axis.size - 1) for axis in axes)


def torus_bisection(axes: Sequence[TorusAxis], link: float) -> float:
    """Bytes a second, both ways together, between two halves of a slice, cut where the fewest links are.

    Args:
        axes: dims of the slice.
        link: bytes a second of one link, one way.
    """
    chips = math.prod(axis.size for axis in axes)
    return min(2 * chips // axis.size * axis.bandwidth(link) for axis in axes if axis.size > 1)


def gpu_tree(chip: Chip, num_gpus: int) -> tuple[Level, ...]:
    """The levels of switches above so many GPUs, from the node up, each with as many children as they fill.

    Every level has full bisection: a child's link is as wide as those of all nodes below it. Beyond the unit that the
    vendor builds, one more level joins as many units as it takes. A single GPU has no level.

    Raises:
        ValueError: the chip is a TPU.
    """
    if chip.node is None:
        raise ValueError(f"{chip.name}: TPUs are joined by a torus; give the slice's shape")
    inside = chip.nvlink_bytes_per_second or chip.host_bytes_per_second
    degrees, links = [min(chip.node.size, num_gpus)], [inside]
    children, link = -(-num_gpus // chip.node.size), chip.node.egress_bytes_per_second
    for limit in (*chip.node.fabric, children):
        degrees.append(min(limit, children))
        links.append(link)
        children, link = -(-children // degrees[-1]), link * degrees[-1]
    return tuple(level for level in switch_tree(degrees, links) if level.degree > 1)


def tree_bisection(levels: Sequence[Level]) -> float:
    """Bytes a second, both ways together, between two halves of the GPUs below a tree, through its narrowest level."""
    gpus = math.prod(level.degree for level in levels)
    return min(gpus // level.below * level.bytes_per_second for level in levels)


def spanned(levels: Sequence[Level], size: int, *, inner: int = 1) -> tuple[Level, ...]:
    """The levels of a tree as one mesh axis sees them: with as many children as it reaches at each.

    Args:
        levels: of the tree, from the node up.
        size: devices along the axis.
        inner: devices along all axes inside it, which take neighbours first.

    Returns:
        As many levels, of degree 1 where the axis stays within one child.
    """
    result = []
    for level in levels:
        extent = min(size * inner, level.below * level.degree)
        degree = max(1, extent // max(level.below, inner))
        result.append(Level(degree=degree, below=level.below, bytes_per_second=level.bytes_per_second))
    return tuple(result)
