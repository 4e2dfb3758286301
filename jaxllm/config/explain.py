"""Why a tree is not an experiment: the sentence for the first thing in it that the schema refuses.

The decoder only says that a tree is wrong; this walk over tree and schema side by side says what to do about it. It
looks at a section's unknown fields, then at what it holds, in the order of the file, then at what it lacks.
"""

import datetime
import math
import re
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import inspect as types

from jaxllm.config.errors import ConfigError, dotted, nearest, show
from jaxllm.config.experiment import RENAMED
from jaxllm.config.schema import (
    EXPERIMENT,
    TAG,
    alternatives,
    fields,
    in_words,
    items,
    kind_of,
    parse_text,
    places,
    sections_of,
    texts,
    values,
)

type Path = tuple[str | int, ...]

MAX_LISTED = 12
"""Names that a sentence lists."""

GIVEN: dict[type, str] = {
    bool: "a truth value",
    int: "a whole number",
    float: "a number with a point",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a section",
    type(None): "nothing",
    datetime.date: "a date",
    datetime.datetime: "a date",
    datetime.time: "a time",
}
"""A value's type as a user reads it."""


def explain(error: msgspec.ValidationError, tree: Mapping) -> ConfigError:
    """The decoder's error as one sentence about the first mistake in the tree that it refused."""
    cause = error.__cause__
    if cause is not None:  # a section's own check: its sentence starts with the field, the decoder ends with the place
        place = re.findall(r"\.(\w+)|\[(\d+)\]", str(error).removeprefix(str(cause)))
        return ConfigError(".".join([name or index for name, index in place] + [str(cause)]))
    problem = first_problem(tree, EXPERIMENT, ())
    assert problem is not None, f"the decoder refused what the schema accepts: {error}"
    return ConfigError(problem)


def impossible(value: object, path: Path = ()) -> str | None:
    """What no field can hold, whatever its type; None when all of it can be held."""
    if isinstance(value, Mapping | list | tuple):
        inside = value.items() if isinstance(value, Mapping) else enumerate(value)
        return next((problem for name, below in inside if (problem := impossible(below, (*path, name)))), None)
    if isinstance(value, float) and not math.isfinite(value):
        fix = "use a finite number"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        fix = "use a number of at most 64 bits"
    elif isinstance(value, str) and "\0" in value:
        fix = "leave out the character \\u0000"
    else:
        return None
    return f"{dotted(path)} = {show(value)}: {fix}"


def first_problem(value: object, declared: types.Type, path: Path) -> str | None:
    """What is wrong with the value at the path, or with the first wrong thing inside it; None when nothing is."""
    sections, lists = sections_of([declared]), items([declared])
    if isinstance(value, Mapping) and sections:
        return _section_problem(value, sections, path)
    if isinstance(value, list | tuple) and lists:
        problems = (first_problem(entry, lists[0], (*path, index)) for index, entry in enumerate(value))
        return next((problem for problem in problems if problem), None)
    if isinstance(value, Mapping) and (entry := values(declared)):
        problems = (first_problem(below, entry[0], (*path, name)) for name, below in value.items())
        return next((problem for problem in problems if problem), None)
    if any(_fits(value, kind) for kind in alternatives(declared)):
        return None
    expected = f"{dotted(path)} = {show(value)}: expected {_what_to_give(declared, path)}"
    choices = [
        str(choice) for kind in alternatives(declared) if isinstance(kind, types.LiteralType) for choice in kind.values
    ]
    if choices:
        near = nearest(value, choices) if isinstance(value, str) and len(choices) > 1 else None
        return expected + (f'; did you mean "{near}"?' if near else "")
    return f"{expected}, got {GIVEN.get(type(value), type(value).__name__)}{_remedy(value, declared)}"


def _section_problem(value: Mapping, kinds: list[types.StructType], path: Path) -> str | None:
    section = kinds[0]
    if section.tag is not None:
        names = types.LiteralType(values=tuple(kind.tag for kind in kinds))
        if TAG not in value:
            return f"{dotted((*path, TAG))} is missing: give {in_words(names)}"
        found = kind_of(kinds, value[TAG])
        if found is None:
            return first_problem(value[TAG], names, (*path, TAG))
        section = found
    known = {field.name: field for field in section.fields}
    for name in value:
        if name not in known and not (name == TAG and section.tag is not None):
            return unknown_field((*path, name), value[name], kinds, section)
    for name in value:
        problem = first_problem(value[name], known[name].type, (*path, name)) if name in known else None
        if problem:
            return problem
    for name, field in known.items():
        if field.required and name not in value:
            what = _what_to_give(field.type, (*path, name), texts(section.cls)[name].rstrip("."))
            return f"{dotted((*path, name))} is missing: give {what}"
    return None


