"""How long collectives take, from bytes, links and hops: rings and tori of TPUs, trees of GPUs.

`size` is V, the bytes of the whole array: as it is after an all-gather, and before a reduce-scatter or an all-reduce of
it. Where the array stays sharded over other axes, `elsewhere` (on a torus) or `inner` (on a tree) says over how many
devices. Bandwidths are bytes a second one way; a ring of TPUs has twice that, W = 2 w, as the book counts it. Times are
seconds; they are lower bounds, reached by large messages only.

On a torus, over axes with X_i chips each,

    all-gather      max(t sum(h_i), V / sum(w_i))     h hops: X / 2 on a ring, X - 1 on a line
                                                      w in a chip: W on a ring, w X / (X - 1) on a line
    all-reduce      twice that: a reduce-scatter, then an all-gather
    all-to-all      V max_i(X_i / w_i) / (4 N)        N the product of all X: the narrowest cut of the box

A gather costs the same whatever the number of chips, and half as much over two axes as over one. The all-to-all's V is
the bytes on all N chips together, and on one ring it is a quarter of the all-gather.

On a tree, with D_i children on links W_i at level i, and S_i GPUs below it,

    all-gather      V max_i (D_i - 1) / (D_i W_i) S_(i-1) / max(Y, S_(i-1)) where Y GPUs inside hold other shards

Sources: the book, chapter 3 (sharded matrices) and the GPU chapter (collectives); formulas F14 to F30.
"""

import math
from collections.abc import Sequence

from jaxllm.roofline.topology import Level, TorusAxis

HOP_SECONDS = 1e-6
"""Latency of one hop between TPUs, about (the book, chapter 3)."""


def all_gather_seconds(
    size: float, axes: Sequence[TorusAxis], *, link: float, hop: float = HOP_SECONDS, elsewhere: int = 1
) -> float:
    """All-gather over axes of a torus; a reduce-scatter takes as long. The book, chapter 3 (F14, F15).

    Args:
        size: bytes of the whole array.
        axes: dims that the array is gathered over; those of one chip cost nothing.
        link: bytes a second of one link, one way.
        hop: seconds of latency a hop.
        elsewhere: devices of other axes that the array stays sharded over.
    """
    axes = [axis for axis in axes if axis.size > 1]
    if not axes:
        return 0.0
    # At the end of a line a chip hears from one side only, but has no need of its own shard.
    width = sum(axis.bandwidth(link) * (1 if axis.wraps else axis.size / (axis.size - 1)) for axis in axes)
    return max(hop * sum(axis.hops for axis in axes), size / elsewhere / width)


def reduce_scatter_seconds(
    size: float, axes: Sequence[TorusAxis], *, link: float, hop: float = HOP_SECONDS, elsewhere: int = 1
) -> float:
    """Reduce-scatter over axes of a torus: an all-gather run backwards. The book, chapter 3 (F14)."""
    return all_gather_seconds(size, axes, link=link, hop=hop, elsewhere=elsewhere)


def all_reduce_seconds(
    size: float, axes: Sequence[TorusAxis], *, link: float, hop: float = HOP_SECONDS, elsewhere: int = 1
) -> float:
    """All-reduce over axes of a torus: a reduce-scatter and an all-gather. The book, chapter 3 (F17)."""
    return 2 * all_gather_seconds(size, axes, link=link, hop=hop, elsewhere=elsewhere)


def all_to_all_seconds(
    size: float, axes: Sequence[TorusAxis], *, link: float, hop: float = HOP_SECONDS, elsewhere: int = 1
) -> float:
    """All-to-all over axes of a torus. The book, chapter 3 (F18, F19).

    The longest axis binds: its middle is crossed by a quarter of all bytes each way. A line has half as many links
    there as a ring, so it takes twice as long.

    Args:
        size: bytes of the array on all chips of these axes together.
        axes: dims that take part.
        link: bytes a second of one link, one way.
        hop: seconds of latency a hop.
        elsewhere: devices of other axes that the array stays sharded over.
    """
    axes = [axis for axis in axes if axis.size > 1]
    if not axes:
        return 0.0
    chips = math.prod(axis.size for axis in axes)
    longest = max(axis.size / axis.bandwidth(link) for axis in axes)
    return max(hop * sum(axis.hops for axis in axes), size / elsewhere * longest / (4 * chips))


def ring_hop_seconds(size: float, num_devices: int, *, link: float, hop: float = HOP_SECONDS) -> float:
    """One step of an all-gather around a ring: a shard over every link in use. The book, chapter 3 (F16)."""
    return max(hop, size / num_devices / link)


def ring_hops(num_devices: int, *, bidirectional: bool = True) -> int:
    """Steps of an all-gather around a ring. The book, chapter 3 (F16)."""
    return num_devices // 2 if bidirectional else num_devices - 1


def all_gather_link_share(num_devices: int) -> float:
    """The part of an array that crosses one link of a one-way ring in an all-gather: 1 - 1 / D. Chapter 3 (F20)."""
    return 1 - 1 / num_devices


def all_to_all_link_share(num_devices: int, *, bidirectional: bool = True) -> float:
    """The part of an array that crosses one link of a ring, one way, in an all-to-all. The book, chapter 3 (F20).

    A piece is 1 / D^2 of the array and travels as many links as its target is away: (1 - 1 / D) / 2 one way round; both
    ways 1 / 8 for an even number of devices, (1 - 1 / D^2) / 8 for an odd one.
    """
    if not bidirectional:
        return (1 - 1 / num_devices) / 2
    return (1 - (num_devices % 2) / num_devices**2) / 8


