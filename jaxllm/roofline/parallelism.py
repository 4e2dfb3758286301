"""When a way to train on many devices is bound by computing, and when by communication.

    B tokens of the global batch   D d_model   F d_ff   C operations a second of a device   W bytes a second
    X devices of the data or fsdp axis   Y of the tensor axis   N = X Y   alpha = C / W
    M hardware axes that a mesh axis spans on a torus: a collective has M W

W is what a device takes in over one hardware axis: both directions of a ring of TPUs (`2 * ici_bytes_per_second`), a
GPU's NVLink within a node, a node's network beyond. As in the book, a block is two matrices [D, F] and [F, D] without a
gate, in bfloat16, attention's own products are left out, and communication may overlap computing:

    data, fsdp     weights move         B / X > alpha / M
    tensor         activations move     Y < M F / alpha
    fsdp x tensor  both, each less      B / N > alpha^2 / (M_X M_Y F), with X = sqrt(B N M_X / (F M_Y))
    expert         tokens move          see `expert_times`
    pipeline       activations, once a stage
    context        keys and values; Liu et al. 2023, not the book's

Of two axes of a torus the collectives overlap (the book's present edition), so that the slower counts; where they do
not (its first edition), their sum does, and the threshold is four times as high. The best split is the same.

Times are seconds of one block, results tokens or devices, as real numbers.

Sources: the book, chapter 5 (training) and GPU chapter; formulas F46 to F58.
"""

import math
from dataclasses import dataclass

from jaxllm.roofline.intensity import Times


def data_times(
    batch: float, d_model: int, d_ff: int, *, devices: int, peak: float, bandwidth: float, num_axes: int = 1
) -> Times:
    """Data parallelism, backward pass of a block: gradients of both matrices are all-reduced. Chapter 5 (F46).

    8 B D F / (X C) and 8 D F / (M W). The forward pass communicates nothing.

    Args:
        batch: B, tokens.
        d_model: D.
        d_ff: F.
        devices: X.
        peak: C.
        bandwidth: W.
        num_axes: M.
    """
    return Times(
        compute=8 * batch * d_model * d_ff / (devices * peak), transfer=8 * d_model * d_ff / (bandwidth * num_axes)
    )


def fsdp_times(
    batch: float, d_model: int, d_ff: int, *, devices: int, peak: float, bandwidth: float, num_axes: int = 1
) -> Times:
    """Fully sharded data parallelism, forward pass of a block: both matrices are all-gathered. Chapter 5 (F46).

    4 B D F / (X C) and 4 D F / (M W); the backward pass, with a gather and a reduce-scatter, is `data_times`.
    """
    backward = data_times(batch, d_model, d_ff, devices=devices, peak=peak, bandwidth=bandwidth, num_axes=num_axes)
    return Times(compute=backward.compute / 2, transfer=backward.transfer / 2)


def data_critical_tokens(
    *, peak: float, bandwidth: float, num_axes: int = 1, num_experts: int = 1, num_active: int = 1
) -> float:
    """Tokens a device from which on data parallelism and fsdp compute longer than they communicate: alpha E / (M k).

    The book, chapter 5 and GPU chapter (F46, F54): 2550 / M on v5p, 2200 within a node of H100, 2475 beyond.

    Args:
        peak: C.
        bandwidth: W.
        num_axes: M.
        num_experts: E; a mixture moves all its weights and multiplies by k of E.
        num_active: k.
    """
    return peak / (bandwidth * num_axes) * num_experts / num_active


def few_nodes_critical_tokens(num_nodes: int, *, peak: float, bandwidth: float) -> float:
    """`data_critical_tokens` over few nodes, of which each needs no own share: alpha (X - 1) / X. GPU chapter (F54)."""
    return peak / bandwidth * (num_nodes - 1) / num_nodes


def tensor_times(
    batch: float, d_model: int, d_ff: int, *, devices: int, peak: float, bandwidth: float, num_axes: int = 1
) -> Times:
    """Tensor parallelism, forward pass of a block: activations are all-gathered and reduce-scattered. F47.

    4 B D F / (Y C) and 4 B D / (M W). The book, chapter 5. The arguments are those of `data_times`; devices is Y.
    """
    return Times(
        compute=4 * batch * d_model * d_ff / (devices * peak), transfer=4 * batch * d_model / (bandwidth * num_axes)
    )


def tensor_limit(d_ff: int, *, peak: float, bandwidth: float, num_axes: int = 1) -> float:
    """Devices up to which tensor parallelism is bound by computing: M F / alpha, whatever the batch. F47, F55."""
    return num_axes * d_ff * bandwidth / peak


def two_node_tensor_limit(d_ff: int, *, peak: float, bandwidth: float, node_size: int = 8) -> float:
    """`tensor_limit` over exactly two nodes, of which each keeps its half: F / alpha + 8. The GPU chapter (F55)."""
    return tensor_limit(d_ff, peak=peak, bandwidth=bandwidth) + node_size


