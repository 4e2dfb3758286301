"""Bytes: the book's rows, hand counts, and what JAX really keeps when it differentiates the decoder."""

import math

import jax
import jax.numpy as jnp
import msgspec
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding

from jaxllm.config import AXES, AdamW, AttentionConfig, MeshConfig, MLPConfig, ModelConfig, Muon, PrecisionConfig
from jaxllm.layers.param import Recipe, leaves, tree_map
from jaxllm.models.decoder import Decoder, declarations, merge
from jaxllm.roofline.memory import (
    Shards,
    activation_bytes,
    kv_cache_bytes,
    logits_bytes,
    shards,
    stage_inputs,
    state_bytes,
)
from jaxllm.roofline.transformer import parameters
from jaxllm.sharding import axes_of, make_rules


def decoder(d_model=4096, num_layers=32, num_heads=32, num_kv_heads=0, head_dim=0, d_ff=14336, vocab=128256):
    return ModelConfig(
        vocab_size=vocab,
        d_model=d_model,
        num_layers=num_layers,
        attention=AttentionConfig(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim),
        mlp=MLPConfig(d_ff=d_ff),
    )


LLAMA3_8B = decoder(num_kv_heads=8)
LLAMA2_13B = decoder(d_model=5120, num_layers=40, num_heads=40, d_ff=13824, vocab=32000)
BOOK = decoder(d_model=8192, num_layers=64, num_heads=64, d_ff=4 * 8192, vocab=32000)


def test_key_value_cache_of_the_book():
    assert kv_cache_bytes(LLAMA2_13B, 8192, 2) == 6_710_886_400  # inference chapter, table 1
    assert kv_cache_bytes(BOOK, 8192, 1) == 8 * 2**30  # chapter 4, body
    assert kv_cache_bytes(decoder(num_layers=64), 1, 1) == 524_288  # chapter 4, question 1
    assert kv_cache_bytes(decoder(num_layers=64, num_kv_heads=8, head_dim=256), 1, 1) == 262_144  # inference, Q1


def test_state_on_one_device():
    n = parameters(LLAMA3_8B).total
    state = state_bytes(LLAMA3_8B, PrecisionConfig(), AdamW())
    assert (state.parameters, state.gradients, state.optimizer, state.total) == (4 * n, 4 * n, 8 * n, 16 * n)
    half = state_bytes(LLAMA3_8B, PrecisionConfig(parameters="bfloat16", reduction="bfloat16"), AdamW())
    assert half.total == 8 * n


def test_muon_keeps_one_moment_of_the_blocks_matrices():
    count = parameters(LLAMA3_8B)
    adamw = state_bytes(LLAMA3_8B, PrecisionConfig(), AdamW()).optimizer
    assert adamw - state_bytes(LLAMA3_8B, PrecisionConfig(), Muon()).optimizer == 4 * (count.attention + count.mlp)


def test_shards_by_zero_stage():
    sizes = {"data": 2, "fsdp": 8, "expert": 2, "tensor": 4}
    assert shards(sizes, 3) == Shards(parameters=64, gradients=64, optimizer=64)
    assert shards(sizes, 2) == Shards(parameters=4, gradients=64, optimizer=64)
    assert shards(sizes, 1) == Shards(parameters=4, gradients=4, optimizer=64)
    assert shards({}, 3) == Shards()


