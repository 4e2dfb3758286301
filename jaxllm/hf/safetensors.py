"""Reading safetensors files: headers that are checked, and views of byte ranges.

A file is 8 bytes, the header's length N, little-endian; N bytes of JSON, `name -> {dtype, shape, data_offsets}`; and
the tensors' bytes behind each other (https://github.com/huggingface/safetensors, "Format"). A header is not trusted:
its length is bounded, and tensors must fill the file, neither overlapping nor leaving holes.

Files are mapped into memory, so what is never looked at is never read, and what is read needs no memory of its own.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np

MAX_HEADER = 100_000_000
"""Bytes of a header; the format's own bound."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""Dtypes that parameters may have, by the format's names."""

_SIZES = {
    **{name: dtype.itemsize for name, dtype in DTYPES.items()},
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16"), 2),
    **dict.fromkeys(("U32", "I32"), 4),
    **dict.fromkeys(("F64", "U64", "I64"), 8),
}
"""Bytes of a value, of dtypes that a file may hold."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
        file: that holds it.
        dtype: by the format's name.
        shape: sizes of its dims.
        start: of its bytes in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


class Tensors(Mapping[str, Tensor]):
    """The tensors of a directory, by name.

    Attributes:
        directory: that holds the files.
        bytes_read: of tensors, so far, as far as readers say so by `count`.
    """

    def __init__(self, directory: Path, tensors: Mapping[str, Tensor]) -> None:
        self.directory, self.bytes_read, self._tensors = directory, 0, tensors
        self._map = functools.cache(_map)  # a file is mapped once

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def view(self, name: str) -> np.ndarray:
        """A tensor's values, not read before they are looked at: read-only, in its dtype and shape.

        Raises:
            ValueError: parameters have no such dtype.
        """
        tensor = self[name]
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{tensor.file}: tensor {name!r} has dtype {tensor.dtype}; parameters are read in "
                f"{', '.join(DTYPES)}: save it in one of these"
            )
        dtype = DTYPES[tensor.dtype]
        end = tensor.start + math.prod(tensor.shape) * dtype.itemsize
        return self._map(tensor.file)[tensor.start : end].view(dtype).reshape(tensor.shape)

    @property
    def dtype(self) -> str:
        """The dtype that most values have, of those that parameters may have."""
        sizes = dict.fromkeys(DTYPES, 0)
        for tensor in self.values():
            if tensor.dtype in sizes:
                sizes[tensor.dtype] += math.prod(tensor.shape)
        return str(DTYPES[max(sizes, key=lambda code: sizes[code])])

    def count(self, num_bytes: int) -> None:
        """Add to `bytes_read`."""
        self.bytes_read += num_bytes


def _map(file: Path) -> np.ndarray:
    return np.memmap(file, np.uint8, mode="r")


def open_tensors(directory: str | os.PathLike[str]) -> Tensors:
    """The tensors of a directory: of model.safetensors, or of the files that its index names.

    Raises:
        ValueError: there are none, or a file is not whole; the sentence names the file, and the tensor.
    """
    place = Path(directory)
    if (place / SINGLE).is_file():
        return Tensors(place, read_header(place / SINGLE))
    if (place / INDEX).is_file():
        return Tensors(place, _sharded(place))
    found = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    if pickles := [name for name in found if name.endswith(_PICKLES)]:
        raise ValueError(
            f"{place}: {pickles[0]} is a pickle, which runs code when it is read, and is not; take the model's "
            "safetensors files, or save it as such with transformers' save_pretrained"
        )
    raise ValueError(f"{place}: there is no {SINGLE} and no {INDEX}; name the directory of a Hugging Face model")


def _sharded(directory: Path) -> dict[str, Tensor]:
    """The tensors of the files that the index names, also those that it forgets."""
    index = directory / INDEX
    names = _decode(index.read_bytes(), index).get("weight_map")
    if not isinstance(names, dict) or not all(_is_file_name(file) for file in names.values()):
        raise ValueError(f"{index}: weight_map must give every tensor a file of this directory; copy the index again")
    headers = {}
    for file in sorted(set(names.values())):
        if not (directory / file).is_file():
            missing = next(name for name, its in names.items() if its == file)
            raise ValueError(f"{directory / file}: missing, and {INDEX} has tensor {missing!r} in it; copy it too")
        headers[file] = read_header(directory / file)
    for name, file in names.items():
        if name not in headers[file]:
            raise ValueError(f"{directory / file}: has no tensor {name!r}, as {INDEX} says; copy both again")
    found: dict[str, Tensor] = {}
    for file, header in headers.items():
        for name, tensor in header.items():
            if names.get(name, file) != file or name in found:
                raise ValueError(f"{directory / file}: tensor {name!r} is in another file too; copy the model again")
            found[name] = tensor
    return found


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, their bytes not read.

    Raises:
        ValueError: the file is not whole, or its tensors do not fill it.
    """
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise ValueError(
                f"{file}: its header should have {length:,} bytes, and the file has {size:,}"
                f"{f' (at most {MAX_HEADER:,} are read)' if length > MAX_HEADER else ''}; copy the file again"
            )
        header = _decode(stream.read(length), file)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(file, name, entry, 8 + length) for name, entry in header.items()}
    _check_places(file, ((name, tensor.start, header[name]) for name, tensor in tensors.items()), 8 + length, size)
    return tensors


def _decode(content: bytes, file: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: what should be JSON is not ({error}); copy the file again") from None


def _tensor(file: Path, name: str, entry: Any, first: int) -> Tensor:
    """A header's entry, its places checked by themselves."""
    try:
        found = msgspec.convert(entry, _Entry)
    except msgspec.ValidationError as error:
        raise ValueError(f"{file}: the header's entry of tensor {name!r} is broken ({error}); copy it again") from None
    start, end = found.data_offsets
    values = math.prod(found.shape)
    if min(found.shape, default=0) < 0 or not 0 <= start <= end:
        raise ValueError(
            f"{file}: tensor {name!r} has shape {list(found.shape)} and bytes {start} to {end}; copy it again"
        )
    size = _SIZES.get(found.dtype)
    if size is not None and values * size != end - start:
        raise ValueError(
            f"{file}: tensor {name!r} of dtype {found.dtype} and shape {list(found.shape)} needs {values * size:,} "
            f"bytes, and the header gives it {end - start:,}; copy the file again"
        )
    return Tensor(file, found.dtype, found.shape, first + start)


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _check_places(file: Path, places: Iterable[tuple[str, int, Any]], first: int, size: int) -> None:
    """Refuse tensors that overlap, reach past the end or leave holes."""
    end, before = first, ""
    for name, start, entry in sorted(places, key=lambda one: (one[1], one[2]["data_offsets"][1])):
        if start != end:
            what = f"overlaps tensor {before!r}" if start < end else f"leaves {start - end:,} bytes before it to none"
            raise ValueError(f"{file}: tensor {name!r} {what}; copy the file again")
        end, before = first + entry["data_offsets"][1], name
        if end > size:
            raise ValueError(f"{file}: tensor {name!r} ends at byte {end:,}, and the file has {size:,}; copy it again")
    if end != size:
        raise ValueError(f"{file}: {size - end:,} bytes behind tensor {before!r} belong to none; copy the file again")
