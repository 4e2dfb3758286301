"""Parameters, FLOPs and activations of a transformer's parts, from plain numbers: what `transformer` adds up.

    D d_model   F d_ff   V vocabulary   L blocks   N query heads   K key-value heads   H width of a head
    E experts   k of them active for a token

A contraction does 2 operations for every combination of its dims, each distinct one taken once. A matrix that meets M
tokens does 2 M a parameter forward, and 4 backward: for the gradient of its input and for its own.

Here are also counts that exist before the decoder has such a layer: multi-head latent attention (MLA, DeepSeek-AI
2024), mixtures of experts (MoE), and modules that predict further tokens (MTP, DeepSeek-AI 2024).

Sources: the book, chapter 4; formulas F31 to F36, F40 and F42. DeepSeek-V3's technical report, section 2.
"""

import math
from collections.abc import Sequence
from typing import Literal


def contraction_flops(dims: Sequence[int], *, training: bool = False) -> int:
    """Operations of a product of two arrays: 2 x all distinct dims, three times that in training. Chapter 4 (F31).

    Args:
        dims: batch, contracted and remaining dims, each once.
        training: forward and backward pass; else one product.
    """
    return (6 if training else 2) * math.prod(dims)


def training_flops(num_parameters: float, tokens: float) -> float:
    """Operations of training on so many tokens, attention's two products left out: 6 P M. Chapter 4 (F31)."""
    return 6 * num_parameters * tokens


def forward_flops(num_parameters: float, tokens: float) -> float:
    """Operations of a forward pass, attention's two products left out: 2 P M. The book, chapter 4 (F31)."""
    return 2 * num_parameters * tokens


def remat_flops(num_parameters: float, tokens: float) -> float:
    """Operations of training where every block's forward pass is done again: 8 P M. The book, chapter 4 (F40)."""
    return 8 * num_parameters * tokens


def remat_attention_flops(num_sequences: int, sequence_length: int, num_heads: int, head_dim: int) -> int:
    """What a block does again where products' results are kept and attention is not: 4 B T^2 N H. Chapter 4 (F40)."""
    return 4 * num_sequences * sequence_length**2 * num_heads * head_dim


def mlp_parameters(d_model: int, d_ff: int, *, gated: bool = True) -> int:
    """Matrices of a feed-forward layer: 3 D F with a gate (F32), 2 D F without. The book, chapter 4."""
    return (3 if gated else 2) * d_model * d_ff


def mlp_flops(tokens: int, d_model: int, d_ff: int, *, gated: bool = True) -> int:
    """Training operations of a feed-forward layer: 18 D F a token with a gate. The book, chapter 4 (F32)."""
    return 6 * tokens * mlp_parameters(d_model, d_ff, gated=gated)


def attention_parameters(d_model: int, num_heads: int, kv_heads: int, head_dim: int) -> int:
    """Matrices that make queries, keys, values and outputs: 2 D (N + K) H. The book, chapter 4 (F33)."""
    return 2 * d_model * (num_heads + kv_heads) * head_dim


def projection_flops(tokens: int, d_model: int, num_heads: int, kv_heads: int, head_dim: int) -> int:
    """Training operations of these: 12 D (N + K) H a token. The book, chapter 4 (F33)."""
    return 6 * tokens * attention_parameters(d_model, num_heads, kv_heads, head_dim)


def unembedding_flops(tokens: int, d_model: int, vocab_size: int) -> int:
    """Training operations of the projection onto the vocabulary: 6 D V a token. The book, chapter 4 (F35)."""
    return 6 * tokens * d_model * vocab_size


def decoder_parameters(
    *,
    num_layers: int,
    d_model: int,
    d_ff: int,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    vocab_size: int,
    tied: bool = False,
) -> int:
    """Parameters of a decoder of equal blocks, without its last norm. The book, chapter 4 (F36).

    L (3 D F + 2 D (N + K) H + 2 D), and D V for the embedding, and again for the head unless they are tied.
    """
    attention = attention_parameters(d_model, num_heads, kv_heads, head_dim)
    block = mlp_parameters(d_model, d_ff) + attention + 2 * d_model
    return num_layers * block + (1 if tied else 2) * d_model * vocab_size