def test_sharded_state_splits_all_but_the_norms():
    count = parameters(LLAMA3_8B)
    rest = count.total - count.norm
    state = state_bytes(LLAMA3_8B, PrecisionConfig(), AdamW(), shards({"fsdp": 8, "tensor": 4}, 1))
    assert state.parameters == state.gradients == 4 * (rest // 4 + count.norm)
    assert state.optimizer == 8 * (rest // 32 + count.norm)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_sharded_state_is_what_the_sharding_tables_say(zero):
    sizes = dict.fromkeys(AXES, 1) | {"data": 2, "fsdp": 4, "expert": 2, "tensor": 4}
    rules = make_rules(MeshConfig(data=2, fsdp=4, expert=2, tensor=4, zero=zero), sizes)
    declared = [leaf for _, leaf in leaves(declarations(Decoder(LLAMA3_8B, Recipe())))]

    def values(table):
        return sum(leaf.size // math.prod(sizes[axis] for axis in axes_of(table(leaf.axes))) for leaf in declared)

    state = state_bytes(LLAMA3_8B, PrecisionConfig(), AdamW(), shards(sizes, zero))
    assert state.parameters == 4 * values(rules.storage)
    assert state.gradients == 4 * values(rules.gradient)
    assert state.optimizer == 8 * values(rules.optimizer)


def test_logits():
    assert logits_bytes(LLAMA3_8B, 8192, 1024, 2) == 1024 * 128256 * (4 + 2)
    assert logits_bytes(LLAMA3_8B, 8192, 0, 4) == 8192 * 128256 * 8
    assert logits_bytes(LLAMA3_8B, 512, 1024, 2, vocab=8) == 512 * 16032 * 6


def test_block_rematerialisation_of_the_book():
    # Chapter 4: 4 million tokens, 64 layers, D = 8192, bfloat16.
    assert activation_bytes(BOOK, 4_000_000, "block", 2).kept == 4_194_304_000_000
    offloaded = activation_bytes(BOOK, 4_000_000, "offload", 2)
    assert (offloaded.kept, offloaded.host) == (0, 4_194_304_000_000)


def test_activations_by_hand():
    # Llama 3 8B, a token and block: D 4096, N H 4096, K H 1024, F 14336.
    d, nh, kh, f = 4096, 4096, 1024, 14336
    dots = activation_bytes(LLAMA3_8B, 8192, "dots", 2)
    assert dots.kept == 32 * 8192 * 2 * (2 * d + nh + 2 * kh + 2 * f)
    block = activation_bytes(LLAMA3_8B, 8192, "block", 2)
    assert block.working == 8192 * (2 * (4 * d + 2 * nh + 2 * kh + 5 * f) + 4 * 32)
    assert block.total == block.kept + block.working


def test_tensor_splits_heads_and_units_and_sequence_parallelism_the_residual_stream():
    d, split = 4096, 4096 + 2 * 1024 + 2 * 14336
    alone = activation_bytes(LLAMA3_8B, 8192, "dots", 2, tensor=4).kept
    assert alone == 32 * 8192 * 2 * (2 * d + split // 4)
    both = activation_bytes(LLAMA3_8B, 8192, "dots", 2, tensor=4, sequence_parallel=True).kept
    assert both == 32 * 8192 * 2 * (2 * d + split) // 4


@pytest.mark.parametrize(
    ("remat", "qk_norm"), [("none", "none"), ("dots", "none"), ("block", "none"), ("none", "head"), ("dots", "head")]
)
def test_kept_is_what_jax_keeps(remat, qk_norm):
    """Trace the decoder for a TPU that is not here and weigh what its forward pass hands to its backward pass."""
    layers, batch, length = 5, 3, 384
    model = decoder(d_model=320, num_layers=layers, num_heads=4, num_kv_heads=2, head_dim=64, d_ff=448, vocab=512)
    model = msgspec.structs.replace(model, attention=msgspec.structs.replace(model.attention, qk_norm=qk_norm))
    stacked = [leaf for leaf in residuals(model, remat, {}, batch, length) if length in leaf.shape]
    traced = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in stacked)
    assert traced == activation_bytes(model, batch * length, remat, 2).kept, (
        "the decoder keeps other values for its backward pass than roofline/memory.py counts; "
        "if that is meant, change _kept there: " + ", ".join(f"{leaf.dtype}{leaf.shape}" for leaf in stacked)
    )


def residuals(model, remat, sizes, batch, length):
    """What the blocks' forward pass hands to their backward pass of all layers, on an abstract mesh of TPUs."""
    whole = dict.fromkeys(AXES, 1) | sizes
    rules = make_rules(MeshConfig(**({"fsdp": 1} | sizes)), whole)
    module = Decoder(model, Recipe(rules, parameters="bfloat16", compute="bfloat16"), remat=remat)
    mesh = AbstractMesh(
        tuple(whole.values()),
        AXES,
        axis_types=(AxisType.Explicit,) * len(AXES),
        abstract_device=AbstractDevice(device_kind="TPU v5p", num_cores=2, platform="tpu"),
    )

    def shape(dims, dtype, spec):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec))

    params = tree_map(lambda leaf: shape(leaf.shape, jnp.bfloat16, rules.storage(leaf.axes)), declarations(module))
    x_BTD = shape((batch, length, model.d_model), jnp.bfloat16, rules.activation("batch", "residual", None))
    ids_BT = shape((batch, length), jnp.int32, rules.activation("batch", "sequence"))

    def backward(x_BTD, params, ids_BT):
        return jax.vjp(lambda x, p: merge(module, p).blocks(x, ids_BT, ids_BT), x_BTD, params)[1]

    with jax.sharding.use_abstract_mesh(mesh):
        kept = jax.tree.leaves(jax.eval_shape(backward, x_BTD, params, ids_BT))
    # neither angles of rope nor what is of one layer
    return [leaf for leaf in kept if leaf.shape[:1] == (model.num_layers,)]


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"fsdp": 2, "tensor": 2}])
def test_gathered_weights_are_never_kept(remat, sizes):
    """Together they are the whole model: stacked, a weight stays in as many shares as it is stored in."""
    model = decoder(d_model=256, num_layers=5, num_heads=4, num_kv_heads=2, head_dim=64, d_ff=448, vocab=512)
    for leaf in residuals(model, remat, sizes, 4, 384):
        if 384 not in leaf.shape and len(leaf.shape) > 2:
            shares = math.prod(leaf.shape) // math.prod(leaf.sharding.shard_shape(leaf.shape))
            assert shares == math.prod(sizes.values()), f"{leaf.shape} in {shares} shares"


def test_stages_share_the_state_and_keep_inputs_by_schedule():
    assert shards({"pipe": 4, "fsdp": 2, "tensor": 2}, zero=3).parameters == 16
    assert shards({"pipe": 4, "fsdp": 2, "tensor": 2}, zero=1).parameters == 8
    assert [stage_inputs(4, 16, schedule) for schedule in ("1f1b", "gpipe")] == [7, 16 + 3 + 16]
    assert stage_inputs(1, 16, "gpipe") == 0
