"""A model in numbers, as `jaxllm show` prints it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from jaxllm.config import AdamW, ModelConfig, OptimizerConfig, TrainConfig
from jaxllm.roofline.conventions import MAIN, Convention, Counted, flops_per_token, formula, hardware_flops_per_token
from jaxllm.roofline.device import memory_per_device
from jaxllm.roofline.memory import BYTES, Adapters, kv_cache_bytes
from jaxllm.roofline.transformer import parameters

_TRAIN = TrainConfig()
_ADAMW = AdamW()
_ONE_DEVICE: Mapping[str, int] = {}


def summarise(
    model: ModelConfig,
    sequence_length: int,
    *,
    name: str = "",
    train: TrainConfig = _TRAIN,
    optimizer: OptimizerConfig = _ADAMW,
    mesh: Mapping[str, int] = _ONE_DEVICE,
    zero: Literal[1, 2, 3] = 3,
    sequence_parallel: bool = False,
    tokens: int = 0,
    adapters: Adapters | None = None,
) -> dict[str, Any]:
    """Parameters, FLOPs and bytes of a model, as plain data that JSON can hold.

    Args:
        model: the decoder, with its vocabulary known.
        sequence_length: tokens of a sequence.
        name: what to call the model.
        train: dtypes, rematerialisation and loss chunk.
        optimizer: whose moments are counted.
        mesh: devices along each axis, none of them -1; absent axes have one.
        zero: as in `MeshConfig.zero`.
        sequence_parallel: as in `MeshConfig.sequence_parallel`.
        tokens: of a micro-batch on one device; 0 leaves activations and logits out.
        adapters: what is trained, where it is these alone.

    Returns:
        name, sequence_length; parameters: total, trainable, active and by part; flops_per_token by convention,
        and hardware_flops_per_token with what `remat` computes again; memory_per_device: bytes by what they
        hold, their total last; kv_cache_bytes_per_token; compute: the dtype of activations, logits' gradients and
        cached keys and values.

    Raises:
        ValueError: the vocabulary is not known yet.
    """
    count = parameters(model)
    counted, compute = Counted.of(model), train.precision.compute
    width = BYTES[compute]
    trained = adapters.total if adapters else 0
    memory = memory_per_device(
        model,
        train,
        optimizer,
        mesh,
        zero=zero,
        sequence_parallel=sequence_parallel,
        tokens=tokens,
        adapters=adapters,
    )
    return {
        "name": name,
        "sequence_length": sequence_length,
        "parameters": {
            "total": count.total + trained,
            "trainable": trained or count.total,
            "active": count.active + trained,
            **asdict(count),
        },
        "flops_per_token": {str(way): flops_per_token(counted, sequence_length, way, trained) for way in Convention},
        "hardware_flops_per_token": {
            str(way): hardware_flops_per_token(counted, sequence_length, way, train.remat, trained)
            for way in Convention
        },
        "remat": train.remat,
        "memory_per_device": {**memory, "total": sum(memory.values())},
        "kv_cache_bytes_per_token": kv_cache_bytes(model, 1, width),
        "compute": compute,
    }


def text(summary: Mapping[str, Any]) -> str:
    """A summary as lines for people."""
    parts = summary["parameters"]
    shown = ["embedding", "head", "attention", "mlp", "norm", *(part for part in ("bias", "positions") if parts[part])]
    shares = (f"{part.replace('_', ' ')} {parts[part]:,}" for part in shown)
    adapted = parts["trainable"] < parts["total"]
    rows = [("parameters", f"{parts['total']:,}"), ("", ", ".join(shares))]
    if adapted:
        rows.append(("trainable", f"{parts['trainable']:,} of adapters, {parts['trainable'] / parts['total']:.2%}"))
    rows += [
        (
            "FLOPs per token",
            f"in training on sequences of {summary['sequence_length']:,} tokens, by convention (--json has all)",
        ),
    ]
    rows += [
        (f"  {way}", f"{summary['flops_per_token'][way]:.4e}  {formula(way, adapted).partition(': ')[2]}")
        for way in MAIN
    ]
    again = summary["hardware_flops_per_token"][MAIN[0]] / summary["flops_per_token"][MAIN[0]]
    if again > 1:
        rows.append(("", f"HFU is {again:.2f} x MFU under {MAIN[0]}: train.remat = {summary['remat']} computes again"))
    rows.append(("memory per device", "in training, before buffers of the compiler and of collectives"))
    rows += [(f"  {part}", f"{size / 1e9:,.3f} GB") for part, size in summary["memory_per_device"].items()]
    cache = f"{summary['kv_cache_bytes_per_token']:,} bytes a token of each sequence, in {summary['compute']}"
    rows.append(("key-value cache", cache))
    lines = [f"{label:<20}{value}".rstrip() for label, value in rows]
    return "\n".join([summary["name"], *lines] if summary["name"] else lines)
