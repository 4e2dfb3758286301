"""What differs from layer to layer: lists of Hugging Face's, one value a layer, and the decoder's prefix and period."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jaxllm.config import BlockConfig, ModelConfig
from jaxllm.config.load import BLOCK_FIELDS
from jaxllm.hf.keys import Keys

FULL, SLIDING = "full_attention", "sliding_attention"

type Windows = Literal["none", "all", "used", "alternating", "pattern", "upper", "unroped"]
"""Which layers have a window: `none`; `all` that of `sliding_window`; `used` likewise, if `use_sliding_window`
(Qwen 3 MoE); the others those of `layer_types`, and where there are none every second (`alternating`, Gemma 2), all but
every sixth (`pattern`, Gemma 3), those from `max_window_layers` on if `use_sliding_window` (`upper`, Qwen), those
without rope likewise (`unroped`, SmolLM3)."""

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
    prefix, period = min(
        ((start, _period(blocks[start:])) for start in range(len(blocks))), key=lambda one: (sum(one), one)
    )
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


def _period(blocks: Sequence[BlockConfig]) -> int:
    """After how many blocks they repeat."""
    return next(
        period
        for period in range(1, len(blocks) + 1)
        if all(block == before for block, before in zip(blocks[period:], blocks, strict=False))
    )


def windows(kind: Windows, keys: Keys, turning: Sequence[bool]) -> list[int]:
    """The window of each layer, 0 for none.

    Args:
        kind: which layers have one.
        keys: of the file.
        turning: which layers have rope.

    Raises:
        ValueError: a key says none of these.
    """
    num = len(turning)
    if kind == "none":
        return [0] * num
    size, numbers = keys.count_if_any("sliding_window"), range(1, num + 1)
    if kind == "all":
        return [size or 0] * num
    if kind == "alternating":
        return _sizes(keys, [number % 2 == 1 for number in numbers], size)
    if kind == "pattern":
        pattern = keys.count("sliding_window_pattern")
        return _sizes(keys, [number % pattern != 0 for number in numbers], size)
    used = bool(keys.take("use_sliding_window"))
    if kind == "used":
        return [size if used and size else 0] * num
    if kind == "upper":
        first = keys.whole("max_window_layers")
        return _sizes(keys, [used and number > first for number in numbers], size if used else None)
    return _sizes(keys, [used and bool(size) and not turns for turns in turning], size if used else None)


def _sizes(keys: Keys, sliding: Sequence[bool], size: int | None) -> list[int]:
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


def _layer_types(model: ModelConfig) -> dict[str, Any]:
    """The keys of layers with and without windows, which must all have one size."""
    sizes = [block.attention.window for block in model.blocks]
    return {
        "sliding_window": max(sizes) or None,
        "layer_types": [SLIDING if size else FULL for size in sizes],
    }


def _upper(model: ModelConfig) -> dict[str, Any]:
    """Qwen's keys: where no layers' types are read, windows begin at a layer."""
    keys = _layer_types(model)
    types = keys["layer_types"]
    first = {"max_window_layers": types.index(SLIDING)} if SLIDING in types else {}
    return {"use_sliding_window": SLIDING in types, **first, **keys}


def _unroped(model: ModelConfig) -> dict[str, Any]:
    keys = _layer_types(model)
    turning = [int(block.attention.positions == "rope") for block in model.blocks]
    return {"use_sliding_window": SLIDING in keys["layer_types"], "no_rope_layers": turning, **keys}


def _pattern(model: ModelConfig) -> dict[str, Any]:
    """Gemma 3's keys; versions of transformers that know no `layer_types` read the pattern."""
    return {"sliding_window_pattern": len(model.slots), **_layer_types(model)}


def _all(model: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": model.blocks[0].attention.window or None}


def _used(model: ModelConfig) -> dict[str, Any]:
    keys = _all(model)
    return {"use_sliding_window": keys["sliding_window"] is not None, **keys}


_WRITERS: Mapping[str, Callable[[ModelConfig], dict[str, Any]]] = {
    "all": _all,
    "used": _used,
    "alternating": _layer_types,
    "pattern": _pattern,
    "upper": _upper,
    "unroped": _unroped,
}


def write_windows(kind: Windows, model: ModelConfig) -> dict[str, Any]:
    """The keys of windows, and of layers without rope."""
    return _WRITERS[kind](model) if kind in _WRITERS else {}
