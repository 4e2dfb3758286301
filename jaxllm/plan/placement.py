"""Which links each axis of a mesh gets, and how long collectives over it take there.

On a torus the mesh is laid as jax lays it (`jax.experimental.mesh_utils`, `allow_split_physical_axes`): from the last
axis of the mesh to the first, each takes whole dims whose product is its size, as many as it can; where that fails for
any of them, all are laid anew and may split dims, whole dims first. The part of a dim is a line of neighbours for the
axis laid first; for the next one its steps are as long as that line, so that as many transfers share each link.

On GPUs the last axis takes neighbours first: it lies within a node as long as nodes last.

What crosses slices goes through each chip's share of the data-centre network.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

from jaxllm.config import AXES
from jaxllm.plan.target import Target
from jaxllm.roofline.collectives import HOP_SECONDS, tree_all_gather_seconds, tree_all_to_all_seconds
from jaxllm.roofline.communication import Transfer
from jaxllm.roofline.topology import Level, TorusAxis, spanned


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A dim of the torus, or part of one, that a mesh axis lies over.

    Attributes:
        dim: which dim of the slice.
        axis: chips along it, and whether they close to a ring.
        sharing: transfers that share each link: the length of the parts of the dim inside this one.
    """

    dim: int
    axis: TorusAxis
    sharing: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """A mesh on a target.

    Attributes:
        target: the chips.
        sizes: devices along each mesh axis.
        pieces: mesh axis -> its parts of the torus, within a slice; empty for GPUs.
        slices: mesh axis -> how many slices it crosses.
    """

    target: Target
    sizes: Mapping[str, int]
    pieces: Mapping[str, tuple[Piece, ...]]
    slices: Mapping[str, int]

    def seconds(self, one: Transfer) -> float:
        """How long a collective takes at full bandwidth; the largest of a device's bytes count."""
        inside = _torus_seconds(self, one) if self.target.shape else _tree_seconds(self, one)
        if self.target.num_slices == 1:
            return inside
        crossed = math.prod(self.slices[axis] for axis in one.axes)
        # behind the sum within a slice each of its devices has its own part to send
        within = math.prod(self.sizes[axis] // self.slices[axis] for axis in one.axes)
        share = 1 / within if one.kind != "collective-permute" else 1
        ways = 2 if one.kind == "all-reduce" else 1
        network = self.target.chip.dcn_bytes_per_second / self.target.chip.devices_per_chip
        return inside + ways * one.size * share * (crossed - 1) / crossed / network

    @functools.cached_property
    def spans(self) -> Mapping[str, tuple[int, tuple[Level, ...]]]:
        """Of each mesh axis on GPUs: devices along the axes inside it, and the levels of switches it reaches."""
        found, inner = {}, 1
        for axis in reversed(AXES):
            found[axis] = inner, spanned(self.target.switches, self.sizes[axis], inner=inner)
            inner *= self.sizes[axis]
        return found

    @functools.cached_property
    def routes(self) -> "dict[tuple[str, ...], _Route | None]":
        """On a torus, what groups of axes have of it, as they are asked for."""
        return {}

    def describe(self, axis: str) -> str:
        """Where a mesh axis lies, for people: `8 (dim z, ring)`."""
        if not self.target.shape:
            return _describe_tree(self, axis)
        parts = []
        for piece in self.pieces[axis]:
            name = "xyzc"[piece.dim] if piece.dim < len(self.target.shape) else "cores"
            whole = "ring" if piece.axis.wraps else "line"
            part = f"{piece.axis.size} of {name}" if self._is_part(piece) else name
            parts.append(f"{part} ({whole})")
        if self.slices[axis] > 1:
            parts.insert(0, f"{self.slices[axis]} slices")
        return " x ".join(parts) or "-"

    def _is_part(self, piece: Piece) -> bool:
        return piece.axis.size != self.target.torus[piece.dim].size


def place(target: Target, sizes: Mapping[str, int], slices: Mapping[str, int]) -> Placement:
    """Lay a mesh on a target.

    Args:
        target: whose devices the sizes multiply to.
        sizes: devices along every mesh axis.
        slices: how many slices each axis crosses, as `mesh_sizes.slice_sizes` says.
    """
    pieces: Mapping[str, tuple[Piece, ...]] = {}
    if target.shape:
        within = tuple(sizes[axis] // slices[axis] for axis in AXES)
        pieces = dict(zip(AXES, lay(target.torus, within), strict=True))
    return Placement(target=target, sizes=sizes, pieces=pieces, slices=slices)


@functools.lru_cache(maxsize=100_000)
def lay(torus: tuple[TorusAxis, ...], sizes: tuple[int, ...]) -> tuple[tuple[Piece, ...], ...]:
    """For each axis of a mesh, its pieces of a torus; the product of the sizes is that of the dims."""
    assignment = _whole_dims([dim.size for dim in torus], sizes) or _split_dims([dim.size for dim in torus], sizes)
    inside, laid = [1] * len(torus), []
    for factors in reversed(assignment):
        found = []
        for dim, factor in enumerate(factors):
            if factor > 1:
                whole = factor == torus[dim].size
                closes = torus[dim].wraps and factor * inside[dim] == torus[dim].size and (whole or inside[dim] > 1)
                found.append(Piece(dim=dim, axis=TorusAxis(size=factor, wraps=closes), sharing=inside[dim]))
                inside[dim] *= factor
        laid.append(tuple(found))
    return tuple(reversed(laid))


def _whole_dims(dims: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, ...]] | None:
    """Each axis as a product of whole dims, the last axis first, as many dims as it can; None where one cannot be."""
    free, result = list(dims), []
    for size in reversed(sizes):
        subsets = (
            subset
            for num in range(len(dims), 0, -1)
            for subset in itertools.combinations(range(len(dims)), num)
            if math.prod(free[dim] for dim in subset) == size
        )
        chosen = next(subsets, None)
        if chosen is None and size > 1:
            return None
        result.append(tuple(dims[dim] if chosen and dim in chosen else 1 for dim in range(len(dims))))
        free = [0 if chosen and dim in chosen else size for dim, size in enumerate(free)]
    return result[::-1]


def _split_dims(dims: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Each axis as a product of parts of dims, the last axis first; which parts, as jax prefers them."""
    taken, result = [1] * len(dims), []
    for size in reversed(sizes):
        best = max(
            _factorings(size, [dim // used for dim, used in zip(dims, taken, strict=True)]), key=_preferred(dims, taken)
        )
        result.append(best)
        taken = [used * part for used, part in zip(taken, best, strict=True)]
    return result[::-1]


def _factorings(size: int, free: Sequence[int]) -> list[tuple[int, ...]]:
    """Every way to write a size as parts of what is free of each dim."""
    if len(free) == 1:
        return [(size,)] if free[0] % size == 0 else []
    firsts = (part for part in range(1, size + 1) if size % part == 0 and free[0] % part == 0)
    return [(first, *rest) for first in firsts for rest in _factorings(size // first, free[1:])]


def _preferred(dims: Sequence[int], taken: Sequence[int]):
    """What jax prefers: whole dims, many of them, parts of dims that are already begun, then the first dims."""

    def key(parts: tuple[int, ...]) -> tuple:
        whole = [part for part, dim in zip(parts, dims, strict=True) if part == dim]
        begun = math.prod(part for part, used in zip(parts, taken, strict=True) if used > 1)
        return math.prod(whole), sum(part > 1 for part in whole), begun, parts

    return key


@dataclasses.dataclass(frozen=True)
class _Route:
    """What some axes of a mesh have of a torus: bytes a second of a gather and of one step, and seconds of latency.

    `spread` are seconds that an all-to-all takes for a byte of each device: its longest dim binds (the book, F18, F19).
    """

    gather: float
    step: float
    latency: float
    spread: float


def _route(target: Target, pieces: Sequence[Piece]) -> _Route:
    """The book's widths (`roofline.collectives`), with links that are shared counted as narrower."""
    chip = target.chip
    assert chip.ici_bytes_per_second is not None
    link = chip.ici_bytes_per_second / chip.devices_per_chip
    width = hops = spread = 0.0
    for piece in pieces:
        axis = piece.axis
        ends = 1 if axis.wraps else axis.size / (axis.size - 1)
        width += axis.bandwidth(link) / piece.sharing * ends
        hops += axis.hops * piece.sharing
        spread = max(spread, axis.size / axis.bandwidth(link) * piece.sharing / 4)
    return _Route(width, link / min(piece.sharing for piece in pieces), HOP_SECONDS * hops, spread)


def _torus_seconds(placement: Placement, one: Transfer) -> float:
    """Latency or bandwidth, whichever binds; without a piece within the slice, nothing moves there."""
    if one.axes not in placement.routes:
        pieces = [piece for axis in one.axes for piece in placement.pieces[axis]]
        placement.routes[one.axes] = _route(placement.target, pieces) if pieces else None
    route = placement.routes[one.axes]
    if route is None:
        return 0.0
    if one.kind == "collective-permute":
        return max(HOP_SECONDS, one.size / route.step)
    if one.kind == "all-to-all":
        return max(route.latency, one.size * route.spread)
    return (2 if one.kind == "all-reduce" else 1) * max(route.latency, one.size / route.gather)


def _tree_seconds(placement: Placement, one: Transfer) -> float:
    """One mesh axis after the other, the innermost first."""
    total, size = 0.0, one.size
    for axis in reversed(one.axes):
        inner, reached = placement.spans[axis]
        if one.kind == "collective-permute":
            slowest = min(
                (level.bytes_per_second / level.below for level in reached if level.degree > 1), default=math.inf
            )
            total += size / slowest
            continue
        if one.kind == "all-to-all":
            devices = placement.sizes[axis]
            total += tree_all_to_all_seconds(size * devices * inner, reached, inner=inner)
            continue
        # what the devices inside gather at the same time shares the links, whether it is the same or not
        ways = 2 if one.kind == "all-reduce" else 1
        total += ways * tree_all_gather_seconds(size * inner, reached, inner=inner)
    return total


def _describe_tree(placement: Placement, axis: str) -> str:
    node = placement.target.chip.node
    size = placement.sizes[axis]
    inner = math.prod(placement.sizes[other] for other in AXES[AXES.index(axis) + 1 :])
    assert node is not None
    if size == 1:
        return "-"
    inside = max(1, min(size, node.size // inner)) if inner < node.size else 1
    if inside == size:
        return "within a node"
    return f"{inside} in a node x {size // inside} nodes" if inside > 1 else "across nodes"
