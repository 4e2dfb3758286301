"""What one step moves between devices, in closed form: every large collective that jaxllm's step makes.

These are the step's own collectives (`layers/param.use`, `layers/linear`, `train/gradients`, `models/stages`,
`layers/ring`), not an ideal's. Letters as in `transformer`, and of a device

    t  tokens of a micro-batch        M  micro-batches        S  stages, r ticks = M + S - 1 (M where S = 1)
    w  bytes of a value in the compute dtype                  g  in the dtype that gradients are summed in
    x  = t D w, its residual stream   n  values of a weight / tensor / (pipe of the vocabulary)

over fsdp (with expert, which is more fsdp for dense weights), each weight of the blocks, a tick:
    zero 3         all-gather n w forward and again backward, for gathered weights are not kept; reduce-scatter n g
    zero 2         reduce-scatter n g; once a step, all-gather of the new parameters
    zero 1         the same with the reduce-scatter once a step
embedding and head: as the blocks, but gathered once (zero 3); a tied head shares all of the embedding's.
over data and context: one all-reduce of each gradient, as large as a device's share of it, once a step; of norms'
gradients over all axes that tokens lie over.
over tensor, each block and tick: two sums of x forward, two backward, and one more where the backward pass computes
attention again; with sequence parallelism each is an all-gather and a reduce-scatter, see `_tensor`.
over expert, each mixture and tick: rows of tokens to their experts and back, R D w each way, R the rows of one round
(`mesh_sizes.round_rows`, a quarter more than there would be if all experts were chosen alike): twice forward, and
backward rows, gradients of results, and gradients of rows. An expert's weights are gathered over fsdp only.
over context: keys and values around the ring, c - 1 times forward and backward, and c - 2 times where attention is
computed again (its first pass is the backward pass' own); their gradients c - 1 times in float32, and home as they are.
over pipe: x to the neighbour every tick, forward and backward, and what the stages share of the vocabulary.

Left out: sums of single numbers and of rows (losses, norms, softmax statistics of a sharded vocabulary).

Sources: the book, chapter 5; Rajbhandari et al. 2020 (ZeRO); Shoeybi et al. 2019; Korthikanti et al. 2022; Liu et al.
2023.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from jaxllm.config import MeshConfig, ModelConfig, TrainConfig
from jaxllm.mesh_sizes import round_rows
from jaxllm.roofline.counts import mlp_parameters
from jaxllm.roofline.memory import BYTES
from jaxllm.roofline.transformer import block_parameters, vocabulary

TOKEN_AXES = ("data", "fsdp", "expert", "context")
"""Mesh axes that tokens lie over, in the mesh's order."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Equal collectives of a step.

    Attributes:
        kind: `all-gather`, `reduce-scatter`, `all-reduce`, `collective-permute` or `all-to-all`.
        axes: mesh axes whose devices take part, in the mesh's order.
        size: bytes of one on a device: of an all-gather what it gives, of a reduction what it takes, of a permute and
            of an all-to-all what it sends.
        count: how often a step does it.
        what: which arrays.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    count: int
    what: str


@dataclass(frozen=True)
class _Sizes:
    """A model in the few numbers that are needed here: values of all blocks together.

    `matrices` are all but the `experts`; `choices` are how many of these a token goes through, mixture by mixture.
    """

    matrices: int
    experts: int
    choices: tuple[int, ...]
    norms: int
    keys: int
    vocabulary: int
    num_tables: int
    num_blocks: int


@functools.cache
def _sizes(model: ModelConfig) -> _Sizes:
    counts = [block_parameters(model, block) for block in model.blocks]
    mixtures = [block.mlp for block in model.blocks if block.mlp.experts]
    experts = sum(mlp.experts.num_experts * mlp_parameters(model.d_model, mlp.d_ff) for mlp in mixtures if mlp.experts)
    return _Sizes(
        matrices=sum(count.attention + count.mlp for count in counts) - experts,
        experts=experts,
        choices=tuple(mlp.experts.experts_per_token for mlp in mixtures if mlp.experts),
        norms=sum(count.norm for count in counts) + model.d_model,
        keys=sum(2 * block.attention.kv_heads * model.head_dim(block.attention) for block in model.blocks),
        vocabulary=vocabulary(model) * model.d_model,
        num_tables=1 if model.tie_embeddings else 2,
        num_blocks=len(counts),
    )


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What the parts below share; letters as in the module's docstring, sizes of axes by name."""

    model: ModelConfig
    train: TrainConfig
    mesh: MeshConfig
    sizes: Mapping[str, int]
    num_tokens: int

    @property
    def ticks(self) -> int:
        return self.train.accumulate + self.sizes["pipe"] - 1

    @property
    def stream(self) -> int:
        return self.num_tokens * self.model.d_model * BYTES[self.train.precision.compute]

    def live(self, *axes: str) -> tuple[str, ...]:
        return tuple(axis for axis in axes if self.sizes[axis] > 1)

    @property
    def sequence_parallel(self) -> bool:
        return self.mesh.sequence_parallel and self.sizes["tensor"] > 1


