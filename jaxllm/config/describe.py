"""Help from the schema: every field with its type, default and text."""

import inspect
from typing import NamedTuple

import msgspec.structs
from msgspec import inspect as types

from jaxllm.config.errors import ConfigError, nearest, show
from jaxllm.config.experiment import Experiment
from jaxllm.config.schema import NONE, TAG, Entry, default_tag, in_words, sections_of, texts, walk


class Row(NamedTuple):
    """A field in words.

    Attributes:
        name: dotted; `N` stands for the number of a list's entry.
        kind: the kind of its section that has it (`muon`); empty where the section has one kind only.
        type: in plain words.
        default: as TOML writes it; `required` where there is none, and empty for a section, whose fields say theirs.
        text: what it is, with its unit.
    """

    name: str
    kind: str
    type: str
    default: str
    text: str


def describe(section: str = "") -> list[Row]:
    """Rows for every field of the experiment, in the schema's order, kinds of a section one after the other.

    Args:
        section: keep only the rows of this section or field, by its dotted name (entries of lists by `N` or any
            number), or by a part of the name where nothing is called so from the start; empty keeps all.

    Raises:
        ConfigError: nothing is called so.
    """
    wanted = ".".join("N" if part.isdigit() else part for part in section.split("."))
    every = [(row, entry.section.cls) for entry in walk() for row in _rows(entry)]
    found = [(row, owner) for row, owner in every if not wanted or f"{row.name}.".startswith(f"{wanted}.")]
    found = found or [(row, owner) for row, owner in every if f".{wanted}." in f".{row.name}."]
    if not found:
        top = Experiment.__struct_fields__
        near = nearest(wanted, [row.name for row, _ in every]) or nearest(wanted.split(".")[0], top)
        fix = f"did you mean {near}?" if near else f"the sections are {', '.join(top)}"
        raise ConfigError(f"there is no section or field {section}; {fix}")
    # A block of the prefix has the same sections as the model: what was described once is not described again.
    first_place: dict[type, str] = {}
    kept = []
    for row, owner in found:
        place = row.name.removesuffix(f".{TAG}").rpartition(".")[0]
        if first_place.setdefault(owner, place) == place:
            kept.append(row)
    return kept


def _rows(entry: Entry) -> list[Row]:
    """The row of a field; a union's is followed by that of its `type`."""
    field = entry.field
    kind = str(entry.section.tag or "")
    default = "required" if field.required else _default(field.default)
    rows = [Row(entry.name, kind, _type(field.type), default, texts(entry.section.cls)[field.name])]
    kinds = [below for below in sections_of([field.type]) if below.tag is not None]
    if kinds:
        names = types.LiteralType(values=tuple(below.tag for below in kinds))
        tag = default_tag(field)
        summaries = "; ".join(f"{below.tag}: {_summary(below.cls)}" for below in kinds)
        rows.append(Row(f"{entry.name}.{TAG}", kind, _type(names), show(tag) if tag else "required", summaries))
    return rows


def _type(declared: types.Type) -> str:
    return in_words(declared).removeprefix("a ").removeprefix("one of ")


def _default(value: object) -> str:
    if value is None:
        return show(NONE)
    return "" if isinstance(value, msgspec.Struct) else show(_brief(value))


def _brief(value: object) -> object:
    """A default with only those fields of its sections that differ from the schema's."""
    if isinstance(value, tuple):
        return [_brief(entry) for entry in value]
    if isinstance(value, msgspec.Struct):
        declared = zip(msgspec.structs.fields(value), msgspec.structs.astuple(value), strict=True)
        return {field.name: _brief(own) for field, own in declared if own != field.default}
    return value


def _summary(section: type) -> str:
    """The first paragraph of a section's docstring, on one line without its full stop."""
    return " ".join((inspect.getdoc(section) or "").partition("\n\n")[0].split()).rstrip(".")
