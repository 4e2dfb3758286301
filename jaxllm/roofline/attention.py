"""What attention costs beside its projections: FLOPs, intensity, cached keys and values; from plain numbers.

    T queries and S keys of a sequence   N query heads   K key-value heads   G = N / K   H width of a head

The two products (queries with keys, weights with values) do 4 T S N H operations a sequence forward and three times
that in training, over all pairs of a query and a key. Grouped queries (GQA) change the bytes and not the operations. A
causal mask leaves (T + 1) / 2 keys a query, a window at most its width, packed documents their own squares; only a
kernel that skips what is masked saves them.

In multi-head latent attention (MLA, DeepSeek-AI 2024) keys have a part without position and a rotary part that heads
share, and what is cached is the latent vector and that rotary part.

Flash attention goes over the keys in chunks, and keeps for each query the greatest score so far, the sum of
exponentials and the weighted values, which `combine_chunks` joins. Its backward pass needs, of each query, the sum of
weight x gradient of the weight over all keys: that is the product of the output with its gradient (`output_dot`).

Sources: the book, chapters 4 and 7; formulas F34, F37 to F39, F41 and F45.
"""

import math
from collections.abc import Sequence


def attended_pairs(sequence_length: int, *, causal: bool = True, window: int = 0) -> int:
    """Pairs of a query and a key that a mask leaves, of a sequence that attends to itself.

    Args:
        sequence_length: T.
        causal: whether a query meets only keys up to its own; T (T + 1) / 2 of T^2 pairs.
        window: keys that a causal query meets at most, its own included; 0 is no limit.
    """
    if not causal:
        return sequence_length**2
    width = min(window or sequence_length, sequence_length)
    return sequence_length * width - width * (width - 1) // 2


def packed_pairs(lengths: Sequence[int], *, window: int = 0) -> int:
    """`attended_pairs` of documents that are packed into a sequence and do not see each other."""
    return sum(attended_pairs(length, window=window) for length in lengths)


def attention_flops(
    num_sequences: int, num_queries: int, num_keys: int, num_heads: int, head_dim: int, *, training: bool = True
) -> int:
    """Operations of attention's two products over all pairs: 12 B T S N H in training, 4 forward. Chapter 4 (F34)."""
    return (12 if training else 4) * num_sequences * num_queries * num_keys * num_heads * head_dim


def pair_flops(num_heads: int, key_dim: int, value_dim: int, *, training: bool = True) -> int:
    """Operations of one pair of a query and a key in all heads: 2 N (key + value) forward, three times in training.

    Args:
        num_heads: N.
        key_dim: width of a query and a key, with MLA both parts of it.
        value_dim: width of a value.
        training: forward and backward pass; else forward only.
    """
    return (6 if training else 2) * num_heads * (key_dim + value_dim)


def attention_over_matrices(
    sequence_length: int, d_model: int, d_ff: int, num_heads: int, kv_heads: int, head_dim: int
) -> float:
    """Attention's two products, over all pairs, against all matrices of a block. The book, chapter 4 (F37).

    T / (8 D) where F = 4 D, N H = D and N = K: attention takes over beyond T = 8 D.
    """
    matrices = 18 * d_model * d_ff + 12 * d_model * (num_heads + kv_heads) * head_dim
    return 12 * sequence_length * num_heads * head_dim / matrices


def attention_equals_projections(d_model: int, num_heads: int, kv_heads: int) -> float:
    """Tokens from which on the two products cost more than the four projections: D (N + K) / N. Chapter 4 (F38)."""
    return d_model * (num_heads + kv_heads) / num_heads


def attention_intensity(num_queries: int, num_keys: int, group: int, *, element_bytes: float = 2) -> float:
    """Operations a byte of flash attention: S T G / (T G + S) in bfloat16. The book, chapters 4 and 7 (F39).

    T G / (G + 1) in prefill, where S = T; G S / (G + S), towards G, for one token of a long sequence.

    Args:
        num_queries: T.
        num_keys: S.
        group: G, query heads of a key-value head.
        element_bytes: of queries, keys, values and outputs.
    """
    flops = 4 * num_queries * num_keys * group
    return flops / (2 * element_bytes * (num_queries * group + num_keys))


def kv_cache_bytes(tokens: int, num_layers: int, kv_heads: int, head_dim: int, *, element_bytes: float = 2) -> float:
    """Bytes of the keys and values of cached tokens: 2 x bytes x S L K H. The book, chapter 4 (F41)."""
    return 2 * element_bytes * tokens * num_layers * kv_heads * head_dim


def latent_cache_bytes(
    tokens: int, num_layers: int, latent_dim: int, rotary_dim: int, *, element_bytes: float = 2
) -> float:
    """Bytes of what multi-head latent attention caches: a latent vector and a rotary key, for all heads together."""
    return element_bytes * tokens * num_layers * (latent_dim + rotary_dim)


def windowed_cache_tokens(context: int, *, window: int = 0) -> int:
    """Tokens whose keys and values a layer has to keep at a context: the window's, where there is one."""
    return min(context, window) if window else context


type Chunk = tuple[float, float, Sequence[float]]
"""Of one query and some keys: the greatest score, the sum of exp(score - greatest), and these times the values."""


def combine_chunks(first: Chunk, second: Chunk) -> Chunk:
    """The softmax statistics of two chunks of keys as those of both. The book, chapter 4, appendix (F45).

    L = exp(M1 - M) L1 + exp(M2 - M) L2 with M the greater of M1 and M2; likewise the weighted values. The attention's
    output is these over L, after the last chunk.
    """
    greatest = max(first[0], second[0])
    scales = math.exp(first[0] - greatest), math.exp(second[0] - greatest)
    values = [scales[0] * one + scales[1] * other for one, other in zip(first[2], second[2], strict=True)]
    return greatest, scales[0] * first[1] + scales[1] * second[1], values


def output_dot(output: Sequence[float], gradient: Sequence[float]) -> float:
    """Of one query, the sum over keys of weight x its gradient, without the weights: output . its gradient (F45)."""
    return sum(value * slope for value, slope in zip(output, gradient, strict=True))
