"""Parameters out of Hugging Face's files, onto any mesh: every device reads only its bytes.

One array after the other: the pieces of it that this process's devices hold are put together in host memory, layer by
layer, out of the mapped files, and handed over. So beside the parameters themselves at most one array is held twice,
and where devices compute on host memory none is.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxllm.config import ModelConfig
from jaxllm.hf import config as configs
from jaxllm.hf.names import Entry, Part, entries
from jaxllm.hf.safetensors import Tensors, open_tensors
from jaxllm.layers.param import Declaration, Recipe, Tree, leaves, nest
from jaxllm.models.decoder import Decoder, declarations

type Index = tuple[slice, ...]

_TILE = (256, 1024)
"""Bytes of a column, and columns, that are turned at a time, so that both sides stay in a cache."""

_ALIGNMENT = 64
"""Bytes that XLA's buffers on a CPU begin at a multiple of; such a one is used as it is."""


def read_config(directory: str | os.PathLike[str]) -> ModelConfig:
    """The model of a Hugging Face directory.

    Raises:
        ValueError: one sentence, when there is no config.json, or it asks for what jaxllm does not compute.
    """
    return configs.read(directory).model


def load(directory: str | os.PathLike[str], recipe: Recipe, config: ModelConfig | None = None) -> Tree:
    """The parameters of a Hugging Face directory, as global arrays under the ambient mesh (`jax.set_mesh`).

    Args:
        directory: with config.json and safetensors files.
        recipe: they lie as its rules' storage table says, in its dtype of parameters.
        config: of the model; the directory's own by default.

    Raises:
        ValueError: one sentence naming file and tensor, when the files are not whole or not those of the model.
    """
    return load_tensors(open_tensors(directory), recipe, config or read_config(directory))


def load_tensors(tensors: Tensors, recipe: Recipe, config: ModelConfig) -> Tree:
    """`load` of tensors that are open; they count the bytes that are read.

    Raises:
        ValueError: as `load`.
    """
    places = match(tensors, config)
    mesh, made = jax.sharding.get_mesh(), {}
    for leaf, declaration in leaves(declarations(Decoder(config, recipe))):
        sharding = NamedSharding(mesh, recipe.rules.storage(declaration.axes))
        made[leaf] = _array(tensors, places[leaf], declaration, sharding, jnp.dtype(recipe.parameters))
    return nest(made)


def match(tensors: Tensors, config: ModelConfig) -> dict[str, list[tuple[str, Entry, Part]]]:
    """What each array is read from: the tensor's name in the files, the tensor and the array's part of it, by leaf.

    Raises:
        ValueError: a tensor is missing, unknown, or has another shape or dtype than the model asks for.
    """
    expected = entries(config)
    names = _names(tensors, [entry.name for entry in expected])
    table = next(entry.name for entry in expected if entry.parts[0].leaf == TABLE)
    head = next((name for name in tensors if name.endswith(HEAD)), None) if config.tie_embeddings else None
    if head is not None:
        names.setdefault(table, head)  # of two names for one tensor some versions keep this one
    found: dict[str, list[tuple[str, Entry, Part]]] = {}
    for entry in expected:
        name = names.get(entry.name)
        if name is None:
            raise ValueError(
                f"{tensors.directory}: there is no tensor {entry.name!r}, of shape {list(entry.shape)}, as "
                f"{configs.CONFIG} asks for; copy all files of the model"
            )
        if tensors[name].shape != entry.shape:
            raise ValueError(
                f"{tensors[name].file}: tensor {name!r} has shape {list(tensors[name].shape)}, and "
                f"{configs.CONFIG} asks for {list(entry.shape)}; take both from the same model"
            )
        tensors.view(name)  # refuses other dtypes
        for part in entry.parts:
            found.setdefault(part.leaf, []).append((name, entry, part))
    _check_rest(tensors, set(names.values()), config, (head, names[table]))
    return found


