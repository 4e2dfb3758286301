"""`config.json` and the model that it describes, both ways.

Every key is used, known to say nothing of what is computed (`keys.HARMLESS`), or refused by name. What is written is
read back: a model that its family's keys cannot express is refused, naming the field.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec

from jaxllm.config import ModelConfig
from jaxllm.config.errors import nearest, show
from jaxllm.config.model import Family
from jaxllm.hf import families, older
from jaxllm.hf.keys import HARMLESS, Keys

CONFIG = "config.json"

_READERS = {"gpt2": older.read_gpt2, "bloom": older.read_bloom, "falcon": older.read_falcon}
_WRITERS = {"gpt2": older.write_gpt2, "bloom": older.write_bloom, "falcon": older.write_falcon}

_TYPES = {
    families.FAMILIES[name].model_type or name if name in families.FAMILIES else name: name for name in get_args(Family)
}
"""`model_type` -> family."""


def read_tree(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys of a directory's `config.json`.

    Raises:
        ValueError: there is none, or it is no table.
    """
    place = Path(directory) / CONFIG
    if not place.is_file():
        raise ValueError(f"{directory}: there is no {CONFIG}; name the directory of a Hugging Face model")
    try:
        return msgspec.json.decode(place.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{place}: not a table of JSON ({error}); copy the file again") from None


def parse(tree: Mapping[str, Any], place: str) -> ModelConfig:
    """The model that keys describe.

    Args:
        tree: of a `config.json`.
        place: how errors call it.

    Raises:
        ValueError: the family is none that jaxllm knows, or a key says what it does not compute.
    """
    name = tree.get("model_type")
    if name == "gemma3":
        return parse(_text_model(tree, place), place)
    if not isinstance(name, str) or name not in _TYPES:
        near = nearest(name, _TYPES) if isinstance(name, str) else None
        fix = f"the nearest that jaxllm knows is {near}" if near else f"jaxllm knows {', '.join(_TYPES)}"
        raise ValueError(f"{place}: model_type = {show(name)}: {fix}")
    family = _TYPES[name]
    aliases = older.ALIASES.get(family, {})
    renamed: dict[str, Any] = {}
    for key, value in tree.items():
        known = aliases.get(key, key)
        if renamed.setdefault(known, value) != value:
            raise ValueError(f"{place}: {key} = {show(value)}: another name of this key says {show(renamed[known])}")
    try:
        return _read(family, renamed, place)
    except ValueError as error:
        if str(error).startswith(place):
            raise
        raise ValueError(f"{place}: {error}") from None


def _text_model(tree: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The keys of the text model in those of a Gemma 3 of text and images; it is a Gemma 3 like others."""
    keys = Keys(tree, place, {})
    inner, tied = keys.optional("text_config", dict), keys.optional("tie_word_embeddings", bool)
    if inner is None:
        raise ValueError(f"{place}: text_config is missing; copy the file again")
    keys.close(HARMLESS | _IMAGES)
    return {**({} if tied is None else {"tie_word_embeddings": tied}), **inner, "model_type": "gemma3_text"}


_IMAGES = frozenset(
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


def _read(family: str, tree: Mapping[str, Any], place: str) -> ModelConfig:
    defaults = families.defaults(family) if family in families.FAMILIES else older.DEFAULTS[family]
    keys = Keys(tree, place, defaults)
    if family in families.FAMILIES:
        model = families.read(family, keys, keys.whole("max_position_embeddings"))
        harmless = families.FAMILIES[family].harmless
    else:
        model, harmless = _READERS[family](keys), older.HARMLESS[family]
    keys.close(HARMLESS | harmless, used=_known(family))
    return model


def _known(family: str) -> list[str]:
    """Keys of a family that may have been meant."""
    own = families.defaults(family) if family in families.FAMILIES else older.DEFAULTS[family]
    shared = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads vocab_size rope_theta rope_scaling "
        "rope_parameters max_position_embeddings partial_rotary_factor layer_types no_rope_layers"
    )
    return [*own, *shared.split()]


def max_positions(tree: Mapping[str, Any]) -> int:
    """Tokens that a model attends over, as its keys say; 2048 where they do not."""
    inner = tree.get("text_config")
    tree = inner if isinstance(inner, dict) else tree
    found = next((tree[key] for key in ("max_position_embeddings", "n_positions", "seq_length") if key in tree), None)
    return found if isinstance(found, int) and found > 1 else 2048


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
    writer = _WRITERS.get(model.family, families.write)
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
            f"layers.{number}.mlp": block.mlp,
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
