"""Parameters into a Hugging Face directory, which transformers loads: written whole, or not at all.

Files are written tensor by tensor, in the order of the model's layers, none larger than a given size; the directory
gets its name when all of it is on the disk.
"""

import functools
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxllm.config import ModelConfig
from jaxllm.hf import config as configs
from jaxllm.hf.load import turn
from jaxllm.hf.names import Entry, Part, entries
from jaxllm.hf.safetensors import DTYPES, INDEX, SINGLE
from jaxllm.layers.param import Tree, leaves
from jaxllm.storage import LocalStorage

MAX_SHARD = 5_000_000_000
"""Bytes of a file's tensors, unless one tensor alone has more."""

_CODES = {str(dtype): code for code, dtype in DTYPES.items()}
"""The format's names of dtypes."""


def save(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    params: Tree,
    *,
    dtype: str,
    length: int,
    files: Mapping[str, bytes] | None = None,
    keys: Mapping[str, Any] | None = None,
    max_shard: int = MAX_SHARD,
) -> None:
    """Write a model.

    Args:
        directory: new, or empty.
        config: of the model.
        params: its parameters, all of them in this process's reach.
        dtype: of the tensors: `float32`, `bfloat16` or `float16`.
        length: tokens that the model attends over.
        files: what else belongs to the model, by name, such as its tokenizer's.
        keys: of config.json that say nothing of the model, such as `eos_token_id`.
        max_shard: bytes of a file.

    Raises:
        ValueError: the directory holds something, or the family cannot express the model.
        OSError: it could not be written.
    """
    target = check_target(directory)
    tree = {**configs.write_tree(config, length), "dtype": dtype, "torch_dtype": dtype, **(keys or {})}
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    storage = LocalStorage(temporary)
    try:
        for name, content in (files or {}).items():
            storage.write(name, content)
        _write_tensors(storage, entries(config), params, dtype, max_shard)
        storage.write(configs.CONFIG, (json.dumps(tree, indent=2) + "\n").encode())
        if target.is_dir():
            target.rmdir()
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_target(directory: str | os.PathLike[str]) -> Path:
    """The place of a new directory.

    Raises:
        ValueError: something is there already, or it is not on a local disk.
    """
    if "://" in str(directory):
        raise ValueError(f"{directory}: transformers reads local directories; name one")
    target = Path(directory).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{directory} is not empty; name a new directory")
    return target


def _write_tensors(storage: LocalStorage, model: Sequence[Entry], params: Tree, dtype: str, max_shard: int) -> None:
    """The files of tensors, and their index where there are several."""
    size = DTYPES[_CODES[dtype]].itemsize
    shards: list[list[Entry]] = [[]]
    for entry in model:
        if shards[-1] and size * (_values(shards[-1]) + math.prod(entry.shape)) > max_shard:
            shards.append([])
        shards[-1].append(entry)
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [SINGLE]
    for name, shard in zip(names, shards, strict=True):
        storage.write(name, _pieces(shard, params, dtype))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": size * sum(map(_values, shards))},
            "weight_map": {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard},
        }
        storage.write(INDEX, json.dumps(index, indent=2).encode())


def _values(shard: Sequence[Entry]) -> int:
    return sum(math.prod(entry.shape) for entry in shard)


def _pieces(shard: Sequence[Entry], params: Tree, dtype: str) -> Iterator[bytes | memoryview]:
    """A file's content: the header, and each tensor's bytes."""
    wanted, header, end = DTYPES[_CODES[dtype]], {"__metadata__": {"format": "pt"}}, 0
    for entry in shard:
        start, end = end, end + math.prod(entry.shape) * wanted.itemsize
        header[entry.name] = {"dtype": _CODES[dtype], "shape": list(entry.shape), "data_offsets": [start, end]}  # type: ignore[dict-item]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    held = _Held(params)
    for entry in shard:
        yield memoryview(_gathered(entry, held, wanted).reshape(-1).view(np.uint8))


def gathered(entry: Entry, params: Tree, dtype: np.dtype) -> np.ndarray:
    """A tensor, put together on the host of what this process's devices hold of its parameters: all of it.

    Args:
        entry: the tensor.
        params: of the model, or a tree of its shapes, under the ambient mesh.
        dtype: of the result.
    """
    return _gathered(entry, _Held(params), dtype)


class _Held:
    """What this process's devices hold of parameters, as pieces on the host, one layer of an array at a time.

    The last layer is kept, for it is many tensors where it has experts.
    """

    def __init__(self, params: Tree) -> None:
        self._flat = dict(leaves(params))
        self.pieces = functools.lru_cache(1)(self._pieces)

    def _pieces(self, leaf: str, layer: int | None) -> list[tuple[tuple[slice, ...], np.ndarray]]:
        """Where each piece lies in the array, and its values; of a layer, where the array stacks these."""
        array = self._flat[leaf] if layer is None else _layer(self._flat[leaf], layer)
        shards = {str(shard.index): shard for shard in array.addressable_shards}  # of equal ones one
        held = [(shard.index, np.asarray(shard.data)) for shard in shards.values()]
        return held if layer is None else [((slice(layer, layer + 1), *index), value[None]) for index, value in held]


def _gathered(entry: Entry, held: _Held, dtype: np.dtype) -> np.ndarray:
    made = np.empty(entry.shape, dtype)
    whole = made[None] if made.ndim == 1 else made
    for part in entry.parts:
        for index, value in held.pieces(part.leaf, part.at[0] if part.at else None):
            if (at := part.within(index)) is not None:
                _write_part(entry, part, value[at], index[len(at) :], whole)
    return made


def _layer(array: jax.Array, number: int) -> jax.Array:
    """One layer of a stacked array; where layers lie over the stages of a pipeline, each stage gets it."""
    stages, *others = jax.typeof(array).sharding.spec.partitions
    return (array if stages is None else jax.reshard(array, PartitionSpec(None, *others)))[number]


def _write_part(entry: Entry, part: Part, value: np.ndarray, index: tuple[slice, ...], into: np.ndarray) -> None:
    """A piece of one parameter, into the tensor."""
    first, last = part.inputs(index)
    ours = value.reshape(last - first, -1)
    for start, at, length in part.outputs(index):
        source = ours[:, start : start + length]
        if entry.turned:
            turn(source, into[at : at + length, first:last])
        else:
            into[first:last, at : at + length] = source
