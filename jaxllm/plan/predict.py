"""How long a step takes: the roofline of what jaxllm's step does, with a few measured shares.

A step is M micro-batches through the blocks of a stage, in r = M + S - 1 ticks where there are S stages (r = M where
there is no pipeline), and what is done beside them. On one device, for t tokens of a micro-batch,

    blocks      r x layers of the stage x (products + attention + traffic)
                products  2 FLOPs a weight and token, once forward, twice backward, and what is computed again
                attention 2 T t N H forward (causal), kernels do 2.5 times that backward on GPUs and 3.5 on TPUs
                traffic   what is read from and written to memory between products: norms, residual stream, rope, gate
    moved       over links, beside the blocks: weights over fsdp, keys around a ring; on GPUs weights' gradients
    waited for  over links, in the way of the blocks: activations over tensor, stages, the end of a step; on TPUs
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

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxllm.config import BlockConfig, ModelConfig
from jaxllm.plan.efficiency import Efficiency, peak_flops
from jaxllm.plan.placement import Placement
from jaxllm.roofline.communication import Transfer
from jaxllm.roofline.hardware import Chip
from jaxllm.roofline.memory import BYTES

BESIDE = ("weights", "keys and values", "gradients of keys and values")
"""Transfers that compilers run beside the blocks' products."""

SUMS = ("gradients of weights",)
"""Those that run beside the products on GPUs, and on TPUs where a trainer's flags ask for it. Without, the TPU compiler
makes each sum in the blocks' way: so in the programs of jaxllm's steps (`bench plan-rank`)."""


@dataclass(frozen=True, kw_only=True)
class Again:
    """What the backward pass computes again, as shares of the forward pass.

    Attributes:
        query_key_value: of these three products.
        output: of attention's last product.
        gate_up: of these two products.
        down: of the feed-forward layer's last product.
        attention: of the kernel.
    """

    query_key_value: float = 0.0
    output: float = 0.0
    gate_up: float = 0.0
    down: float = 0.0
    attention: float = 0.0

    def plus(self, times: float) -> "Again":
        """With so many whole forward passes more."""
        return Again(**{field.name: getattr(self, field.name) + times for field in dataclasses.fields(self)})


AGAIN: Mapping[str, Again] = {
    "none": Again(),
    "dots": Again(attention=1),
    # the feed-forward layer's last product is read by nothing in the backward pass
    "block": Again(query_key_value=1, output=1, gate_up=1, attention=1),
    "offload": Again(query_key_value=1, output=1, gate_up=1, attention=1),
}
"""By `train.remat`."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one device does in a step, apart from transfers.

    Attributes:
        model: the decoder.
        sequence_length: tokens of a row.
        num_tokens: of a micro-batch on one device.
        num_micro: micro-batches.
        ticks: passes of a stage: with a pipeline more than micro-batches.
        stages: devices along pipe.
        tensor: devices along tensor.
        context: devices along context.
        stream_shares: devices that the residual stream of a micro-batch is split over: tensor or 1.
        again: what the backward pass computes again.
        backward: products of the attention kernel's backward pass for one of its forward pass.
        compute: dtype of products.
        state_bytes: of parameters, gradients and moments that the update reads and writes.
        host_bytes: of activations that go to the host and come back.
    """

    model: ModelConfig
    sequence_length: int
    num_tokens: int
    num_micro: int
    ticks: int
    stages: int
    tensor: int
    context: int
    stream_shares: int
    again: Again
    backward: float
    compute: str
    state_bytes: float
    host_bytes: float = 0.0


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


@functools.lru_cache(maxsize=64)
def _shapes(model: ModelConfig) -> tuple[tuple[BlockConfig, int], ...]:
    """Blocks that differ, and how many there are of each."""
    counts: dict[BlockConfig, int] = {}
    for block in model.blocks:
        counts[block] = counts.get(block, 0) + 1
    return tuple(counts.items())


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
    products, attention, traffic = _blocks(work, chip)
    moved, waited = _transfers(transfers, placement, efficiency, (*BESIDE, *hidden))
    if work.host_bytes:
        moved["host"] = work.host_bytes / (chip.host_bytes_per_second / chip.devices_per_chip) / efficiency.links
    head_flops, head_bytes = _head(work, chip)
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


@dataclass(frozen=True)
class _Flops:
    """Of a device and step: what is needed, and with what fills up tiles; kernels' own recomputation in both."""

    exact: float
    padded: float