@dataclass(frozen=True, kw_only=True)
class MixedTimes:
    """fsdp and tensor parallelism together, forward pass of a block; seconds.

    Attributes:
        compute: of computing.
        fsdp: of gathering weights.
        tensor: of gathering and scattering activations.
    """

    compute: float
    fsdp: float
    tensor: float

    def times(self, *, overlap_axes: bool = True) -> Times:
        """Computing and communication: the slower axis' where both overlap, else the sum."""
        joined = max(self.fsdp, self.tensor) if overlap_axes else self.fsdp + self.tensor
        return Times(compute=self.compute, transfer=joined)


def mixed_times(
    batch: float,
    d_model: int,
    d_ff: int,
    *,
    fsdp: float,
    tensor: float,
    peak: float,
    bandwidth: float,
    fsdp_axes: int = 1,
    tensor_axes: int = 1,
) -> MixedTimes:
    """fsdp x tensor, forward pass of a block. The book, chapter 5 (F48).

    Weights 4 D F / (Y M_X W), activations 4 B D / (X M_Y W), computing 4 B D F / (X Y C).

    Args:
        batch: B, tokens.
        d_model: D.
        d_ff: F.
        fsdp: X, devices.
        tensor: Y, devices.
        peak: C.
        bandwidth: W.
        fsdp_axes: M_X.
        tensor_axes: M_Y.
    """
    return MixedTimes(
        compute=4 * batch * d_model * d_ff / (fsdp * tensor * peak),
        fsdp=4 * d_model * d_ff / (tensor * fsdp_axes * bandwidth),
        tensor=4 * batch * d_model / (fsdp * tensor_axes * bandwidth),
    )


def optimal_fsdp(batch: float, d_ff: int, devices: int, *, fsdp_axes: int = 1, tensor_axes: int = 1) -> float:
    """X of fsdp x tensor that communicates least, overlapped or not: sqrt(B N M_X / (F M_Y)). Chapter 5 (F49).

    The tensor axis has the other N / X. A real number; the best mesh is one of its neighbours.
    """
    return math.sqrt(batch / d_ff * fsdp_axes / tensor_axes * devices)


def mixed_critical_tokens(
    d_ff: int,
    *,
    peak: float,
    bandwidth: float,
    fsdp_axes: int = 1,
    tensor_axes: int = 1,
    overlap_axes: bool = True,
) -> float:
    """Tokens a device from which on the best fsdp x tensor is bound by computing. The book, chapter 5 (F50).

    alpha^2 / (M_X M_Y F), and four times that where the axes' collectives do not overlap.
    """
    overlapped = (peak / bandwidth) ** 2 / (fsdp_axes * tensor_axes * d_ff)
    return overlapped if overlap_axes else 4 * overlapped


def slice_times(
    batch: float, d_model: int, d_ff: int, *, slices: int, chips_per_slice: int, peak: float, dcn: float
) -> Times:
    """Data parallelism between TPU slices, backward pass of a block. The book, chapter 5 (F51).

    8 B D F / (S M C) and 8 D F / (M W): within a slice every chip keeps a share of the gradients.

    Args:
        batch: B, tokens of all slices.
        d_model: D.
        d_ff: F.
        slices: S.
        chips_per_slice: M.
        peak: C of a chip.
        dcn: bytes a second of a chip to the data-centre network.
    """
    return Times(
        compute=8 * batch * d_model * d_ff / (slices * chips_per_slice * peak),
        transfer=8 * d_model * d_ff / (chips_per_slice * dcn),
    )


def slice_critical_tokens(*, peak: float, dcn: float) -> float:
    """Tokens a slice, whatever its size, from which on `slice_times` is bound by computing: C / W. Chapter 5 (F51)."""
    return peak / dcn


def outer_bandwidth(node: float, nodes_per_model: int) -> float:
    """Bytes a second for data parallelism outside a model that spans several nodes: n W. The GPU chapter (F58)."""
    return nodes_per_model * node


@dataclass(frozen=True, kw_only=True)
class LayerBytes:
    """Bytes that a block's collectives carry on a device, of the whole arrays that they gather or reduce.

    Attributes:
        forward: in the forward pass.
        backward: in the backward pass.
    """

    forward: float
    backward: float


def data_bytes(d_model: int, d_ff: int) -> LayerBytes:
    """Data parallelism: 0 and 8 D F. The book, chapter 5 (F52)."""
    return LayerBytes(forward=0, backward=8 * d_model * d_ff)


def fsdp_bytes(d_model: int, d_ff: int) -> LayerBytes:
    """Fully sharded data parallelism: 4 D F and 8 D F. The book, chapter 5 (F52)."""
    return LayerBytes(forward=4 * d_model * d_ff, backward=8 * d_model * d_ff)


def tensor_bytes(batch: float, d_model: int) -> LayerBytes:
    """Tensor parallelism: 4 B D both ways. The book, chapter 5 (F52)."""
    return LayerBytes(forward=4 * batch * d_model, backward=4 * batch * d_model)


