"""What one device computes in a step, in FLOPs and bytes of its memory: the blocks, the head, what comes again.

Letters as in `roofline.transformer`, t tokens of a micro-batch. Of a block forward,

    products   2 FLOPs a weight and token: queries, keys, values, output, and the feed-forward layer; twice that
               backward, and what is computed again. Of experts those k that a token goes through, and the shared one;
               and the router. Products pay for tiles that their sizes do not fill: of experts each has its own rows.
    attention  2 T t N H FLOPs (causal), in kernels
    traffic    bytes of what lies between products: norms, residual stream, rope, gate; rows laid out expert by expert
               and summed again; the weights of experts, which have fewer rows than other products to hide them

Sources: the book, chapters 1 and 4; Gale et al. 2023 (MegaBlocks) for experts.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxllm.config import BlockConfig, ModelConfig
from jaxllm.roofline.hardware import Chip
from jaxllm.roofline.memory import BYTES

_RING, _RING_AGAIN = 42, 10
"""Passes over a device's queries that a step of the ring takes in scheduled TPU programs, forward and backward: keys
and queries laid side by side for the kernels, results merged, gradients added in float32."""


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
        experts: devices along expert.
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
    experts: int
    stream_shares: int
    again: Again
    backward: float
    compute: str
    state_bytes: float
    host_bytes: float = 0.0


@functools.lru_cache(maxsize=64)
def _shapes(model: ModelConfig) -> tuple[tuple[BlockConfig, int], ...]:
    """Blocks that differ, and how many there are of each."""
    counts: dict[BlockConfig, int] = {}
    for block in model.blocks:
        counts[block] = counts.get(block, 0) + 1
    return tuple(counts.items())


@dataclass(frozen=True)
class Flops:
    """Of a device and step: what is needed, and with what fills up tiles; kernels' own recomputation in both."""

    exact: float
    padded: float


def blocks(work: Work, chip: Chip) -> tuple[Flops, Flops, float]:
    """FLOPs of products and of attention's kernels, and bytes between them, of all ticks."""
    products, attention, traffic = Flops(0.0, 0.0), Flops(0.0, 0.0), 0.0
    passes = work.ticks / work.stages
    for block, count in _shapes(work.model):
        exact, padded = _products(work, block, chip)
        products = Flops(products.exact + count * passes * exact, products.padded + count * passes * padded)
        exact, padded = _attention(work, block, chip)
        attention = Flops(attention.exact + count * passes * exact, attention.padded + count * passes * padded)
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
    hidden, mixture = block.mlp.d_ff / work.tensor, block.mlp.experts

    def product(name: str, inner: float, outer: float, of_experts: bool = False) -> Operation:
        rows = (
            tokens * mixture.experts_per_token / mixture.num_experts * work.experts
            if mixture and of_experts
            else tokens
        )
        values = rows * inner + inner * outer + rows * outer
        return Operation(name=name, intensity=2 * rows * inner * outer / values / width)

    between = 10 * model.d_model / work.stream_shares + 2 * (queries + keys) + 3 * block.mlp.active_d_ff / work.tensor
    return (
        product("query", model.d_model, queries),
        product("key, value", model.d_model, 2 * keys),
        product("output", queries, model.d_model),
        product("gate, up", model.d_model, 2 * hidden, of_experts=True),
        product("down", hidden, model.d_model, of_experts=True),
        product("head", model.d_model, model.vocab_size / work.tensor / work.stages),
        Operation(name="attention", intensity=work.sequence_length * queries / ((queries + keys) * width)),
        Operation(name="norms, rope, gate", intensity=(between / 2) / (between * width)),
    )


def _tile(chip: Chip) -> int:
    return chip.cores.matrix_unit or 128


def _products(work: Work, block: BlockConfig, chip: Chip) -> tuple[float, float]:
    model, again, tile = work.model, work.again, _tile(chip)
    width, head, experts = model.d_model, model.head_dim(block.attention), block.mlp.experts
    queries = block.attention.num_heads * head // work.tensor
    keys = block.attention.kv_heads * head // work.tensor
    sizes = [
        (queries, 3 + again.query_key_value),
        (2 * keys, 3 + again.query_key_value),
        (queries, 3 + again.output),
    ]
    hidden = (experts.shared_d_ff if experts else block.mlp.d_ff) // work.tensor
    sizes += [(2 * hidden, 3 + again.gate_up), (hidden, 3 + again.down)] if hidden else []
    exact, padded = _multiplied(work.num_tokens, width, sizes, tile)
    if experts is None:
        return exact, padded
    # all together an expert's devices have its share of all their rows
    rows = work.num_tokens * experts.experts_per_token
    of_an_expert = rows * work.experts / experts.num_experts
    hidden, more = block.mlp.d_ff // work.tensor, _again_gate_up(work)
    routed, laid = _multiplied(of_an_expert, width, [(2 * hidden, 3 + more), (hidden, 3 + again.down)], tile)
    num_own = experts.num_experts / work.experts
    router = 2.0 * work.num_tokens * width * experts.num_experts * (3 + again.gate_up)
    return exact + num_own * routed + router, padded + num_own * laid + router


def _multiplied(rows: float, width: int, sizes: list[tuple[int, float]], tile: int) -> tuple[float, float]:
    """FLOPs of products of [rows, width] with [width, size], so often each; exact, and with tiles filled up."""
    # every pass has all three sizes as rows, columns or depth
    waste = _filled(rows, tile) * _filled(width, tile)
    exact = sum(2.0 * rows * width * size * times for size, times in sizes)
    padded = sum(2.0 * rows * width * size * times / waste / _filled(size, tile) for size, times in sizes)
    return exact, padded


def _again_gate_up(work: Work) -> float:
    """An exchange keeps tokens only, and its backward pass computes hidden units again, once, whatever remat says."""
    return 1.0 if work.experts > 1 else work.again.gate_up or work.again.attention


def _filled(size: float, tile: int) -> float:
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
    3 F; twice that backward, and once more for what is computed again. Of experts, a row: written in order and read for
    the sum, 3 D, and around an exchange picked and put back, 4 D more; and 3 D F of each expert's weights. A step of a
    ring (`layers.ring`): `_RING` passes over N H, and `_RING_AGAIN` where attention is computed again.
    """
    model, attention, experts = work.model, block.attention, block.mlp.experts
    rotated = 2 * (attention.num_heads + attention.kv_heads) * model.head_dim(attention)
    stream = 10 * model.d_model / work.stream_shares
    inner = (rotated + 3 * block.mlp.active_d_ff) / work.tensor
    if experts:
        inner += experts.experts_per_token * (7 if work.experts > 1 else 3) * model.d_model
    values = work.num_tokens * (stream + inner) * (3 + work.again.gate_up)
    passes = (work.context - 1) * (_RING + _RING_AGAIN * work.again.attention)
    values += work.num_tokens * passes * attention.num_heads * model.head_dim(attention) / work.tensor
    if experts:
        weights = 3 * model.d_model * block.mlp.d_ff / work.tensor * experts.num_experts / work.experts
        values += weights * (3 + _again_gate_up(work))
    return BYTES[work.compute] * values


def head(work: Work, chip: Chip) -> tuple[float, float]:
    """FLOPs of the loss, and bytes of its logits: written, read twice in float32, their gradient written and read."""
    model, shares = work.model, work.tensor * work.stages
    values = work.num_micro * work.num_tokens * model.vocab_size / shares
    return 6.0 * values * model.d_model, values * (3 * BYTES["float32"] + 3 * BYTES[work.compute])
