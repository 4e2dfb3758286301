"""What one step occupies on a device at its fullest, as the compilers make it: `memory`'s counts over time.

A step is a short program of large arrays, each of which comes and goes:

    begins          every weight of the blocks in the compute dtype (the TPU compiler casts all of them before the loop,
                    others each where it is read; see `_turned` for the GPU compiler); the embedding, gathered
    forward         what the blocks keep, by rematerialisation
    loss            the head, gathered; logits of a chunk; the head's gradient, whole, in float32
    head's sum      the head's gradient in the compute dtype, and what is scattered
    backward        the blocks' gradients, in their shares; what one block works on (`_Block`)
    embedding       its gradient, whole, in float32, and what comes of summing it; of a tied model the head's, to which
                    tokens are added: kept in the compute dtype until then
    update          in place: the state is donated

With micro-batches (M > 1) all of it is in a loop, beside the sums of all gradients.

Where arrays lie. XLA gives out places about in the order of the program: an array takes the smallest gap that holds it,
or the end (best fit). Arrays that live on, such as what the blocks keep, thereby stand between the places of those that
come and go, and a heap can be a third larger than what it holds at any one time; `_heap` does the same. Where the
blocks are what fills memory the difference is a few hundredths, where vocabularies are (few tokens a device, many
devices) it is large.

Found in buffer assignments of jax 0.12 with libtpu 0.0.52 and CUDA 13; `jaxllm bench plan-truth` compares.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from jaxllm.config import BlockConfig, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from jaxllm.mesh_sizes import round_rows
from jaxllm.roofline.memory import (
    BYTES,
    activation_bytes,
    counted,
    distinct,
    shards,
    stage_inputs,
    state_bytes,
)
from jaxllm.roofline.transformer import vocabulary

_LANES = 128
"""Values of a row of a TPU's tile: the kernels' heads and statistics are padded to so many."""

_MASK_BYTES = 2
"""Of a pair of positions in the mask that the cuDNN kernel takes."""

BATCH_BYTES = 20
"""Of a token in a batch: four int32 and a float32."""


@dataclass(frozen=True, kw_only=True)
class StepBytes:
    """Bytes on one device at the fullest moment of a step, by what they hold.

    Attributes:
        parameters: master weights, and copies of them in the compute dtype.
        optimizer: moments.
        gradients: in their shares, and those of embedding and head while they are whole.
        activations: what the blocks keep, and what one of them works on.
        logits: of a chunk.
        communication: weights as gathered, and gradients before and after they are summed.
        data: the batch.
        gaps: between arrays, where the allocator leaves places that nothing fits.
        moment: which is the fullest.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    logits: int
    communication: int
    data: int
    gaps: int
    moment: str

    @property
    def total(self) -> int:
        """All of them together: arguments and temporaries of the compiled step."""
        return sum(getattr(self, name) for name in COMPONENTS)


COMPONENTS = ("parameters", "optimizer", "gradients", "activations", "logits", "communication", "data", "gaps")

_MOMENTS = {0.0: "begins", 1.0: "forward", 2.0: "loss", 3.0: "head's sum", 4.0: "backward", 5.0: "embedding"}
_END = 6.0


