"""The largest model that given devices can train, by recipe.

A recipe is dtypes and an optimizer: how many bytes of state a parameter takes. The rest, activations and logits of one
sequence a device at a time with `remat = "block"`, is the sum of `roofline.device`'s parts. The sizes are those of
Llama-shaped models, in LLaMA's own proportions (Touvron et al. 2023, table 2): heads of 128, a block for every 128 of
d_model, d_ff 8/3 of it.
"""

from dataclasses import dataclass

from jaxllm.config import (
    AdamW,
    AttentionConfig,
    MLPConfig,
    ModelConfig,
    Muon,
    OptimizerConfig,
    PrecisionConfig,
    TrainConfig,
)
from jaxllm.roofline.device import memory_per_device
from jaxllm.roofline.hardware import Chip
from jaxllm.roofline.memory import Adapters

USABLE = 0.9
"""Of a device's memory; the rest is the runtime's, buffers of collectives and what allocation wastes."""

LORA_RANK = 16

_ADAMW = AdamW()
_WHOLE = PrecisionConfig()
_HALF = PrecisionConfig(parameters="bfloat16", compute="bfloat16", reduction="bfloat16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained, as far as memory goes.

    Attributes:
        name: for people.
        bytes_per_parameter: of state on all devices that share it: parameters, gradients and moments.
        precision: dtypes.
        optimizer: whose moments are kept.
        lora_rank: of adapters on all matrices, which alone are trained; 0 where the model is.
    """

    name: str
    bytes_per_parameter: int
    precision: PrecisionConfig = _WHOLE
    optimizer: OptimizerConfig = _ADAMW
    lora_rank: int = 0


RECIPES = (
    Recipe(name="AdamW, float32", bytes_per_parameter=16),
    Recipe(name="Muon, float32", bytes_per_parameter=12, optimizer=Muon()),
    Recipe(name="AdamW, bfloat16", bytes_per_parameter=8, precision=_HALF),
    Recipe(name="Muon, bfloat16", bytes_per_parameter=6, precision=_HALF, optimizer=Muon()),
    Recipe(name=f"LoRA of rank {LORA_RANK}", bytes_per_parameter=2, lora_rank=LORA_RANK),
)
"""jaxllm's own, from the most careful to the thriftiest. All state in bfloat16 loses small updates: it is for
adapting a model, not for pretraining one."""


def llama_shaped(steps: int, vocab_size: int = 32_000) -> ModelConfig:
    """A Llama-shaped model with d_model = 128 x steps: 32 steps are Llama 2 7B, 40 its 13B."""
    d_model = 128 * steps
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=steps,
        attention=AttentionConfig(num_heads=steps),
        mlp=MLPConfig(d_ff=256 * -(-8 * d_model // (3 * 256))),
    )


def memory(
    model: ModelConfig, recipe: Recipe, *, num_devices: int = 1, data: int = 1, sequence_length: int = 4096
) -> dict[str, int]:
    """Bytes on each device by what they hold, with their `total`, where fsdp splits the state over num_devices / data.

    Args:
        model: to train.
        recipe: how.
        num_devices: of them all.
        data: copies of the state, a divisor of num_devices.
        sequence_length: of the one sequence that each device works on at a time.
    """
    pieces = num_devices // data
    held = memory_per_device(
        model,
        TrainConfig(precision=recipe.precision, remat="block"),
        recipe.optimizer,
        {"data": data, "fsdp": pieces},
        tokens=sequence_length,
        adapters=_adapters(model, recipe.lora_rank, pieces) if recipe.lora_rank else None,
    )
    return {**held, "total": sum(held.values())}


def _adapters(model: ModelConfig, rank: int, pieces: int) -> Adapters:
    """Of every matrix in the blocks: rank times the sum of its two dims."""
    total = 0
    for block in model.blocks:
        attention, head_dim = block.attention, model.head_dim(block.attention)
        queries, keys = attention.num_heads * head_dim, attention.kv_heads * head_dim
        widths = 2 * queries + 2 * keys + 3 * block.mlp.d_ff
        total += rank * (7 * model.d_model + widths)
    share = -(-total // pieces)
    return Adapters(total=total, parameters=share, gradients=share, optimizer=share)


def fits(used: int, chip: Chip) -> bool:
    """Whether so many bytes leave a device of the chip enough room to work."""
    return used <= USABLE * chip.hbm_bytes / chip.devices_per_chip


def largest(
    chip: Chip, recipe: Recipe, *, num_chips: int = 1, data: int = 1, sequence_length: int = 4096
) -> ModelConfig | None:
    """The largest Llama-shaped model that chips can train; None where not even the smallest fits.

    Args:
        chip: of one kind.
        recipe: how it is trained.
        num_chips: of them.
        data: copies of the state.
        sequence_length: of a sequence, one a device at a time.
    """
    num_devices = num_chips * chip.devices_per_chip

    def small_enough(steps: int) -> bool:
        model = llama_shaped(steps)
        used = memory(model, recipe, num_devices=num_devices, data=data, sequence_length=sequence_length)["total"]
        return fits(used, chip)

    low, high = 0, 1
    while small_enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if small_enough(middle) else (low, middle)
    return llama_shaped(low) if low else None