def mixed_bytes(batch: float, d_model: int, d_ff: int, *, fsdp: int, tensor: int) -> LayerBytes:
    """fsdp x tensor: 4 B D / X + 4 D F / Y and 8 B D / X + 8 D F / Y. The book, chapter 5 (F52).

    Backward it counts the activations' second gather, which `tensor_bytes`, as the book's row does, leaves out.
    """
    forward = 4 * batch * d_model / fsdp + 4 * d_model * d_ff / tensor
    return LayerBytes(forward=forward, backward=2 * forward)


def checkpoint_bytes(batch: float, d_model: int, d_ff: int, num_layers: int) -> float:
    """Bytes of activations kept behind the products of all blocks, three a block: 2 L B (D + 2 F). Chapter 5 (F53)."""
    return 2 * num_layers * batch * (d_model + 2 * d_ff)


def expert_times(
    batch: float,
    d_model: int,
    d_ff: int,
    *,
    num_active: int,
    devices: int,
    peak: float,
    bandwidth: float,
    node_size: int = 8,
) -> Times:
    """Expert parallelism across nodes, forward pass of a block: tokens to their experts and back. GPU chapter (F56).

    4 B k D F / (Z C) and 4 B D (Z - 8) / (Z W) min(8 k / Z, 1): a token goes to a node once at most.

    Args:
        batch: B, tokens.
        d_model: D.
        d_ff: F of an expert.
        num_active: k.
        devices: Z, of the expert axis; more than a node's.
        peak: C.
        bandwidth: W of a node's network.
        node_size: GPUs of a node.
    """
    leaving = (devices - node_size) / devices * min(node_size * num_active / devices, 1)
    return Times(
        compute=4 * batch * num_active * d_model * d_ff / (devices * peak),
        transfer=4 * batch * d_model * leaving / bandwidth,
    )


def expert_critical_d_ff(num_active: int, devices: int, *, peak: float, bandwidth: float, node_size: int = 8) -> float:
    """F from which on `expert_times` is bound by computing. The GPU chapter (F56).

    alpha (Z - 8) / k where a token may reach every node (k > Z / 8); beyond that alpha 8 (Z - 8) / Z, towards
    `wide_expert_critical_d_ff`.
    """
    reached = min(node_size * num_active / devices, 1)
    return peak / bandwidth * (devices - node_size) / num_active * reached


def wide_expert_critical_d_ff(*, peak: float, bandwidth: float, node_size: int = 8) -> float:
    """F from which on experts may be spread over any number of nodes: 8 alpha, 19,800 on H100. GPU chapter (F56)."""
    return node_size * peak / bandwidth


def pipeline_seconds(batch: float, d_model: int, *, num_micro: int, num_stages: int, bandwidth: float) -> float:
    """All of a pipeline's sends in a forward pass: 2 B D / (W m) x (m + stages - 2). The GPU chapter (F57).

    Args:
        batch: B, tokens.
        d_model: D.
        num_micro: m, micro-batches.
        num_stages: of the pipeline.
        bandwidth: bytes a second from a stage to the next.
    """
    return 2 * batch * d_model / (bandwidth * num_micro) * (num_micro + num_stages - 2)


def pipeline_layer_seconds(batch: float, d_model: int, *, num_layers: int, bandwidth: float) -> float:
    """`pipeline_seconds` a block, with twice as many micro-batches as stages: about 1.5 x 2 B D / (W L) (F57)."""
    return 1.5 * 2 * batch * d_model / (bandwidth * num_layers)


def bubble_over_work(num_micro: int, num_stages: int, *, num_chunks: int = 1) -> float:
    """Time a stage waits over the time it works: (stages - 1) / (chunks x micro-batches). Narayanan et al. 2021.

    Args:
        num_micro: micro-batches of a step.
        num_stages: of the pipeline.
        num_chunks: groups of blocks that a stage has, where the schedule interleaves them.
    """
    return (num_stages - 1) / (num_chunks * num_micro)


def ring_attention_times(
    sequence_length: int,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    devices: int,
    peak: float,
    bandwidth: float,
    causal: bool = True,
) -> Times:
    """One step of context parallelism by a ring: a shard of keys and values moves on while one is used; bfloat16.

    With S / X tokens a device, 4 (S / X)^2 N H operations, half of them under a causal mask that is shared out evenly,
    and 4 (S / X) K H bytes to the neighbour. Liu et al. 2023 (ring attention).

    Args:
        sequence_length: S.
        num_heads: N.
        kv_heads: K.
        head_dim: H.
        devices: X, of the context axis.
        peak: C.
        bandwidth: bytes a second to one neighbour, one way.
        causal: whether half of the pairs are masked.
    """
    tokens = sequence_length / devices
    pairs = tokens**2 / (2 if causal else 1)
    return Times(compute=4 * pairs * num_heads * head_dim / peak, transfer=4 * tokens * kv_heads * head_dim / bandwidth)


def ring_attention_critical_tokens(
    num_heads: int, kv_heads: int, *, peak: float, bandwidth: float, causal: bool = True
) -> float:
    """Tokens a device from which on `ring_attention_times` is bound by computing: alpha K / N, twice if causal."""
    return peak / bandwidth * kv_heads / num_heads * (2 if causal else 1)
