"""The device mesh: how many devices along each axis."""

from typing import Literal

from jaxllm.config.base import Section, require

AXES = ("pipe", "data", "fsdp", "expert", "context", "tensor")
"""Mesh axes from the slowest link to the fastest. `replica` is reserved."""


class MeshConfig(Section, frozen=True, kw_only=True):
    """Devices along each mesh axis; one of them may be -1: whatever is left.

    Attributes:
        pipe: pipeline stages, each with its share of the layers and of the vocabulary; micro-batches
            (`train.accumulate`) go through them one behind the other.
        data: replicas of the model; may cross slices.
        fsdp: shards of parameters and optimizer state, and of the batch (ZeRO, Rajbhandari et al. 2020).
        expert: shards of experts; for dense weights it works as more fsdp.
        context: shards of the sequence: keys and values travel around a ring of devices (Ring Attention, Liu et al.
            2023), which share causal attention evenly.
        tensor: shards of heads, feed-forward units and vocabulary (Megatron, Shoeybi et al. 2019).
        slices: groups of devices joined by the slower network only; they must divide `data` (or `pipe`).
        sequence_parallel: between blocks, shard the sequence over `tensor` (Korthikanti et al. 2022).
        zero: what is sharded over fsdp: 3 parameters, gradients and optimizer state, 2 gradients and optimizer
            state, 1 optimizer state only.
    """

    pipe: int = 1
    data: int = 1
    fsdp: int = -1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    slices: int = 1
    sequence_parallel: bool = False
    zero: Literal[1, 2, 3] = 3

    def __post_init__(self) -> None:
        for axis in (*AXES, "slices"):
            size = getattr(self, axis)
            require(
                size >= 1 or (size == -1 and axis != "slices"),
                axis,
                size,
                "use a positive number" + ("" if axis == "slices" else ", or -1 for whatever devices are left"),
            )
        unknown = [axis for axis in AXES if getattr(self, axis) == -1]
        require(
            len(unknown) <= 1,
            unknown[0] if unknown else "",
            -1,
            f"{' and '.join(unknown[1:])} = -1 too, and only one axis may be; give the others a number",
        )
        require(
            not self.sequence_parallel or self.tensor != 1,
            "sequence_parallel",
            True,
            "it shards the sequence over tensor, and tensor = 1; raise tensor or turn it off",
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in the order of AXES, as asked (-1 stays -1)."""
        return tuple(getattr(self, axis) for axis in AXES)