@dataclass(frozen=True)
class _Array:
    """Something large, from one time to another, ends included."""

    component: str
    start: float
    end: float
    size: int


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A step on a device: letters as in `transformer`, dims already divided by what splits them.

    Attributes:
        t: tokens of a micro-batch.
        x: bytes of the residual stream where it is whole over tensor, and `stream` where it lies between blocks.
        n: values of the blocks' matrices, and `v` of a table of the vocabulary, both of a stage and whole over fsdp.
        fsdp: shards of both.
        whole: whether fsdp spans all chips of a slice that has too many for a reduce-scatter (see `slice_sum`).
        tpu: whose compiler.
    """

    model: ModelConfig
    train: TrainConfig
    sizes: Mapping[str, int]
    t: int
    rows: int
    x: int
    stream: int
    n: int
    v: int
    fsdp: int
    gradient_shares: int
    whole: bool
    tpu: bool

    @property
    def compute(self) -> int:
        return BYTES[self.train.precision.compute]

    @property
    def reduction(self) -> int:
        return BYTES[self.train.precision.reduction]


def step_bytes(
    model: ModelConfig,
    train: TrainConfig,
    optimizer: OptimizerConfig,
    mesh: MeshConfig,
    sizes: Mapping[str, int],
    batch_size: int,
    sequence_length: int,
    platform: Literal["tpu", "gpu"] = "tpu",
    slice_sum: bool = False,
) -> StepBytes:
    """Bytes on one device at the fullest moment of a step.

    Args:
        model: the decoder, with its vocabulary known.
        train: micro-batches, dtypes, rematerialisation, chunk of the loss.
        optimizer: whose moments are kept.
        mesh: `zero` and `sequence_parallel`; its sizes are not read.
        sizes: devices along every mesh axis, none of them -1.
        batch_size: rows of a step.
        sequence_length: tokens of a row.
        platform: whose compiler.
        slice_sum: whether fsdp spans all chips of a slice of 16 or more. There the TPU compiler has no reduce-scatter:
            it sums whole arrays, beside what they are summed from, and slices.

    Raises:
        ValueError: the vocabulary is not known yet.
    """
    step = _step(model, train, mesh, sizes, batch_size, sequence_length, platform == "tpu", slice_sum)
    state = state_bytes(model, train.precision, optimizer, shards(sizes, mesh.zero))
    arrays = [array for array in _arrays(step, mesh) if array.size > 0]
    held = {
        moment: sum(array.size for array in arrays if array.start <= moment <= array.end)
        for moment in {array.start for array in arrays}
    }
    fullest = max(held, key=lambda moment: held[moment])
    heap = _heap(tuple((array.start, array.end, array.size) for array in arrays))
    by: dict[str, int] = defaultdict(int)
    for array in arrays:
        if array.start <= fullest <= array.end:
            by[array.component] += array.size
    return StepBytes(
        parameters=state.parameters + by["parameters"],
        optimizer=state.optimizer,
        gradients=by["gradients"],
        activations=by["activations"],
        logits=by["logits"],
        communication=by["communication"],
        data=step.t * train.accumulate * BATCH_BYTES,
        gaps=max(0, heap - held[fullest]),
        moment=_MOMENTS[math.floor(fullest)],
    )


def _step(
    model: ModelConfig,
    train: TrainConfig,
    mesh: MeshConfig,
    sizes: Mapping[str, int],
    batch_size: int,
    sequence_length: int,
    tpu: bool,
    slice_sum: bool,
) -> _Step:
    fsdp = sizes["fsdp"] * sizes["expert"]  # experts lie over both too, each with other dims
    rows = -(-batch_size // (train.accumulate * sizes["data"] * fsdp))
    t = rows * -(-sequence_length // sizes["context"])
    split = sizes["tensor"] * sizes["pipe"]
    x = t * model.d_model * BYTES[train.precision.compute]
    return _Step(
        model=model,
        train=train,
        sizes=sizes,
        t=t,
        rows=rows,
        x=x,
        stream=x // (sizes["tensor"] if mesh.sequence_parallel else 1),
        n=(counted(model).attention + counted(model).mlp) // split,
        v=vocabulary(model) * model.d_model // split,
        fsdp=fsdp if mesh.zero == 3 else 1,
        gradient_shares=fsdp if mesh.zero >= 2 else 1,
        whole=slice_sum and tpu,
        tpu=tpu,
    )


def _arrays(step: _Step, mesh: MeshConfig) -> list[_Array]:
    """The large arrays of a step, in the order in which they come."""
    train, v, width, reduction = step.train, step.v, step.compute, step.reduction
    tied, pipe = step.model.tie_embeddings, step.sizes["pipe"]
    gathered = step.fsdp > 1
    copies = step.tpu and train.precision.compute != train.precision.parameters
    kept = activation_bytes(
        _stage(step.model, pipe),
        step.t,
        train.remat,
        width,
        step.sizes["tensor"],
        mesh.sequence_parallel,
        step.sizes["expert"],
    ).kept
    kept += _kept_padding(step) if step.tpu else 0
    stash = stage_inputs(pipe, train.accumulate, train.pipeline) * step.stream
    gradients = step.n // step.gradient_shares * reduction
    chunk = min(train.loss.chunk or step.t, step.t)
    logits = chunk * vocabulary(step.model) // (step.sizes["tensor"] * pipe) * BYTES["float32"]
    last = step.t * step.model.d_model * BYTES["float32"] * step.stream // step.x
    tables = 1 if tied else 2
    sums = (step.n + tables * v) // step.gradient_shares * reduction if train.accumulate > 1 else 0
    cast = (0.0, _END) if train.accumulate > 1 else (1.0, 4.9)  # before the loop over micro-batches
    num_casts = 3 if pipe > 1 and gathered else 1  # a pipeline fills, runs and drains: of shares each loop has its own
    joined = tied and pipe == 1  # the embedding's tokens are added to the head's gradient
    ends = [
        _Array("gradients", 0.0, _END, sums),
        _Array("communication", 0.1, 0.9, v * width if gathered or copies else 0),
        _Array("parameters", *cast, num_casts * (step.n // step.fsdp) * width if copies else _turned(step)),
        _Array("activations", 1.1, 4.9, kept),
        _Array("activations", 1.1, 4.9, stash),
        _Array("activations", 1.9, 4.9, last + step.x),
        _Array("communication", 2.0, 2.9, v * width if gathered or copies else 0),
        _Array("gradients", 2.1, 3.0, v * BYTES["float32"]),
        _Array("logits", 2.2, 2.9, logits),
        _Array("activations", 2.1, 4.0, step.x),
        _Array("activations", 2.2, 2.9, step.x),
    ]
    if joined:
        ends += [_Array("gradients", 3.0, 5.1, v * width), _Array("gradients", 5.0, 5.1, v * width)]
    else:
        ends += [
            _Array("gradients", 3.0, 3.1, v * width),
            _Array("gradients", 3.1, 3.2, v * width),
            _Array("communication", 3.2, 3.5, v * reduction),
            _Array("gradients", 3.5, _END, v // step.gradient_shares * reduction),
        ]
    pieces = [_Array("gradients", 4.0, _END, -(-gradients // 4)) for _ in range(4)]
    block = [_Array(component, 4.1, 4.9, size) for component, size in _block(step).items()]
    rows = step.t * step.model.d_model * BYTES["float32"]
    embedding = [
        _Array("activations", 5.0, 5.4, rows),
        _Array("activations", 5.1, 5.4, rows),
        _Array("gradients", 5.1, 5.5, v * BYTES["float32"]),
        _Array("communication", 5.5, 5.9, v * reduction if step.whole else 0),
        _Array("gradients", 5.9, _END, v // step.gradient_shares * reduction),
    ]
    return [*ends, *pieces, *block, *embedding]


@functools.cache
def _stage(model: ModelConfig, pipe: int) -> ModelConfig:
    """The blocks of one stage."""
    return model if pipe == 1 else msgspec.structs.replace(model, num_layers=model.num_layers // pipe)


def _turned(step: _Step) -> int:
    """Bytes of the weights that lie over fsdp by their last dim, all blocks together.

    The GPU compiler gathers by the first dim, and before the loop makes a copy of each stack that is turned so.
    """
    if step.tpu or step.fsdp == 1:
        return 0
    model, values = step.model, 0
    for block, num in distinct(_stage(model, step.sizes["pipe"])):
        heads = block.attention.num_heads * model.head_dim(block.attention)
        values += num * model.d_model * (heads + block.mlp.active_d_ff)
    return values // step.sizes["tensor"] // step.fsdp * BYTES[step.train.precision.parameters]


def _kept_padding(step: _Step) -> int:
    """Bytes by which a TPU's rows of 128 values make what is kept of heads larger: all that kernels read and write."""
    kept = 0
    for block, num in distinct(_stage(step.model, step.sizes["pipe"])):
        attention, head_dim = block.attention, step.model.head_dim(block.attention)
        heads = {
            "none": 2 * (attention.num_heads + attention.kv_heads),
            "dots": attention.num_heads + 2 * attention.kv_heads,
        }.get(step.train.remat, 0)
        kept += num * heads * (-head_dim % _LANES)
    return kept // step.sizes["tensor"] * step.t * step.compute


