"""What a decoder occupies: training state, activations, logits, key-value cache, in closed form from the config.

Letters as in `transformer`. All results are bytes of one device, rounded up to whole values.

Sources: the book, chapters 4 (key-value cache, rematerialisation) and 5 (state); Korthikanti et al. 2022, section 4,
for the way of counting activations, here with grouped queries, a gated feed-forward layer and no dropout; Rajbhandari
et al. 2020 (ZeRO) for what fsdp shards.
"""

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxllm.config import AdamW, BlockConfig, ModelConfig, OptimizerConfig, PrecisionConfig
from jaxllm.roofline.transformer import parameters, vocabulary

counted = functools.cache(parameters)
"""`transformer.parameters`, remembered: a search asks thousands of times for the same few models."""


@functools.cache
def distinct(model: ModelConfig) -> tuple[tuple[BlockConfig, int], ...]:
    """The model's different blocks, and how many there are of each."""
    return tuple(Counter(model.blocks).items())


BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
"""Bytes of a value, by dtype."""


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Over how many devices a parameter's copies are split; more devices than that hold copies of their own.

    Attributes:
        parameters: pieces of the master weights.
        gradients: pieces of their gradients.
        optimizer: pieces of the moments.
    """

    parameters: int = 1
    gradients: int = 1
    optimizer: int = 1


def shards(sizes: Mapping[str, int], zero: Literal[1, 2, 3]) -> Shards:
    """The shards of a mesh: pipe and tensor split everything; fsdp and expert split what ZeRO's stage says.

    Args:
        sizes: devices along each mesh axis, none of them -1; absent axes have one.
        zero: 3 parameters, gradients and optimizer state, 2 gradients and optimizer state, 1 optimizer state only.
    """
    always = sizes.get("pipe", 1) * sizes.get("tensor", 1)
    full = always * sizes.get("fsdp", 1) * sizes.get("expert", 1)
    return Shards(
        parameters=full if zero == 3 else always,
        gradients=full if zero >= 2 else always,
        optimizer=full,
    )


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes of the training state on one device.

    Attributes:
        parameters: the master weights. There is no second copy beside them: what a matrix product reads is cast and
            gathered when it is read, one weight at a time.
        gradients: their sum over micro-batches; it exists only within a step.
        optimizer: the moments.
    """

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """Values of adapters (LoRA, Hu et al. 2021), where these alone are trained.

    Attributes:
        total: in all.
        parameters: on one device, as are the next two.
        gradients: while micro-batches add to them.
        optimizer: of each moment.
    """

    total: int
    parameters: int
    gradients: int
    optimizer: int


def state_bytes(
    model: ModelConfig,
    precision: PrecisionConfig,
    optimizer: OptimizerConfig,
    shards: Shards = Shards(),
    adapters: Adapters | None = None,
) -> StateBytes:
    """Parameters, gradients and moments on one device (the book, chapter 5; ZeRO, section 3).

    With n parameters, of which m are matrices of the blocks: AdamW keeps 2 n values, Muon m and 2 (n - m), all in the
    dtype of the parameters: 16 bytes a parameter in all for float32 and AdamW, on one device. Norm scales, a few
    in a hundred thousand of all values, are never sharded.

    Where adapters alone are trained, the others are kept in the compute dtype, and have neither gradients nor moments.

    Raises:
        ValueError: the vocabulary is not known yet.
    """
    count = counted(model)
    matrices = count.attention + count.mlp
    rest = count.embedding + count.head
    moments = 2 * (matrices + rest) if isinstance(optimizer, AdamW) else matrices + 2 * rest
    width = BYTES[precision.parameters]
    if adapters:
        base = _share(matrices + rest, shards.parameters) + count.norm
        return StateBytes(
            parameters=BYTES[precision.compute] * base + width * adapters.parameters,
            gradients=BYTES[precision.reduction] * adapters.gradients,
            optimizer=width * adapters.optimizer * (2 if isinstance(optimizer, AdamW) else 1),
        )
    return StateBytes(
        parameters=width * (_share(matrices + rest, shards.parameters) + count.norm),
        gradients=BYTES[precision.reduction] * (_share(matrices + rest, shards.gradients) + count.norm),
        optimizer=width * (_share(moments, shards.optimizer) + 2 * count.norm),
    )


