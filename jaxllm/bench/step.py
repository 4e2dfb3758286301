"""A training step, measured: `jaxllm bench step`.

The program is the one that `jaxllm train` runs (see train/assemble); its batch is random tokens that lie on the devices
already, one document a row, so neither a corpus nor a tokenizer is needed and no time is spent on data. Every timed
step is waited for, so that its time holds nothing of its neighbours; a run dispatches one step ahead and is at least
as fast.

    tokens per second   tokens of a batch / median seconds of a step
    MFU                 tokens per second x FLOPs per token / peak of the devices, by the convention it is printed with;
                        only where roofline/hardware knows the peak
    ratio               median over pairs of (seconds of the peer's step / seconds of the step right before it)

A machine's speed drifts by tens of percent within minutes, so only steps that alternate are compared; see `peer`.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxllm.bench import peer as peers
from jaxllm.config import BytesTokenizer, Experiment, ModelConfig, SentencePieceTokenizer
from jaxllm.roofline.conventions import flops_per_token, formula, mfu
from jaxllm.roofline.hardware import find_chip
from jaxllm.roofline.transformer import parameters
from jaxllm.train import figures
from jaxllm.train.assemble import Program, assemble, resolve_vocabulary
from jaxllm.train.environment import peak_memory
from jaxllm.train.throughput import CONVENTION

WARM_UP = 2
"""Steps before the first that counts: the first pages memory in, the second finds it warm."""


def measure(
    experiment: Experiment, num_steps: int = 10, peer: str | None = None, peer_script: Path = peers.TORCH
) -> dict[str, Any]:
    """Compile an experiment's training step and time it on random tokens.

    Args:
        experiment: what to measure; of its data only the vocabulary and the batch's shape count.
        num_steps: timed steps, behind two that are not.
        peer: a Python interpreter that runs the same step in PyTorch, alternating with this one.
        peer_script: what it runs.

    Returns:
        Plain data that JSON can hold. name; devices, device_kind, mesh; parameters; adapters, those of them that are
        trained where not all are; batch_size, sequence_length,
        tokens_per_step; compute, a dtype; steps; step_seconds, the median, and step_seconds_quartiles;
        tokens_per_second; mfu and mfu_convention, where the peak is known; trace_seconds, compile_seconds;
        argument_bytes and temporary_bytes, as the compiler planned them for a device, and peak_memory_bytes; first_loss
        and loss, of the first and the last step. With a peer also peer, in which name, step_seconds,
        step_seconds_quartiles, tokens_per_second, first_loss, loss, and ratio with ratio_quartiles, above 1 where the
        peer is slower.

    Raises:
        ValueError: the experiment does not fit the devices, its vocabulary is not known, or the peer cannot run it.
    """
    if num_steps < 1:
        raise ValueError(f"--steps {num_steps}: time at least one step")
    if peer and experiment.tune.lora:
        raise ValueError("--peer: the peer trains all parameters, and tune.lora only adapters; take one of them away")
    model = known_vocabulary(experiment)
    beside = peers.start(peer, peer_script, peers.describe(experiment, model)) if peer else nullcontext()
    program = assemble(experiment, model)
    runs, others = [], []
    with beside as other, jax.set_mesh(program.mesh):
        step = Step(experiment, program)
        for _ in range(WARM_UP + num_steps):
            runs.append(step.run())
            if other:
                others.append(other.step())
    result = {"name": experiment.run.name, **step.facts, "steps": num_steps, **_speed(runs, step.num_tokens)}
    result |= _utilisation(experiment, program, result["tokens_per_second"])
    result["peak_memory_bytes"] = peak_memory(program.mesh.devices.flatten().tolist())
    if other:
        pairs = zip(runs[WARM_UP:], others[WARM_UP:], strict=True)
        ratios = _spread("ratio", [theirs / ours for (ours, _), (theirs, _) in pairs])
        result["peer"] = {"name": other.name, **_speed(others, step.num_tokens), **ratios}
    return result


def text(result: Mapping[str, Any]) -> str:
    """A measurement as lines for people."""
    devices = result["device_kind"]
    if result["devices"] > 1:
        devices = f"{result['devices']} x {devices}: {figures.mesh(result['mesh'])}"
    planned = (
        f"{figures.gibibytes(result[f'{field}_bytes'])} {name}"
        for field, name in (("argument", "arguments"), ("temporary", "temporaries"))
    )
    rows = [
        ("devices", devices),
        ("parameters", figures.count(result["parameters"])),
        ("batch", f"{result['batch_size']} x {result['sequence_length']} = {result['tokens_per_step']:,} tokens"),
        ("compile", f"{result['compile_seconds']:.1f} s, behind {result['trace_seconds']:.1f} s of tracing"),
        ("memory", f"{', '.join(planned)}; {figures.gibibytes(result['peak_memory_bytes'])} at the peak"),
        *_speed_rows(result, f", {result['steps']} steps in {result['compute']}"),
    ]
    if "mfu" in result:
        counted = formula(result["mfu_convention"], bool(result["adapters"]))
        rows.append(("MFU", f"{figures.percent(result['mfu'])} ({counted})"))
    if other := result.get("peer"):
        low, high = other["ratio_quartiles"]
        rows += [("peer", other["name"]), *_speed_rows(other)]
        rows.append(
            ("ratio", f"{other['ratio']:.2f} times the peer's speed, quartiles {low:.2f} to {high:.2f}, in pairs")
        )
    return "\n".join([result["name"], *(f"{label:<12}{value}" for label, value in rows)])


class Step:
    """A compiled step with its state and one batch."""

    def __init__(self, experiment: Experiment, program: Program) -> None:
        phase, model = experiment.data.phases[0], program.decoder.config
        rows, length = phase.batch_size, phase.sequence_length
        self.num_tokens = rows * length
        self._state = jax.block_until_ready(program.init(jax.random.key(experiment.run.seed)))
        self._base = jax.block_until_ready(program.init_base(jax.random.key(experiment.run.seed)))
        self._batch = program.put(random_batch(model.vocab_size, rows, length))
        began = time.perf_counter()
        lowered = program.step.lower(self._state, self._batch, self._base)
        traced = time.perf_counter()
        self._compiled = lowered.compile()
        compiled, memory = time.perf_counter(), self._compiled.memory_analysis()
        self.facts = {
            "devices": program.mesh.devices.size,
            "device_kind": program.mesh.devices.flat[0].device_kind,
            "mesh": {axis: size for axis, size in program.mesh.shape.items() if size > 1},
            "parameters": parameters(model).total + program.trained.num_adapters,
            "adapters": program.trained.num_adapters,
            "batch_size": rows,
            "sequence_length": length,
            "tokens_per_step": self.num_tokens,
            "compute": experiment.train.precision.compute,
            "trace_seconds": traced - began,
            "compile_seconds": compiled - traced,
            "argument_bytes": memory.argument_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
        }

    def run(self) -> tuple[float, float]:
        """One step: its seconds and its loss."""
        began = time.perf_counter()
        self._state, metrics = jax.block_until_ready(self._compiled(self._state, self._batch, self._base))
        return time.perf_counter() - began, float(metrics["loss"])

    def fetch(self) -> tuple[float, float]:
        """One step, the way of all its metrics to the host included: its seconds and its loss."""
        began = time.perf_counter()
        self._state, metrics = jax.block_until_ready(self._compiled(self._state, self._batch, self._base))
        metrics = jax.device_get(metrics)
        return time.perf_counter() - began, float(metrics["loss"])


def random_batch(vocab_size: int, rows: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens, one document a row."""
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (rows, length + 1), np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones((rows, length), np.float32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "segments": np.ones((rows, length), np.int32),
        "sources": np.zeros(rows, np.int32),
    }


