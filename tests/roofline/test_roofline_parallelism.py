"""The book's training rooflines: rows N, and each threshold against the times it is of."""

import pytest

from jaxllm.roofline.collectives import all_gather_seconds, tree_all_to_all_seconds
from jaxllm.roofline.parallelism import (
    bubble_over_work,
    checkpoint_bytes,
    data_bytes,
    data_critical_tokens,
    data_times,
    expert_critical_d_ff,
    expert_times,
    few_nodes_critical_tokens,
    fsdp_bytes,
    fsdp_times,
    mixed_bytes,
    mixed_critical_tokens,
    mixed_times,
    optimal_fsdp,
    outer_bandwidth,
    pipeline_layer_seconds,
    pipeline_seconds,
    ring_attention_critical_tokens,
    ring_attention_times,
    slice_critical_tokens,
    slice_times,
    tensor_bytes,
    tensor_limit,
    tensor_times,
    two_node_tensor_limit,
    wide_expert_critical_d_ff,
)
from jaxllm.roofline.topology import TorusAxis, switch_tree
from jaxllm.roofline.training import model_utilisation, most_parameters, state_bytes, training_seconds

V5P = {"peak": 4.59e14, "bandwidth": 1.8e11}
V5P_POD = {"devices": 8960, "peak": 4.59e14}
H100 = {"peak": 990e12, "bandwidth": 450e9}
H100_NODES = {"peak": 990e12, "bandwidth": 400e9}
DAY, YEAR = 86_400, 3.15e7


@pytest.mark.parametrize(
    ("row", "value", "exact", "book"),
    [
        ("N1", data_critical_tokens(**V5P), 2550, 2550),
        ("N1 three axes", data_critical_tokens(**V5P, num_axes=3), 850, 850),
        ("N1 pod", 8960 * data_critical_tokens(**V5P, num_axes=3), 7_616_000, 7.6e6),
        ("N3", 40e6 / data_critical_tokens(**V5P, num_axes=3), 47_058.82353, 47e3),
        ("N4", 16e6 / data_critical_tokens(**V5P, num_axes=3), 18_823.52941, 18_823),
        (
            "N4 days",
            training_seconds(70e9, 15e12, devices=16e6 / 850, peak=4.59e14, utilisation=0.5) / DAY,
            16.87885802,
            17,
        ),
        ("N5 needs", 8 / tensor_limit(1, **V5P), 20_400, 20e3),
        ("N7", mixed_critical_tokens(32_768, **V5P, fsdp_axes=2), 99.22027588, 99),
        ("N7 summed", mixed_critical_tokens(32_768, **V5P, fsdp_axes=2, overlap_axes=False), 396.8811035, 400),
        ("N9", slice_critical_tokens(peak=4.59e14, dcn=6.25e9), 73_440, 73_440),
        ("N11 state", state_bytes(13e9), 130e9, 130e9),
        ("N11 kept", checkpoint_bytes(16e6, 5120, 2.7 * 5120, 40), 4.194304e13, 42e12),
        ("N14", 6 * 70e9 * 15e12, 6.3e24, 6.3e24),
        ("N14 years", training_seconds(70e9, 15e12, devices=1, peak=4.59e14, utilisation=1) / YEAR, 435.7298475, 435),
        ("N15", training_seconds(70e9, 15e12, **V5P_POD, utilisation=0.4), 3.82965686e6, 3.8e6),
        ("N15 days", training_seconds(70e9, 15e12, **V5P_POD, utilisation=0.4) / DAY, 44.3247322, 44),
        ("N19 node", data_critical_tokens(**H100), 2200, 2200),
        ("N19 beyond", data_critical_tokens(**H100_NODES), 2475, 2475),
        ("N19 H800", data_critical_tokens(peak=990e12, bandwidth=300e9), 3300, 3300),
        ("N19 2048 H800", 2048 * data_critical_tokens(peak=990e12, bandwidth=300e9), 6_758_400, 6.7e6),
        ("N20", data_critical_tokens(**H100_NODES, num_experts=128, num_active=4), 79_200, 79_200),
        ("N21", few_nodes_critical_tokens(2, **H100_NODES), 1237.5, 1237),
        ("N23 tensor", 1 / tensor_limit(1, peak=2250e12, bandwidth=900e9), 2500, 2500),
        ("N23 data", data_critical_tokens(peak=2250e12, bandwidth=400e9), 5625, 5625),
        ("N24", 1 / (most_parameters(80e9) / 70e9), 8.75, 8.75),
        (
            "N24 days",
            training_seconds(70e9, 15e12, devices=4096, peak=990e12, utilisation=0.45) / DAY,
            39.9594205,
            40,
        ),
        ("F56 wide", wide_expert_critical_d_ff(**H100_NODES), 19_800, 19_800),
    ],
)
def test_rows(row, value, exact, book):
    assert value == pytest.approx(exact, rel=1e-6), row
    assert value == pytest.approx(book, rel=0.05), row


