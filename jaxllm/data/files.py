"""The files of a source, and their bytes: plain, gzip or zstandard, as a stream, with errors that name the place.

Text is UTF-8 (RFC 3629), strictly: a byte that is not is reported by its offset in the (decompressed) file. A byte
order mark at the beginning is no text and is dropped. A newline byte is never part of another character, so a stream
may be cut into lines before it is decoded.
"""

import contextlib
import fnmatch
import glob
import gzip
import io
import os
import pathlib
import sysconfig
import zlib
from collections.abc import Container, Iterator
from typing import BinaryIO, NamedTuple

import zstandard

from jaxllm.config import SourceConfig
from jaxllm.config.data import EMBEDDED
from jaxllm.data.hub import fetch

COMPRESSED = (".gz", ".zst")
"""Endings of compressed files."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOT_EMBEDDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_BUFFER_BYTES = 1 << 18


class SourceFile(NamedTuple):
    """A file of a source.

    Attributes:
        path: where it lies.
        name: what identifiers call it: its path below the source's directory, or its name.
        size: bytes on disk.
        modified: time of the last change, in nanoseconds.
    """

    path: pathlib.Path
    name: str
    size: int
    modified: int


class NotUtf8Error(ValueError):
    """A file holds bytes that are not UTF-8."""


def find(source: SourceConfig) -> list[SourceFile]:
    """The files of a source, sorted by name. Below a directory, hidden files and empty ones are passed over.

    Raises:
        ValueError: nothing is there, or nothing but empty files.
    """
    place = fetch(source.path, "data.sources")
    path = pathlib.Path(os.path.expanduser(place))
    if source.is_embedded:
        pattern = source.path.removeprefix(EMBEDDED).removeprefix("/") or "*"
        files = [file for file in _find_embedded() if fnmatch.fnmatchcase(file.name, pattern)]
        if not files:
            raise ValueError(f"data.sources: no file of {EMBEDDED} matches {source.path!r}: correct the pattern")
    elif path.is_dir():
        files = [_source_file(file, path) for file in _walk(path)]
    elif path.exists():
        files = [_source_file(path, path.parent)]
    elif glob.has_magic(place):
        base = pathlib.Path(*_before_magic(path))
        matches = map(pathlib.Path, glob.glob(str(path), recursive=True))
        files = [_source_file(file, base) for file in matches if file.is_file()]
        if not files:
            raise ValueError(f"data.sources: no file matches {source.path!r}: correct the path")
    else:
        raise ValueError(f"data.sources: there is no {source.path!r}: correct the path, which starts at {os.getcwd()}")
    filled = sorted((file for file in files if file.size > 0), key=lambda file: file.name)
    if not filled:
        what = "is empty" if path.is_file() else "holds no file with anything in it"
        raise ValueError(f"data.sources: {source.path!r} {what}: name files with text")
    return filled


def _find_embedded() -> list[SourceFile]:
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    files = []
    for file in _walk(root, _NOT_EMBEDDED):
        # Generated when Python was built: it differs from machine to machine, the rest does not.
        generated = file.name.startswith("_sysconfigdata") or file.parent.name.startswith("config-")
        if file.suffix == ".py" and not generated:
            files.append(_source_file(file, root))
    if not files:
        raise ValueError(
            f"data.sources: {EMBEDDED!r} needs the standard library's .py files, and {root} has none: "
            "name another source"
        )
    return files


def _walk(root: pathlib.Path, excluded: Container[str] = ()) -> Iterator[pathlib.Path]:
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".") and name not in excluded]
        for name in files:
            path = pathlib.Path(directory, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _before_magic(path: pathlib.Path) -> Iterator[str]:
    for part in path.parent.parts:
        if glob.has_magic(part):
            return
        yield part


def _source_file(path: pathlib.Path, base: pathlib.Path) -> SourceFile:
    status = path.stat()
    # A name need not be UTF-8 on disk; an identifier is.
    name = os.fsencode(path.relative_to(base).as_posix()).decode("utf-8", "replace")
    return SourceFile(path, name, status.st_size, status.st_mtime_ns)


class _ZstandardStream(io.RawIOBase):
    """Decompressed bytes of a .zst file. The package's own stream takes a truncated file for a complete one."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._frame = None
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._plain:
            compressed = self._compressed or self._file.read(_BUFFER_BYTES)
            if not compressed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the last frame is not complete")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._plain = memoryview(self._frame.decompress(compressed))
            self._compressed = self._frame.unused_data if self._frame.eof else b""
        size = min(len(buffer), len(self._plain))
        buffer[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        return size


@contextlib.contextmanager
def open_bytes(path: pathlib.Path) -> Iterator[BinaryIO]:
    """The file's bytes as a stream, decompressed if its ending says so.

    Raises:
        ValueError: the file cannot be read, or is truncated or damaged; also while the stream is read.
    """
    try:
        with io.BufferedReader(io.FileIO(path), _BUFFER_BYTES) as file:
            if path.suffix == ".gz":
                yield io.BufferedReader(gzip.GzipFile(fileobj=file), _BUFFER_BYTES)
            elif path.suffix == ".zst":
                yield io.BufferedReader(_ZstandardStream(file), _BUFFER_BYTES)
            else:
                yield file
    except EOFError:
        raise ValueError(f"{path} is truncated, its compressed data ends too soon: copy the file again") from None
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"{path} is not a whole {path.suffix} file ({error}): copy the file again") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): correct the path or its permissions") from None


def decode(data: bytes, path: pathlib.Path, offset: int) -> str:
    """Text of bytes that begin at `offset` of a file's (decompressed) content.

    Raises:
        NotUtf8Error: naming the file and the offset of the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        inside = " of its decompressed text" if path.suffix in COMPRESSED else ""
        raise NotUtf8Error(
            f"{path}: byte {offset + error.start}{inside}, 0x{data[error.start]:02x}, is not UTF-8: "
            "convert the file to UTF-8"
        ) from None


def read_text(path: pathlib.Path) -> str:
    """The whole file as text.

    Raises:
        ValueError: as `open_bytes` and `decode` do.
    """
    with open_bytes(path) as stream:
        data = stream.read()
    mark = len(_BYTE_ORDER_MARK) if data.startswith(_BYTE_ORDER_MARK) else 0
    return decode(data[mark:], path, mark)


def read_lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text, without its end, of each line; a line is held in memory, the file is not.

    Raises:
        ValueError: as `open_bytes` and `decode` do.
    """
    with open_bytes(path) as stream:
        offset = 0
        for number, line in enumerate(stream, start=1):
            mark = len(_BYTE_ORDER_MARK) if number == 1 and line.startswith(_BYTE_ORDER_MARK) else 0
            yield number, decode(line[mark:], path, offset + mark).removesuffix("\n").removesuffix("\r")
            offset += len(line)
