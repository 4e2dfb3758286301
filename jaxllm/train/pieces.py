"""The arrays of a checkpoint in an object store: every process writes its pieces, and any process reads any piece.

    params/00000.safetensors, params/00001.safetensors, ...     one of each process

Orbax wants a file system that all processes share, renames directories in it and merges what the processes wrote. Here
nothing is renamed or merged, and no process waits for another. A tensor in a file is a piece of an array, named as
Python would cut it out: `params.layers.3.mlp.up[0:128,64:128]`; a piece that is a whole array bears its name alone, so
that what one device has trained reads as an ordinary safetensors file.

Pieces cover an array and do not overlap, and digests of pieces add up to the array's (see digests). So each process
reads back and digests what it wrote itself, and the sum over the processes is compared with what the devices said.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.storage import Storage
from jaxllm.train.digests import host_digest

_SUFFIX = ".safetensors"
_DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
}
"""What safetensors calls a dtype."""

_NAMES = {theirs: ours for ours, theirs in _DTYPES.items()}
_CUT = re.compile(r"(?P<name>[^\[]+)(?:\[(?P<slices>[\d:,]+)\])?")
_FIRST = 1 << 16
"""Bytes read of a file at first: most headers are shorter."""

_BLOCK = 16 << 20
"""Bytes that are read back at once, where a piece has rows."""

_AT_ONCE = 16
"""Requests under way at a time."""

_LONGEST_HEADER = 100 << 20
"""Bytes, as safetensors' own limit: a damaged length asks for no more memory than this."""


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A part of an array in a file: where it begins in each dim, its shape, and where its bytes begin."""

    file: str
    starts: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def rows(self, storage: Storage, first: int, last: int) -> np.ndarray:
        """Read rows first..last - 1, counted in the piece; all of a piece without dims."""
        start, num_bytes = self.offset + first * self.row_bytes, (last - first) * self.row_bytes
        return self.values(storage.read(self.file, start, num_bytes), first, last)

    def values(self, content: bytes | memoryview, first: int, last: int) -> np.ndarray:
        """What the bytes of rows first..last - 1 mean."""
        if len(content) != (last - first) * self.row_bytes:
            raise ValueError(f"{self.file} ends within an array")
        return np.frombuffer(content, self.dtype).reshape((last - first, *self.shape[1:]) if self.shape else ())

    def digest(self, content: memoryview, first: int, last: int) -> np.ndarray:
        """What the bytes of rows first..last - 1 add to the array's digest: uint32[2]."""
        starts = (self.starts[0] + first, *self.starts[1:]) if self.shape else ()
        return host_digest(self.values(content, first, last), starts)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The piece's rows in blocks that are not too large."""
        num_rows, step = (self.shape or (1,))[0], max(1, _BLOCK // max(1, self.row_bytes))
        return ((first, min(first + step, num_rows)) for first in range(0, num_rows, step))


def write(storage: Storage, directory: str, arrays: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Write this process's pieces of arrays, and read them back.

    Args:
        storage: of the checkpoints.
        directory: in it, for one tree of one checkpoint.
        arrays: by name, in host memory; emptied, so that what is on its way holds memory alone.

    Returns:
        By name the digest of what this process has stored of each array, to be added to the others': uint32[2].

    Raises:
        OSError: the store does not take it, or not give it back.
    """
    file = f"{directory}/{jax.process_index():05d}{_SUFFIX}"
    named = [
        (name, array.shape, shard.index, shard.data)
        for name, array in arrays.items()
        for shard in array.addressable_shards
        if shard.replica_id == 0
    ]
    arrays.clear()
    header, offset = {}, 0
    for name, shape, index, data in named:
        cut = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
        whole = data.shape == shape
        key = name if whole else f"{name}[{','.join(f'{start}:{stop}' for start, stop in cut)}]"
        end = offset + data.nbytes
        header[key] = {"dtype": _DTYPES[str(data.dtype)], "shape": data.shape, "data_offsets": (offset, end)}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # aligns the values
    named.reverse()

    def content() -> Iterator[bytes | memoryview]:
        yield len(encoded).to_bytes(8, "little") + encoded
        while named:
            yield memoryview(np.ascontiguousarray(named.pop()[3]).reshape(-1).view(np.uint8))

    storage.write(file, content())
    return _digests(storage, file)


def _digests(storage: Storage, file: str) -> dict[str, np.ndarray]:
    """Digests of what lies in a file, by the names of the arrays that its pieces are of."""
    found = {}
    spans, size = [[]], 0  # neighbours in the file, to be read by one request
    for name, piece in _header(storage, file):
        found[name] = np.zeros(2, np.uint32)
        for first, last in piece.blocks():
            num_bytes = (last - first) * piece.row_bytes
            if size + num_bytes > _BLOCK and spans[-1]:
                spans, size = [*spans, []], 0
            spans[-1].append((name, piece, first, last))
            size += num_bytes

    def digest(span: list[tuple[str, _Piece, int, int]]) -> list[tuple[str, np.ndarray]]:
        starts = [piece.offset + first * piece.row_bytes for _, piece, first, _ in span]
        ends = [piece.offset + last * piece.row_bytes for _, piece, _, last in span]
        content = memoryview(storage.read(file, starts[0], ends[-1] - starts[0]))
        return [
            (name, piece.digest(content[start - starts[0] : end - starts[0]], first, last))
            for (name, piece, first, last), start, end in zip(span, starts, ends, strict=True)
        ]

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for name, part in itertools.chain.from_iterable(pool.map(digest, [span for span in spans if span])):
            found[name] = found[name] + part
    return found


def files(storage: Storage, directory: str) -> list[str]:
    """The files that hold pieces under a directory; none where orbax wrote it."""
    return [name for name in storage.list(f"{directory}/") if name.endswith(_SUFFIX)]


class Reader:
    """Reads the arrays of one directory.

    Args:
        storage: of the checkpoints.
        names: of `files`.

    Raises:
        Exception: of many types, when a file is lost or damaged in a way that shows.
    """

    def __init__(self, storage: Storage, names: Sequence[str]) -> None:
        self._storage = storage
        self._pieces: dict[str, list[_Piece]] = {}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for found in pool.map(lambda file: _header(storage, file), names):
                for name, piece in found:
                    self._pieces.setdefault(name, []).append(piece)

    def read(self, names: Sequence[str], abstract: jax.ShapeDtypeStruct, stacked: bool) -> jax.Array:
        """Read an array onto its sharding; as `arrays.read` does."""
        shape = abstract.shape[1:] if stacked else abstract.shape
        for name in names:
            self._check(name, shape, abstract.dtype)
        places: Any = abstract.sharding.addressable_devices_indices_map(abstract.shape)
        wanted = {
            str(index): tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, abstract.shape, strict=True))
            for index in places.values()
        }
        parts = {key: np.empty([one.stop - one.start for one in box], abstract.dtype) for key, box in wanted.items()}
        tasks = []
        for key, box in wanted.items():
            for number in range(box[0].start, box[0].stop) if stacked else [0]:
                out = parts[key][number - box[0].start, ...] if stacked else parts[key]
                tasks += [(out, box[stacked:], piece) for piece in self._pieces[names[number]]]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda task: self._fill(*task), tasks):
                pass
        placed = [jax.device_put(parts[str(index)], device) for device, index in places.items()]
        return jax.make_array_from_single_device_arrays(abstract.shape, abstract.sharding, placed)

    def _check(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        """Refuse an array that is another one, or not all there."""
        pieces = self._pieces.get(name, [])
        num_values = sum(math.prod(piece.shape) for piece in pieces)
        inside = all(
            len(piece.shape) == len(shape)
            and piece.dtype == dtype
            and all(start + size <= end for start, size, end in zip(piece.starts, piece.shape, shape, strict=True))
            for piece in pieces
        )
        if not inside or num_values != math.prod(shape):
            raise ValueError(f"{name}: files are missing, or hold another array")

    def _fill(self, out: np.ndarray, box: tuple[slice, ...], piece: _Piece) -> None:
        """Read what a piece holds of a box of its array into `out`, which has the box's shape."""
        if not piece.shape:
            out[...] = piece.rows(self._storage, 0, 1)
            return
        low = [max(one.start, start) for one, start in zip(box, piece.starts, strict=True)]
        ends = zip(box, piece.starts, piece.shape, strict=True)
        high = [min(one.stop, start + size) for one, start, size in ends]
        if any(start >= stop for start, stop in zip(low, high, strict=True)):
            return
        rows = piece.rows(self._storage, low[0] - piece.starts[0], high[0] - piece.starts[0])
        inner = zip(low[1:], high[1:], piece.starts[1:], strict=True)
        values = rows[(slice(None), *(slice(start - at, stop - at) for start, stop, at in inner))]
        out[
            tuple(slice(start - one.start, stop - one.start) for start, stop, one in zip(low, high, box, strict=True))
        ] = values


def _header(storage: Storage, file: str) -> list[tuple[str, _Piece]]:
    """The pieces in a file, each with its array's name."""
    head = storage.read(file, 0, _FIRST)
    size = int.from_bytes(head[:8], "little")
    if size > _LONGEST_HEADER:
        raise ValueError(f"{file}: its header says it has {size:,} bytes")
    if len(head) < 8 + size:
        head += storage.read(file, len(head), 8 + size - len(head))
    found = []
    for key, facts in json.loads(head[8 : 8 + size]).items():
        match = _CUT.fullmatch(key)
        assert match, key
        shape = tuple(facts["shape"])
        slices = match["slices"].split(",") if match["slices"] else []
        starts = tuple(int(one.split(":")[0]) for one in slices) or (0,) * len(shape)
        offset = 8 + size + facts["data_offsets"][0]
        found.append((match["name"], _Piece(file, starts, shape, jnp.dtype(_NAMES[facts["dtype"]]), offset)))
    return found
