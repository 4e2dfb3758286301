"""What the loader, the help and the error sentences ask of the schema: fields, kinds, types in plain words, texts.

Everything is read from the `Section` classes themselves, so nothing here can differ from them.
"""

import functools
import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
from msgspec import inspect as types

from jaxllm.config.base import Section
from jaxllm.config.experiment import Experiment

TAG = "type"
"""The field that tells the kinds of a union apart."""

NONE = "none"
"""How a section that may be absent is switched off, as TOML has no null: `scaling = "none"`."""

WORDS: dict[type[types.Type], str] = {
    types.BoolType: "true or false",
    types.IntType: "a whole number",
    types.FloatType: "a number",
    types.StrType: "text",
}

EXPERIMENT = types.type_info(Experiment)
assert isinstance(EXPERIMENT, types.StructType)


class Entry(NamedTuple):
    """A field at its place in the tree.

    Attributes:
        name: dotted; `N` stands for the number of a list's entry.
        section: the section (or the kind of it) that the field belongs to.
        field: as the schema declares it.
    """

    name: str
    section: types.StructType
    field: types.Field


def alternatives(declared: types.Type) -> tuple[types.Type, ...]:
    """The members of a union; any other type is its own only member."""
    return declared.types if isinstance(declared, types.UnionType) else (declared,)


def sections_of(declared: Iterable[types.Type]) -> list[types.StructType]:
    """The sections among the given types, unions opened: more than one are the kinds of a union."""
    return [kind for one in declared for kind in alternatives(one) if isinstance(kind, types.StructType)]


def items(declared: Iterable[types.Type]) -> list[types.Type]:
    """What the lists among the given types hold, unions opened."""
    return [kind.item_type for one in declared for kind in alternatives(one) if isinstance(kind, types.VarTupleType)]


def values(declared: types.Type) -> list[types.Type]:
    """What a table of names holds, where the field is one."""
    return [kind.value_type for kind in alternatives(declared) if isinstance(kind, types.DictType)]


def may_be_none(declared: types.Type) -> bool:
    """Whether the field may be switched off."""
    return any(isinstance(kind, types.NoneType) for kind in alternatives(declared))


def kind_of(kinds: list[types.StructType], tag: object) -> types.StructType | None:
    """The section of the given tag; where there are no kinds to tell apart, the section."""
    return next((kind for kind in kinds if kind.tag is None or kind.tag == tag), None)


def default_tag(field: types.Field) -> str | None:
    """The kind of a table that says none: the default's, or the first where there is none by default.

    None where the field is no union.
    """
    kinds = sections_of([field.type])
    if isinstance(field.default, Section):
        kinds = [kind for kind in kinds if isinstance(field.default, kind.cls)]
    chosen = kinds[:1] if len(kinds) == 1 or field.default is None else []
    return str(chosen[0].tag) if chosen and chosen[0].tag is not None else None


def fields(kinds: Iterable[types.StructType]) -> dict[str, list[types.Type]]:
    """What may stand in a section of the given kinds: each name with its types, one a kind that has it."""
    found: dict[str, list[types.Type]] = {}
    tags = tuple(kind.tag for kind in kinds if kind.tag is not None)
    if tags:
        found[TAG] = [types.LiteralType(values=tags)]
    for kind in kinds:
        for field in kind.fields:
            found.setdefault(field.name, []).append(field.type)
    return found


def in_words(declared: types.Type) -> str:
    """A type as a user reads it: `a whole number`, `one of "a", "b"`, `a list of sections`."""
    words = []
    for kind in alternatives(declared):
        if isinstance(kind, types.LiteralType):
            shown = ", ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in kind.values)
            words.append(f"one of {shown}" if len(kind.values) > 1 else shown)
        elif isinstance(kind, types.VarTupleType):
            word = in_words(kind.item_type)
            choice = word.startswith("one of ")
            words.append(f"a list of {word.removeprefix('one of ') if choice else word.removeprefix('a ') + 's'}")
        elif isinstance(kind, types.DictType):
            words.append(f"a table of names, each with {in_words(kind.value_type)}")
        elif isinstance(kind, types.StructType):
            words += [] if "a section" in words else ["a section"]
        else:
            words.append(f'"{NONE}"' if isinstance(kind, types.NoneType) else WORDS[type(kind)])
    return " or ".join(words)


def walk(section: types.StructType = EXPERIMENT, prefix: str = "") -> Iterator[Entry]:
    """Every field, in the schema's order, each before the fields below it; the kinds of a union come one by one."""
    for field in section.fields:
        name = prefix + field.name
        yield Entry(name, section, field)
        for below in sections_of([field.type]):
            yield from walk(below, f"{name}.")
        for below in sections_of(items([field.type])):
            yield from walk(below, f"{name}.N.")


@functools.cache
def places(name: str) -> tuple[str, ...]:
    """Dotted names of all fields of the given bare name, in the schema's order."""
    return tuple(dict.fromkeys(entry.name for entry in walk() if entry.field.name == name))


@functools.cache
def texts(section: type) -> dict[str, str]:
    """What the `Attributes` block of a section's docstring says of each field, each on one line."""
    _, found, block = (inspect.getdoc(section) or "").partition("\nAttributes:\n")
    if not found:
        return {}
    starts = re.split(r"^ {4}(\w+): ", block, flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(starts[::2], starts[1::2], strict=True)}


def parse_text(text: str, declared: Iterable[types.Type]) -> object:
    """A value that was given as text, as on the command line: what the text says in a field of the given types.

    A field that takes text gets it as it stands. A whole number may be written 1e9. Truth values, lists and tables
    are TOML. Text that says nothing in such a field is returned as it is, for the decoder to refuse.
    """
    kinds = [kind for one in declared for kind in alternatives(one)]
    literals = [type(value) for kind in kinds if isinstance(kind, types.LiteralType) for value in kind.values]
    if str in literals or any(isinstance(kind, types.StrType) for kind in kinds):
        return text
    try:
        if int in literals or any(isinstance(kind, types.IntType) for kind in kinds):
            return _whole_number(text)
        if any(isinstance(kind, types.FloatType) for kind in kinds):
            return float(text)
        parsed = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _whole_number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        return int(number) if number.is_integer() else number


def plain(value: object) -> object:
    """The same value out of what TOML can hold: sections become tables, tuples lists, and None `"none"`."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, dict):
        return {key: plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [plain(below) for below in value]
    return NONE if value is None else value
