"""A training step in another process and another framework, one step at a time, on command.

Two processes take turns on the same cores: while one steps, the other waits for a line and does nothing. The parent
writes lines to the peer's standard input and reads one JSON object for each from its standard output:

    parent   {"model": {...}, "batch_size": ..., ...}     one line; see `describe`
    peer     {"name": "transformers 5.2, PyTorch 2.13", "parameters": 34618880}
    parent   step
    peer     {"seconds": 0.85, "loss": 9.1}               measured by the peer itself
    ...
    parent   end of file: the peer ends

`torch_step.py` in `peers/` is such a peer. It runs in an environment of its own, where jaxllm is not: with uv, say,
`uv venv --python 3.12 /tmp/peer && uv pip install --python /tmp/peer/bin/python torch transformers`, and then
`jaxllm bench step CONFIG --peer /tmp/peer/bin/python`. Another framework needs a script that speaks these lines.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jax

from jaxllm.config import AdamW, AttentionConfig, Experiment, MLPConfig, ModelConfig, NormConfig, RopeConfig
from jaxllm.config.base import Section
from jaxllm.roofline.transformer import parameters

TORCH = Path(__file__).parent / "peers" / "torch_step.py"


def describe(experiment: Experiment, model: ModelConfig) -> dict[str, Any]:
    """What a peer needs to know to build the same step.

    Raises:
        ValueError: naming the field that a peer has no counterpart of.
    """
    train, optim, block = experiment.train, experiment.optim, model.default_block
    if jax.default_backend() != "cpu":
        raise ValueError(f"--peer compares steps on CPUs, not on {jax.default_backend()}; leave it out")
    if any(other != block for other in model.blocks):
        raise ValueError(
            "model.prefix, model.period: --peer needs blocks that are all alike; leave them out, or --peer"
        )
    if block.attention.rope.scaling:
        raise ValueError("model.attention.rope.scaling: --peer knows no scaling; leave one of them out")
    theirs = _as_a_peer_has_it(model)
    for section, own, other in (
        ("model", model, theirs),
        ("model.attention", block.attention, theirs.attention),
        ("model.attention.rope", block.attention.rope, theirs.attention.rope),
        ("model.mlp", block.mlp, theirs.mlp),
        ("model.norm", block.norm, theirs.norm),
    ):
        for field in own.__struct_fields__:
            value, wanted = getattr(own, field), getattr(other, field)
            if value != wanted and not isinstance(value, Section):
                raise ValueError(f"{section}.{field}: --peer's model is a plain Llama; leave one of them out")
    if not isinstance(optim.optimizer, AdamW):
        raise ValueError('optim.optimizer.type = "muon": --peer runs AdamW; use "adamw"')
    if train.precision.compute == "float16":
        raise ValueError(
            'train.precision.compute = "float16": --peer computes in "bfloat16" or "float32"; use one of these'
        )
    phase = experiment.data.phases[0]
    return {
        "model": {
            "vocab_size": model.vocab_size,
            "hidden_size": model.d_model,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": block.attention.num_heads,
            "num_key_value_heads": block.attention.kv_heads,
            "head_dim": model.head_dim(block.attention),
            "intermediate_size": block.mlp.d_ff,
            "rms_norm_eps": block.norm.epsilon,
            "tie_word_embeddings": model.tie_embeddings,
            "max_position_embeddings": phase.sequence_length,
        },
        "rope_theta": block.attention.rope.theta,
        "parameters": parameters(model).total,
        "batch_size": phase.batch_size,
        "sequence_length": phase.sequence_length,
        "accumulate": train.accumulate,
        "compute": train.precision.compute,
        "learning_rate": optim.learning_rate,
        "betas": [optim.optimizer.beta1, optim.optimizer.beta2],
        "epsilon": optim.optimizer.epsilon,
        "weight_decay": optim.optimizer.weight_decay,
        "clip_norm": optim.clip_norm,
        "seed": experiment.run.seed,
    }


def _as_a_peer_has_it(model: ModelConfig) -> ModelConfig:
    """A Llama of the same shape: what a peer's model is."""
    attention = AttentionConfig(
        num_heads=model.attention.num_heads,
        num_kv_heads=model.attention.num_kv_heads,
        head_dim=model.attention.head_dim,
        rope=RopeConfig(theta=model.attention.rope.theta),
        kernel=model.attention.kernel,
    )
    return ModelConfig(
        preset=model.preset,
        family=model.family,
        vocab_size=model.vocab_size,
        d_model=model.d_model,
        num_layers=model.num_layers,
        attention=attention,
        mlp=MLPConfig(d_ff=model.mlp.d_ff),
        norm=NormConfig(epsilon=model.norm.epsilon),
        prefix=model.prefix,
        period=model.period,
        tie_embeddings=model.tie_embeddings,
        initializer_std=model.initializer_std,
    )


class Peer:
    """A peer's process, ready to step; `start` makes one.

    Attributes:
        name: what it calls itself.
    """

    def __init__(self, python: str, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._python, self._process, self._errors = python, process, errors
        self.name = ""

    def step(self) -> tuple[float, float]:
        """One step: its seconds, as the peer measured them, and its loss.

        Raises:
            ValueError: the peer has ended, with the last line it wrote.
        """
        reply = self.ask("step")
        return float(reply["seconds"]), float(reply["loss"])

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and wait for the reply."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        if not reply:
            self._errors.seek(0)
            *_, last = [b"it said nothing", *self._errors.read().splitlines()]
            raise ValueError(f"--peer {self._python}: the peer ended: {last.decode(errors='replace')}")
        return json.loads(reply)


@contextmanager
def start(python: str, script: Path, description: dict[str, Any]) -> Iterator[Peer]:
    """A peer that has built its model, until the end of the `with` block.

    Args:
        python: the interpreter that runs it.
        script: what it runs.
        description: the model and the batch; `describe` gives one.

    Raises:
        ValueError: there is no such interpreter, it lacks a library, or its model has another number of parameters.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
            )
        except OSError as error:
            raise ValueError(f"--peer {python}: {error.strerror}; name a Python interpreter that has torch") from None
        with process:
            peer = Peer(python, process, errors)
            ready = peer.ask(json.dumps(description))
            if ready["parameters"] != description["parameters"]:
                counts = f"{ready['parameters']} parameters, not {description['parameters']}"
                raise ValueError(f"--peer {python}: its model has {counts}; the two do not compare")
            peer.name = str(ready["name"])
            yield peer
