"""What a decoder is made of: its parameters, and attention's own FLOPs, in closed form from the config.

    D d_model   F d_ff   V vocabulary   L blocks   N query heads   K key-value heads   H width of a head
    T tokens of a sequence

Parameters of a block: attention 2 D (N + K) H, feed-forward 3 D F, or 2 D F without a gate, or of E experts with a
router and a shared one E (3 D F + D) + 3 D F_shared; its norms D each, two of
them where branches are normalised on one side; norms of queries and keys, if any, 2 H over each head or (N + K) H over
the projection. Biases: of queries, keys and values (N + 2 K) H, of the output D; of the feed-forward layer 2 F + D, or
F + D; of a LayerNorm D. Beside the blocks: the embedding V D, learned positions, the head V D unless it is the
embedding transposed, the last norm D and perhaps one of the embedding.

FLOPs: a matrix product does 2 a parameter and token forward and 4 backward, 6 in training. Attention's two products
(queries with keys, weights with values) do 2 x 2 T N H a token and block forward, 12 T N H in training, over the full
square of T x T pairs; a causal mask leaves half of them, and grouping queries changes nothing. Norms, activations,
rope and the softmax are left out, as everywhere in the field. What a training token costs by whose count is
`conventions`'.

Sources: the book, chapter 4 ("All the transformer math you need to know"); Chowdhery et al. 2022 (PaLM), appendix B.
"""

from dataclasses import dataclass

from jaxllm.config import BlockConfig, ModelConfig, NormConfig
from jaxllm.config.base import require
from jaxllm.roofline.attention import pair_flops
from jaxllm.roofline.counts import attention_parameters, mlp_parameters, moe_parameters


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters by what they are part of.

    Attributes:
        embedding: the token embedding, V D.
        head: the projection onto the vocabulary, V D; 0 where it is the embedding transposed.
        attention: the matrices of attention, all blocks together.
        mlp: the matrices of the feed-forward layers, all blocks together.
        norm: the scales of all norms.
        bias: all biases, those of norms and of experts' balance included.
        idle: of `mlp`, the experts that a token does not go through.
        positions: the table of learned positions.
    """

    embedding: int = 0
    head: int = 0
    attention: int = 0
    mlp: int = 0
    norm: int = 0
    bias: int = 0
    idle: int = 0
    positions: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.head + self.attention + self.mlp + self.norm + self.bias + self.positions

    @property
    def active(self) -> int:
        """Those that a token meets: all of them in a dense decoder."""
        return self.total - self.idle

    def __add__(self, other: "ParameterCount") -> "ParameterCount":
        return ParameterCount(
            embedding=self.embedding + other.embedding,
            head=self.head + other.head,
            attention=self.attention + other.attention,
            mlp=self.mlp + other.mlp,
            norm=self.norm + other.norm,
            bias=self.bias + other.bias,
            idle=self.idle + other.idle,
            positions=self.positions + other.positions,
        )


def vocabulary(model: ModelConfig) -> int:
    """The model's vocabulary size V, once it is known.

    Raises:
        ValueError: vocab_size is 0, which stands for the size of a tokenizer that nobody has read yet.
    """
    require(model.vocab_size > 0, "model.vocab_size", 0, "the counts need a number; give the tokenizer's size")
    return model.vocab_size


def block_parameters(model: ModelConfig, block: BlockConfig) -> ParameterCount:
    """Parameters of one block: attention 2 D (N + K) H, feed-forward 3 D F, norms 2 D (the book, chapter 4).

    With them what the module's docstring adds: norms on both sides, norms of queries and keys, biases.
    """
    attention, mlp, head_dim = block.attention, block.mlp, model.head_dim(block.attention)
    heads = attention.num_heads + attention.kv_heads
    normalised = {"none": 0, "head": 2, "projection": heads}[attention.qk_norm]
    num_norms = {"pre": 2, "post": 2, "both": 4}[block.norm_placement] - (block.branches == "parallel_shared_norm")
    qkv = (heads + attention.kv_heads) * head_dim
    biases = {"none": 0, "qkv": qkv, "all": qkv + model.d_model}[attention.bias]
    if mlp.bias:
        biases += (2 if mlp.gated else 1) * mlp.d_ff + model.d_model
    matrices, idle = mlp_parameters(model.d_model, mlp.d_ff, gated=mlp.gated), 0
    if experts := mlp.experts:
        idle = (experts.num_experts - experts.experts_per_token) * matrices
        matrices = moe_parameters(model.d_model, mlp.d_ff, experts.num_experts, shared_d_ff=experts.shared_d_ff)
        biases += experts.num_experts * experts.balancing_bias
    return ParameterCount(
        attention=attention_parameters(model.d_model, attention.num_heads, attention.kv_heads, head_dim),
        mlp=matrices,
        idle=idle,
        norm=num_norms * model.d_model + normalised * head_dim,
        bias=biases + num_norms * _norm_bias(model, block.norm),
    )


def _norm_bias(model: ModelConfig, norm: NormConfig) -> int:
    return model.d_model if norm.kind == "layer" else 0


def parameters(model: ModelConfig) -> ParameterCount:
    """Parameters of the whole decoder, exactly.

    Raises:
        ValueError: the vocabulary is not known yet.
    """
    rows, num_norms = vocabulary(model) * model.d_model, 2 if model.embedding_norm else 1
    ends = ParameterCount(
        embedding=rows,
        head=0 if model.tie_embeddings else rows,
        norm=num_norms * model.d_model,
        bias=num_norms * _norm_bias(model, model.norm),
        positions=model.learned_positions * model.d_model,
    )
    return sum((block_parameters(model, block) for block in model.blocks), start=ends)


def attention_flops(model: ModelConfig, block: BlockConfig, sequence_length: int) -> int:
    """Training FLOPs a token of attention's two products in one block, over the full square: 12 T N H."""
    head_dim = model.head_dim(block.attention)
    return sequence_length * pair_flops(block.attention.num_heads, head_dim, head_dim)
