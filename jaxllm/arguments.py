"""What every command of the command line shares: exit codes, and arguments that set a config's fields."""

import argparse
from collections.abc import Sequence

import jaxllm
from jaxllm.config import Experiment

DONE, FAILED, MISTAKE, GUARDED, STOPPED = 0, 1, 2, 3, 75

OVERRIDES = "fields are set as --section.field VALUE; --fields [SECTION] lists them all"
"""What the help of a command says that takes them."""


def overrides(rest: Sequence[str]) -> dict[str, str]:
    """`--a.b VALUE` and `--a.b=VALUE`.

    Raises:
        ValueError: on anything else.
    """
    found: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in name:
            raise ValueError(
                f"{word!r} is no argument of this command: fields are set as --section.field VALUE, see --help"
            )
        if not equals:
            value = next(words, None)
            if value is None:
                raise ValueError(f"--{name} needs a value, as in --{name} VALUE")
        if name in found:
            raise ValueError(f"--{name} is given twice, as {found[name]!r} and {value!r}; give it once")
        found[name] = value
    return found


def joined(argv: Sequence[str]) -> list[str]:
    """The command line with `--a.b VALUE` as one word, `--a.b=VALUE`.

    Else argparse takes the value for a positional argument that may be left out, such as a config beside --preset.
    """
    words: list[str] = []
    for word in argv:
        before = words[-1] if words else ""
        if before.startswith("--") and "." in before and "=" not in before and not word.startswith("--"):
            words[-1] = f"{before}={word}"
        else:
            words.append(word)
    return words


def load(arguments: argparse.Namespace, rest: Sequence[str]) -> Experiment:
    """The experiment that a command names."""
    return jaxllm.load_experiment(arguments.config, overrides(rest))


def from_preset(name: str, rest: Sequence[str]) -> Experiment:
    """A published model on one sequence of its context length, everything else by default.

    Raises:
        ValueError: no such preset (the nearest is named), or a mistake in the overrides.
    """
    from jaxllm import models

    name = models.find(name)
    data = {"phases": [{"sequence_length": models.CONTEXT_LENGTHS[name], "batch_size": 1, "steps": 1}]}
    return jaxllm.load_experiment({"run": {"name": name}, "model": {"preset": name}, "data": data}, overrides(rest))


def none(rest: Sequence[str]) -> None:
    """Refuse what no command takes.

    Raises:
        ValueError: there is something.
    """
    if rest:
        raise ValueError(f"{rest[0]!r} is no argument of this command; see --help")
