"""The C library's allocator, set for programs that ask for the same memory again at every step.

XLA's CPU client allocates the results and the temporaries of each step anew, and its products their packed operands.
glibc maps blocks of that size apart and gives them back when they are freed, so their pages fault in again at every
step: 40,000 pages in a step of the quickstart, a tenth of its time, and up to a third where there are more experts.
"""

import ctypes
import os
import platform
from pathlib import Path

_KEEP = {
    -4: 0,  # M_MMAP_MAX: no block is mapped apart
    -1: -1,  # M_TRIM_THRESHOLD: the end of a heap is never given back
    -8: 2,  # M_ARENA_MAX: only the first heap holds large blocks, so threads share it; with two, half of them do
}
"""Options of glibc's `mallopt`, by their numbers in malloc.h. With a single heap nothing faults, but threads that
compile wait for each other, half as long again."""
_ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel[0-9]*", "vfio/[0-9]*")
"""Devices of GPUs and TPUs under /dev."""


def keep_memory(devices: Path = Path("/dev")) -> bool:
    """Have freed memory kept for the next step, where steps run on the CPU; to be called before jax starts threads.

    Nothing is changed with another C library than glibc, where the environment sets glibc's allocator already, or where
    an accelerator is present and JAX_PLATFORMS does not say that the CPU is meant: arrays are on the accelerator then.

    Args:
        devices: where devices' files are.

    Returns:
        Whether anything was changed.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    if os.environ.get("JAX_PLATFORMS") != "cpu" and any(any(devices.glob(name)) for name in _ACCELERATORS):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(option, value) for option, value in _KEEP.items())
