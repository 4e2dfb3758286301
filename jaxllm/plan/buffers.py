"""Reads a compiler's buffer assignment: what a program's temporary memory holds, instruction by instruction.

XLA decides at compile time where every intermediate array lives. It tells so in a protocol buffer,
`BufferAssignmentProto` (openxla/xla, xla/service/hlo.proto): logical buffers, allocations, and for each allocation the
trace of the heap in the order of the program. Only the few fields named below are read, straight from the wire format
(protobuf.dev, "Encoding"), so no generated code and no package is needed.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

HBM = 0
"""Color of the device's main memory; a TPU's vector memory and the host's have others."""

_ALLOCATE, _FREE, _SHARE = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One array in temporary memory.

    Attributes:
        instruction: HLO's name of what makes it.
        size: bytes, with the padding of the compiler's layout.
    """

    instruction: str
    size: int


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Temporary memory over a program.

    Attributes:
        moments: (instruction, bytes held after it), in the order of the program; a loop's body once.
        fullest: what is held at the fullest moment, largest first.
    """

    moments: tuple[tuple[str, int], ...]
    fullest: tuple[Buffer, ...]

    @property
    def peak(self) -> int:
        """Bytes held at the fullest moment; what the heap allocates can be a little more."""
        return max((size for _, size in self.moments), default=0)


def timeline(serialized: bytes) -> Timeline:
    """The temporary main memory of a program over time.

    Args:
        serialized: a `BufferAssignmentProto`, as `memory_analysis().serialized_buffer_assignment_proto` gives it; an
            empty one where a compiler tells nothing.
    """
    assignment = _fields(serialized)
    buffers: dict[int, Buffer] = {}
    in_memory = set()
    for entry in assignment.get(1, ()):
        buffer = _fields(entry)
        number = _first(buffer, 1)
        place = _fields(_first(buffer, 3, b""))
        buffers[number] = Buffer(bytes(_first(place, 2, b"")).decode(), _first(buffer, 2))
        if _first(buffer, 4) == HBM:
            in_memory.add(number)
    moments: list[tuple[str, int]] = []
    held: dict[int, int] = {}
    fullest, most, total = {}, -1, 0
    for trace in assignment.get(4, ()):
        for event in _fields(trace).get(1, ()):
            fields = _fields(event)
            kind, number = _first(fields, 1), _first(fields, 2)
            if number not in in_memory:
                continue
            if kind == _ALLOCATE:
                held[number] = buffers[number].size
                total += held[number]
            elif kind == _FREE:
                total -= held.pop(number, 0)
            if kind == _SHARE:
                continue
            moments.append((bytes(_first(fields, 4, b"")).decode(), total))
            if total > most:
                fullest, most = dict(held), total
    largest = sorted((buffers[number] for number in fullest), key=lambda buffer: -buffer.size)
    return Timeline(tuple(moments), tuple(largest))


def _first(fields: dict[int, list[Any]], number: int, default: Any = 0) -> Any:
    return fields[number][0] if number in fields else default


def _fields(message: bytes | memoryview) -> dict[int, list[Any]]:
    """Field number -> its values: integers, or the bytes of strings, messages and packed numbers."""
    fields: dict[int, list[Any]] = {}
    for number, value in _entries(memoryview(message)):
        fields.setdefault(number, []).append(value)
    return fields


def _entries(message: memoryview) -> Iterator[tuple[int, Any]]:
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        match tag & 7:
            case 0:
                value, place = _varint(message, place)
            case 1:
                value, place = message[place : place + 8], place + 8
            case 2:
                size, place = _varint(message, place)
                value, place = message[place : place + size], place + size
            case 5:
                value, place = message[place : place + 4], place + 4
            case other:
                raise AssertionError(f"wire type {other}")
        yield tag >> 3, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
