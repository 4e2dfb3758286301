"""Compiled programs that outlive a process: jax's compilation cache, in a directory of the run's choice.

A program is found by a hash of itself, of the devices, of the versions of jax and of the compiler, and of its flags, so
that what is found is never the wrong one; and where anything differs, it is compiled as if there were no cache. It is
found as well by another process than the one that compiled it: `jaxllm plan --verify --export DIR` leaves the step's in
DIR/cache.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_HIT = "/jax/compilation_cache/cache_hits"
_taken = 0


def _heard(event: str, **_: Any) -> None:
    global _taken
    _taken += event == _HIT


jax.monitoring.register_event_listener(_heard)


def num_taken() -> int:
    """Programs that this process has found and not compiled, so far."""
    return _taken


@contextlib.contextmanager
def kept(directory: str) -> Iterator[None]:
    """Within the block programs are looked for in a directory, and kept there."""
    wanted = {"jax_compilation_cache_dir": directory, "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        _configure(wanted)
        yield
    finally:
        _configure(before)


def _configure(values: dict[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it reads its directory once
