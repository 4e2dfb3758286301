"""A model in numbers, as `jaxllm show` prints it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from jaxllm.config import ModelConfig, TrainConfig
from jaxllm.roofline.conventions import MAIN, Convention, Counted, flops_per_token, formula, hardware_flops_per_token
from jaxllm.roofline.memory import BYTES, Adapters, kv_cache_bytes
from jaxllm.roofline.transformer import parameters

_TRAIN = TrainConfig()


def summarise(
    model: ModelConfig,
    sequence_length: int,
    memory: Mapping[str, int],
    *,
    name: str = "",
    train: TrainConfig = _TRAIN,
    adapters: Adapters | None = None,
) -> dict[str, Any]:
    """Parameters, FLOPs and bytes of a model, as plain data that JSON can hold.

    Args:
        model: the decoder, with its vocabulary known.
        sequence_length: tokens of a sequence.
        memory: bytes of one device in training by what they hold, as `roofline.device` counts them.
        name: what to call the model.
        train: dtypes and rematerialisation.
        adapters: what is trained, where it is these alone.

    Returns:
        name, sequence_length; parameters: total, trainable, active and by part; flops_per_token by convention,
        and hardware_flops_per_token with what `remat` computes again; memory_per_device: `memory`, its total last;
        kv_cache_bytes_per_token; compute: the dtype of activations, logits' gradients and cached keys and values.

    Raises:
        ValueError: the vocabulary is not known yet.
    """
    count = parameters(model)
    counted, compute = Counted.of(model), train.precision.compute
    width = BYTES[compute]
    trained = adapters.total if adapters else 0
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
    if parts["active"] < parts["total"]:
        rows.append(("active", f"{parts['active']:,} that a token goes through"))
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
    rows.append(("memory per device", "in training, at the fullest moment of a step, as compilers make it"))
    rows += [(f"  {part}", f"{size / 1e9:,.3f} GB") for part, size in summary["memory_per_device"].items()]
    cache = f"{summary['kv_cache_bytes_per_token']:,} bytes a token of each sequence, in {summary['compute']}"
    rows.append(("key-value cache", cache))
    lines = [f"{label:<20}{value}".rstrip() for label, value in rows]
    return "\n".join([summary["name"], *lines] if summary["name"] else lines)
