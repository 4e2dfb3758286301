"""Collectives in closed form, against hand counts of Llama 3 8B."""

import msgspec
import pytest

from jaxllm.config import (
    AXES,
    AttentionConfig,
    ExpertsConfig,
    LossConfig,
    MeshConfig,
    MLPConfig,
    ModelConfig,
    TrainConfig,
)
from jaxllm.roofline.communication import totals, transfers

D, N, K, H, F, L, V = 4096, 32, 8, 128, 14336, 32, 128256
MODEL = ModelConfig(
    vocab_size=V, d_model=D, num_layers=L, attention=AttentionConfig(num_heads=N, num_kv_heads=K), mlp=MLPConfig(d_ff=F)
)
BLOCK = 2 * D * (N + K) * H + 3 * D * F
TABLE = V * D
NORMS = (2 * L + 1) * D
FSDP, TENSOR = ("fsdp",), ("tensor",)


def moved(sizes, batch=32, length=4096, zero=3, sequence_parallel=False, **train):
    mesh = MeshConfig(**sizes, zero=zero, sequence_parallel=sequence_parallel)
    whole = dict.fromkeys(AXES, 1) | sizes
    return totals(transfers(MODEL, TrainConfig(**train), mesh, whole, batch, length))


def test_one_device_moves_nothing():
    assert moved({"fsdp": 1}) == {}


def test_fsdp_gathers_twice_and_scatters_once():
    assert moved({"fsdp": 32}) == {
        ("all-gather", FSDP): 2 * (2 * L * BLOCK + 2 * TABLE),
        ("reduce-scatter", FSDP): 4 * (L * BLOCK + 2 * TABLE),
        ("all-reduce", FSDP): 4 * NORMS,
    }


def test_micro_batches_repeat_what_fsdp_moves_and_not_what_data_does():
    once = moved({"data": 2, "fsdp": 4}, accumulate=1)
    four = moved({"data": 2, "fsdp": 4}, accumulate=4)
    assert four["all-gather", FSDP] == 4 * once["all-gather", FSDP]
    assert four["reduce-scatter", FSDP] == 4 * once["reduce-scatter", FSDP]
    assert four["all-reduce", ("data",)] == once["all-reduce", ("data",)] == (L * BLOCK + 2 * TABLE)


@pytest.mark.parametrize(("zero", "scatters"), [(2, 4), (1, 1)])
def test_lower_stages_gather_what_was_updated(zero, scatters):
    found = moved({"fsdp": 4}, zero=zero, accumulate=4)
    assert found["all-gather", FSDP] == 4 * (L * BLOCK + 2 * TABLE)
    assert found["reduce-scatter", FSDP] == scatters * 4 * (L * BLOCK + 2 * TABLE)


def test_tensor_sums_the_residual_stream():
    stream = 4 * 4096 * D * 2
    assert moved({"fsdp": 8, "tensor": 4})["all-reduce", TENSOR] == (5 * L + 2) * stream
    assert moved({"fsdp": 8, "tensor": 4}, remat="dots")["all-reduce", TENSOR] == (4 * L + 2) * stream
    parallel = moved({"fsdp": 8, "tensor": 4}, sequence_parallel=True)
    assert parallel["all-gather", TENSOR] == (6 * L + 2) * stream
    assert parallel["reduce-scatter", TENSOR] == (5 * L + 1) * stream


def test_the_ring_passes_keys_on():
    keys = 4096 // 4 * 2 * K * H
    for remat, again in (("none", 0), ("dots", 2), ("block", 2)):
        found = moved({"fsdp": 8, "context": 4}, batch=8, remat=remat)["collective-permute", ("context",)]
        assert found == L * keys * ((3 + 3 + 1 + again) * 2 + 3 * 4) + 5 * 1024 * 4


def test_a_pipeline_passes_activations_on_every_tick():
    stream, ticks = 4096 * D * 2, 16 + 3
    found = moved({"pipe": 4, "fsdp": 2}, batch=32, accumulate=16, loss=LossConfig(chunk=0))
    assert found["collective-permute", ("pipe",)] == 2 * ticks * stream
    assert found["all-gather", FSDP] == 2 * (3 * ticks * L // 4 * BLOCK + (ticks + 16) * TABLE // 4)


def test_expert_is_more_fsdp_for_dense_weights():
    renamed = {(kind, ("fsdp", "expert")): size for (kind, _), size in moved({"fsdp": 8}).items()}
    assert moved({"fsdp": 4, "expert": 2}) == renamed


def test_tokens_travel_to_experts_whose_weights_are_gathered_over_fsdp_alone():
    """Mixtral 8x7B on 8 x 8 chips, one row of 4096 tokens each: as libtpu 0.0.52 compiles it."""
    mlp = MLPConfig(d_ff=F, experts=ExpertsConfig(num_experts=8, experts_per_token=2))
    mixtral = msgspec.structs.replace(MODEL, vocab_size=32000, mlp=mlp)
    sizes = dict.fromkeys(AXES, 1) | {"fsdp": 8, "expert": 8}
    mesh = MeshConfig(fsdp=8, expert=8)
    found = totals(transfers(mixtral, TrainConfig(), mesh, sizes, 64, 4096))
    attention, expert, router, tables = 2 * D * (N + K) * H, 3 * D * F, D * 8, 2 * 32000 * D
    # of 8192 rows a device has 1024 for each other one; a round takes 1280 of them
    assert found["all-to-all", ("expert",)] == 5 * L * 8 * 1280 * D * 2
    assert found["all-gather", FSDP] == 2 * 2 * L * expert
    assert found["reduce-scatter", FSDP] == 4 * L * expert
    both = ("fsdp", "expert")
    assert found["all-gather", both] == 2 * (2 * L * (attention + router) + tables)
    assert found["reduce-scatter", both] == 4 * (L * (attention + router) + tables)
    alone = totals(transfers(mixtral, TrainConfig(), MeshConfig(), sizes | {"fsdp": 64, "expert": 1}, 64, 4096))
    assert alone["all-gather", FSDP] == 2 * (2 * L * (attention + router + 8 * expert) + tables)