def _names(tensors: Tensors, expected: Sequence[str]) -> dict[str, str]:
    """What the files call each expected tensor: the same, without the model's prefix, or as part of a larger model."""
    forms = (
        lambda name: name,
        lambda name: name.partition(".")[2] if name.startswith(("model.", "transformer.")) else name,
        lambda name: f"language_model.{name}",
        lambda name: f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name,
    )
    renamed = [{name: form(name) for name in expected} for form in forms]
    best = max(renamed, key=lambda names: sum(name in tensors for name in names.values()))
    return {name: its for name, its in best.items() if its in tensors}


TABLE, HEAD = "embedding.table", "lm_head.weight"
"""Our name of the embedding, and the end of Hugging Face's of the head."""

_BESIDE = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
"""Beginnings of tensors that belong to a model's other parts."""

_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Ends of tensors that are no parameters: tables that old versions saved."""


def _check_rest(tensors: Tensors, used: set[str], config: ModelConfig, tied: tuple[str | None, str]) -> None:
    """Refuse tensors that are no part of the model, or a tied head that is another than the table."""
    head, table = tied
    for name in sorted(set(tensors) - used):
        if name.startswith(_BESIDE) or name.endswith(_BUFFERS):
            continue
        if name == head:
            if tensors[name].shape == tensors[table].shape and np.array_equal(tensors.view(name), tensors.view(table)):
                continue
            raise ValueError(
                f"{tensors[name].file}: tensor {name!r} differs from {table!r}, and {configs.CONFIG} says "
                "tie_word_embeddings = true; say false there"
            )
        raise ValueError(
            f"{tensors[name].file}: tensor {name!r} is no part of the {config.family} model that {configs.CONFIG} "
            "describes; take both from the same model"
        )


def _array(
    tensors: Tensors,
    places: Sequence[tuple[str, Entry, Part]],
    declaration: Declaration,
    sharding: NamedSharding,
    dtype: np.dtype,
) -> jax.Array:
    """One array, of the pieces that this process's devices hold."""
    devices: dict[Any, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(declaration.shape).items():
        assert index is not None
        ranges = tuple(one.indices(size)[:2] for one, size in zip(index, declaration.shape, strict=True))
        devices.setdefault(ranges, []).append(device)
    shards = []
    for ranges, holders in devices.items():
        piece = read_piece(tensors, places, tuple(slice(*one) for one in ranges), dtype)
        shards += [jax.device_put(piece, device) for device in holders]
    return jax.make_array_from_single_device_arrays(declaration.shape, sharding, shards)


def read_piece(
    tensors: Tensors, places: Sequence[tuple[str, Entry, Part]], index: Index, dtype: np.dtype
) -> np.ndarray:
    """A piece of an array.

    Args:
        tensors: of the checkpoint.
        places: of what is stacked in the array.
        index: the piece, a slice a dim.
        dtype: of the result.
    """
    piece = _empty([one.stop - one.start for one in index], dtype)
    for name, entry, part in places:
        if (at := part.within(index)) is not None:
            _read_part(tensors, name, entry, part, index[len(at) :], piece[at])
    return piece


def _read_part(tensors: Tensors, name: str, entry: Entry, part: Part, index: Index, into: np.ndarray) -> None:
    """A piece of one parameter."""
    theirs = tensors.view(name)
    theirs = theirs[None] if theirs.ndim == 1 else theirs
    first, last = part.inputs(index)
    ours = into.reshape(last - first, -1)
    for start, at, length in part.outputs(index):
        target = ours[:, start : start + length]
        if entry.turned:
            turn(theirs[at : at + length, first:last], target)
        else:
            _copy(theirs[first:last, at : at + length], target)
        tensors.count(target.size * theirs.dtype.itemsize)


def turn(source: np.ndarray, target: np.ndarray) -> None:
    """target = source transposed."""
    rows, columns = _TILE[0] // source.itemsize, _TILE[1]
    for row in range(0, source.shape[0], rows):
        for column in range(0, source.shape[1], columns):
            tile = source[row : row + rows, column : column + columns]
            _copy(tile.T, target[column : column + columns, row : row + rows])


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    target[...] = source


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array at a place from which XLA takes it as it is."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
