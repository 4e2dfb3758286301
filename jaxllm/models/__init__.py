"""The decoder, and the published shapes that it takes.

This file and the families' are values and load without jax; `decoder` is the one forward pass.
"""

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxllm.models import bloom, deepseek, falcon, gemma, glm, gpt2, llama, mistral, names, olmo, phi, qwen, smollm

_FAMILIES = (llama, gpt2, mistral, gemma, qwen, olmo, phi, smollm, bloom, falcon, glm, deepseek)

PRESETS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {name: values for family in _FAMILIES for name, values in family.PRESETS.items()}
)
"""Name -> `model` section of the config, as plain data."""

CONTEXT_LENGTHS: Mapping[str, int] = MappingProxyType(
    {name: length for family in _FAMILIES for name, length in family.CONTEXT_LENGTHS.items()}
)
"""Name -> tokens that the published weights attend over."""

NAMES: Mapping[str, names.Names] = MappingProxyType(
    {name: table for family in _FAMILIES for name, table in family.NAMES.items()}
)
"""Family -> where its parameters lie in Hugging Face's tensors (see `names`)."""

_ALIASES = {alias: name for family in _FAMILIES for alias, name in family.ALIASES.items()}

# Words of published names that say who made the weights or what they were tuned for; the shape is the same.
_NOT_SHAPE = ("meta", "hf", "base", "chat", "instruct")


def find(name: str) -> str:
    """The preset that a name means: case, separators, owners and tuning are looked past.

    `llama2_7b`, `Llama-2-7B` and `meta-llama/Llama-2-7b-chat-hf` all mean `llama2-7b`.

    Raises:
        ValueError: no preset is called so; the sentence names the nearest ones.
    """
    known = {_key(alias): alias for alias in (*PRESETS, *_ALIASES)}
    if (found := known.get(_key(name))) is not None:
        return _ALIASES.get(found, found)
    spelt = name.rpartition("/")[2].lower()
    near = difflib.get_close_matches(spelt, PRESETS, n=3)
    fix = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(PRESETS)}"
    raise ValueError(f"model.preset = {name!r}: there is no such preset; {fix}")


def _key(name: str) -> tuple[str, ...]:
    """Words and numbers of a name's last part: `meta-llama/Llama-3.1-8B` -> llama, 3, 1, 8, b."""
    parts = re.findall(r"\d+|[^\W\d_]+", name.strip().rstrip("/").rpartition("/")[2].lower())
    return tuple(part for part in parts if part not in _NOT_SHAPE)
