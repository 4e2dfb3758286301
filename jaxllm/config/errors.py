"""The one error of a configuration, and how its sentence writes fields and values."""

import datetime
import difflib
import json
import re
from collections.abc import Iterable, Mapping

MAX_SHOWN = 80
"""Characters of a value that a sentence shows."""


class ConfigError(ValueError):
    """A mistake in a configuration: one sentence, on one line, that names the field or file, the value and the fix."""


def dotted(path: Iterable[str | int]) -> str:
    """A place in the tree as users write it: `data.phases.0.steps`; a part no name could have comes in quotes."""
    parts = (str(part) for part in path)
    return ".".join(part if re.fullmatch(r"[\w-]+", part) else _quoted(part) for part in parts)


def show(value: object) -> str:
    """A value as TOML would write it, on one line, cut where it is long."""
    text = _show(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{dotted([key])} = {_show(below)}' for key, below in value.items())}}}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return " ".join(repr(value).split())


def _quoted(text: str) -> str:
    """Text in quotes, with whatever would break the line, or could not be printed, escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in quoted)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one most likely meant, case and hyphens aside; None when none comes near."""
    names = {one.lower().replace("-", "_"): one for one in known}
    return next((names[one] for one in difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1)), None)
