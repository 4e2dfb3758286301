"""What loading a Hugging Face model costs: its time beside safetensors' own loader's, and the most memory it takes.

A random model is written, then loaded in a process of its own by both in turns, the page cache warm. Memory is what no
file backs (`RssAnon`), sampled while the first load runs, above what the process had before it; mapped files cost none.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxllm.config import AttentionConfig, MeshConfig, MLPConfig, ModelConfig
from jaxllm.hf.load import load, read_config
from jaxllm.hf.save import save
from jaxllm.layers.param import Recipe, leaves, nest
from jaxllm.models.decoder import Decoder, declarations
from jaxllm.sharding import make_mesh

_EVERY = 0.002
"""Seconds between samples of memory."""


def measure(megabytes: int, dtype: str, turns: int, directory: str | None = None) -> dict[str, Any]:
    """Load a random model of about so many megabytes.

    Args:
        megabytes: of its tensors.
        dtype: of its tensors, and of the parameters that they become.
        turns: of each loader.
        directory: where the model is written and removed again; a temporary one by default.
    """
    with tempfile.TemporaryDirectory(dir=directory) as place:
        model = Path(place) / "model"
        _write(_model(megabytes * 10**6 // np.dtype(jax.numpy.dtype(dtype)).itemsize), model, dtype)
        command = [sys.executable, "-m", "jaxllm.bench.hf_load", str(model), dtype, str(turns)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _model(num_parameters: int) -> ModelConfig:
    """A Llama of about so many parameters, of the proportions of a small one."""
    d_model, d_ff, vocab_size = 2048, 5632, 32_000
    layer = d_model * (2 * d_model + 2 * d_model // 4 + 3 * d_ff)
    num_layers = max(1, round((num_parameters - 2 * vocab_size * d_model) / layer))
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        attention=AttentionConfig(num_heads=32, num_kv_heads=8),
        mlp=MLPConfig(d_ff=d_ff),
    )


def _mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])


def _write(config: ModelConfig, directory: Path, dtype: str) -> None:
    mesh, random, made = _mesh(), np.random.default_rng(0), {}
    with jax.set_mesh(mesh):
        for name, leaf in leaves(declarations(Decoder(config, Recipe()))):
            values = random.random(leaf.shape, np.float32).astype(jax.numpy.dtype(dtype))
            made[name] = jax.device_put(values, NamedSharding(mesh, Recipe().rules.storage(leaf.axes)))
        save(directory, config, nest(made), dtype=dtype, length=2048)


def _anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class _Peak:
    """The most memory while a block runs, above what there was before it."""

    def __enter__(self) -> "_Peak":
        self.bytes, self._before, self._over = 0, _anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(_EVERY):
            self.bytes = max(self.bytes, _anonymous() - self._before)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.bytes = max(self.bytes, _anonymous() - self._before)


def _ours(directory: str, dtype: str) -> int:
    """Bytes of the parameters."""
    with jax.set_mesh(_mesh()):
        params = load(directory, Recipe(parameters=dtype), read_config(directory))
        return sum(array.nbytes for _, array in leaves(jax.block_until_ready(params)))


def _theirs(directory: str) -> None:
    from safetensors.numpy import load_file

    for file in sorted(Path(directory).glob("*.safetensors")):
        load_file(file)


def _child(directory: str, dtype: str, turns: int) -> dict[str, Any]:
    for file in Path(directory).glob("*.safetensors"):
        file.read_bytes()  # into the page cache
    jax.block_until_ready(jax.device_put(np.zeros(1)))
    with _Peak() as peak:
        num_bytes = _ours(directory, dtype)
    seconds: dict[str, list[float]] = {"jaxllm": [], "safetensors": []}
    for _ in range(turns):
        for name, once in (("jaxllm", lambda: _ours(directory, dtype)), ("safetensors", lambda: _theirs(directory))):
            began = time.perf_counter()
            once()
            seconds[name].append(time.perf_counter() - began)
    return {
        "bytes": num_bytes,
        "dtype": dtype,
        "peak_bytes": peak.bytes,
        "peak_share": peak.bytes / num_bytes,
        "seconds": seconds,
        "ratio": statistics.median(ours / theirs for ours, theirs in zip(*seconds.values(), strict=True)),
    }


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    rows = [f"{result['bytes'] / 1e9:.2f} GB of parameters in {result['dtype']}"]
    rows.append(f"{'most memory':<14}{result['peak_share']:.2f} times as much, above start-up")
    for name, seconds in result["seconds"].items():
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        rows.append(f"{name:<14}{statistics.median(seconds):.2f} s, {spread} in {len(seconds)} turns")
    return "\n".join([*rows, f"{'time':<14}{result['ratio']:.2f} times safetensors' (median of turns)"])


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
