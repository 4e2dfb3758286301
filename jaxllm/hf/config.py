"""`config.json` and the model that it describes, both ways.

Every key is used, known to say nothing of what is computed (`keys.HARMLESS`), or refused by name. What is written is
read back: a model that its family's keys cannot express is refused, naming the field.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec

from jaxllm.config import ModelConfig
from jaxllm.config.base import Section
from jaxllm.config.errors import nearest, show
from jaxllm.config.model import Family
from jaxllm.hf import experts, families, newer, older
from jaxllm.hf.keys import HARMLESS, Keys

CONFIG, GENERATION = "config.json", "generation_config.json"

DTYPES = ("float32", "bfloat16", "float16")
"""What a model's parameters may be said to be."""

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of the special tokens."""

_READERS = {"gpt2": older.read_gpt2, "bloom": older.read_bloom, "falcon": older.read_falcon}
_WRITERS = {"gpt2": older.write_gpt2, "bloom": older.write_bloom, "falcon": older.write_falcon}

_ALIASES = {**older.ALIASES, **experts.ALIASES}

_TYPES = {
    families.FAMILIES[name].model_type or name if name in families.FAMILIES else name: name for name in get_args(Family)
}
"""`model_type` -> family."""

_IMAGES, _TEXT = "gemma3", "gemma3_text"
"""`model_type` of a model of text and images, and of its text model, whose keys lie under `text_config`."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What a `config.json` says.

    Attributes:
        model: that it describes.
        context_length: tokens that the model attends over; 0 where nobody says (BLOOM).
        dtype: of its parameters, one of `DTYPES`; empty where nobody says.
        token_ids: of the special tokens, by key: one, several, or None.
    """

    model: ModelConfig
    context_length: int
    dtype: str
    token_ids: Mapping[str, int | list[int] | None]

    def ids(self, key: str) -> tuple[int, ...]:
        """Ids of one of `TOKEN_IDS`, which may be none."""
        return tuple(one for one in _several(self.token_ids[key]) if one >= 0)  # some files say -1 for none


def read_tree(directory: str | os.PathLike[str], name: str = CONFIG) -> dict[str, Any]:
    """The keys of a directory's `config.json`, or of another file of JSON.

    Raises:
        ValueError: there is none, or it is no table.
    """
    place = Path(directory) / name
    if not place.is_file():
        raise ValueError(f"{directory}: there is no {name}; name the directory of a Hugging Face model")
    try:
        return msgspec.json.decode(place.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{place}: not a table of JSON ({error}); copy the file again") from None


def read(directory: str | os.PathLike[str]) -> Description:
    """What a directory's `config.json` says.

    Raises:
        ValueError: one sentence, when there is none, or it asks for what jaxllm does not compute.
    """
    return describe(read_tree(directory), f"{directory}/{CONFIG}")


def ends(directory: str | os.PathLike[str], description: Description) -> frozenset[int]:
    """Ids that end a text: those that generation is told of, else those of the model.

    Raises:
        ValueError: `generation_config.json` is broken.
    """
    found: tuple[int, ...] = ()
    if (Path(directory) / GENERATION).is_file():
        tree = read_tree(directory, GENERATION)
        found = _several(_token_id(tree, "eos_token_id", f"{directory}/{GENERATION}"))
    return frozenset(found or description.ids("eos_token_id"))


def describe(tree: Mapping[str, Any], place: str) -> Description:
    """What keys say.

    Args:
        tree: of a `config.json`.
        place: how errors call it.

    Raises:
        ValueError: the family is none that jaxllm knows, or a key says what it does not compute.
    """
    name, inner, prefix = tree.get("model_type"), tree, ""
    if name == _IMAGES:
        inner, prefix = _text_model(tree, place), "text_config."
        name = _TEXT
    if not isinstance(name, str) or name not in _TYPES:
        near = nearest(name, _TYPES) if isinstance(name, str) else None
        fix = f"the nearest that jaxllm knows is {near}" if near else f"jaxllm knows {', '.join(_TYPES)}"
        raise ValueError(f"{place}: model_type = {show(name)}: {fix}")
    family = _TYPES[name]
    model, length = _model(family, inner, place, prefix)
    dtype = _dtype(tree, place) or _dtype(inner, place)
    ids = {key: _token_id(tree if tree.get(key) is not None else inner, key, place) for key in TOKEN_IDS}
    return Description(model, length, dtype, ids)


def parse(tree: Mapping[str, Any], place: str) -> ModelConfig:
    """The model that keys describe; as `describe`."""
    return describe(tree, place).model


def _text_model(tree: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The keys of the text model in those of a Gemma 3 of text and images; it is a Gemma 3 like others."""
    keys = Keys(tree, place, {})
    inner, tied = keys.optional("text_config", dict), keys.optional("tie_word_embeddings", bool)
    if inner is None:
        raise keys.missing("text_config")
    if inner.get("model_type", _TEXT) != _TEXT:
        raise ValueError(f"{place}: text_config.model_type = {show(inner['model_type'])}: use {_TEXT}")
    keys.close(HARMLESS | _OF_IMAGES)
    return {**({} if tied is None else {"tie_word_embeddings": tied}), **inner}