def _speed(runs: Sequence[tuple[float, float]], num_tokens: int) -> dict[str, Any]:
    """From seconds and losses of all steps, warm-up first."""
    spread = _spread("step_seconds", [seconds for seconds, _ in runs[WARM_UP:]])
    return {
        **spread,
        "tokens_per_second": num_tokens / spread["step_seconds"],
        "first_loss": runs[0][1],
        "loss": runs[-1][1],
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {name: median, f"{name}_quartiles": [low, high]}


def _speed_rows(result: Mapping[str, Any], note: str = "") -> list[tuple[str, str]]:
    low, high = result["step_seconds_quartiles"]
    return [
        ("step", f"{result['step_seconds']:.4g} s, quartiles {low:.4g} to {high:.4g}{note}"),
        ("tokens/s", figures.integer(result["tokens_per_second"])),
        ("loss", f"{figures.loss(result['first_loss'])} to {figures.loss(result['loss'])} on one batch"),
    ]


def _utilisation(experiment: Experiment, program: Program, tokens_per_second: float) -> dict[str, Any]:
    """MFU, where the vendor names a peak for the compute dtype."""
    chip = find_chip(program.mesh.devices.flat[0].device_kind)
    peak = chip.device_flops_per_second(experiment.train.precision.compute) if chip else None
    if peak is None:
        return {}
    length, adapters = experiment.data.phases[0].sequence_length, program.trained.num_adapters
    flops = flops_per_token(program.decoder.config, length, CONVENTION, adapters)
    share = mfu(tokens_per_second, flops, peak * program.mesh.devices.size)
    return {"mfu": share, "mfu_convention": str(CONVENTION)}


def known_vocabulary(experiment: Experiment) -> ModelConfig:
    """The model with its vocabulary's size, without making a tokenizer.

    Raises:
        ValueError: only the tokenizer's file knows the size.
    """
    match experiment.data.tokenizer:
        case _ if experiment.model.vocab_size:
            return experiment.model
        case SentencePieceTokenizer(path="", vocab_size=size):
            return resolve_vocabulary(experiment.model, size)
        case BytesTokenizer():
            return resolve_vocabulary(experiment.model, 257)
    raise ValueError(
        "model.vocab_size = 0: random tokens need a number; add --model.vocab_size and the tokenizer's size"
    )
