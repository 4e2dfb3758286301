"""From a family's name table to places of bytes: which part of which tensor a piece of a parameter is.

Both sides are seen as matrices. Ours is [inputs, outputs], theirs [outputs, inputs] (`turned`) or as ours; norms and
biases have one input. Where a tensor holds several parameters, their outputs lie in it in G groups, each with its share
of every one:

    G = 1             q q q q k k v v      Phi-3, GPT-2; gate and up
    G = key heads     q q k v  q q k v     Falcon; BLOOM, which has as many key heads as query heads

A tensor is of one layer, and of one expert where our array stacks these too. One `Entry` describes both directions.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.config import ModelConfig
from jaxllm.layers.param import Declaration, Recipe, leaves
from jaxllm.models import NAMES
from jaxllm.models.decoder import Decoder, canonical_name, declarations, layer_numbers
from jaxllm.models.names import Place


@dataclasses.dataclass(frozen=True)
class Part:
    """A parameter of one layer, of one expert of it, or of none, in a tensor.

    Attributes:
        leaf: dotted name of the array that holds it.
        at: its place in the array's stacked dims: of its layer, and of its expert; empty where nothing is stacked.
        shape: without these dims.
        num_inputs: leading dims of `shape` that are inputs.
        offset: of its outputs in each group.
        total: outputs of a group, all parts together.
        groups: G.
    """

    leaf: str
    at: tuple[int, ...]
    shape: tuple[int, ...]
    num_inputs: int
    offset: int
    total: int
    groups: int

    @property
    def matrix(self) -> tuple[int, int]:
        """Inputs and outputs."""
        return math.prod(self.shape[: self.num_inputs]), math.prod(self.shape[self.num_inputs :])

    def within(self, index: Sequence[slice]) -> tuple[int, ...] | None:
        """Its place in the stacked dims of a piece of the array; None where the piece has nothing of it."""
        stacked = list(zip(self.at, index, strict=False))
        there = all((one.start or 0) <= at and (one.stop is None or at < one.stop) for at, one in stacked)
        return tuple(at - (one.start or 0) for at, one in stacked) if there else None

    def inputs(self, index: Sequence[slice]) -> tuple[int, int]:
        """The range of inputs that a piece has."""
        return _flat(self.shape[: self.num_inputs], index[: self.num_inputs])

    def outputs(self, index: Sequence[slice]) -> Iterator[tuple[int, int, int]]:
        """The ranges of outputs that a piece has: its start in the piece and in the tensor, and its length."""
        start, stop = _flat(self.shape[self.num_inputs :], index[self.num_inputs :])
        per, at = self.matrix[1] // self.groups, start
        while at < stop:
            group, within = divmod(at, per)
            length = min(per - within, stop - at)
            yield at - start, group * self.total + self.offset + within, length
            at += length


def _flat(shape: Sequence[int], index: Sequence[slice]) -> tuple[int, int]:
    """The range that slices of some dims are of these dims as one."""
    if not shape:
        return 0, 1
    behind = math.prod(shape[1:])
    assert all(one.indices(size) == (0, size, 1) for size, one in zip(shape[1:], index[1:], strict=True)), index
    start, stop, _ = index[0].indices(shape[0])
    return start * behind, stop * behind


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of a checkpoint.

    Attributes:
        name: of Hugging Face's.
        shape: its sizes.
        turned: whether it is [outputs, inputs].
        parts: what it holds.
    """

    name: str
    shape: tuple[int, ...]
    turned: bool
    parts: tuple[Part, ...]


def entries(config: ModelConfig) -> list[Entry]:
    """The tensors of a model in Hugging Face's form: the embedding, the layers one by one, the last norm, the head.

    Raises:
        ValueError: the model's family has no place for one of its parameters.
    """
    table = NAMES[config.family]
    order = {name: number for number, name in enumerate(table)}
    found: dict[str, list[_Found]] = {}
    for leaf, declaration in leaves(declarations(Decoder(config, Recipe()))):
        name = canonical_name(leaf)
        if name not in table:
            raise ValueError(
                f"model.family = {config.family!r}: Hugging Face's models of this family have no parameter "
                f"{name!r}, and this one has; name the family whose values these are"
            )
        place = _place(table[name], config)
        numbers = layer_numbers(config, leaf)
        for at in np.ndindex(*declaration.shape[: declaration.stacked]):
            number = numbers[at[0]] if at else -1
            tensor = place.name.format(number, *at[1:])
            found.setdefault(tensor, []).append(_Found(order[name], number, leaf, at, declaration, place))
    first = min(rank for name, rank in order.items() if name.startswith("layers."))

    def key(name: str) -> tuple[bool, int, int, tuple[int, ...]]:
        one = min(found[name])
        return one.layer < 0 and one.rank > first, one.layer, one.rank, one.at

    return [_entry(name, sorted(found[name]), config.attention.kv_heads) for name in sorted(found, key=key)]


class _Found(NamedTuple):
    """A parameter of one layer, or (layer -1) of none, on its way into a tensor.

    Attributes:
        rank: its row in the table.
        layer: the layer's number.
        leaf: dotted name of its array.
        at: its place in that one's stacked dims.
        declaration: of the array.
        place: of the parameter.
    """

    rank: int
    layer: int
    leaf: str
    at: tuple[int, ...]
    declaration: Declaration
    place: Place


def _place(value: str | Place, config: ModelConfig) -> Place:
    place = Place(value) if isinstance(value, str) else value
    renamed = config.branches == "parallel" and place.parallel
    return dataclasses.replace(place, name=place.parallel) if renamed else place


def _entry(name: str, parts: list[_Found], kv_heads: int) -> Entry:
    """The tensor that some parameters share, or that one has for itself."""
    declaration, place = parts[0].declaration, parts[0].place
    groups = kv_heads if place.by_head else 1
    shapes = [part.declaration.shape[part.declaration.stacked :] for part in parts]
    sizes = [math.prod(shape[declaration.num_inputs :]) // groups for shape in shapes]
    made = tuple(
        Part(part.leaf, part.at, shape, declaration.num_inputs, sum(sizes[:number]), sum(sizes), groups)
        for number, (part, shape) in enumerate(zip(parts, shapes, strict=True))
    )
    inputs, outputs = made[0].matrix[0], groups * sum(sizes)
    turned = declaration.role in ("matrix", "head", "router") and not place.plain
    if declaration.num_inputs == 0:
        return Entry(name, (outputs,), False, made)
    return Entry(name, (outputs, inputs) if turned else (inputs, outputs), turned, made)