_OF_IMAGES = frozenset(
    {
        "vision_config",
        "mm_tokens_per_image",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
        "initializer_range",
    }
)
"""Keys of a Gemma 3 of text and images that say nothing of its text model."""


def _model(family: str, tree: Mapping[str, Any], place: str, prefix: str) -> tuple[ModelConfig, int]:
    """A family's model, and the tokens that it attends over."""
    alike = family in families.FAMILIES
    defaults = families.defaults(family) if alike else older.DEFAULTS[family]
    keys = Keys(tree, place, defaults, prefix, _ALIASES.get(family, {}))
    length = (keys.count_if_any if family == "bloom" else keys.count)(_length_key(family)) or 0
    if alike:
        model, harmless = newer.read(family, keys, length), families.FAMILIES[family].harmless
        harmless |= experts.HARMLESS if family in experts.MIXTURES else frozenset()
    else:
        model, harmless = _READERS[family](keys, length), older.HARMLESS[family]
    keys.close(HARMLESS | harmless, used=[*defaults, *_SHARED])
    return model, length


def _length_key(family: str) -> str:
    return older.LENGTHS.get(family, "max_position_embeddings")


_SHARED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "max_position_embeddings",
    "partial_rotary_factor",
    "layer_types",
    "no_rope_layers",
)
"""Keys without a default that may have been meant by others."""


def _dtype(tree: Mapping[str, Any], place: str) -> str:
    for key in ("dtype", "torch_dtype"):
        name = tree.get(key)
        if name is not None and (not isinstance(name, str) or name not in DTYPES):
            raise ValueError(f"{place}: {key} = {show(name)}: write one of {', '.join(DTYPES)}")
        if name is not None:
            return name
    return ""


def _token_id(tree: Mapping[str, Any], key: str, place: str) -> int | list[int] | None:
    value = tree.get(key)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in _several(value)):
        raise ValueError(f"{place}: {key} = {show(value)}: use a whole number, or a list of them")
    return value


def _several(ids: Any) -> tuple[Any, ...]:
    """One, several or none as so many."""
    return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)


def write_tree(model: ModelConfig, length: int) -> dict[str, Any]:
    """The keys of a model, which `parse` reads to an equal one.

    Args:
        model: its vocabulary known.
        length: tokens that it attends over.

    Raises:
        ValueError: the family's keys cannot express it.
    """
    scaling = model.attention.rope.scaling
    if scaling is not None and scaling.__struct_config__.tag == "dynamic":
        length = scaling.original_max_positions  # type: ignore[union-attr]
    writer = _WRITERS.get(model.family, newer.write)
    tree = writer(model, length)
    meant, read = effective(model), effective(parse(tree, CONFIG))
    for field, value in meant.items():
        if read.get(field) != value:
            raise ValueError(
                f"model.{field} = {show(value)}: Hugging Face's models of family {model.family} have "
                f"{show(read.get(field))} there; only such models can be exported"
            )
    return tree


def effective(model: ModelConfig) -> dict[str, Any]:
    """What is computed, by dotted name: numbers that stand for others in their place."""
    tree: dict[str, Any] = {
        name: getattr(model, name)
        for name in model.__struct_fields__
        if name not in ("preset", "period", "prefix", "attention", "mlp", "norm_placement", "branches")
    }
    for number, block in enumerate(model.blocks):
        attention = block.attention
        head_dim = model.head_dim(attention)
        tree |= {
            **_flat(f"layers.{number}.mlp", block.mlp),
            f"layers.{number}.norm": block.norm,
            f"layers.{number}.norm_placement": block.norm_placement,
            f"layers.{number}.branches": block.branches,
            f"layers.{number}.attention": msgspec.structs.replace(
                attention,
                head_dim=head_dim,
                num_kv_heads=attention.kv_heads,
                query_scale=attention.query_scale or head_dim**-0.5,
                kernel="auto",
                **({} if attention.positions == "rope" else {"rope": type(attention.rope)()}),
            ),
        }
    return tree


def _flat(place: str, section: Section | None) -> dict[str, Any]:
    """The fields of a section and of those in it, by dotted name."""
    if section is None:
        return {place: "none"}
    tree: dict[str, Any] = {}
    for name in section.__struct_fields__:
        value = getattr(section, name)
        tree |= _flat(f"{place}.{name}", value) if name == "experts" else {f"{place}.{name}": value}
    return tree