VALUES_KEPT = {"none": 20, "dots": 7, "block": 1}
"""The book's values of D that a token keeps in a block of F = 4 D, by what is computed again (chapter 4, F40)."""


def kept_activation_bytes(
    tokens: int, d_model: int, num_layers: int, remat: Literal["none", "dots", "block"], *, element_bytes: float = 2
) -> float:
    """Bytes kept for the backward pass, by the book's round numbers of `VALUES_KEPT`. Chapter 4 (F40).

    `memory.activation_bytes` counts what a decoder of jaxllm keeps.
    """
    return element_bytes * VALUES_KEPT[remat] * tokens * d_model * num_layers


def latent_attention_parameters(
    d_model: int,
    num_heads: int,
    *,
    query_latent: int,
    kv_latent: int,
    nope_dim: int,
    rotary_dim: int,
    value_dim: int,
) -> int:
    """Matrices of multi-head latent attention, without the norms of its latent vectors.

    Args:
        d_model: D.
        num_heads: N.
        query_latent: width of the vector that queries are made of; 0 where they are made of the residual stream.
        kv_latent: width of the vector that keys and values are made of.
        nope_dim: of a head's queries and keys, the part without position.
        rotary_dim: of these, the rotary part; its key is shared by all heads.
        value_dim: of a head's values.
    """
    query_dim = num_heads * (nope_dim + rotary_dim)
    queries = (d_model + query_dim) * query_latent if query_latent else d_model * query_dim
    keys_and_values = d_model * (kv_latent + rotary_dim) + kv_latent * num_heads * (nope_dim + value_dim)
    return queries + keys_and_values + num_heads * value_dim * d_model


def moe_parameters(d_model: int, expert_d_ff: int, num_experts: int, *, shared_d_ff: int = 0) -> int:
    """Matrices of a mixture of gated experts, its router and its shared experts: E (3 D F + D) + 3 D F_shared (F42)."""
    experts = num_experts * (mlp_parameters(d_model, expert_d_ff) + d_model)
    return experts + mlp_parameters(d_model, shared_d_ff)


def moe_active_parameters(
    d_model: int, expert_d_ff: int, num_experts: int, num_active: int, *, shared_d_ff: int = 0
) -> int:
    """Of these, what one token meets: k experts, the whole router and the shared experts. The book, chapter 4 (F42)."""
    chosen = num_active * mlp_parameters(d_model, expert_d_ff) + num_experts * d_model
    return chosen + mlp_parameters(d_model, shared_d_ff)


def moe_critical_batch(critical_batch: float, num_experts: int, num_active: int) -> float:
    """Tokens from which on a mixture is bound by computing: E / k times a dense model's. Chapter 4 (F42)."""
    return critical_batch * num_experts / num_active


def expected_experts_read(num_experts: int, num_active: int, tokens: int) -> float:
    """Experts that some token of a batch chooses, if each draws k of E at random: E (1 - (1 - k / E)^tokens)."""
    return num_experts * (1 - (1 - num_active / num_experts) ** tokens)


def mtp_parameters(d_model: int, block_parameters: int) -> int:
    """Parameters of a module that predicts one further token, beside the embedding and head it shares.

    A matrix that joins the block's output with the next token's embedding, 2 D x D; norms of both and of its output,
    3 D; and one block.
    """
    return 2 * d_model * d_model + 3 * d_model + block_parameters


def mtp_flops(tokens: int, d_model: int, vocab_size: int, block_matrices: int) -> int:
    """Training operations of such a module, attention's two products left out: its matrices and the head once more.

    Args:
        tokens: of the batch.
        d_model: D.
        vocab_size: V.
        block_matrices: parameters of its block that a token meets in products.
    """
    return 6 * tokens * (2 * d_model * d_model + block_matrices) + unembedding_flops(tokens, d_model, vocab_size)
