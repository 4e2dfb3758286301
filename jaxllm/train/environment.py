"""The ground a run stands on: versions, flags, devices and memory."""

import datetime
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import msgspec
from jax.sharding import Mesh

from jaxllm.sharding import Device
from jaxllm.storage import Storage

ENVIRONMENT = "environment.json"
_PACKAGES = ("jaxllm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS")


def deterministic() -> None:
    """Exclude GPU kernels that add in no fixed order; must come before jax first looks at its devices."""
    flag = "--xla_gpu_deterministic_ops=true"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def describe(mesh: Mesh) -> dict[str, Any]:
    """Everything outside the config that decides a run's bits."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "flags": {name: os.environ[name] for name in _FLAGS if name in os.environ},
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": jax.process_count(),
        "devices": mesh.devices.size,
        "device_kind": mesh.devices.flat[0].device_kind,
        "mesh": dict(mesh.shape),
    }


def _commit() -> str:
    """The commit of jaxllm's checkout, `+` behind it where files differ from it; empty for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return ""


def record(storage: Storage, attempt: int, mesh: Mesh) -> None:
    """Add this attempt to the run's environment.json.

    Raises:
        ValueError: what is there is damaged.
    """
    content = storage.read(ENVIRONMENT) if ENVIRONMENT in storage.list(ENVIRONMENT) else b"[]"
    try:
        entries = msgspec.json.decode(content, type=list)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{storage}/{ENVIRONMENT} is damaged ({error}); mend it, or move it away") from None
    entries.append({"attempt": attempt, **describe(mesh)})
    storage.write(ENVIRONMENT, msgspec.json.format(msgspec.json.encode(entries), indent=2))


def peak_memory(devices: Sequence[Device]) -> int:
    """Largest number of bytes in use on the fullest device so far; of the whole process where devices do not say."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices]
    if any(peaks):
        return max(peaks)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
