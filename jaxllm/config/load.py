"""From a file or a tree to an `Experiment`: one tree, decoded once, strictly.

Layers, each over the one before: the schema's defaults, the model's preset, the file's `base`, the file, the overrides.
Then each entry of `model.prefix` and `model.period` is laid over the model's own attention, mlp and norms.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from jaxllm.config.errors import ConfigError, nearest, show
from jaxllm.config.experiment import SCHEMA_VERSION, Experiment
from jaxllm.config.explain import explain, impossible
from jaxllm.config.overrides import override
from jaxllm.config.tree import complete, merge, read_file, upgrade

BLOCK_FIELDS = ("attention", "mlp", "norm", "norm_placement", "branches")
"""What a block takes from the model where it does not say otherwise."""


def load_tree(path: str | PathLike[str], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a file and overrides ask for, before presets and defaults: what a run keeps as its config.toml.

    A table of the file is merged over the same table of the file's `base`; lists are replaced whole. A section whose
    `type` changes on the way starts that kind from its defaults. An empty `run.name` becomes the file's stem.

    Args:
        path: a TOML file. Its `base`, and theirs, are relative to the file that names them.
        overrides: dotted names to values; a value given as text is read as its field's type. Entries of lists go by
            number: `data.phases.0.steps`.

    Returns:
        A tree without `base` and with `schema_version`, which loads again to the same experiment.

    Raises:
        ConfigError: a file is missing or not TOML, or an override's name is no field's.
    """
    tree = override(read_file(Path(path)), overrides or {})
    run = tree.setdefault("run", {})
    if isinstance(run, Mapping) and not run.get("name"):
        tree["run"] = {"name": Path(path).stem, **{name: value for name, value in run.items() if name != "name"}}
    return {"schema_version": SCHEMA_VERSION, **tree}


def load(
    path_or_tree: str | PathLike[str] | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    presets: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Experiment:
    """The experiment that a file, or a tree, and overrides ask for.

    Args:
        path_or_tree: a TOML file, or what `load_tree` returns.
        overrides: as of `load_tree`.
        presets: names to `model` tables; `model.preset = NAME` starts from that table.

    Raises:
        ConfigError: anything in it is wrong; the sentence names the first mistake's field, value and fix.
    """
    if isinstance(path_or_tree, Mapping):
        tree = override(upgrade(path_or_tree), overrides or {})
    else:
        tree = load_tree(path_or_tree, overrides)
    if isinstance(tree.get("model"), Mapping):
        tree["model"] = _fill_blocks(_with_preset(tree["model"], presets))
    tree = complete(tree)
    if problem := impossible(tree):
        raise ConfigError(problem)
    try:
        return msgspec.convert(tree, Experiment)
    except msgspec.ValidationError as error:
        raise explain(error, tree) from None


def _with_preset(model: Mapping, presets: Mapping[str, Mapping]) -> dict:
    """The model's table over that of the preset it names."""
    name = model.get("preset")
    if not isinstance(name, str) or name == "":
        return dict(model)
    if name not in presets:
        near = nearest(name, presets)
        known = f"use one of {', '.join(sorted(presets))}" if presets else "no presets are known here"
        fix = f"did you mean {show(near)}?" if near else known
        raise ConfigError(f"model.preset = {show(name)}: there is no such preset; {fix}")
    return merge(presets[name], model)


def _fill_blocks(model: dict) -> dict:
    """The model with every block of its prefix and period spelt out; a block that is already so stays as it is.

    The blocks come last, so that a mistake in what they share is reported where it was written.
    """
    shared = {name: model[name] for name in BLOCK_FIELDS if name in model}
    filled = {name: value for name, value in model.items() if name not in ("prefix", "period")}
    for name in ("prefix", "period"):
        if name in model:
            blocks = model[name]
            filled[name] = [_over(shared, block) for block in blocks] if isinstance(blocks, list | tuple) else blocks
    return filled


def _over(shared: dict, block: object) -> object:
    return merge(shared, block) if isinstance(block, Mapping) else block