def transfers(
    model: ModelConfig,
    train: TrainConfig,
    mesh: MeshConfig,
    sizes: Mapping[str, int],
    batch_size: int,
    sequence_length: int,
) -> tuple[Transfer, ...]:
    """The large collectives of a step on a mesh.

    Args:
        model: the decoder, with its vocabulary known.
        train: micro-batches, dtypes, rematerialisation.
        mesh: `zero` and `sequence_parallel`; its sizes are not read.
        sizes: devices along every mesh axis, none of them -1.
        batch_size: rows of a step.
        sequence_length: tokens of a row.

    Raises:
        ValueError: the vocabulary is not known yet.
    """
    pieces = train.accumulate * sizes["data"] * sizes["fsdp"] * sizes["expert"]
    num_tokens = -(-batch_size // pieces) * -(-sequence_length // sizes["context"])
    step = _Step(model=model, train=train, mesh=mesh, sizes=sizes, num_tokens=num_tokens)
    parts = (_weights(step), _gradients(step), _tensor(step), _experts(step), _context(step), _pipe(step))
    return tuple(one for part in parts for one in part if one.size and one.count and one.axes)


def totals(found: Iterable[Transfer]) -> dict[tuple[str, tuple[str, ...]], int]:
    """Bytes a step by (kind, axes)."""
    summed: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)
    for one in found:
        summed[one.kind, one.axes] += one.size * one.count
    return dict(summed)


def _weights(step: _Step) -> Iterator[Transfer]:
    """Weights gathered, and gradients left in shares, over fsdp."""
    model, sizes, precision, axes = _sizes(step.model), step.sizes, step.train.precision, step.live("fsdp", "expert")
    blocks = model.matrices // sizes["tensor"] // sizes["pipe"]
    experts, over = model.experts // sizes["tensor"] // sizes["expert"], step.live("fsdp")
    table = model.vocabulary // sizes["tensor"] // sizes["pipe"]
    ticks, micro = step.ticks, step.train.accumulate
    compute, reduction = BYTES[precision.compute], BYTES[precision.reduction]
    if step.mesh.zero == 3:
        # a stage computes its forward pass once more, to differentiate it
        passes = 2 if sizes["pipe"] == 1 else 3
        yield Transfer(kind="all-gather", axes=axes, size=blocks * compute, count=passes * ticks, what="weights")
        yield Transfer(kind="all-gather", axes=over, size=experts * compute, count=passes * ticks, what="weights")
        yield Transfer(kind="all-gather", axes=axes, size=table * compute, count=ticks, what="embedding")
        if model.num_tables == 2:
            yield Transfer(kind="all-gather", axes=axes, size=table * compute, count=micro, what="head")
    else:
        updated = (blocks + model.num_tables * table) * BYTES[precision.parameters]
        yield Transfer(kind="all-gather", axes=axes, size=updated, count=1, what="updated parameters")
        updated = experts * BYTES[precision.parameters]
        yield Transfer(kind="all-gather", axes=over, size=updated, count=1, what="updated parameters")
    times = (1, 1) if step.mesh.zero == 1 else (ticks, micro)
    parts = [(axes, blocks, times[0], "weights"), (over, experts, times[0], "weights")]
    parts.append((axes, table, times[0], "embedding"))
    if model.num_tables == 2:  # a tied head's gradient is one sum with the embedding's
        parts.append((axes, table, times[1], "head"))
    for among, size, count, what in parts:
        yield Transfer(
            kind="reduce-scatter", axes=among, size=size * reduction, count=count, what=f"gradients of {what}"
        )


def _gradients(step: _Step) -> Iterator[Transfer]:
    """Gradients summed once a step: matrices over data and context, norms over whatever tokens lie over."""
    model, sizes, width = _sizes(step.model), step.sizes, BYTES[step.train.precision.reduction]
    shares = sizes["tensor"] * sizes["pipe"] * sizes["fsdp"] * sizes["expert"]
    values = (model.matrices + model.experts + model.num_tables * model.vocabulary) // shares
    yield Transfer(
        kind="all-reduce", axes=step.live("data", "context"), size=values * width, count=1, what="gradients of weights"
    )
    over = step.live(*TOKEN_AXES, *(("tensor",) if step.sequence_parallel else ()))
    norms = model.norms // sizes["pipe"]
    yield Transfer(kind="all-reduce", axes=over, size=norms * width, count=1, what="gradients of norms")


