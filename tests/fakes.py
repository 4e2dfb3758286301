"""Stand-ins for what a test machine does not have."""

import threading
from collections.abc import Iterable

from jaxllm.storage import Content, check_name


class FakeObjectStore:
    """An object store in memory: whole contents under flat names; no rename, no append, no directories."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        check_name(name)
        with self._lock:
            if name not in self._contents:
                raise FileNotFoundError(name)
            content = self._contents[name]
        return content[start:] if size is None else content[start : start + size]

    def write(self, name: str, content: Content | Iterable[Content]) -> None:
        check_name(name)
        whole = bytes(content) if isinstance(content, Content) else b"".join(content)
        with self._lock:
            self._contents[name] = whole

    def create(self, name: str, content: Content) -> bool:
        check_name(name)
        with self._lock:
            if name in self._contents:
                return False
            self._contents[name] = bytes(content)
            return True

    def list(self, prefix: str = "") -> list[str]:
        if directory := prefix.rpartition("/")[0]:
            check_name(directory)
        with self._lock:
            return sorted(name for name in self._contents if name.startswith(prefix))

    def remove(self, name: str) -> None:
        check_name(name)
        with self._lock:
            self._contents.pop(name, None)
