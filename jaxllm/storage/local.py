"""A directory of the local disk as a Storage."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterable
from typing import BinaryIO

from jaxllm.storage.base import TEMPORARY, Content, check_name


class LocalStorage:
    """A directory of the local file system as a Storage; it is made at the first write."""

    def __init__(self, root: str | os.PathLike[str]):
        # by os.path: pathlib raises for an unknown user and for a link that leads to itself
        self.root = pathlib.Path(os.path.realpath(os.path.expanduser(root)))

    def path(self, name: str) -> pathlib.Path:
        """Where a name's content lies, for readers that map files into memory.

        Raises:
            ValueError: the name, or a symbolic link on its way, leads outside the root.
        """
        path = self.root / check_name(name)
        if not (target := path.resolve()).is_relative_to(self.root):
            raise ValueError(f"the name {name!r} leads by a link to {target}, outside {self.root}: remove the link")
        return path

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """See `Storage.read`."""
        with open(self.path(name), "rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size)

    def write(self, name: str, content: Content | Iterable[Content]) -> None:
        """See `Storage.write`."""
        path = self.path(name)
        temporary = _write_temporary(path, content)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink()
            raise
        _sync_directory(path.parent)

    def create(self, name: str, content: Content) -> bool:
        """See `Storage.create`."""
        path = self.path(name)
        temporary = _write_temporary(path, content)
        try:
            os.link(temporary, path)  # unlike a rename, a link never replaces what is there
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
        return True

    def list(self, prefix: str = "") -> list[str]:
        """See `Storage.list`."""
        directory = prefix.rpartition("/")[0]
        top = self.path(directory) if directory else self.root
        names = []
        for directory, _, files in os.walk(top):
            parent = pathlib.Path(directory).relative_to(self.root)
            for file in files:
                name = (parent / file).as_posix()
                if name.startswith(prefix) and not file.startswith(TEMPORARY) and not (self.root / name).is_symlink():
                    names.append(name)
        return sorted(names)

    def remove(self, name: str) -> None:
        """See `Storage.remove`. Directories left empty go too, as an object store has none."""
        path = self.path(name)
        path.unlink(missing_ok=True)
        for directory in path.parents:
            if directory == self.root:
                break
            try:
                directory.rmdir()
            except OSError:  # it holds something else, or another process was first
                break

    def below(self, directory: str) -> "LocalStorage":
        """See `Storage.below`."""
        return LocalStorage(self.path(directory))

    def __str__(self) -> str:
        return str(self.root)


def _write_temporary(path: pathlib.Path, content: Content | Iterable[Content]) -> pathlib.Path:
    """Write a content durably into a new file beside `path`, in the same file system, and return the file."""
    temporary = path.with_name(TEMPORARY + secrets.token_hex(8))
    file = _create_file(temporary)
    try:
        with file:
            for piece in [content] if isinstance(content, Content) else content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink()
        raise
    return temporary


def _create_file(path: pathlib.Path) -> BinaryIO:
    """Open a new file, and make the directories above it."""
    while True:
        _make_directory(path.parent)
        try:
            return open(path, "xb")
        except FileNotFoundError:  # another process just removed the directory, empty as it was: once more
            continue


def _make_directory(directory: pathlib.Path) -> None:
    """Make a directory and those above it, durably."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync_directory(path.parent)


def _sync_directory(directory: pathlib.Path) -> None:
    """Make a directory's entries durable."""
    with contextlib.suppress(FileNotFoundError):  # another process removed the file again, and the directory
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