def _block(step: _Step) -> dict[str, int]:
    """What the backward pass of a block holds beside what was kept, at its fullest: in its feed-forward layer.

    Four arrays of the feed-forward layer's width (gate, up, what comes of them, a gradient), two where gate and up were
    kept; queries, keys, values and attention's result, with the kernel's padding, and its log-sum-exps, of which a TPU
    kernel writes 128 copies; the stream before and behind attention and its gradient, and whole where it is gathered.
    Of weights, the three gathered ones of the layer, queries' and output's, and the gradient of one, whole.
    """
    model, tensor, width, t = step.model, step.sizes["tensor"], step.compute, step.t
    worked = gathered = 0
    for block, _ in distinct(model):
        attention, experts = block.attention, block.mlp.experts
        units = (experts.shared_d_ff if experts else block.mlp.d_ff) // tensor
        head_dim = model.head_dim(attention)
        padded = -(-head_dim // _LANES) * _LANES if step.tpu else head_dim
        heads = 2 * (attention.num_heads + attention.kv_heads) // tensor
        statistics = attention.num_heads // tensor * (_LANES if step.tpu else 1) * BYTES["float32"]
        wide = 4 if step.train.remat in ("block", "offload") else 2
        own = width * (wide * units + heads * padded) + statistics
        mask = 0 if step.tpu else step.rows * (t // step.rows) ** 2 * _MASK_BYTES
        whole_stream = 3 * step.x if step.stream < step.x else 0
        rows, matrices = _mixture(step, block) if experts else (0, 0)
        worked = max(worked, t * own + 3 * step.stream + whole_stream + mask + rows)
        one = model.d_model * units
        weights = width * (3 * one + 2 * model.d_model * attention.num_heads * head_dim // tensor)
        gathered = max(gathered, weights * (step.fsdp > 1) + one * step.reduction + matrices)
    return {"activations": worked, "communication": gathered}


def _mixture(step: _Step, block: BlockConfig) -> tuple[int, int]:
    """Of a mixture's backward pass: bytes of rows, and of experts' weights and gradients.

    Of each row gate, up and a gradient of hidden units; the row, its gradient and its result's. Around an exchange
    also results and gradients of all rows of the device's own tokens. Of three matrices the weights where they are
    gathered, and the gradients: in float32 while the rounds of an exchange add to them, and one more of a round.
    """
    experts, devices, width = block.mlp.experts, step.sizes["expert"], step.compute
    assert experts is not None
    dim, units = step.model.d_model, block.mlp.d_ff // step.sizes["tensor"]
    routed = step.t * experts.experts_per_token
    rows = devices * round_rows(routed, devices) if devices > 1 else routed
    one = experts.num_experts // devices * dim * units
    gathered = 3 * width if step.sizes["fsdp"] > 1 else 0
    summed = 3 * BYTES["float32"] + width if devices > 1 else 3 * width
    values = rows * 3 * (units + dim) + (2 * routed * dim if devices > 1 else 0)
    return width * values, one * (gathered + summed)


@functools.lru_cache(maxsize=4096)
def _heap(arrays: Sequence[tuple[float, float, int]]) -> int:
    """The size of a heap that gives out places as arrays come, best fit.

    Args:
        arrays: (start, end, bytes), ends included, in the order in which they come.
    """
    top, placed = 0, []
    for start, end, size in sorted(arrays, key=lambda array: array[0]):
        placed = [one for one in placed if one[0] >= start]
        gaps, cursor = [], 0
        for _, low, high in sorted(placed, key=lambda one: one[1]):
            if low - cursor >= size:
                gaps.append((low - cursor, cursor))
            cursor = max(cursor, high)
        if top - cursor >= size:
            gaps.append((top - cursor, cursor))
        place = min(gaps)[1] if gaps else cursor
        placed.append((end, place, place + size))
        top = max(top, place + size)
    return top
