"""What a decoder costs: its parameters and its FLOPs, in closed form from the config.

    D d_model   F d_ff   V vocabulary   L blocks   N query heads   K key-value heads   H width of a head
    T tokens of a sequence

Parameters of a block: attention 2 D (N + K) H, gated feed-forward 3 D F, two norms 2 D; norms of queries and keys, if
any, 2 H over each head or (N + K) H over the projection. Beside the blocks: the embedding V D, the head V D unless it
is the embedding transposed, the last norm D.

FLOPs: a matrix product does 2 a parameter and token forward and 4 backward, 6 in training. Attention's two products
(queries with keys, weights with values) do 2 x 2 T N H a token and block forward, 12 T N H in training, over the full
square of T x T pairs; a causal mask leaves half of them, and grouping queries changes nothing. Norms, activations,
rope and the softmax are left out, as everywhere in the field; so is what rematerialisation computes again, which
makes the utilisation below one of model FLOPs (MFU) and not of hardware FLOPs (HFU).

Where only adapters are trained (LoRA, Hu et al. 2021), the gradients of all other weights are never computed: 4 a
parameter and token for these instead of 6, and 6 for the adapters' own.

Sources: the book, chapter 4 ("All the transformer math you need to know"); Chowdhery et al. 2022 (PaLM), appendix B.
"""

from dataclasses import dataclass
from enum import StrEnum

from jaxllm.config import BlockConfig, ModelConfig
from jaxllm.config.base import require


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters by what they are part of.

    Attributes:
        embedding: the token embedding, V D.
        head: the projection onto the vocabulary, V D; 0 where it is the embedding transposed.
        attention: the matrices of attention, all blocks together.
        mlp: the matrices of the feed-forward layers, all blocks together.
        norm: the scales of all norms.
    """

    embedding: int = 0
    head: int = 0
    attention: int = 0
    mlp: int = 0
    norm: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.head + self.attention + self.mlp + self.norm

    @property
    def active(self) -> int:
        """Those that a token meets: all of them in a dense decoder."""
        return self.total

    def __add__(self, other: "ParameterCount") -> "ParameterCount":
        return ParameterCount(
            embedding=self.embedding + other.embedding,
            head=self.head + other.head,
            attention=self.attention + other.attention,
            mlp=self.mlp + other.mlp,
            norm=self.norm + other.norm,
        )


class Convention(StrEnum):
    """How the FLOPs of a training token are counted. Numbers compare only under one convention.

    With n for the parameters of a kind, and the sum over blocks:

    Attributes:
        PALM: 6 n(all) + sum of 12 T N H: every parameter, the full square. Chowdhery et al. 2022, appendix B, as
            llm-foundry, nanotron and most tables print it.
        TORCHTITAN: 6 (n(all) - n(embedding)) + sum of 12 T N H: looking a row up is no matrix product, so the
            embedding counts only where it is the head too. torchtitan; nanochat and OLMo-core differ by the norms.
        CAUSAL: 6 (n(attention) + n(mlp) + V D) + sum of 6 T N H: the matrix products that have to be done and no
            others. Megatron-LM and MaxText since 2025.
        SCALING_BOOK: 6 n(all), attention's square left out; the book, chapter 4.
    """

    PALM = "palm"
    TORCHTITAN = "torchtitan"
    CAUSAL = "causal"
    SCALING_BOOK = "scaling_book"

    @property
    def formula(self) -> str:
        """The count in one line, for people."""
        return {
            Convention.PALM: "6 x all parameters + full-square attention",
            Convention.TORCHTITAN: "6 x all but an untied embedding + full-square attention",
            Convention.CAUSAL: "6 x matrix products only + causal attention (half the square)",
            Convention.SCALING_BOOK: "6 x all parameters, attention's square left out",
        }[self]


def vocabulary(model: ModelConfig) -> int:
    """The model's vocabulary size V, once it is known.

    Raises:
        ValueError: vocab_size is 0, which stands for the size of a tokenizer that nobody has read yet.
    """
    require(model.vocab_size > 0, "model.vocab_size", 0, "the counts need a number; give the tokenizer's size")
    return model.vocab_size


def block_parameters(model: ModelConfig, block: BlockConfig) -> ParameterCount:
    """Parameters of one block: attention 2 D (N + K) H, feed-forward 3 D F, norms 2 D (the book, chapter 4).

    With them the norms of queries and keys: 2 H or (N + K) H.
    """
    attention, head_dim = block.attention, model.head_dim(block.attention)
    heads = attention.num_heads + attention.kv_heads
    normalised = {"none": 0, "head": 2, "projection": heads}[attention.qk_norm]
    return ParameterCount(
        attention=2 * model.d_model * heads * head_dim,
        mlp=3 * model.d_model * block.mlp.d_ff,
        norm=2 * model.d_model + normalised * head_dim,
    )


def parameters(model: ModelConfig) -> ParameterCount:
    """Parameters of the whole decoder, exactly.

    Raises:
        ValueError: the vocabulary is not known yet.
    """
    rows = vocabulary(model) * model.d_model
    ends = ParameterCount(embedding=rows, head=0 if model.tie_embeddings else rows, norm=model.d_model)
    return sum((block_parameters(model, block) for block in model.blocks), start=ends)


def attention_flops(model: ModelConfig, block: BlockConfig, sequence_length: int) -> int:
    """Training FLOPs a token of attention's two products in one block, over the full square: 12 T N H."""
    return 12 * sequence_length * block.attention.num_heads * model.head_dim(block.attention)


def formula(convention: Convention | str, adapters: bool = False) -> str:
    """A convention's name and count in one line, for people; with adapters, only these are trained."""
    count = Convention(convention).formula
    return f"{convention}: " + (count.replace("6 x", "4 x") + " + 6 x adapters" if adapters else count)


def flops_per_token(model: ModelConfig, sequence_length: int, convention: Convention | str, adapters: int = 0) -> float:
    """FLOPs of training (forward and backward) on one token of a sequence.

    Args:
        model: the decoder, with its vocabulary known.
        sequence_length: T, in tokens.
        convention: what counts; a member of `Convention` or its name.
        adapters: parameters of adapters, where these alone are trained; 0 where the model is.

    Raises:
        ValueError: no such convention, or the vocabulary is not known yet.
    """
    known = ", ".join(Convention)
    require(convention in set(Convention), "convention", str(convention), f"use one of {known}")
    count = parameters(model)
    square = sum(attention_flops(model, block, sequence_length) for block in model.blocks)
    each = 4 if adapters else 6
    match Convention(convention):
        case Convention.PALM:
            flops = each * count.active + square
        case Convention.TORCHTITAN:
            flops = each * (count.active - (0 if model.tie_embeddings else count.embedding)) + square
        case Convention.CAUSAL:
            # The embedding has the head's size, whether or not the head has parameters of its own.
            flops = each * (count.attention + count.mlp + count.embedding) + square / 2
        case Convention.SCALING_BOOK:
            flops = each * count.active
    return float(flops + 6 * adapters)


def mfu(tokens_per_second: float, flops_per_token: float, peak_flops_per_second: float) -> float:
    """Model FLOPs utilisation: the share of the peak that the model's own FLOPs make up (PaLM, appendix B).

    Args:
        tokens_per_second: of one device, or of all of them together.
        flops_per_token: of `flops_per_token`, under the convention that is printed beside the result.
        peak_flops_per_second: of as many devices as the tokens were counted on, at the compute dtype.

    Returns:
        A fraction: 0.39 is 39 %.
    """
    return tokens_per_second * flops_per_token / peak_flops_per_second