def unknown_field(
    path: Path, value: object, kinds: Sequence[types.StructType], chosen: types.StructType | None = None
) -> str:
    """The sentence for a field that a section does not have, with the likeliest one that was meant.

    Args:
        path: the field's, the wrong name last.
        value: what it was given.
        kinds: the section, or the kinds it could be of.
        chosen: the kind that it is of, where that is settled.
    """
    name, above = str(path[-1]), path[:-1]
    where = f"{dotted(path)} = {show(value)}: unknown field"
    known = fields([chosen] if chosen else kinds)
    if dotted(path) in RENAMED:
        return f"{where}; it is now called {RENAMED[dotted(path)]}"
    others = [f'"{kind.tag}"' for kind in kinds if name in fields([kind])]
    if chosen and others:
        return f'{where} of {TAG} "{chosen.tag}"; it belongs to {dotted((*above, TAG))} = {" or ".join(others)}'
    elsewhere = _nearest_places(name, path)
    if elsewhere:
        return f"{where} here; it belongs to another section: {' or '.join(elsewhere)}"
    near = nearest(name, known)
    if near:
        return f"{where}; did you mean {dotted((*above, near))}?"
    return f"{where}; {dotted(above) or 'an experiment'} has {_listed(list(known))}"


def _nearest_places(name: str, path: Path) -> list[str]:
    """Where else a field of that name is: of the places that share most of the path, the outermost."""

    def near_and_outer(place: str) -> tuple[int, int]:
        parts = place.split(".")
        same = [part == own for part, own in zip(parts, path, strict=False)]
        return [*same, False].index(False), -len(parts)

    best = max(map(near_and_outer, places(name)), default=None)
    return [place for place in places(name) if near_and_outer(place) == best]


def _fits(value: object, kind: types.Type) -> bool:
    """Whether the decoder takes a value that is neither a table nor a list for this type."""
    if isinstance(kind, types.LiteralType):
        return any(type(value) is type(choice) and value == choice for choice in kind.values)
    if isinstance(kind, types.StructType):
        return isinstance(value, kind.cls)
    if isinstance(kind, types.BoolType):
        return isinstance(value, bool)
    if isinstance(kind, types.FloatType):
        return type(value) is float or _fits(value, types.IntType())
    if isinstance(kind, types.IntType):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str if isinstance(kind, types.StrType) else type(None))


def _remedy(value: object, declared: types.Type) -> str:
    """What to write instead, where that can be said."""
    kinds = alternatives(declared)
    if isinstance(value, str) and parse_text(value, kinds) != value:
        return f"; write {show(parse_text(value, kinds))} without quotes"
    if isinstance(value, float) and value.is_integer() and any(isinstance(kind, types.IntType) for kind in kinds):
        return f"; write {int(value)}"
    if (
        isinstance(value, str)
        and (entry := items([declared]))
        and any(_fits(value, one) for one in alternatives(entry[0]))
    ):
        return f"; write [{show(value)}]"
    takes_text = any(isinstance(kind, types.StrType) for kind in kinds)
    return "; put it in quotes" if takes_text and isinstance(value, int | float | datetime.date) else ""


def _what_to_give(declared: types.Type, path: Path, text: str = "") -> str:
    """A type in words, then in brackets how its table starts, where it is one, and what the field is for."""
    notes = [text] if text else []
    for kinds, brackets in ((sections_of([declared]), "[{}]"), (sections_of(items([declared])), "[[{}]]")):
        if kinds and not any(isinstance(part, int) for part in path):
            required = [TAG] if kinds[0].tag else [field.name for field in kinds[0].fields if field.required]
            notes.insert(0, f"{brackets.format(dotted(path))} with {_listed(required or list(fields(kinds)))}")
    return in_words(declared) + (f" ({'; '.join(notes)})" if notes else "")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
