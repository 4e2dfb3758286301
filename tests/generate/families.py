"""The layers of every published family, made tiny: their kinds of attention and branches, not their sizes."""

import msgspec

from jaxllm.config import (
    AttentionConfig,
    BlockConfig,
    DynamicScaling,
    ExpertsConfig,
    LongRopeScaling,
    MLPConfig,
    ModelConfig,
    RopeConfig,
    YarnScaling,
    load,
)
from jaxllm.models import PRESETS

HEAD_DIM, WINDOW, ORIGINAL = 8, 5, 12
"""Sequences in the tests are longer than the window, and than the length of pretraining that scalings stretch."""

SCALINGS = {
    "yarn": YarnScaling(factor=4.0, original_max_positions=ORIGINAL),
    "dynamic": DynamicScaling(factor=4.0, original_max_positions=ORIGINAL),
    "longrope": LongRopeScaling(
        factor=4.0,
        original_max_positions=ORIGINAL,
        short_factor=(1.0, 1.1, 1.2, 1.3),
        long_factor=(1.0, 2.0, 3.0, 4.0),
    ),
}


def published() -> list[BlockConfig]:
    """A block of every kind that a published model has, as far as keys, values and experts go."""
    data = {"phases": [{"steps": 1, "sequence_length": 8}]}
    models = [load({"model": {"preset": name}, "data": data}, presets=PRESETS).model for name in PRESETS]
    blocks = dict.fromkeys(small(block) for model in models for block in dict.fromkeys(model.blocks))
    # the rest comes before a cache, and is the same with one and without; sizes differ between those that are taken
    kinds: dict[tuple[object, ...], BlockConfig] = {}
    for one in blocks:
        attention = one.attention
        kinds[attention.positions, attention.window, attention.soft_cap, one.branches, bool(one.mlp.experts)] = one
    return list(kinds.values())


def small(block: BlockConfig) -> BlockConfig:
    """A block of the same kind."""
    attention, kv_heads = block.attention, min(block.attention.kv_heads, 2)
    if block.attention.kv_heads == block.attention.num_heads:
        kv_heads = 4
    attention = msgspec.structs.replace(
        attention,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=HEAD_DIM,
        window=WINDOW if attention.window else 0,
        soft_cap=1.0 if attention.soft_cap else 0.0,
        rope=msgspec.structs.replace(attention.rope, theta=50.0, scaling=None),
    )
    mlp = msgspec.structs.replace(block.mlp, d_ff=16)
    if experts := mlp.experts:
        few = {"num_experts": 4, "experts_per_token": 2, "shared_d_ff": 24 if experts.shared_d_ff else 0}
        mlp = msgspec.structs.replace(mlp, experts=msgspec.structs.replace(experts, **few))
    return msgspec.structs.replace(block, attention=attention, mlp=mlp)


def plain(window: int = 0, scaling: str = "") -> BlockConfig:
    """Llama's block, with a window or its rope stretched."""
    rope = RopeConfig(theta=50.0, scaling=SCALINGS[scaling] if scaling else None)
    attention = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=HEAD_DIM, rope=rope, window=window)
    return BlockConfig(attention=attention, mlp=MLPConfig(d_ff=16))


def sparse() -> BlockConfig:
    """Llama's block with experts and a shared one, as DeepSeekMoE's."""
    experts = ExpertsConfig(num_experts=4, experts_per_token=2, shared_d_ff=24, renormalise=False)
    return msgspec.structs.replace(plain(), mlp=MLPConfig(d_ff=16, experts=experts))


def stack(blocks: list[BlockConfig], repeats: int = 2, **fields: object) -> ModelConfig:
    """A model of these layers, one behind the other and again."""
    first = {name: getattr(blocks[0], name) for name in blocks[0].__struct_fields__}
    shape = {"vocab_size": 64, "d_model": 32, "num_layers": repeats * len(blocks), "initializer_std": 0.2}
    return ModelConfig(**(first | shape | fields), period=tuple(blocks))  # type: ignore[arg-type]