def _share(values: int, pieces: int) -> int:
    return -(-values // pieces)


def stage_inputs(num_stages: int, num_micro: int, schedule: Literal["1f1b", "gpipe"]) -> int:
    """Micro-batches of which a stage of a pipeline keeps the input; with gpipe also the gradient of the last output."""
    if num_stages == 1:
        return 0
    return 2 * num_stages - 1 if schedule == "1f1b" else 2 * num_micro + num_stages - 1


def kv_cache_bytes(model: ModelConfig, tokens: int, bytes_per_element: int) -> int:
    """Keys and values of so many cached tokens, all sequences together: 2 x bytes x tokens x K H, summed over blocks.

    (The book, chapter 4.)
    """
    widths = (block.attention.kv_heads * model.head_dim(block.attention) for block in model.blocks)
    return 2 * bytes_per_element * tokens * sum(widths)


def logits_bytes(model: ModelConfig, tokens: int, chunk: int, bytes_per_element: int, vocab: int = 1) -> int:
    """Logits in float32 and their gradient in the compute dtype, of as many tokens as have them at a time.

    Args:
        model: the decoder, with its vocabulary known.
        tokens: of a micro-batch on one device.
        chunk: `train.loss.chunk`: tokens whose logits exist at a time; 0 means all.
        bytes_per_element: of the compute dtype.
        vocab: devices that the vocabulary is split over.

    Returns:
        min(chunk, tokens) x V / vocab x (4 + bytes_per_element).
    """
    rows = min(chunk or tokens, tokens)
    return rows * _share(vocabulary(model), vocab) * (BYTES["float32"] + bytes_per_element)


@dataclass(frozen=True, kw_only=True)
class ActivationBytes:
    """Bytes of a micro-batch's activations on one device, and beside it.

    Attributes:
        kept: from a block's forward pass to its backward pass, all blocks together.
        working: what the backward pass of one block holds beside `kept`, at its fullest; of the largest block.
        host: kept in host memory instead.
    """

    kept: int
    working: int
    host: int

    @property
    def total(self) -> int:
        """On the device: kept and working."""
        return self.kept + self.working


@dataclass(frozen=True)
class _Values:
    """Values a token, by what divides them over tensor: heads and units always, the residual stream if asked."""

    residual: int = 0
    whole: int = 0
    split: int = 0
    statistics: int = 0

    def bytes(self, tokens: int, bytes_per_element: int, tensor: int, sequence_parallel: bool) -> int:
        values = _share(tokens, tensor if sequence_parallel else 1) * self.residual
        values += tokens * (self.whole + _share(self.split, tensor))
        return bytes_per_element * values + BYTES["float32"] * tokens * _share(self.statistics, tensor)


def _kept(model: ModelConfig, block: BlockConfig, remat: str, exchanged: bool) -> _Values:
    """What a block keeps for its backward pass, as JAX differentiates `models.decoder.Block`."""
    attention, head_dim, experts = block.attention, model.head_dim(block.attention), block.mlp.experts
    num_inner = 2 if block.mlp.gated else 1
    named = experts.shared_d_ff if experts else block.mlp.d_ff
    match remat:
        case "none":
            # Two norms keep their input and their output. Attention's output is kept as the kernel and as the
            # projection read it. silu(gate) x up keeps gate and up, the product behind it their product. Norms of
            # queries and keys keep their inputs.
            heads = 3 * attention.num_heads + 2 * attention.kv_heads
            if attention.qk_norm != "none":
                heads += attention.num_heads + attention.kv_heads
            num_inputs, whole, hidden = 4 if block.norm_placement == "both" else 2, 2 * model.d_model, 0
            if experts and not exchanged:
                # each token's rows, one a choice, and hidden units before and behind the gate's factor
                whole += experts.experts_per_token * model.d_model
                hidden = (num_inner + 2) * experts.experts_per_token * block.mlp.d_ff
            return _Values(
                residual=num_inputs * model.d_model,
                whole=whole,
                split=heads * head_dim + (num_inner + 1) * named + hidden,
                statistics=attention.num_heads,
            )
        case "dots":
            # products of experts have no names, and are computed again
            return _Values(
                residual=2 * model.d_model,
                split=(attention.num_heads + 2 * attention.kv_heads) * head_dim + num_inner * named,
            )
        case "block":
            return _Values(residual=model.d_model)
        case _:
            return _Values()


def _working(model: ModelConfig, block: BlockConfig) -> _Values:
    """What the products and kernels of a block's backward pass read, and the gradients of gate and up."""
    attention, head_dim = block.attention, model.head_dim(block.attention)
    num_inner = 2 if block.mlp.gated else 1
    return _Values(
        residual=2 * model.d_model,
        whole=2 * model.d_model,
        split=2 * (attention.num_heads + attention.kv_heads) * head_dim + (2 * num_inner + 1) * block.mlp.active_d_ff,
        statistics=attention.num_heads,
    )


def activation_bytes(
    model: ModelConfig,
    tokens: int,
    remat: Literal["none", "dots", "block", "offload"],
    bytes_per_element: int,
    tensor: int = 1,
    sequence_parallel: bool = False,
    experts: int = 1,
) -> ActivationBytes:
    """What the blocks keep for the backward pass, by what is computed again (the book, chapter 4).

    Values that a token keeps in a block:

        none      4 D + (3 N + 2 K) H + 3 F   all that differentiation asks for, and N log-sum-exps in float32; with
                                              norms of queries and keys (N + K) H more, with norms on both sides
                                              of branches 2 D more
        dots      2 D + (N + 2 K) H + 2 F     the block's input and the products' results: the book's seven
        block     D                           the block's input
        offload   D, in host memory           the same

    Beside them one block at a time works on 4 D + 2 (N + K) H + 5 F values a token: what its backward pass reads,
    taken from what was kept or computed again, and the gradients of gate and up. Without a gate it is F less of what is
    kept, and 2 F less of what is worked on. A token's k experts keep k (D + 4 F) with none, and nothing with dots.

    Assumed: a fused attention kernel that keeps no scores, the compute dtype for every value, and a compiler that
    fuses what lies between two products. Not counted: buffers of collectives, weights in the compute dtype, TPUs'
    padding of heads narrower than 128, and what comes before and after the blocks (see `logits_bytes`).

    Args:
        model: the decoder.
        tokens: of a micro-batch on one device.
        remat: `train.remat`.
        bytes_per_element: of the compute dtype.
        tensor: devices that heads and feed-forward units are split over.
        sequence_parallel: whether the residual stream is split over them too (Korthikanti et al. 2022).
        experts: devices that experts lie over; over more than one, all that a mixture keeps is its input.
    """

    def size(values: _Values) -> int:
        return values.bytes(tokens, bytes_per_element, tensor, sequence_parallel)

    inputs = size(_Values(residual=model.d_model)) * model.num_layers
    return ActivationBytes(
        kept=sum(num * size(_kept(model, block, remat, experts > 1)) for block, num in distinct(model)),
        working=max(size(_working(model, block)) for block, _ in distinct(model)),
        host=inputs if remat == "offload" else 0,
    )
