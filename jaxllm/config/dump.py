"""Trees as TOML: what was asked, and what it came to."""

from collections.abc import Mapping
from typing import Any

import tomli_w

from jaxllm.config.experiment import Experiment
from jaxllm.config.schema import plain


def dump(tree: Mapping[str, Any]) -> str:
    """A tree as TOML, tuples as lists and None as `"none"`; `load` reads it back to the same experiment."""
    return tomli_w.dumps({name: plain(value) for name, value in tree.items()})


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Every field of an experiment as a tree of TOML's values, blocks spelt out; it loads to an equal experiment."""
    return {name: plain(getattr(experiment, name)) for name in experiment.__struct_fields__}
