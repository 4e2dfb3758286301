"""How long a step takes: the roofline of what jaxllm's step does, with a few measured shares.

A step is M micro-batches through the blocks of a stage, in r = M + S - 1 ticks where there are S stages (r = M where
there is no pipeline), and what is done beside them. On one device, for t tokens of a micro-batch,

    blocks      r x layers of the stage x (products + attention + traffic), as `computed` counts them
    moved       over links, beside the blocks: weights over fsdp, keys around a ring; on GPUs weights' gradients
    waited for  over links, in the way of the blocks: activations over tensor, tokens to experts, stages, the end of
                a step; on TPUs
                weights' gradients
    head        M x (3 products with the vocabulary, logits written and read)
    update      moments and parameters read and written once

and the step takes

    max(blocks, moved) + exposed x min(blocks, moved) + waited for + head + update.

Every part divides its FLOPs or bytes by a peak times the share of it that programs reach (`efficiency`). Products also
pay for tiles that their sizes do not fill. Peaks alone, all transfers hidden, give the `bound` that nothing beats.

Letters as in `roofline.transformer`. Sources: the book, chapters 1, 4 and 5; for the form of the sum, Isaev et al. 2023
(Calculon).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxllm.plan import computed
from jaxllm.plan.computed import Work
from jaxllm.plan.efficiency import Efficiency, peak_flops
from jaxllm.plan.placement import Placement
from jaxllm.roofline.communication import Transfer

BESIDE = ("weights", "keys and values", "gradients of keys and values")
"""Transfers that compilers run beside the blocks' products."""

SUMS = ("gradients of weights",)
"""Those that run beside the products on GPUs, and on TPUs where a trainer's flags ask for it. Without, the TPU compiler
makes each sum in the blocks' way: so in the programs of jaxllm's steps (`bench plan-rank`)."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step by what they are spent on.

    Attributes:
        products: matrix products of the blocks.
        attention: kernels.
        traffic: memory traffic of the blocks between products.
        moved: transfers beside the blocks, by mesh axes (`fsdp`, `context`), or `host`.
        waited: transfers in the blocks' way, by mesh axes.
        head: the loss.
        update: the optimizer.
        idle: of the blocks' time, what a pipeline's filling and draining takes.
        exposed: share of the shorter of blocks and `moved` that is not hidden.
        bound: at full peaks with all transfers hidden: no program is faster.
    """

    products: float
    attention: float
    traffic: float
    moved: Mapping[str, float]
    waited: Mapping[str, float]
    head: float
    update: float
    idle: float
    exposed: float
    bound: float

    @property
    def blocks(self) -> float:
        """What the blocks compute."""
        return self.products + self.attention + self.traffic

    @property
    def unhidden(self) -> float:
        """What transfers beside the blocks add to them."""
        moved = max(self.moved.values(), default=0.0)
        return max(moved - self.blocks, 0.0) + self.exposed * min(self.blocks, moved)

    @property
    def total(self) -> float:
        """The step."""
        return self.blocks + self.unhidden + sum(self.waited.values()) + self.head + self.update

    @property
    def binds(self) -> str:
        """What takes most of the step: `compute`, `memory`, or a mesh axis' transfers."""
        parts = {
            "compute": self.products + self.attention + self.head,
            "memory": self.traffic + self.update,
            **self.waited,
        }
        if self.moved:
            axes = max(self.moved, key=lambda axes: self.moved[axes])
            # transfers that outlast the blocks bind alone
            alone = self.moved[axes] > self.blocks
            parts[axes] = parts.get(axes, 0.0) + (self.moved[axes] if alone else self.unhidden)
        return max(parts, key=lambda part: parts[part])


def step_time(
    work: Work,
    transfers: tuple[Transfer, ...],
    placement: Placement,
    efficiency: Efficiency,
    hidden: tuple[str, ...] = (),
) -> StepTime:
    """Predict a step.

    Args:
        work: what a device computes.
        transfers: what it sends, from `roofline.communication`.
        placement: where the mesh's axes lie.
        efficiency: shares of the peaks that programs reach.
        hidden: transfers that run beside the blocks' products too, on top of `BESIDE`.
    """
    chip = placement.target.chip
    products, attention, traffic = computed.blocks(work, chip)
    moved, waited = _transfers(transfers, placement, efficiency, (*BESIDE, *hidden))
    if work.host_bytes:
        moved["host"] = work.host_bytes / (chip.host_bytes_per_second / chip.devices_per_chip) / efficiency.links
    head_flops, head_bytes = computed.head(work, chip)
    peak, memory = peak_flops(chip, work.compute), chip.hbm_bytes_per_second / chip.devices_per_chip
    head = head_flops / peak
    links = max(moved.values(), default=0.0) * efficiency.links
    bound = max((products.exact + attention.exact + head_flops) / peak, links)
    return StepTime(
        products=products.padded / peak / efficiency.products,
        attention=attention.padded / peak / efficiency.attention,
        traffic=traffic / memory / efficiency.memory,
        moved=moved,
        waited=waited,
        head=head / efficiency.products + head_bytes / memory / efficiency.memory,
        update=work.state_bytes / memory / efficiency.memory,
        idle=(products.padded / efficiency.products + attention.padded / efficiency.attention)
        / peak
        * (1 - work.num_micro / work.ticks),
        exposed=efficiency.exposed,
        bound=bound,
    )


def _transfers(
    transfers: tuple[Transfer, ...], placement: Placement, efficiency: Efficiency, hidden: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of a step's transfers by mesh axes: beside the blocks, and in their way."""
    moved: dict[str, float] = {}
    waited: dict[str, float] = {}
    for one in transfers:
        beside = one.what in hidden and one.kind != "all-reduce"
        found = moved if beside else waited
        name = "+".join(one.axes)
        found[name] = found.get(name, 0.0) + one.count * placement.seconds(one) / efficiency.links
    return moved, waited
