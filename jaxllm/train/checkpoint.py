"""Checkpoints of a run: one directory a step, layers numbered one by one.

    checkpoints/step-00000120/state/...     arrays, written by orbax under dotted names
    checkpoints/step-00000120/meta.json     written last: a checkpoint without it does not exist

Names and shapes on disk depend neither on how the blocks are stacked nor on the mesh: `params.layers.7.mlp.up` is one
layer's matrix. The same holds for the optimizer's moments.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.config import ModelConfig
from jaxllm.models.decoder import layer_numbers
from jaxllm.storage import LocalStorage
from jaxllm.train.state import TrainState

FORMAT_VERSION = 1

_STACKED = re.compile(r"^(?P<head>.*?)(?P<stack>(?:prefix|period|remainder)\.\d+)\.(?P<rest>.+)$")


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint says of itself.

    Attributes:
        format_version: of names and layout.
        step: attempts behind it.
        attempt: of the run that wrote it.
        data_cursor: number of the first sample that the next step reads.
    """

    format_version: int = FORMAT_VERSION
    step: int
    attempt: int
    data_cursor: int


class Checkpoints:
    """The checkpoints of a run.

    Args:
        directory: `checkpoints/` of the run.
        model: whose layers the names count.
    """

    def __init__(self, directory: Path, model: ModelConfig) -> None:
        self.directory, self._model = directory.absolute(), model
        self._storage = LocalStorage(self.directory)

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, ascending."""
        if not self.directory.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d+)/meta\.json", name) for name in self._storage.list())
        return sorted(int(match[1]) for match in names if match)

    def save(self, state: TrainState, meta: Meta, keep: int) -> None:
        """Write a checkpoint, then remove all but the newest `keep`."""
        place = self._place(meta.step)
        shutil.rmtree(place, ignore_errors=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(place / "state", jax.jit(self._to_layers)(state))
        self._storage.write(f"{place.name}/meta.json", msgspec.json.encode(meta))
        for step in self.steps()[:-keep]:
            self._storage.remove(f"{self._place(step).name}/meta.json")
            shutil.rmtree(self._place(step), ignore_errors=True)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, Meta]:
        """Read a checkpoint onto the shapes and shardings of `abstract`, whatever mesh it was written from.

        Raises:
            ValueError: when it was written by a newer format.
        """
        place = self._place(step)
        meta = msgspec.json.decode(self._storage.read(f"{place.name}/meta.json"), type=Meta)
        if meta.format_version != FORMAT_VERSION:
            raise ValueError(
                f"{place}: format_version = {meta.format_version}, this jaxllm reads {FORMAT_VERSION}; update jaxllm"
            )
        with ocp.StandardCheckpointer() as checkpointer:
            flat = checkpointer.restore(place / "state", self._abstract_layers(abstract))
        return jax.jit(lambda flat: self._from_layers(flat, abstract), donate_argnums=0)(flat), meta

    def _place(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _names(self, name: str) -> list[str] | None:
        """The names of a stacked leaf's layers on disk; None for a leaf that is not stacked."""
        match = _STACKED.match(name)
        if not match:
            return None
        layers = layer_numbers(self._model, f"{match['stack']}.{match['rest']}")
        return [f"{match['head']}layers.{layer}.{match['rest']}" for layer in layers]

    def _to_layers(self, state: TrainState) -> dict[str, jax.Array]:
        flat: dict[str, jax.Array] = {}
        for name, value in _named(state):
            names = self._names(name)
            flat |= {name: value} if names is None else {one: value[i] for i, one in enumerate(names)}
        return flat

    def _abstract_layers(self, abstract: TrainState) -> dict[str, jax.ShapeDtypeStruct]:
        flat: dict[str, jax.ShapeDtypeStruct] = {}
        for name, leaf in _named(abstract):
            names = self._names(name)
            if names is None:
                flat[name] = leaf
                continue
            sharding = NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec.partitions[1:]))
            one = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)
            flat |= dict.fromkeys(names, one)
        return flat

    def _from_layers(self, flat: dict[str, jax.Array], abstract: TrainState) -> TrainState:
        values = []
        for name, _ in _named(abstract):
            names = self._names(name)
            values.append(flat[name] if names is None else jnp.stack([flat[one] for one in names]))
        return jax.tree.unflatten(jax.tree.structure(abstract), values)


def _named(tree: Any) -> list[tuple[str, Any]]:
    """Dotted names and leaves of a state."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