def _tensor(step: _Step) -> Iterator[Transfer]:
    """The residual stream over tensor.

    Without sequence parallelism `enter` moves nothing forward and sums backward, `leave` sums forward and moves nothing
    backward. With it `enter` gathers forward and scatters backward, `leave` the other way round. What the backward
    pass computes again moves again: entering twice unless what entered was kept (remat none), and attention's leaving,
    unless products' results were kept (none, dots); the feed-forward layer's leaving is read by nothing there.
    """
    axes, remat, sizes = step.live("tensor"), step.train.remat, step.sizes
    blocks = _sizes(step.model).num_blocks // sizes["pipe"] * step.ticks
    again = 1 if remat in ("block", "offload") else 0
    more = 2 if sizes["pipe"] > 1 else 0  # a stage's forward pass once more
    micro = step.train.accumulate
    ends = step.live("pipe", "tensor")  # what the vocabulary lies over
    if not step.sequence_parallel:
        count = (4 + again + more) * blocks
        yield Transfer(kind="all-reduce", axes=axes, size=step.stream, count=count, what="residual stream")
        if sizes["pipe"] == 1:
            yield Transfer(kind="all-reduce", axes=axes, size=step.stream, count=2 * micro, what="embedding, logits")
        return
    entered = 0 if remat == "none" else 2
    gathers, scatters = 2 + entered + 2 + more, 2 + again + 2 + more
    yield Transfer(kind="all-gather", axes=axes, size=step.stream, count=gathers * blocks, what="residual stream")
    yield Transfer(kind="reduce-scatter", axes=axes, size=step.stream, count=scatters * blocks, what="residual stream")
    if sizes["pipe"] == 1:
        # the last hidden state and the embedding's gradient whole; the embedding's rows summed; the logits' gradient
        yield Transfer(kind="all-gather", axes=axes, size=step.stream, count=2 * micro, what="embedding, logits")
        yield Transfer(kind="reduce-scatter", axes=axes, size=step.stream, count=micro, what="embedding")
        yield Transfer(kind="all-reduce", axes=ends, size=step.stream, count=micro, what="logits")


def _experts(step: _Step) -> Iterator[Transfer]:
    """Tokens to experts on other devices, and back."""
    devices, model = step.sizes["expert"], step.model
    width = model.d_model * BYTES[step.train.precision.compute]
    for choices in _sizes(model).choices if devices > 1 else ():
        size = devices * round_rows(step.num_tokens * choices, devices) * width
        yield Transfer(kind="all-to-all", axes=("expert",), size=size, count=5 * step.ticks, what="tokens to experts")


def _context(step: _Step) -> Iterator[Transfer]:
    """Keys and values around the ring, their gradients, and batches into the ring's order."""
    ring, sizes = step.sizes["context"], step.sizes
    if ring == 1:
        return
    keys = step.num_tokens * _sizes(step.model).keys // sizes["tensor"] // sizes["pipe"]
    stages = 2 if sizes["pipe"] == 1 else 3  # forward and backward; a stage's forward pass once more
    passes = stages * (ring - 1) + (0 if step.train.remat == "none" else ring - 2) + 1
    compute = BYTES[step.train.precision.compute]
    yield Transfer(
        kind="collective-permute",
        axes=("context",),
        size=keys * compute,
        count=passes * step.ticks,
        what="keys and values",
    )
    yield Transfer(
        kind="collective-permute",
        axes=("context",),
        size=keys * BYTES["float32"],
        count=(ring - 1) * step.ticks,
        what="gradients of keys and values",
    )
    batch = 5 * step.num_tokens * BYTES["float32"]
    yield Transfer(
        kind="collective-permute", axes=("context",), size=batch, count=step.train.accumulate, what="batch's order"
    )


def _pipe(step: _Step) -> Iterator[Transfer]:
    """Activations to the neighbours, and the vocabulary that lies over all stages."""
    if step.sizes["pipe"] == 1:
        return
    micro, ticks, ends = step.train.accumulate, step.ticks, step.live("pipe", "tensor")
    stream = step.stream // (step.sizes["tensor"] if step.sequence_parallel else 1)
    yield Transfer(kind="collective-permute", axes=("pipe",), size=stream, count=2 * ticks, what="neighbours")
    yield Transfer(kind="all-reduce", axes=("pipe",), size=stream, count=micro + ticks, what="first and last stage")
    yield Transfer(kind="all-reduce", axes=ends, size=step.stream, count=ticks + micro, what="embedding, logits")