def latency_bound_bytes(*, link: float, hop: float = HOP_SECONDS) -> float:
    """Bytes of a shard below which a hop's latency takes longer than its bytes: w t. The book, chapter 3 (F21)."""
    return link * hop


def latency_bound_axis(size: float, *, link: float, hop: float = HOP_SECONDS) -> float:
    """Devices along an axis from which on an array's collective is bound by latency: V / (w t). Chapter 7 (F21)."""
    return size / latency_bound_bytes(link=link, hop=hop)


def send_seconds(size: float, *, link: float, num_hops: int = 1, num_ports: int = 1, hop: float = HOP_SECONDS) -> float:
    """From one chip to another, over several ports at once. The book, chapter 2 (F22).

    Args:
        size: bytes.
        link: bytes a second of one link, one way.
        num_hops: links on the way; their latencies add up, their bytes do not.
        num_ports: links that leave the chip towards the other.
        hop: seconds of latency a hop.
    """
    return size / (num_ports * link) + num_hops * hop


def tree_all_gather_seconds(size: float, levels: Sequence[Level], *, inner: int = 1) -> float:
    """All-gather over the GPUs below a tree; a reduce-scatter takes as long. The book, GPU chapter (F25, F27, F29).

    The levels work at the same time, and the slowest binds. What GPUs inside the axis hold is gathered in the same
    groups of links: on a link with S GPUs below it, min(Y, S) of the Y different shards compete.

    Args:
        size: bytes of the whole array.
        levels: of the tree, from the node up; `topology.spanned` gives those of a mesh axis.
        inner: devices that the array stays sharded over, on axes inside this one.
    """
    return max(
        (
            size * (level.degree - 1) / level.degree / level.bytes_per_second * level.below / max(inner, level.below)
            for level in levels
        ),
        default=0.0,
    )


def tree_all_reduce_seconds(size: float, levels: Sequence[Level], *, inner: int = 1, in_network: bool = False) -> float:
    """All-reduce over the GPUs below a tree. The book, GPU chapter (F25, F29).

    Args:
        size: bytes of the whole array.
        levels: of the tree, from the node up.
        inner: devices that the array stays sharded over, on axes inside this one.
        in_network: whether switches add up (SHARP): each link then carries every byte once instead of twice. Measured
            gains are about 30 %, not 75 %.
    """
    if not in_network:
        return 2 * tree_all_gather_seconds(size, levels, inner=inner)
    spanned = (level for level in levels if level.degree > 1)
    return max(
        (size / level.bytes_per_second * level.below / max(inner, level.below) for level in spanned), default=0.0
    )


def tree_all_to_all_seconds(size: float, levels: Sequence[Level], *, inner: int = 1) -> float:
    """All-to-all over the GPUs below a tree. The book, GPU chapter (F26, F28).

    Nothing is summed or shared on the way: a child with a part p of an axis' GPUs
    sends what is for the others, V p (1 - p).

    Args:
        size: bytes of the array on all GPUs of the axis together, the shards of `inner` devices included.
        levels: of the tree, from the node up; `topology.spanned` gives those of a mesh axis.
        inner: devices that the array stays sharded over, on axes inside this one.
    """
    gpus = math.prod(level.degree for level in levels)
    slowest = 0.0
    for level in (level for level in levels if level.degree > 1):
        part = max(1, level.below / inner) / gpus
        competing = min(inner, level.below) / inner
        slowest = max(slowest, size * competing * part * (1 - part) / level.bytes_per_second)
    return slowest


def tree_bandwidth(levels: Sequence[Level]) -> float:
    """Bytes a second at which a tree gathers a whole array: min of D_i W_i / (D_i - 1). GPU chapter (F27)."""
    return min(level.degree * level.bytes_per_second / (level.degree - 1) for level in levels if level.degree > 1)


def sharded_over_node_seconds(size: float, *, gpu: float, node: float, node_size: int = 8, inner: int = 1) -> float:
    """All-gather across nodes of an array that `inner` GPUs hold shards of; without the (N - 1) / N. F29, simple form.

    The book, GPU chapter: a node gains min(Y, node size), the network the nodes that Y spans. Where Y spans more than
    about nine nodes, the node's term is too slow, since an axis outside whole nodes moves nothing within them.

    Args:
        size: bytes of the whole array.
        gpu: bytes a second out of one GPU, one way.
        node: bytes a second out of one node, one way.
        node_size: GPUs of a node.
        inner: Y, devices that the array stays sharded over, on axes inside this one.
    """
    return max(size / gpu / min(inner, node_size), size / node * node_size / max(node_size, inner))


def ragged_share(num_chosen: int, num_devices: int) -> float:
    """The part of an array that leaves where each row goes to k of Z devices: min(k / Z, 1) (Z - 1) / Z.

    A ragged all-to-all within a node takes V / (Z W) times this; in `tree_all_to_all_seconds` the (Z - 1) / Z of what a
    device keeps is counted already. The book, GPU chapter (F26).
    """
    return min(num_chosen / num_devices, 1) * (num_devices - 1) / num_devices


def expected_ragged_share(num_chosen: int, num_devices: int) -> float:
    """`ragged_share` where the k devices are drawn at random and may repeat: (1 - ((Z - 1) / Z)^k) (Z - 1) / Z."""
    stays = (num_devices - 1) / num_devices
    return (1 - stays**num_chosen) * stays


def bus_bandwidth(size: float, seconds: float, num_devices: int) -> float:
    """Bytes a second over each link that a measured all-reduce means: 2 V (N - 1) / (N t). GPU chapter (F30)."""
    return 2 * size * (num_devices - 1) / (num_devices * seconds)
