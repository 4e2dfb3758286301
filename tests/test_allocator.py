"""The C library's allocator keeps what steps free."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllm.allocator import keep_memory

_FAULTS = """
import resource, sys
import numpy as np
import jaxllm.allocator
if sys.argv[1] == "kept":
    assert jaxllm.allocator.keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
x = np.ones(2**24, np.float32)  # 64 MiB, 16,384 pages
for _ in range(3):
    y = x + x
before = faults()
for _ in range(8):
    y = x + x
print(faults() - before)
"""


def _faults(how: str) -> int:
    """Page faults of eight results of 64 MiB, the one before freed each time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _FAULTS, how]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_does_not_fault_in_again() -> None:
    assert _faults("kept") < _faults("freed") / 4


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not keep_memory()


def test_hosts_of_accelerators_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (tmp_path / "nvidia0").touch()
    assert not keep_memory(tmp_path)
