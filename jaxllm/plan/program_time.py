"""How long a scheduled TPU program takes, by its own instructions.

No single number of the TPU compiler says it. `cost_analysis` counts a loop's body once, and each kernel as minus one
second; the cycles that it notes beside instructions leave collectives out, and it notes them last, when a minute of
code generation is over; its latency-hiding scheduler, which comes first, takes products of several dims for up to six
hundred times their work, because they are convolutions whose windows lie on padding. What all of them agree on is the
program: what is computed, read, sent and waited for, in which order and how often. So, instruction by instruction,

    fusion, product     max(FLOPs / peak, bytes / bandwidth); bytes that stay in the core's own memory are free, and of
                        a stack of layers only the slice counts that is read or written
    collective          its bytes over the links that its axes have; from its start on, where it has one
    done                waits for what was started
    loop                its body as often as it runs
    branch              the longer one

Kernels are left out, as the compiler knows nothing of them. Source: XLA's HloCostAnalysis, for bytes and branches.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from jaxllm.plan import hlo
from jaxllm.plan.hlo import Instruction
from jaxllm.plan.work import flops_of

_ARRAY = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)(?:#(\d+))?")
_SLICES = ("dynamic-slice", "slice", "gather")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id")
_MOVES = ("copy-start", "copy-done", "async-start", "async-done", "slice-start", "slice-done")
"""Prefetches into the core's own memory: the transfer engine does them beside the core."""

Cost = Callable[[str, tuple[str, ...], int], float]
"""(kind, axes, bytes) of a collective -> its seconds."""


@dataclasses.dataclass(frozen=True)
class Spent:
    """Seconds of a program.

    Attributes:
        computed: in products and what lies between them.
        waited: for other devices.
    """

    computed: float = 0.0
    waited: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.computed + self.waited

    def plus(self, other: "Spent", times: int = 1) -> "Spent":
        """With another so often."""
        return Spent(self.computed + times * other.computed, self.waited + times * other.waited)


def seconds(text: str, mesh: Mapping[str, int], peak: float, bandwidth: float, cost: Cost) -> Spent:
    """What a step of one device takes.

    Args:
        text: of a scheduled module.
        mesh: sizes of its axes, in order.
        peak: FLOP/s of a device.
        bandwidth: bytes/s of its memory.
        cost: of a collective.
    """
    computations, entry = hlo.parse(text)
    return _Clock(computations, mesh, peak, bandwidth, cost).run(entry)


