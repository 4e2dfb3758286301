"""Values put into a tree at dotted names: what the command line and Python callers change in a file's experiment."""

from collections.abc import Mapping
from typing import Any

from msgspec import inspect as types

from jaxllm.config.errors import ConfigError, dotted, show
from jaxllm.config.explain import unknown_field
from jaxllm.config.schema import EXPERIMENT, NONE, TAG, fields, in_words, items, parse_text, sections_of, values
from jaxllm.config.tree import merge

type Place = tuple[str, ...]


def override(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with values put at dotted names.

    A table is merged over the one that stands there. A value given as text is read as its field's type. An entry of a
    list goes by its number, and the number after the last one appends. Outer fields are put before inner ones, and
    the kind of a section before its other fields, whatever the order they are given in.

    Raises:
        ConfigError: a name is no field's, or leads through something that is neither a section nor a list.
    """

    def outer_first(item: tuple[Place, object]) -> tuple[int, bool]:
        return len(item[0]), item[0][-1] != TAG

    changed: Any = tree
    for parts, value in sorted(((tuple(name.split(".")), value) for name, value in overrides.items()), key=outer_first):
        changed = _put(changed, [EXPERIMENT], (), parts, value)
    return dict(changed)


def _put(node: object, declared: list[types.Type], path: Place, parts: Place, value: object) -> object:
    """The node at the path, None where there is none yet, with the value put at the parts below it.

    `declared` holds the types that the node may have: more than one where a name belongs to several kinds of a union.
    """
    tables = [entry for one in declared for entry in values(one)]
    if not parts:
        value = parse_text(value, declared) if isinstance(value, str) else value
        if isinstance(node, Mapping) and isinstance(value, Mapping) and not tables:  # a table of names is one value
            return merge(node, value)
        return value
    if tables and (node is None or isinstance(node, Mapping)):
        return {**(node or {}), ".".join(parts): parse_text(value, tables) if isinstance(value, str) else value}
    lists, kinds = items(declared), sections_of(declared)
    if not lists and not kinds:
        words = in_words(declared[0])
        raise ConfigError(f"{dotted(path + parts)} = {show(value)}: {dotted(path)} is {words} and has no fields")
    if node is None or node == NONE:
        node = [] if lists else {}
    if isinstance(node, list | tuple) and lists:
        return _put_entry(list(node), lists, path, parts, value)
    if isinstance(node, Mapping) and kinds:
        return _put_field(node, kinds, path, parts, value)
    raise ConfigError(f"{dotted(path)} = {show(node)}: expected {in_words(declared[0])}, to put {parts[0]} into it")


def _put_entry(entries: list, declared: list[types.Type], path: Place, parts: Place, value: object) -> list:
    number, *rest = parts
    where = f"{dotted(path + parts)} = {show(value)}"
    if not (number.isascii() and number.isdigit()):
        raise ConfigError(f"{where}: {dotted(path)} is a list; give the number of an entry, as in {dotted(path)}.0")
    index = int(number)
    if index > len(entries):
        raise ConfigError(f"{where}: there is no such entry; the next free one is {dotted(path)}.{len(entries)}")
    entry = entries[index] if index < len(entries) else None
    return [*entries[:index], _put(entry, declared, (*path, number), tuple(rest), value), *entries[index + 1 :]]


def _put_field(section: Mapping, kinds: list[types.StructType], path: Place, parts: Place, value: object) -> dict:
    name, *rest = parts
    known = fields(kinds)
    if name not in known:
        for part in reversed(rest):
            value = {part: value}
        raise ConfigError(unknown_field((*path, name), value, kinds))
    changed = _put(section.get(name), known[name], (*path, name), tuple(rest), value)
    return merge(section, {TAG: changed}) if name == TAG else {**section, name: changed}
