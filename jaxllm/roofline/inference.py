"""How long generating text takes: prefill and decode, and what bounds them.

A decode step makes one token for each of B sequences. It reads all weights once and each sequence's cached keys and
values, so it takes at least their bytes over the memory's bandwidth; only the products with weights grow bound by
computing as B does. Prefill reads a whole prompt at once and is bound by computing.

    D d_model   F d_ff   N chips   C operations a second of one   W bytes a second

Bytes are of all chips together, bandwidths and peaks those of one, times seconds.

Sources: the book, chapters 7 (inference) and 8 (applied inference); formulas F59 to F67.
"""

import math

from jaxllm.roofline.intensity import Times


def decode_seconds(batch: float, *, kv_bytes: float, weight_bytes: float, chips: float, bandwidth: float) -> float:
    """A decode step that memory bounds: (B KV + weights) / (N W). The book, chapter 7 (F59).

    Args:
        batch: B, sequences.
        kv_bytes: of one sequence's cache.
        weight_bytes: of all weights.
        chips: N.
        bandwidth: of one chip's HBM.
    """
    return (batch * kv_bytes + weight_bytes) / (chips * bandwidth)


def general_decode_seconds(
    batch: float,
    *,
    kv_bytes: float,
    weight_bytes: float,
    num_parameters: float,
    chips: float,
    peak: float,
    bandwidth: float,
) -> float:
    """A decode step at any batch: B KV / (N W) + max(2 B P / (N C), weights / (N W)). The book, chapter 7 (F60).

    Attention stays bound by memory; the products with weights are bound by whichever takes longer.

    Args:
        batch: B.
        kv_bytes: of one sequence's cache.
        weight_bytes: of all weights.
        num_parameters: P, those that a token meets.
        chips: N.
        peak: C, in the dtype that is multiplied.
        bandwidth: of one chip's HBM.
    """
    products = Times(compute=2 * batch * num_parameters / (chips * peak), transfer=weight_bytes / (chips * bandwidth))
    return batch * kv_bytes / (chips * bandwidth) + products.lower


def prefill_seconds(
    num_parameters: float, tokens: float, *, chips: float, peak: float, utilisation: float = 1.0
) -> float:
    """Reading a prompt: 2 P tokens / (N C MFU), attention's own products left out. The book, chapter 7 (F61)."""
    return 2 * num_parameters * tokens / (chips * peak * utilisation)


def decode_tensor_limit(batch: float, d_ff: int, *, hbm: float, ici: float) -> float:
    """Chips up to which splitting a decode step further makes it faster: F / (B beta). The book, chapter 7 (F62).

    Weights of a product take 2 D F / (Y W_hbm), the activations' collective 2 B D / W_ici, and beta is W_hbm / W_ici.

    Args:
        batch: B, sequences.
        d_ff: F.
        hbm: bytes a second of one chip's HBM.
        ici: bytes a second over one axis, both directions of a ring together.
    """
    return d_ff * ici / (batch * hbm)


def decode_tensor_times(batch: float, d_model: int, d_ff: int, *, devices: int, hbm: float, ici: float) -> Times:
    """One product of a decode step over Y chips: reading weights, and the collective. The book, chapter 7 (F62).

    In the place of computing stands reading: 2 D F / (Y W_hbm) and 2 B D / W_ici; bfloat16.
    """
    return Times(compute=2 * d_model * d_ff / (devices * hbm), transfer=2 * batch * d_model / ici)


def stationary_2d_seconds(
    batch: float, d_model: int, d_ff: int, *, model_devices: float, ff_devices: float, bandwidth: float
) -> float:
    """Communication of a block whose weights stay, split along both dims: 2 B D / (X W) + 4 B F / (YZ W). F63.

    The book, chapter 7, question 7; bfloat16.

    Args:
        batch: B.
        d_model: D, which X devices split.
        d_ff: F, which YZ devices split.
        model_devices: X.
        ff_devices: YZ.
        bandwidth: W.
    """
    return 2 * batch * d_model / (model_devices * bandwidth) + 4 * batch * d_ff / (ff_devices * bandwidth)


def optimal_stationary_2d(devices: float, d_model: int, d_ff: int) -> tuple[float, float]:
    """X and YZ that make `stationary_2d_seconds` least: X = sqrt(N D / (2 F)), sqrt(N / 8) for F = 4 D (F63)."""
    model_devices = math.sqrt(devices * d_model / (2 * d_ff))
    return model_devices, devices / model_devices


def stationary_1d_seconds(batch: float, d_model: int, *, bandwidth: float, num_axes: int = 3) -> float:
    """The same with weights split along F only, over all axes: 4 B D / (3 W). The book, chapter 7 (F63)."""
    return 4 * batch * d_model / (num_axes * bandwidth)


def stationary_2d_threshold(d_model: int, d_ff: int, *, num_axes: int = 3) -> float:
    """Chips from which on splitting along both dims is faster: 2 F / D axes^2, 72 for F = 4 D and three axes (F63).

    Where 2 sqrt(8 D F / N) B / W, the least of one, is below 4 B D / (axes W).
    """
    return 2 * d_ff / d_model * num_axes**2


def fewest_chips(weight_bytes: float, *, hbm: float) -> int:
    """Chips whose memory holds the weights; `topology.smallest_slice` makes a slice of them. Chapter 7 (F64)."""
    return math.ceil(weight_bytes / hbm)


def largest_batch(*, chips: float, hbm: float, weight_bytes: float, kv_bytes: float) -> int:
    """Sequences whose caches fit beside the weights; negative where the weights do not fit. Chapter 7 (F64)."""
    return math.floor((chips * hbm - weight_bytes) / kv_bytes)


def evicted_tokens(batch: float, prompt: float, generated: float) -> float:
    """Cached tokens that finished sequences free in a decode step, on average: B (P + G) / G. Chapter 7 (F65).

    Args:
        batch: B, sequences that are being generated.
        prompt: P, tokens of a prompt.
        generated: G, tokens generated for it.
    """
    return batch * (prompt + generated) / generated


def prefill_over_decode_servers(*, prefill: float, decode_step: float, batch: float, generated: float) -> float:
    """Prefill servers for each decode server, such that neither waits: T_prefill B / (T_step length). Chapter 7 (F66).

    Then as many prompts are read a second, servers / T_prefill, as sequences end, servers x B / (T_step length).

    Args:
        prefill: seconds that a prefill server takes for a prompt.
        decode_step: seconds of a decode server's step.
        batch: its sequences.
        generated: tokens generated for a prompt.
    """
    return prefill * batch / (decode_step * generated)


def flops_per_dollar(peak: float, price: float) -> float:
    """Operations that a unit of money buys at the peak: 3600 C / price. The book, chapter 8 (F67).

    Args:
        peak: operations a second of one chip.
        price: of one chip and hour.
    """
    return 3600 * peak / price
