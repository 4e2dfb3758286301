"""Reads compiled HLO: which collectives a program runs, over which mesh axes, how large, in which loops, how often.

A collective is counted once an array, so that it does not matter how many the compiler combined into one instruction,
and once for a start and its done. The TPU compiler writes a reduce-scatter along a ring of chips as a fusion: an
all-reduce inside a computation named `all-reduce-scatter`. What crosses slices is not a collective of HLO but a `send`
to the host whose attributes say what it is part of; it gets the axis `slice`. One that the TPU compiler overlaps with
a product is written into three fusions, its start, its middle and its end, which share its channel.

How often a loop runs the GPU and CPU compilers write beside it; the TPU compiler leaves it to the loop's condition,
which compares a counter that begins at zero with a constant. A loop whose number of turns only the data decide, such as
the rounds in which tokens travel to experts (see layers/exchange), counts as one turn.
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
_LINE = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array moved between devices.

    Attributes:
        kind: HLO's name of what is done.
        axes: mesh axes whose devices take part, in the mesh's order; or `slice`.
        loops: scopes of the loops around it, outermost first, such as `micro_batches` and `transpose(jvp(blocks))`.
        size: bytes on one device: of an all-gather what it gives, of a reduction what it takes, of a permute what it
            sends.
        repeats: how often the loops around it run it.
    """

    kind: str
    axes: tuple[str, ...]
    loops: tuple[str, ...]
    size: int
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
        name: of what it makes.
        result: types of what it makes.
        opcode: what it does.
        rest: operands, behind the opening parenthesis, and attributes.
    """

    name: str
    result: str
    opcode: str
    rest: str


@dataclasses.dataclass(frozen=True)
class Placed:
    """An instruction and where it runs.

    Attributes:
        instruction: the line.
        computation: name of the computation that it is part of.
        loops: as in `Collective`.
        repeats: as in `Collective`.
        fused: whether it is part of a fusion, a reduction's function or the like, and makes no array of its own.
    """

    instruction: Instruction
    computation: str
    loops: tuple[str, ...]
    repeats: int
    fused: bool


type Program = tuple[dict[str, list[Instruction]], str]
"""Computation -> its instructions; and the entry's name."""


def collectives(text: str, mesh: Mapping[str, int]) -> Iterator[Collective]:
    """All collectives of a compiled module.

    Args:
        text: of the module.
        mesh: sizes of its axes, in order; devices are numbered in the order of the mesh.
    """
    overlapped: set[tuple[str, tuple[str, ...]]] = set()
    for placed in walk(parse(text)):
        rest = placed.instruction.rest
        if 'chain_id="' in rest and (channel := _CHANNEL.search(rest)):
            place = channel[1], placed.loops
            if place in overlapped:
                continue
            overlapped.add(place)
        for kind, axes, size in moved(placed.instruction, placed.computation, mesh):
            yield Collective(kind, axes, placed.loops, size, placed.repeats)


def moved(one: Instruction, computation: str, mesh: Mapping[str, int]) -> list[tuple[str, tuple[str, ...], int]]:
    """What an instruction moves between devices: kind, axes and bytes of each array, as in `Collective`."""
    opcode, rest = one.opcode, one.rest
    kind, scattered = opcode.removesuffix("-start"), 1
    if kind == "send" and (transfer := _TRANSFER.search(rest)):
        kind, axes = transfer[1].lower().replace("_", "-"), ("slice",)
    elif kind in _KINDS:
        groups = _groups(rest, math.prod(mesh.values()))
        axes = _axes(groups, mesh)
        if kind == "reduce-scatter":
            scattered = len(groups[0])
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
    else:
        return []
    return [(kind, axes, size * scattered) for size in _sizes(one.result, opcode, rest)]


def count(found: Iterable[Collective], *, at_least: int = 0) -> dict[tuple, int]:
    """How many arrays of at least so many bytes there are of each (loops, kind, axes)."""
    return dict(Counter((x.loops, x.kind, x.axes) for x in found if x.size >= at_least))


def parse(text: str) -> Program:
    """A module's text as computations."""
    computations: dict[str, list[Instruction]] = defaultdict(list)
    entry, current = "", ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            current = head[2]
            entry = current if head[1] else entry
        elif found := _LINE.match(line):
            computations[current].append(Instruction(*found.groups()))
    assert entry, "this is not the text of a compiled module"
    return computations, entry


def walk(program: Program) -> Iterator[Placed]:
    """Every instruction wherever it is called from."""
    computations, entry = program
    queue: list[tuple[str, tuple[str, ...], int, bool]] = [(entry, (), 1, False)]
    while queue:
        name, loops, repeats, fused = queue.pop()
        for one in computations[name]:
            yield Placed(one, name, loops, repeats, fused)
            called = calls(one)
            if one.opcode == "while":
                times = repeats * turns(one, computations)
                queue += [(other, (*loops, _scope(one.rest)), times, fused) for other in called]
            else:
                within = fused or one.opcode not in ("call", "call-start", "conditional", "async-start")
                queue += [(other, loops, repeats, within) for other in called]


def sizes_of(types: str) -> list[tuple[int, int]]:
    """(values, bits of a value) of each array in a type's text."""
    return [
        (math.prod(int(n) for n in dims.split(",") if n), int(re.findall(r"\d+", dtype)[0]))
        for dtype, dims in _ARRAY.findall(types)
    ]


def calls(one: Instruction) -> list[str]:
    """Computations that an instruction runs."""
    return [other for found in _CALLED.findall(one.rest) for other in operands(found)]


def operands(rest: str) -> list[str]:
    """Names in a list of operands."""
    return re.findall(r"%([\w.\-]+)", rest)


def turns(loop: Instruction, computations: Mapping[str, list[Instruction]]) -> int:
    """How often a loop runs; 1 where the data decide."""
    rest = loop.rest
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', rest):
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", rest)
    assert condition, f"a loop without a condition: {rest[:200]}"
    limits = [
        one.rest.partition(")")[0]
        for one in computations[condition[1]]
        if one.opcode == "constant" and one.result.startswith(("s32[]", "s64[]", "u32[]"))
    ]
    assert len(limits) <= 1, f"a loop's condition with the constants {limits}"
    return int(limits[0]) if limits else 1


def _scope(rest: str) -> str:
    """`... op_name="jit(step)/micro_batches/while" ...` -> `micro_batches`."""
    found = re.search(r'op_name="(?:[^"]*/)?([^"/]*)/while"', rest)
    return found[1] if found else ""


def _sizes(result: str, opcode: str, rest: str) -> list[int]:
    """Bytes of each array of a result; a start's begins with its operands, a send's ends with its bookkeeping."""
    arrays = sizes_of(result)
    num = len(re.findall(r"%", rest.partition(")")[0]))
    if opcode == "send":
        arrays = arrays[:1]
    elif opcode.endswith("-start") and len(arrays) >= 2 * num:
        arrays = arrays[num : 2 * num]
    return [values * bits // 8 for values, bits in arrays]


def _axes(groups: list[list[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes over which the members of a group differ."""
    places = np.stack(np.unravel_index(np.array(groups), tuple(mesh.values())), axis=-1)
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