def _blocks(work: Work, chip: Chip) -> tuple[_Flops, _Flops, float]:
    """FLOPs of products and of attention's kernels, and bytes between them, of all ticks."""
    products, attention, traffic = _Flops(0.0, 0.0), _Flops(0.0, 0.0), 0.0
    passes = work.ticks / work.stages
    for block, count in _shapes(work.model):
        exact, padded = _products(work, block, chip)
        products = _Flops(products.exact + count * passes * exact, products.padded + count * passes * padded)
        exact, padded = _attention(work, block, chip)
        attention = _Flops(attention.exact + count * passes * exact, attention.padded + count * passes * padded)
        traffic += count * passes * _traffic(work, block)
    return products, attention, traffic


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation of the forward pass on one device, for a roofline.

    Attributes:
        name: what it is.
        intensity: FLOPs a byte read from memory and written to it.
    """

    name: str
    intensity: float


def operations(work: Work) -> tuple[Operation, ...]:
    """The products of a block, its kernel, what lies between them, and the head, of the model's first block.

    A product of [t, D] and [D, F] does 2 t D F FLOPs on t D + D F + t F values (the book, chapter 1); attention's
    kernel reads queries, keys and values once and writes its result; what lies between does about one for two values.
    """
    model, block = work.model, work.model.blocks[0]
    head, width, tokens = model.head_dim(block.attention), BYTES[work.compute], work.num_tokens
    queries = block.attention.num_heads * head / work.tensor
    keys = block.attention.kv_heads * head / work.tensor
    hidden = block.mlp.d_ff / work.tensor

    def product(name: str, inner: float, outer: float) -> Operation:
        values = tokens * inner + inner * outer + tokens * outer
        return Operation(name=name, intensity=2 * tokens * inner * outer / values / width)

    between = 10 * model.d_model / work.stream_shares + 2 * (queries + keys) + 3 * hidden
    return (
        product("query", model.d_model, queries),
        product("key, value", model.d_model, 2 * keys),
        product("output", queries, model.d_model),
        product("gate, up", model.d_model, 2 * hidden),
        product("down", hidden, model.d_model),
        product("head", model.d_model, model.vocab_size / work.tensor / work.stages),
        Operation(name="attention", intensity=work.sequence_length * queries / ((queries + keys) * width)),
        Operation(name="norms, rope, gate", intensity=(between / 2) / (between * width)),
    )


def _tile(chip: Chip) -> int:
    return chip.cores.matrix_unit or 128


def _products(work: Work, block: BlockConfig, chip: Chip) -> tuple[float, float]:
    model, again, tile = work.model, work.again, _tile(chip)
    width, head = model.d_model, model.head_dim(block.attention)
    queries = block.attention.num_heads * head // work.tensor
    keys = block.attention.kv_heads * head // work.tensor
    hidden = block.mlp.d_ff // work.tensor
    sizes = (
        (queries, 3 + again.query_key_value),
        (2 * keys, 3 + again.query_key_value),
        (queries, 3 + again.output),
        (2 * hidden, 3 + again.gate_up),
        (hidden, 3 + again.down),
    )
    # every pass has all three sizes as rows, columns or depth
    waste = _filled(work.num_tokens, tile) * _filled(width, tile)
    exact = sum(2.0 * work.num_tokens * width * size * times for size, times in sizes)
    padded = sum(2.0 * work.num_tokens * width * size * times / waste / _filled(size, tile) for size, times in sizes)
    return exact, padded


def _filled(size: int, tile: int) -> float:
    """The share of tiles that a size fills."""
    return size / (math.ceil(size / tile) * tile)


def _attention(work: Work, block: BlockConfig, chip: Chip) -> tuple[float, float]:
    head, heads = work.model.head_dim(block.attention), block.attention.num_heads / work.tensor
    forward = 2.0 * work.sequence_length * work.num_tokens * heads * head
    exact = forward * (3 + work.again.attention)
    padded = forward * (1 + work.backward + work.again.attention) / _filled(head, 128 if chip.torus else 64)
    return exact, padded


def _traffic(work: Work, block: BlockConfig) -> float:
    """Bytes of a tick and block that products leave to other operations.

    Forward, values a token: two norms 2 x 2 D, two additions to the residual stream 2 x 3 D, rope 2 (N + K) H, the gate
    3 F; twice that backward, and once more for what is computed again.
    """
    model, attention = work.model, block.attention
    rotated = 2 * (attention.num_heads + attention.kv_heads) * model.head_dim(attention)
    stream = 10 * model.d_model / work.stream_shares
    inner = (rotated + 3 * block.mlp.d_ff) / work.tensor
    values = (stream + inner) * (3 + work.again.gate_up)
    return BYTES[work.compute] * work.num_tokens * values


def _head(work: Work, chip: Chip) -> tuple[float, float]:
    """FLOPs of the loss, and bytes of its logits: written, read twice in float32, their gradient written and read."""
    model, shares = work.model, work.tensor * work.stages
    values = work.num_micro * work.num_tokens * model.vocab_size / shares
    return 6.0 * values * model.d_model, values * (3 * BYTES["float32"] + 3 * BYTES[work.compute])


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
