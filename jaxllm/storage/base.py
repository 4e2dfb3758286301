"""Where a run's files live: five operations that a local disk and an object store both have.

An object store has no rename, no append and no directories, so nothing here needs them: a name is a relative POSIX path
and holds either nothing or one whole content. Names are told apart by their full text, and a prefix is any beginning of
a name, not only a directory. For the disk's sake no name is another's directory: `a` and `a/b` never both exist.
"""

import os
from collections.abc import Iterable
from typing import Protocol, Self

TEMPORARY = ".tmp-"
"""How the last part of an unfinished file's name begins; such files are never listed."""

Content = bytes | bytearray | memoryview
"""Bytes as one piece."""

Place = str | os.PathLike[str]
"""A directory of the local disk, or an object store's URL as text: `gs://bucket/runs/small`."""


class Storage(Protocol):
    """A flat set of named contents. Every method raises ValueError for a name that leads outside."""

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """Bytes from `start` on, `size` of them or (None) all; fewer where the content ends before.

        Raises:
            FileNotFoundError: nothing is stored under the name.
        """
        ...

    def write(self, name: str, content: Content | Iterable[Content]) -> None:
        """Store a content, given whole or in pieces, in place of what was there.

        A reader sees the old content or the new one, never a part; so does a machine that loses power.
        """
        ...

    def create(self, name: str, content: Content) -> bool:
        """Store a content if the name is free; of several callers exactly one gets True."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """The names that begin with the prefix, sorted."""
        ...

    def remove(self, name: str) -> None:
        """Forget a name; one that holds nothing is no error."""
        ...

    def below(self, directory: str) -> Self:
        """The names under a directory, as a storage of their own."""
        ...


def check_name(name: str) -> str:
    """Return the name if it is a plain relative POSIX path.

    Raises:
        ValueError: it is empty or absolute, or has empty, `.` or `..` parts, a backslash or a NUL.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or part.startswith(TEMPORARY) for part in parts) or set(name) & {"\\", "\0"}:
        raise ValueError(f"the name {name!r} does not fit a storage: use a relative path such as 'checkpoints/10'")
    return name
