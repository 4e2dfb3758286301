"""The processes of a run: how they find each other, and how they agree.

One process a host (or a GPU), all running the same program on one mesh (jax's multi-controller model). Who they are
comes from the environment, in this order:

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID    set by hand or by a script in launch/
    SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID, ...          set by `srun`
    TPU_WORKER_HOSTNAMES, TPU_WORKER_ID, MEGASCALE_...            set by GKE for TPU pods

and none of these means one process. The coordinator listens on its own address only, which on one machine is loopback:
it knows no passwords.

Agreement is exact and costs no stop. Every step each process casts a vote, a few numbers, in a tiny program of its own
that is dispatched behind the step; it is read one step later, with the step's metrics, when it has long been counted.
All processes read the same votes, so what they decide from them, such as where to stop, is one decision.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_PORT = 8476
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process of how many this is.

    Attributes:
        coordinator: HOST:PORT of process 0.
        num_processes: of the run.
        process_id: from 0.
        local_device_ids: the devices of the host that are this process's; None means all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None


def find(environment: Mapping[str, str]) -> Place | None:
    """This process's place by what a launcher left in the environment; None for a process alone.

    Raises:
        ValueError: naming the variable that is missing or is no number.
    """
    if "JAX_COORDINATOR_ADDRESS" in environment:
        coordinator = environment["JAX_COORDINATOR_ADDRESS"]
        if not re.fullmatch(r"\S+:\d+", coordinator):
            raise ValueError(f"JAX_COORDINATOR_ADDRESS = {coordinator!r}: use HOST:PORT, such as 127.0.0.1:{_PORT}")
        return _place(
            coordinator, _number(environment, "JAX_NUM_PROCESSES"), _number(environment, "JAX_PROCESS_ID"), "JAX"
        )
    if all(name in environment for name in _SLURM) and environment["SLURM_NTASKS"] != "1":
        return _slurm(environment)
    hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    slices = _number(environment, "MEGASCALE_NUM_SLICES", 1) if hosts else 0
    if len(hosts) * slices > 1:
        first = environment.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
        worker = _number(environment, "TPU_WORKER_ID") + _number(environment, "MEGASCALE_SLICE_ID", 0) * len(hosts)
        return _place(f"{first.split(':')[0]}:{_PORT}", len(hosts) * slices, worker, "TPU_WORKER")
    return None


def _slurm(environment: Mapping[str, str]) -> Place:
    # The first host of lists such as `node7`, `node7,node9` and `node[07-12,15],other`.
    head = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", environment["SLURM_STEP_NODELIST"])
    if head is None:
        raise ValueError(f"SLURM_STEP_NODELIST = {environment['SLURM_STEP_NODELIST']!r}: this is no list of hosts")
    # A port of the job's own, so that two jobs that share a host do not meet.
    port = 61440 + _number(environment, "SLURM_JOB_ID") % 4096
    place = _place(
        f"{head[1]}{head[2] or ''}:{port}",
        _number(environment, "SLURM_NTASKS"),
        _number(environment, "SLURM_PROCID"),
        "SLURM",
    )
    alone = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_NTASKS_PER_NODE", "")).split("(")[0]
    # One task a host has all its devices; of several tasks each has the one of its number, unless SLURM bound them.
    bound = "CUDA_VISIBLE_DEVICES" in environment and "," not in environment["CUDA_VISIBLE_DEVICES"]
    if alone == "1" or bound:
        return place
    return dataclasses.replace(place, local_device_ids=(_number(environment, "SLURM_LOCALID"),))


def _place(coordinator: str, num_processes: int, process_id: int, source: str) -> Place:
    if not 0 <= process_id < num_processes:
        raise ValueError(f"{source} variables: process {process_id} of {num_processes}; number them from 0")
    return Place(coordinator, num_processes, process_id)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default)) or ""
    if not text.isdecimal():
        raise ValueError(f"{name} = {text!r}: a launcher with several processes must set it to a number")
    return int(text)


def join() -> None:
    """Meet the other processes, if there are any. Must come before jax first looks at its devices.

    Raises:
        ValueError: as `find` does.
    """
    if jax.distributed.is_initialized():
        return
    place = find(os.environ)
    if place is not None and place.num_processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
        jax.distributed.initialize(
            place.coordinator,
            place.num_processes,
            place.process_id,
            local_device_ids=place.local_device_ids,
            cluster_detection_method="deactivate",
            coordinator_bind_address=place.coordinator,
        )


def is_first() -> bool:
    """Whether this process writes what a run writes once."""
    return jax.process_index() == 0


def agree(facts: Mapping[str, str]) -> None:
    """Stop unless all processes hold the same facts.

    Args:
        facts: by what they are of, such as `config`; compared by SHA-256.

    Raises:
        ValueError: in every process, naming the fact and the processes.
    """
    if jax.process_count() == 1:
        return
    mine = np.stack([np.frombuffer(hashlib.sha256(fact.encode()).digest(), np.uint32) for fact in facts.values()])
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    for index, name in enumerate(facts):
        others = [p for p in range(len(everyone)) if (everyone[p, index] != everyone[0, index]).any()]
        if others:
            which = "process" if len(others) == 1 else "processes"
            raise ValueError(
                f"{name}: {which} {', '.join(map(str, others))} and process 0 disagree; start every process with the "
                "same config, overrides, data and jaxllm"
            )


def on_first(do: Callable[[], int]) -> int:
    """Let process 0 do something, and all others wait for it.

    Args:
        do: returns a number that all processes get.

    Raises:
        ValueError: process 0's in process 0; one that points there in the others.
    """
    if jax.process_count() == 1:
        return do()
    value, error = 0, None
    if is_first():
        try:
            value = do()
        except Exception as caught:  # the others must not wait for ever
            error = caught
    failed, value = first_s(int(error is not None), value)
    if error is not None:
        raise error
    if failed:
        raise ValueError("process 0 could not start; see what it says")
    return value


def first_s(*numbers: int) -> tuple[int, ...]:
    """Process 0's numbers, in every process."""
    if jax.process_count() == 1:
        return numbers
    return tuple(map(int, np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(numbers, np.int32)))))


def everywhere(holds: bool) -> bool:
    """Whether something holds in every process."""
    if jax.process_count() == 1:
        return holds
    return bool(np.all(multihost_utils.process_allgather(np.int32(holds))))


class Votes:
    """A few numbers of each process, brought to all of them.

    Args:
        mesh: of the run; all processes own devices of it.

    Attributes:
        alone: whether this is the only process.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.alone = jax.process_count() == 1
        if self.alone:
            return
        self._devices = mesh.devices.flatten().tolist()
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        whole = NamedSharding(mesh, PartitionSpec())
        self._count = jax.jit(lambda votes: jax.reshard(votes, whole))
        owners = [device.process_index for device in self._devices]
        self._rows = [owners.index(process) for process in range(jax.process_count())]

    def cast(self, *numbers: float) -> Any:
        """Give this process's numbers; every process must, equally often and equally many."""
        mine = np.asarray(numbers, np.float32)
        if self.alone:
            return mine[None]
        shape = (len(self._devices), len(numbers))
        return self._count(jax.make_array_from_callback(shape, self._sharding, lambda _: mine[None]))

    def read(self, ballot: Any) -> np.ndarray:
        """What was cast: float32[processes, numbers]."""
        return ballot if self.alone else np.asarray(jax.device_get(ballot))[self._rows]
