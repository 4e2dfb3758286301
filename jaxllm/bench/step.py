"""`jaxllm bench step`: time the training step of an experiment on synthetic tokens.

Every timed step is waited for, so a step's time holds nothing of its neighbours. Medians are reported, and quartiles
beside them: a shared machine's mean says little.
"""

import time
from typing import Any

import jax
import numpy as np

from jaxllm.config import Experiment
from jaxllm.roofline.hardware import find_chip
from jaxllm.roofline.transformer import Convention, flops_per_token, mfu
from jaxllm.train import environment
from jaxllm.train.assemble import Program, assemble, resolve_vocabulary

WARM_UP = 2
CONVENTION = Convention.TORCHTITAN
_VOCABULARY = 4096


def measure(experiment: Experiment, num_steps: int) -> dict[str, Any]:
    """Compile the step and time it.

    Args:
        experiment: its model, mesh, first phase, precision and optimizer are measured; an open vocabulary has 4096.
        num_steps: timed steps, behind two that are not.

    Returns:
        tokens_per_second, step_seconds (median) and its quartiles, compile_seconds, bytes by the compiler's count,
        peak memory, loss of the last step, and mfu with its convention where the chip's peak is known.

    Raises:
        ValueError: as `assemble` does.
    """
    if num_steps < 1:
        raise ValueError(f"--steps {num_steps}: time at least one step")
    model = resolve_vocabulary(experiment.model, experiment.model.vocab_size or _VOCABULARY)
    phase, program = experiment.data.phases[0], assemble(experiment, model)
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(experiment.run.seed))
        batch = program.put(_batch(model.vocab_size, phase.batch_size, phase.sequence_length))
        began = time.perf_counter()
        step = program.step.lower(state, batch).compile()
        compiled = time.perf_counter() - began
        seconds, loss = [], 0.0
        for _ in range(WARM_UP + num_steps):
            began = time.perf_counter()
            state, metrics = step(state, batch)
            loss = float(metrics["loss"])
            seconds.append(time.perf_counter() - began)
    memory = step.memory_analysis()
    low, median, high = np.quantile(seconds[WARM_UP:], [0.25, 0.5, 0.75]).tolist()
    tokens = phase.batch_size * phase.sequence_length
    return {
        "name": experiment.run.name,
        "devices": program.mesh.devices.size,
        "device_kind": program.mesh.devices.flat[0].device_kind,
        "tokens_per_step": tokens,
        "steps": num_steps,
        "step_seconds": median,
        "step_seconds_quartiles": [low, high],
        "tokens_per_second": tokens / median,
        "compile_seconds": compiled,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_memory_bytes": environment.peak_memory(program.mesh.devices.flatten().tolist()),
        "loss": loss,
        **_utilisation(experiment, program, tokens / median),
    }


def _batch(vocab_size: int, rows: int, length: int) -> dict[str, np.ndarray]:
    """Random tokens, one document a row."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, length + 1), np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones((rows, length), np.float32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "segments": np.ones((rows, length), np.int32),
    }


def _utilisation(experiment: Experiment, program: Program, tokens_per_second: float) -> dict[str, Any]:
    """MFU, where the vendor names a peak for the compute dtype."""
    chip = find_chip(program.mesh.devices.flat[0].device_kind)
    peak = chip.device_flops_per_second(experiment.train.precision.compute) if chip else None
    if peak is None:
        return {}
    flops = flops_per_token(program.decoder.config, experiment.data.phases[0].sequence_length, CONVENTION)
    share = mfu(tokens_per_second, flops, peak * program.mesh.devices.size)
    return {"mfu": share, "mfu_convention": str(CONVENTION)}


def text(result: dict[str, Any]) -> str:
    """A measurement as lines for people."""
    low, high = result["step_seconds_quartiles"]
    rows = [
        ("devices", f"{result['devices']} x {result['device_kind']}"),
        ("step", f"{result['step_seconds']:.4f} s, quartiles {low:.4f} to {high:.4f}, of {result['steps']} steps"),
        ("tokens/s", f"{result['tokens_per_second']:,.0f}"),
        ("compile", f"{result['compile_seconds']:.1f} s"),
        (
            "memory",
            f"{result['argument_bytes'] / 1e9:.3f} GB arguments, {result['temporary_bytes'] / 1e9:.3f} GB temporaries "
            f"a device; {result['peak_memory_bytes'] / 1e9:.3f} GB at the peak",
        ),
    ]
    if "mfu" in result:
        rows.append(("MFU", f"{result['mfu']:.1%} ({result['mfu_convention']})"))
    return "\n".join([result["name"], *(f"{label:<12}{value}" for label, value in rows)])
