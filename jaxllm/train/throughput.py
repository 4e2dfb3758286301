"""From the seconds of a step to what people compare: tokens per second, TFLOP/s, MFU, memory."""

from typing import Any

import jax
from jax.sharding import Mesh

from jaxllm.config import ModelConfig, PhaseConfig
from jaxllm.roofline.conventions import Convention, flops_per_token, formula
from jaxllm.roofline.hardware import find_chip
from jaxllm.train import environment

CONVENTION = Convention.TORCHTITAN


class Meter:
    """Reads the throughput of a phase's steps.

    Args:
        model: counted.
        mesh: whose devices work.
        phase: shape of the batches.
        compute: dtype of matrix products.
        adapters: parameters of adapters, where these alone are trained.
    """

    def __init__(self, model: ModelConfig, mesh: Mesh, phase: PhaseConfig, compute: str, adapters: int = 0) -> None:
        self._adapters = adapters
        self._tokens = phase.batch_size * phase.sequence_length
        devices = mesh.devices.flatten().tolist()
        self._num_devices = len(devices)
        self._local = [device for device in devices if device.process_index == jax.process_index()]
        self._flops = flops_per_token(model, phase.sequence_length, CONVENTION, adapters)
        chip = find_chip(devices[0].device_kind)
        self._peak = chip.device_flops_per_second(compute) if chip else None

    @property
    def facts(self) -> dict[str, str]:
        """The convention of mfu, where there is one."""
        return {"mfu_convention": formula(CONVENTION, bool(self._adapters))} if self._peak else {}

    def read(self, seconds: float) -> dict[str, Any]:
        """tokens_per_second, tflops_per_device, mfu where the peak is known, and this process's peak of memory."""
        speed = self._tokens / seconds
        per_device = speed * self._flops / self._num_devices
        values = {"tokens_per_second": speed, "tflops_per_device": per_device / 1e12}
        if self._peak:
            values["mfu"] = per_device / self._peak
        return values | {"memory_bytes": environment.peak_memory(self._local)}