def test_rows_that_the_book_rounds_down():
    # N5: 11-way at F = 30,000, 19-way for Gemma's 50,000; N2: "about 9 billion"; N17: 468 tokens a chip, below 850.
    assert int(tensor_limit(30_000, **V5P)) == 11 and int(tensor_limit(50_000, **V5P)) == 19
    assert most_parameters(96e9) == 9.6e9
    tokens = 4_194_304 / 8960
    assert tokens == pytest.approx(468.1, abs=0.05)
    assert tokens < data_critical_tokens(**V5P, num_axes=3)
    # GPU chapter: tensor parallelism over two nodes, F = 28,000.
    assert int(two_node_tensor_limit(28_000, **H100_NODES)) == 19


@pytest.mark.parametrize(("gpus", "batch", "tokens"), [(192, 192, 4096), (768, 384, 2048), (3072, 1536, 2048)])
def test_megatron_tokens_a_gpu(gpus, batch, tokens):
    assert batch * 4096 / gpus == tokens  # N26
    # Below 2475 for the larger ones: they need tensor or pipeline parallelism too.
    assert (tokens > data_critical_tokens(**H100_NODES)) == (gpus == 192)


@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("devices", [8, 512])
def test_each_threshold_is_where_its_times_are_equal(num_axes, devices):
    block = {"d_model": 4096, "d_ff": 16_384}
    tokens = data_critical_tokens(**V5P, num_axes=num_axes)
    for times in (data_times, fsdp_times):
        both = times(tokens * devices, **block, devices=devices, **V5P, num_axes=num_axes)
        assert both.compute == pytest.approx(both.transfer)
        assert times(2 * tokens * devices, **block, devices=devices, **V5P, num_axes=num_axes).compute_bound
    limit = tensor_limit(16_384, **V5P, num_axes=num_axes)
    both = tensor_times(1e6, **block, devices=limit, **V5P, num_axes=num_axes)  # pyright: ignore
    assert both.compute == pytest.approx(both.transfer)
    sliced = slice_times(4 * 73_440, **block, slices=4, chips_per_slice=devices, peak=4.59e14, dcn=6.25e9)
    assert sliced.compute == pytest.approx(sliced.transfer)


def test_times_are_those_of_the_collectives():
    axes = [TorusAxis(size=16, wraps=True), TorusAxis(size=8, wraps=True)]
    both = fsdp_times(1e6, 4096, 16_384, devices=128, **V5P, num_axes=2)
    assert both.transfer == pytest.approx(2 * all_gather_seconds(2 * 4096 * 16_384, axes, link=9e10))
    assert data_times(1e6, 4096, 16_384, devices=128, **V5P, num_axes=2).transfer == 2 * both.transfer
    # 4 D F operations a token forward and twice that backward.
    assert both.compute == pytest.approx(4 * 1e6 * 4096 * 16_384 / 128 / 4.59e14)


