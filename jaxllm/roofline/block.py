"""One decoder block as a list of operations, each with its FLOPs and bytes: what a roofline predicts of it.

    B rows   T tokens of a row   M = B T   D d_model   F d_ff   N query heads   K key-value heads   H width of a head

A product [M, X] x [X, Y] does 2 M X Y FLOPs on w (M X + X Y + M Y) bytes, for w bytes a value. Its backward pass is two
products of the same three sizes, so training is three of them. Forward, what stands between products moves, in values,

    norm        2 M D          read and written            gate       3 M F      gate and up read, their product written
    rope        2 M (N + K) H  queries and keys            residual   3 M D      both read, the sum written
    kernel      2 M (N + K) H  read and written once, as flash attention does; 2 N (H + H) FLOPs a pair that is seen

and backward 3 M D (input, gradient in and out), 2 M (N + K) H, the kernel's 4 M (N + K) H (of queries, keys, values and
the result, these and their gradients), 5 M F, and 3 M D. Elementwise FLOPs are left out, and so is what a fused kernel
computes again.

Every operation takes at least the greater of its computing and its moving (`intensity.times`), and a part at least the
sum of these, since operations run one after the other; a compiler that fuses two of them can be faster than that by
what lies between them.

Sources: the book, chapters 1 and 4; Dao et al. 2022 (FlashAttention) for the kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxllm.config import BlockConfig, ModelConfig
from jaxllm.roofline.attention import attended_pairs, pair_flops
from jaxllm.roofline.intensity import matmul_bytes, matmul_flops, times


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product [rows, contraction] x [contraction, columns].

    Attributes:
        name: of the weight.
        rows: tokens.
        contraction: what is summed over.
        columns: of the result.
    """

    name: str
    rows: int
    contraction: int
    columns: int

    @property
    def flops(self) -> int:
        """Operations of one product."""
        return matmul_flops(self.rows, self.contraction, self.columns)

    def size(self, width: int) -> float:
        """Bytes read and written once, of values so many bytes wide."""
        return matmul_bytes(
            self.rows,
            self.contraction,
            self.columns,
            activation_bytes=width,
            weight_bytes=width,
            output_bytes=width,
        )


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Work that is bound by one roof.

    Attributes:
        name: what it is.
        flops: operations of matrix products.
        size: bytes read and written.
    """

    name: str
    flops: float
    size: float


def seconds(operations: Sequence[Operation], *, peak: float, bandwidth: float) -> float:
    """The least time of operations one after the other, of each the greater of computing and moving.

    Args:
        operations: what is done.
        peak: FLOPs a second.
        bandwidth: bytes a second.
    """
    return sum(times(one.flops, one.size, peak=peak, bandwidth=bandwidth).lower for one in operations)


def attention_products(model: ModelConfig, block: BlockConfig, tokens: int) -> tuple[Product, ...]:
    """The projections of attention, forward."""
    attention, width = block.attention, model.d_model
    head_dim = model.head_dim(attention)
    queries, keys = attention.num_heads * head_dim, attention.kv_heads * head_dim
    return (
        Product(name="query", rows=tokens, contraction=width, columns=queries),
        Product(name="key", rows=tokens, contraction=width, columns=keys),
        Product(name="value", rows=tokens, contraction=width, columns=keys),
        Product(name="output", rows=tokens, contraction=queries, columns=width),
    )


def mlp_products(model: ModelConfig, block: BlockConfig, tokens: int) -> tuple[Product, ...]:
    """The products of the feed-forward layer, forward."""
    width, hidden = model.d_model, block.mlp.d_ff
    return (
        Product(name="gate", rows=tokens, contraction=width, columns=hidden),
        Product(name="up", rows=tokens, contraction=width, columns=hidden),
        Product(name="down", rows=tokens, contraction=hidden, columns=width),
    )


def parts(
    model: ModelConfig, block: BlockConfig, rows: int, length: int, *, width: int, training: bool
) -> dict[str, tuple[Operation, ...]]:
    """What a block does, by its parts.

    Args:
        model: for its widths.
        block: of this model.
        rows: B, sequences of one document each.
        length: T, tokens of one.
        width: bytes of a value.
        training: forward and backward pass; else forward only.

    Returns:
        The operations of `norm` (one of the two), `kernel` (attention between projections), `attention` (the kernel
        among its operations), `mlp`, and `block`, all of it.
    """
    tokens, attention = rows * length, block.attention
    head_dim = model.head_dim(attention)
    heads = tokens * (attention.num_heads + attention.kv_heads) * head_dim

    def moved(name: str, forward: int, backward: int) -> Operation:
        return Operation(name=name, flops=0, size=width * (forward + backward * training))

    def products(some: Sequence[Product]) -> tuple[Operation, ...]:
        passes = 3 if training else 1
        return tuple(
            Operation(name=one.name, flops=one.flops, size=one.size(width)) for one in some for _ in range(passes)
        )

    pairs = rows * attended_pairs(length)
    norm = moved("norm", 2 * tokens * model.d_model, 3 * tokens * model.d_model)
    kernel = Operation(
        name="kernel",
        flops=pairs * pair_flops(attention.num_heads, head_dim, head_dim, training=training),
        size=moved("kernel", 2 * heads, 4 * heads).size,
    )
    rope = moved("rope", 2 * heads, 2 * heads)
    head_norms = () if attention.qk_norm == "none" else (moved("query and key norms", 2 * heads, 3 * heads),)
    gate = moved("gate", 3 * tokens * block.mlp.d_ff, 5 * tokens * block.mlp.d_ff)
    residual = moved("residual", 3 * tokens * model.d_model, 3 * tokens * model.d_model)
    whole = (*products(attention_products(model, block, tokens)), *head_norms, rope, kernel)
    mlp = (*products(mlp_products(model, block, tokens)), gate)
    return {
        "norm": (norm,),
        "kernel": (kernel,),
        "attention": whole,
        "mlp": mlp,
        "block": (norm, *whole, residual, norm, *mlp, residual),
    }
