"""Reads compiled HLO: which collectives a program runs, over which mesh axes, how large, and in which loops.

A collective is counted once an array, so that it does not matter how many the compiler combined into one instruction,
and once for a start and its done. The TPU compiler writes a reduce-scatter along a ring of chips as a fusion: an
all-reduce inside a computation named `all-reduce-scatter`. What crosses slices is not a collective of HLO but a `send`
to the host whose attributes say what it is part of; it gets the axis `slice`.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ARRAY = re.compile(r"\b([a-z]+\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
_LINE = re.compile(r"\s+(?:ROOT )?%[\w.\-]+ = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)")
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array moved between devices.

    Attributes:
        kind: HLO's name of what is done.
        axes: mesh axes whose devices take part, in the mesh's order; or `slice`.
        loops: scopes of the loops around it, outermost first, such as `micro_batches` and `transpose(jvp(blocks))`.
        size: bytes of the result on one device; of a TPU's reduce-scatter, of what goes in.
    """

    kind: str
    axes: tuple[str, ...]
    loops: tuple[str, ...]
    size: int


def collectives(text: str, mesh: Mapping[str, int]) -> Iterator[Collective]:
    """All collectives of a compiled module.

    Args:
        text: of the module.
        mesh: sizes of its axes, in order; devices are numbered in the order of the mesh.
    """
    computations, entry = _parse(text)
    queue: list[tuple[str, tuple[str, ...]]] = [(entry, ())]
    while queue:
        name, loops = queue.pop()
        for result, opcode, rest in computations[name]:
            inside = (*loops, _scope(rest)) if opcode == "while" else loops
            for called in _CALLED.findall(rest):
                queue += [(other, inside) for other in re.findall(r"%([\w.\-]+)", called)]
            kind = opcode.removesuffix("-start")
            if kind == "send" and (transfer := _TRANSFER.search(rest)):
                kind, axes = transfer[1].lower().replace("_", "-"), ("slice",)
            elif kind in _KINDS:
                axes = _axes(rest, mesh)
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
            else:
                continue
            for size in _sizes(result, opcode, rest):
                yield Collective(kind, axes, loops, size)


def count(found: Iterable[Collective], *, at_least: int = 0) -> dict[tuple, int]:
    """How many arrays of at least so many bytes there are of each (loops, kind, axes)."""
    return dict(Counter((x.loops, x.kind, x.axes) for x in found if x.size >= at_least))


def _parse(text: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
    """Computation -> (result, opcode, what follows) of its instructions, and the entry's name."""
    computations: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    entry, current = "", ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            current = head[2]
            entry = current if head[1] else entry
        elif found := _LINE.match(line):
            computations[current].append((found[1], found[2], found[3]))
    assert entry, "this is not the text of a compiled module"
    return computations, entry


def _scope(rest: str) -> str:
    """`... op_name="jit(step)/micro_batches/while" ...` -> `micro_batches`."""
    found = re.search(r'op_name="(?:[^"]*/)?([^"/]*)/while"', rest)
    return found[1] if found else ""


def _sizes(result: str, opcode: str, rest: str) -> list[int]:
    """Bytes of each array of a result; a start's begins with its operands, a send's ends with its bookkeeping."""
    arrays = _ARRAY.findall(result)
    num = len(re.findall(r"%", rest.partition(")")[0]))
    if opcode == "send":
        arrays = arrays[:1]
    elif opcode.endswith("-start") and len(arrays) >= 2 * num:
        arrays = arrays[num : 2 * num]
    sizes = []
    for dtype, dims in arrays:
        bits = int(re.findall(r"\d+", dtype)[0])
        sizes.append(math.prod(int(n) for n in dims.split(",") if n) * bits // 8)
    return sizes


def _axes(rest: str, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes over which the members of a group differ."""
    groups = np.array(_groups(rest, math.prod(mesh.values())))
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())), axis=-1)
    differ = (places != places[:, :1]).any(axis=(0, 1))
    return tuple(axis for axis, yes in zip(mesh, differ, strict=True) if yes)


def _groups(rest: str, num: int) -> list[list[int]]:
    """The groups of device numbers, from any of the forms that HLO writes them in."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        over = [list(sizes).index(axis) for axis in re.findall(r"'(\w+)'", found[2])]
        places = np.moveaxis(np.arange(num).reshape(tuple(sizes.values())), over, range(-len(over), 0))
        return places.reshape(-1, math.prod(places.shape[-len(over) :])).tolist()
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dims, order = ([int(n) for n in part.split(",")] if part else None for part in found.groups())
        assert shape is not None and dims is not None
        return np.arange(num).reshape(dims).transpose(order).reshape(shape).tolist()
    found = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]+\})\}", rest)
    assert found, f"no groups of devices in {rest[:200]}"
    return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])]
