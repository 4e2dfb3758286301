"""The tree before it is decoded: read from TOML, merged over its bases, in the names of this schema version.

All functions return new trees and leave the given ones alone.
"""

import copy
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import inspect as types

from jaxllm.config import experiment
from jaxllm.config.errors import ConfigError, nearest, show
from jaxllm.config.schema import EXPERIMENT, NONE, TAG, default_tag, items, kind_of, may_be_none, sections_of


def read_toml(data: bytes, where: str) -> dict[str, Any]:
    """The tree of a TOML document.

    Args:
        data: the document's bytes.
        where: its name, for the sentence of an error.

    Raises:
        ConfigError: it is not UTF-8 (with the offset) or not TOML (with line and column).
    """
    try:
        return tomllib.loads(data.decode().removeprefix("\ufeff"))  # the mark that some editors put before UTF-8
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: the byte at offset {error.start} is not UTF-8; save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: its lists are nested too deeply; no field needs that") from None


def read_file(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tree of a file, over that of its `base`, in the names of this schema version.

    Args:
        path: a TOML file.
        above: the files that led here by `base`, the first one first.

    Raises:
        ConfigError: the file, or a base, is missing, unreadable or not TOML; or the bases run in a circle.
    """
    if path.resolve() in [one.resolve() for one in above]:
        raise ConfigError(f"{above[0]}: its base leads back to itself ({' -> '.join(map(str, (*above, path)))})")
    try:
        tree = upgrade(read_toml(path.read_bytes(), str(path)))
    except OSError as error:
        named = f'{above[-1]}: base = "{path}": ' if above else f"{path}: "
        near = nearest(path.name, [one.name for one in path.parent.glob("*.toml")])
        fix = f"; did you mean {path.parent / near}?" if near else "; name a TOML file"
        raise ConfigError(f"{named}{(error.strerror or str(error)).lower()}{fix}") from None
    base = tree.pop("base", None)
    if base is not None:
        if not isinstance(base, str) or not base:
            raise ConfigError(f"{path}: base = {show(base)}: expected a TOML file's path, from this one's directory")
        tree = merge(read_file(path.parent / base, (*above, path)), tree)
    # A table without a kind is of the default kind, and says so before another file or override is merged over it.
    # Not so in the model: what a model leaves out its preset says, which is not known yet.
    return {name: tree[name] if name == "model" else value for name, value in complete(tree).items()}


def upgrade(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree in the names of this schema version; a name in use both old and new is left for the decoder to refuse.

    Raises:
        ConfigError: the tree is of a later version.
    """
    version = tree.get("schema_version", experiment.SCHEMA_VERSION)
    if type(version) is not int or version < 1:
        return dict(tree)  # the decoder says what is wrong with it
    if version > experiment.SCHEMA_VERSION:
        raise ConfigError(
            f"schema_version = {version}: this jaxllm reads versions 1 to {experiment.SCHEMA_VERSION}; update jaxllm"
        )
    if version == experiment.SCHEMA_VERSION:
        return dict(tree)
    renamed = copy.deepcopy(dict(tree))
    for old, new in experiment.RENAMED.items():
        before, after = old.split("."), new.split(".")
        if _find(renamed, before) is not None and _find(renamed, after) is None:
            value = _take(renamed, before)
            for part in reversed(after):
                value = {part: value}
            renamed = merge(renamed, value)
    return {**renamed, "schema_version": experiment.SCHEMA_VERSION}


def _find(tree: Any, parts: list[str]) -> Any:
    """What stands at the place; None where nothing does."""
    for part in parts:
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _take(tree: dict[str, Any], parts: list[str]) -> Any:
    """Remove what stands at the place, with the tables that nothing is left in, and return it."""
    name, *rest = parts
    if not rest:
        return tree.pop(name)
    value = _take(tree[name], rest)
    if not tree[name]:
        del tree[name]
    return value


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One tree over another: tables merge deeply, anything else replaces.

    Lists are replaced whole. Where both say which kind a section is and differ, the section starts anew: what belonged
    to one kind says nothing about another.
    """
    if TAG in under and TAG in over and under[TAG] != over[TAG]:
        return dict(over)
    merged = dict(under)
    for name, value in over.items():
        below = under.get(name)
        merged[name] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def complete(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with every table of a union saying its kind, by default the schema's, and None for `"none"`."""
    return _complete(tree, EXPERIMENT)


def _complete(value: Any, declared: types.Type) -> Any:
    if value == NONE and may_be_none(declared):
        return None
    if isinstance(value, list | tuple) and (entries := items([declared])):
        return [_complete(entry, entries[0]) for entry in value]
    if not isinstance(value, Mapping):
        return value
    section = kind_of(sections_of([declared]), value.get(TAG))
    completed: dict[str, Any] = dict(value)
    for field in section.fields if section else ():
        if field.name in completed:
            below, tag = completed[field.name], default_tag(field)
            if tag is not None and isinstance(below, Mapping) and TAG not in below:
                below = {TAG: tag, **below}
            completed[field.name] = _complete(below, field.type)
    return completed
