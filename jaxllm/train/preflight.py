"""Whether a run fits into memory, asked before anything is compiled: the prediction against what devices have.

A run that does not fit is refused with what it needs, by what, and the least change of its config that makes it fit.
The prediction is `roofline.device`'s; compilers differ from it by some percent, so `--force` goes on all the same.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import msgspec

from jaxllm import mesh_sizes
from jaxllm.config import Experiment, ModelConfig, TrainConfig
from jaxllm.roofline import device
from jaxllm.roofline.hardware import find_chip
from jaxllm.sharding import Device
from jaxllm.tune import lora

_CHUNK = 1024
_REMATS = ("none", "dots", "block", "offload")
_GIB = 2**30


def check(experiment: Experiment, model: ModelConfig, sizes: Mapping[str, int], limit: int) -> None:
    """Refuse a run that needs more memory than its devices have.

    Args:
        experiment: everything but the vocabulary's size.
        model: the experiment's, with its vocabulary known.
        sizes: devices along each mesh axis, none of them -1.
        limit: bytes that a program gets on one device; 0 means unknown, and nothing is refused.

    Raises:
        ValueError: it does not fit; what it needs, and the least change that makes it fit.
    """
    needed = _memory(experiment, model, sizes)
    total = sum(needed.values())
    if not limit or total <= limit:
        return
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in needed.items() if size >= 0.05 * _GIB) or "little each"
    least = experiment
    for changed in sorted(_variants(experiment, sizes), key=lambda one: _cost(experiment, one)):
        least = min(least, changed, key=lambda one: _total(one, model, sizes))
        if _total(changed, model, sizes) <= limit:
            least = changed
            break
    told = f"it needs {_gib(total)} GiB of {_gib(limit)} a device: {parts}"
    left = _total(least, model, sizes)
    if left == total:
        fix = "spread it over more devices (mesh.fsdp, mesh.tensor), or make the model or its batch smaller"
    elif left <= limit:
        fix = f"{_told(experiment, least)} saves {_gib(total - left)}"
    else:
        fix = (
            f"even with {_told(experiment, least)} it is {_gib(left)}; spread it over more devices (mesh.fsdp, "
            "mesh.tensor), or make the model or its batch smaller"
        )
    raise ValueError(f"this run does not fit into memory: {told}; {fix}; --force tries all the same")


def limit_of(devices: Sequence[Device]) -> int:
    """Bytes that a program gets on one of these devices, the least of them; 0 where nobody says.

    Args:
        devices: of this process.
    """
    told = [(one.memory_stats() or {}).get("bytes_limit", 0) for one in devices]
    if all(told):
        return min(told)
    if devices[0].platform == "cpu":
        return _host_memory() // len(devices)
    chip = find_chip(devices[0].device_kind)
    return int(chip.hbm_bytes / chip.devices_per_chip) if chip else 0


def _host_memory() -> int:
    """Of this machine, or of the container that this process is in."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(name)
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            limits.append(int(text))
    return min(limits)


def _memory(experiment: Experiment, model: ModelConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    adapted = experiment.tune.lora
    adapters = lora.count(adapted, model, experiment.mesh, sizes) if adapted else None
    return device.of_experiment(experiment, model, sizes, adapters, "tpu" if jax.default_backend() == "tpu" else "gpu")


def _total(experiment: Experiment, model: ModelConfig, sizes: Mapping[str, int]) -> int:
    return sum(_memory(experiment, model, sizes).values())


def _variants(experiment: Experiment, sizes: Mapping[str, int]) -> Iterator[Experiment]:
    """The experiment with every stronger way to save memory that changes no loss, and any number of them at once."""
    train, mesh = experiment.train, experiment.mesh
    chunk = train.loss.chunk
    chunks = [chunk] if 0 < chunk <= _CHUNK else [chunk, _CHUNK]
    remats = _REMATS[_REMATS.index(train.remat) :]
    for size, remat, accumulate, zero in itertools.product(
        chunks, remats, _micro_batches(experiment, sizes), sorted({mesh.zero, 3})
    ):
        loss = msgspec.structs.replace(train.loss, chunk=size)
        changed = msgspec.structs.replace(train, loss=loss, remat=remat, accumulate=accumulate)
        yield msgspec.structs.replace(experiment, train=changed, mesh=msgspec.structs.replace(mesh, zero=zero))


def _micro_batches(experiment: Experiment, sizes: Mapping[str, int]) -> list[int]:
    """As many as now, or more by powers of two, as far as every phase's rows go."""
    phases, count = experiment.data.phases, experiment.train.accumulate
    found = [count]
    while not any(phase.batch_size % (2 * count) for phase in phases):
        count *= 2
        try:
            for index, phase in enumerate(phases):
                mesh_sizes.check_batch(
                    phase.batch_size, count, phase.sequence_length, sizes, experiment.mesh.sequence_parallel, index
                )
        except ValueError:
            break
        found.append(count)
    return found


def _cost(before: Experiment, after: Experiment) -> tuple[int, int, int]:
    """Fewer fields first; of these less recomputation, then fewer micro-batches."""
    return len(_changes(before, after)), _REMATS.index(after.train.remat), after.train.accumulate


def _changes(before: Experiment, after: Experiment) -> list[str]:
    return [
        f"{name} = {value}"
        for (name, value), (_, old) in zip(_fields(after).items(), _fields(before).items(), strict=True)
        if value != old
    ]


def _fields(experiment: Experiment) -> dict[str, str]:
    train: TrainConfig = experiment.train
    return {
        "train.loss.chunk": str(train.loss.chunk),
        "train.remat": f'"{train.remat}"',
        "train.accumulate": str(train.accumulate),
        "mesh.zero": str(experiment.mesh.zero),
    }


def _told(before: Experiment, after: Experiment) -> str:
    return " and ".join(_changes(before, after))


def _gib(size: int) -> str:
    return f"{size / _GIB:,.1f}"