class _Clock:
    """Runs computations in their order."""

    def __init__(
        self,
        computations: Mapping[str, list[Instruction]],
        mesh: Mapping[str, int],
        peak: float,
        bandwidth: float,
        cost: Cost,
    ) -> None:
        self.computations, self.mesh, self.peak, self.bandwidth, self.cost = computations, mesh, peak, bandwidth, cost
        self.types = {name: {one.name: one.result for one in lines} for name, lines in computations.items()}
        self._done: dict[str, Spent] = {}
        self._flops: dict[str, float] = {}

    def run(self, name: str) -> Spent:
        """One pass of a computation."""
        if name not in self._done:
            self._done[name] = self._pass(name)
        return self._done[name]

    def _pass(self, name: str) -> Spent:
        spent, arrives, free = Spent(), dict[str, float](), 0.0
        for one in self.computations[name]:
            key = re.sub("^async-collective-(start|done)", "async-collective", one.name)
            if one.opcode == "while":
                body = Spent()
                for other in hlo.calls(one):
                    body = body.plus(self.run(other))
                spent = spent.plus(body, hlo.turns(one, self.computations))
            elif one.opcode == "conditional":
                spent = spent.plus(max((self.run(other) for other in hlo.calls(one)), key=lambda branch: branch.total))
            elif one.opcode == "call":
                spent = spent.plus(self.run(hlo.calls(one)[0]))
            elif one.name.startswith("async-collective-start") or self._is_start(one):
                free = max(free, spent.total) + self._sent(one, name)
                arrives[key] = free
            elif one.name.startswith("async-collective-done") or one.opcode.endswith("-done"):
                waited_for = key if key in arrives else next(iter(hlo.operands(one.rest.partition(")")[0])), "")
                spent = spent.plus(Spent(waited=max(0.0, arrives.pop(waited_for, 0.0) - spent.total)))
            elif not one.name.startswith("async-collective") and (sent := self._sent(one, name)):
                free = max(free, spent.total) + sent  # it takes its turn on the links
                spent = spent.plus(Spent(waited=free - spent.total))
            else:
                spent = spent.plus(Spent(computed=self._computed(one, name)))
        return spent

    def _is_start(self, one: Instruction) -> bool:
        return one.opcode.endswith("-start") and one.opcode not in _MOVES

    def _sent(self, one: Instruction, computation: str) -> float:
        """Seconds on the links of a collective, or of those that a fusion is made of; 0 of anything else."""
        found = [(one, computation)]
        if one.opcode == "fusion":
            called = hlo.calls(one)[0]
            if called.startswith("async_collective_fusion") and not one.name.startswith("async-collective-start"):
                return 0.0  # the middle of one that has a start
            found = [(inner, called) for inner in self.computations[called]]
        moved = (part for inner, place in found for part in hlo.moved(inner, place, self.mesh))
        return sum(self.cost(kind, axes, size) for kind, axes, size in moved)

    def _computed(self, one: Instruction, computation: str) -> float:
        if one.opcode in _FREE or one.opcode in _MOVES or one.opcode == "custom-call":
            return 0.0
        return max(self._product(one, computation) / self.peak, self._bytes(one, computation) / self.bandwidth)

    def _product(self, one: Instruction, computation: str) -> float:
        """FLOPs of an instruction and of all that it is fused from."""
        if one.opcode != "fusion":
            return flops_of(one, self.types[computation])
        total = 0.0
        for called in hlo.calls(one):
            if called not in self._flops:
                self._flops[called] = sum(self._product(inner, called) for inner in self.computations[called])
            total += self._flops[called]
        return total

    def _bytes(self, one: Instruction, computation: str) -> float:
        """Read from main memory and written to it."""
        read = sum(self._read(one, position, computation) for position in range(len(self._operands(one))))
        return read + self._written(one, computation)

    def _read(self, one: Instruction, position: int, computation: str) -> float:
        """Bytes that an instruction reads of an operand."""
        name, index = self._operands(one)[position]
        if one.opcode in ("dynamic-update-slice", "scatter") and position == 0:
            return 0.0  # written in place
        whole = _in_memory(self.types[computation].get(name, ""), index)
        if one.opcode in _SLICES and position == 0:
            return min(whole, _size(one.result))
        if one.opcode != "fusion" or not whole:
            return whole
        called = hlo.calls(one)[0]
        inside = self.computations[called]
        parameter = next(inner for inner in inside if inner.opcode == "parameter" and _number(inner) == position)
        uses = [
            (inner, place)
            for inner in inside
            for place, (operand, _) in enumerate(self._operands(inner))
            if operand == parameter.name
        ]
        return min(whole, sum(self._used(inner, place, called, whole) for inner, place in uses))

    def _used(self, one: Instruction, position: int, computation: str, whole: float) -> float:
        """Bytes of a fusion's parameter that an instruction inside reads; there all of them are its operands."""
        if one.opcode in ("fusion", "dynamic-update-slice", "scatter", *_SLICES):
            types = self.types[computation]
            if one.opcode in _SLICES and position == 0:
                return _size(one.result)
            if one.opcode == "fusion":
                name, index = self._operands(one)[position]
                return self._read(one, position, computation) if _in_memory(types[name], index) else whole
            return 0.0 if position == 0 else whole
        return whole

    def _written(self, one: Instruction, computation: str) -> float:
        written = _in_memory(one.result)
        if one.opcode == "dynamic-update-slice":
            update, index = self._operands(one)[1]
            return _in_memory(self.types[computation].get(update, ""), index)
        if one.opcode != "fusion":
            return written
        called = hlo.calls(one)[0]
        for inner in self.computations[called]:
            if inner.opcode == "dynamic-update-slice":
                update, _ = self._operands(inner)[1]
                whole = _size(inner.result)
                if whole <= written:
                    written -= whole - _size(self.types[called].get(update, ""))
        return written

    def _operands(self, one: Instruction) -> list[tuple[str, int | None]]:
        if one.opcode in ("parameter", "constant"):
            return []
        found = _OPERAND.findall(one.rest.partition(")")[0])
        return [(name, int(index) if index else None) for name, index in found]


def _number(parameter: Instruction) -> int:
    return int(parameter.rest.partition(")")[0])


def _arrays(types: str) -> list[tuple[int, str]]:
    """(bytes, layout) of each array."""
    found = []
    for bits, dims, layout in _ARRAY.findall(types):
        values = 1
        for dim in dims.split(","):
            values *= int(dim) if dim else 1
        found.append((values * int(bits) // 8, layout))
    return found


def _size(types: str) -> int:
    return sum(size for size, _ in _arrays(types))


def _in_memory(types: str, index: int | None = None) -> int:
    """Bytes of a type's arrays, or of one of them, that lie in main memory."""
    arrays = _arrays(types)
    if index is not None and index < len(arrays):
        arrays = [arrays[index]]
    return sum(size for size, layout in arrays if "S(" not in layout)
