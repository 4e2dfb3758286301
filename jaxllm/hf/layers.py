"""What differs from layer to layer: lists of Hugging Face's, one value a layer, and the decoder's prefix and period."""

from collections.abc import Sequence
from typing import Any

from jaxllm.config import BlockConfig, ModelConfig
from jaxllm.config.load import BLOCK_FIELDS
from jaxllm.hf.keys import Keys

FULL, SLIDING = "full_attention", "sliding_attention"

MAX_LAYERS = 1000
"""Layers of a model that is read; the largest published have 126."""


def number(keys: Keys, key: str) -> int:
    """The number of layers.

    Raises:
        ValueError: it is none, or above `MAX_LAYERS`.
    """
    layers = keys.count(key)
    if layers > MAX_LAYERS:
        raise keys.refuse(key, layers, f"use at most {MAX_LAYERS}")
    return layers


def stack(blocks: Sequence[BlockConfig], shared: BlockConfig, **fields: Any) -> ModelConfig:
    """The model of given blocks: the shortest prefix and period that they are made of.

    Args:
        blocks: one a layer.
        shared: what the model's own attention, mlp and norms are to say.
        fields: of the model, those of blocks aside.
    """
    prefix, period = _repeated([blocks.index(block) for block in blocks])
    slots = tuple(blocks[prefix : prefix + period])
    plain = prefix == 0 and slots == (shared,)
    own = {name: getattr(shared, name) for name in BLOCK_FIELDS}
    return ModelConfig(
        **own,
        **fields,
        num_layers=len(blocks),
        prefix=tuple(blocks[:prefix]),
        period=() if plain else slots,
    )


def _repeated(kinds: Sequence[int]) -> tuple[int, int]:
    """The prefix and the period of a list that are shortest together, of equal ones that with the shorter prefix."""
    return next(
        (prefix, total - prefix)
        for total in range(1, len(kinds) + 1)
        for prefix in range(total)
        if kinds[total:] == kinds[prefix : prefix + len(kinds) - total]
    )


def windows(keys: Keys, sliding: Sequence[bool], size: int | None) -> list[int]:
    """The window of each layer, 0 for none.

    Args:
        keys: of which `layer_types` is taken.
        sliding: which layers have one, where there is no such key.
        size: of the windows; None where there are none.

    Raises:
        ValueError: a layer has another kind of attention, or a window of no size.
    """
    given = keys.listed("layer_types", str, len(sliding))
    if given is not None:
        for kind in given:
            if kind not in (FULL, SLIDING):
                raise keys.refuse("layer_types", kind, f"jaxllm knows {FULL} and {SLIDING}")
        sliding = [kind == SLIDING for kind in given]
    if any(sliding) and not size:
        raise keys.refuse("sliding_window", size, f"layers of {SLIDING} need a number of tokens")
    return [size if slides and size else 0 for slides in sliding]


def layer_types(model: ModelConfig) -> dict[str, Any]:
    """The keys of layers with and without windows, which must all have one size."""
    sizes = [block.attention.window for block in model.blocks]
    return {
        "sliding_window": max(sizes) or None,
        "layer_types": [SLIDING if size else FULL for size in sizes],
    }
