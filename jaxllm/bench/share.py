"""One device's share of a step: its part of the model's shapes, and the tokens of its micro-batch.

Over tensor a device holds its part of the heads, of the feed-forward layer and of the vocabulary (over pipe too); over
the batch's axes it holds rows. What devices exchange is left out.
"""

import math
from dataclasses import dataclass

import jax
import msgspec

from jaxllm import mesh_sizes
from jaxllm.bench.step import known_vocabulary
from jaxllm.config import BlockConfig, Experiment, ModelConfig

MOST_TOKENS = 16384
"""Of a share that is measured, unless a single row is longer: from there on more take longer in proportion."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one device computes.

    Attributes:
        model: the whole decoder.
        blocks: those of its blocks that differ, with a device's heads and hidden units.
        vocab_size: a device's part of it.
        rows: of a micro-batch, so many as are measured.
        length: tokens of a row.
        micro_rows: rows of a micro-batch as the config has it.
        head_rows: tokens whose logits are made at a time.
        compute: dtype.
    """

    model: ModelConfig
    blocks: tuple[BlockConfig, ...]
    vocab_size: int
    rows: int
    length: int
    micro_rows: int
    head_rows: int
    compute: str

    @property
    def tokens(self) -> int:
        """Those that are measured."""
        return self.rows * self.length

    def describe(self) -> str:
        """For people: `2 x 8192 = 16,384 tokens of a micro-batch of 512 x 8192`."""
        text = f"{self.rows} x {self.length} = {self.tokens:,} tokens"
        return text if self.rows == self.micro_rows else f"{text} of a micro-batch of {self.micro_rows} x {self.length}"


def share(experiment: Experiment) -> Share:
    """A device's share, with a mesh axis of -1 over the devices that are here.

    A mesh that needs more devices than are here has as few as it allows.

    Raises:
        ValueError: the mesh divides neither the model nor the batch, or the vocabulary is not known.
    """
    model, mesh, train, phase = experiment.model, experiment.mesh, experiment.train, experiment.data.phases[0]
    model = known_vocabulary(experiment)
    least = math.prod(size for size in mesh.shape if size != -1)
    here = jax.device_count() // least * least if -1 in mesh.shape else least
    sizes = mesh_sizes.resolve(mesh, max(least, here))
    mesh_sizes.check_model(model, sizes)
    mesh_sizes.check_batch(
        phase.batch_size, train.accumulate, phase.sequence_length, sizes, experiment.mesh.sequence_parallel
    )
    shards = math.prod(sizes[axis] for axis in mesh_sizes.BATCH_AXES)
    length = phase.sequence_length // sizes["context"]
    micro_rows = phase.batch_size // train.accumulate // shards
    rows = max(1, min(micro_rows, MOST_TOKENS // length))
    chunk = train.loss.chunk or rows * length
    return Share(
        model=model,
        blocks=tuple(dict.fromkeys(_part(model, block, sizes["tensor"]) for block in model.blocks)),
        vocab_size=model.vocab_size // (sizes["pipe"] * sizes["tensor"]),
        rows=rows,
        length=length,
        micro_rows=micro_rows,
        head_rows=min(chunk, rows * length),
        compute=train.precision.compute,
    )


def _part(model: ModelConfig, block: BlockConfig, tensor: int) -> BlockConfig:
    """A block's heads and hidden units on one device along tensor."""
    replace = msgspec.structs.replace
    attention = replace(
        block.attention,
        num_heads=block.attention.num_heads // tensor,
        num_kv_heads=block.attention.kv_heads // tensor,
        head_dim=model.head_dim(block.attention),
    )
    return replace(block, attention=attention, mlp=replace(block.mlp, d_ff=block.mlp.d_ff // tensor))