@pytest.mark.parametrize("overlap_axes", [True, False])
@pytest.mark.parametrize("axes", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize(("batch", "d_ff", "devices"), [(2e6, 28_672, 4096), (3e5, 13_824, 512)])
def test_the_optimal_split_communicates_least(overlap_axes, axes, batch, d_ff, devices):
    width = {"fsdp_axes": axes[0], "tensor_axes": axes[1]}

    def both(fsdp):
        mixed = mixed_times(batch, 8192, d_ff, fsdp=fsdp, tensor=devices / fsdp, **V5P, **width)
        return mixed.times(overlap_axes=overlap_axes)

    best = optimal_fsdp(batch, d_ff, devices, **width)
    assert all(both(best).transfer < both(best * factor).transfer for factor in (0.5, 0.9, 1.1, 2))
    # Computing over communication there, and the tokens where it is one.
    alpha = 2550 if overlap_axes else 2 * 2550
    ratio = (batch * d_ff * axes[0] * axes[1] / devices) ** 0.5 / alpha
    assert both(best).ratio == pytest.approx(ratio)
    critical = mixed_critical_tokens(d_ff, **V5P, **width, overlap_axes=overlap_axes)
    assert batch / devices / critical == pytest.approx(ratio**2)


def test_bytes_of_a_block():
    assert (data_bytes(8, 32).forward, data_bytes(8, 32).backward) == (0, 8 * 8 * 32)
    assert (fsdp_bytes(8, 32).forward, fsdp_bytes(8, 32).backward) == (4 * 8 * 32, 8 * 8 * 32)
    assert tensor_bytes(100, 8).forward == tensor_bytes(100, 8).backward == 4 * 100 * 8
    mixed = mixed_bytes(100, 8, 32, fsdp=4, tensor=2)
    assert mixed.forward == 4 * 100 * 8 / 4 + 4 * 8 * 32 / 2 and mixed.backward == 2 * mixed.forward


def test_experts_across_nodes():
    block = {"batch": 1e6, "d_model": 7168}
    # Few nodes: F > alpha (Z - 8) / k; many: towards 8 alpha, whatever k is.
    assert expert_critical_d_ff(8, 16, **H100_NODES) == 2475 * 8 / 8
    assert expert_critical_d_ff(4, 8 * 1000, **H100_NODES) == pytest.approx(8 * 2475, rel=2e-3)
    for active, devices in ((8, 16), (8, 64), (4, 256)):
        d_ff = expert_critical_d_ff(active, devices, **H100_NODES)
        both = expert_times(**block, d_ff=d_ff, num_active=active, devices=devices, **H100_NODES)  # pyright: ignore
        assert both.compute == pytest.approx(both.transfer)
    # Where every token reaches every node, two all-to-alls of a node's worth: V (M - 1) / (M^2 W), eight GPUs a node.
    both = expert_times(**block, d_ff=2048, num_active=8, devices=16, **H100_NODES)
    dense = tree_all_to_all_seconds(2 * 1e6 * 7168, switch_tree((2,), (400e9,)))
    assert both.transfer == pytest.approx(2 * 2 * dense)


def test_pipelines():
    seconds = pipeline_seconds(1e6, 8192, num_micro=16, num_stages=8, bandwidth=400e9)
    assert seconds == pytest.approx(2 * 1e6 * 8192 / (400e9 * 16) * 22)
    # With twice as many micro-batches as stages that is about 1.5 sends of the whole batch.
    many = pipeline_seconds(1e6, 8192, num_micro=2000, num_stages=1000, bandwidth=400e9)
    assert many == pytest.approx(80 * pipeline_layer_seconds(1e6, 8192, num_layers=80, bandwidth=400e9), rel=1e-3)
    assert bubble_over_work(8, 4) == 3 / 8 and bubble_over_work(8, 4, num_chunks=3) == 1 / 8
    assert data_critical_tokens(peak=990e12, bandwidth=outer_bandwidth(400e9, 2)) == 2475 / 2


@pytest.mark.parametrize("causal", [True, False])
def test_ring_attention(causal):
    ring = {"peak": 4.59e14, "bandwidth": 9e10, "causal": causal}
    tokens = ring_attention_critical_tokens(32, 8, **ring)
    both = ring_attention_times(tokens * 16, 32, 8, 128, devices=16, **ring)  # pyright: ignore
    assert both.compute == pytest.approx(both.transfer)
    assert tokens == 5100 / 4 * (2 if causal else 1)


def test_utilisation_and_time_are_inverse():
    seconds = training_seconds(7e9, 1e12, **V5P_POD, utilisation=0.5)
    assert model_utilisation(7e9, 1e12 / seconds, **V5P_POD) == pytest.approx(0.5)
    assert model_utilisation(7e9, 2e6, **V5P_POD) > model_utilisation(7e9, 1e6, **V5P_POD)
