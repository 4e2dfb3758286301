"""The 8B step compiled for chips that are not here: kernels, memory, and every large collective of a block.

A block has seven weights: query, key, value, output, gate, up, down. Where fsdp holds them in shares,

    forward    7 all-gathers: each product reads a whole weight
    backward   7 all-gathers: gathered weights are not kept, the block is computed again
               7 reduce-scatters: each gradient is summed and left in shares

and the embedding and the head, outside the blocks, are gathered and reduce-scattered once, 2 and 2. With micro-batches
all of this is in their loop and nothing is added: that is the price of not keeping whole weights or gradients.

"Large" is 2 MiB or more: weights, their gradients, activations. Below are norms' gradients, 32 KiB together and summed
once a step, and sums of losses and norms.
"""

import contextlib
import functools
import importlib.util
import os
from collections import Counter

import absent
import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm import sharding
from jaxllm.config import AttentionConfig, ExpertsConfig, MeshConfig, MLPConfig, ModelConfig, PrecisionConfig
from jaxllm.layers.moe import MoE
from jaxllm.layers.param import Recipe, tree_map
from jaxllm.models.decoder import all_but_gathered, declarations, merge
from jaxllm.plan import hlo
from jaxllm.train.assemble import assemble
from jaxllm.train.gradients import lay, prepare, reduce

LARGE = 2**21
FORWARD, BACKWARD, LOSS, MICRO = "jvp(blocks)", "transpose(jvp(blocks))", "jvp(loss)", "micro_batches"
FSDP, TENSOR, SLICE = ("fsdp",), ("tensor",), ("slice",)


def installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


tpu = pytest.mark.skipif(not installed("libtpu"), reason="libtpu is not installed (the extra aot-tpu): no TPU compiler")
gpu = pytest.mark.skipif(
    not installed("jax_plugins.xla_cuda13"), reason="jax's CUDA plugin is not installed (the extra aot-gpu)"
)


@contextlib.contextmanager
def effort(level):
    """The compiler's effort: at O0 the same collectives as at its default, in a fifth of the time."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", level)
    yield
    jax.config.update("jax_optimization_level", before)


@pytest.fixture(scope="module")
def tpus():
    """Absent TPUs, and a compiler at its least effort."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu asks a cloud's metadata server which TPU this is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # other processes may compile too
    with effort("O0"):
        yield functools.partial(sharding.absent_devices, "tpu")


def large(compiled):
    return hlo.count(hlo.collectives(compiled.text, compiled.mesh), at_least=LARGE)


def weights(summed, *outside):
    """The large collectives of weights; `summed` is the kind that sums their gradients, `outside` loops around all."""
    return {
        ((*outside, FORWARD), "all-gather", FSDP): 7,
        ((*outside, BACKWARD), "all-gather", FSDP): 7,
        ((*outside, BACKWARD), summed, FSDP): 7,
        (outside, "all-gather", FSDP): 2,
        (outside, summed, FSDP): 2,
    }


def bare_reduce_scatter(devices):
    """What the compiler makes of a reduce-scatter over all of the devices, of a matrix as large as a gate."""
    mesh = sharding.make_mesh(MeshConfig(), devices)
    with jax.set_mesh(mesh):
        function = jax.shard_map(
            lambda x: jax.lax.psum_scatter(x[0], "fsdp", tiled=True),
            in_specs=PartitionSpec("fsdp"),
            out_specs=PartitionSpec("fsdp"),
        )
        x = jax.ShapeDtypeStruct(
            (len(devices), 4096, 14336), "float32", sharding=NamedSharding(mesh, PartitionSpec("fsdp"))
        )
        compiled = jax.jit(function).trace(x).lower(lowering_platforms=("tpu",)).compile()
    (found,) = hlo.collectives(str(compiled.as_text()), mesh.shape)
    return found.kind


@pytest.fixture(scope="module")
def summed_over_a_torus(tpus):
    """`all-reduce` with libtpu 0.0.52, whose result each chip then slices: it has no reduce-scatter for whole tori.

    So what we ask for cannot be read from such a program; that it is a reduce-scatter shows on the other meshes below.
    """
    return bare_reduce_scatter(tpus("v5p:2x4x4"))


@tpu
def test_the_8b_over_fsdp_32(tpus, summed_over_a_torus):
    experiment = absent.llama3_8b({"fsdp": 32}, num_layers=32, sequence_length=4096, batch_size=32)
    with effort("O1"):  # below it the compiler does not save memory
        compiled = absent.compile_step(experiment, tpus("v5p:2x4x4"))
    assert large(compiled) == weights(summed_over_a_torus)
    for name in ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"):
        assert f"%{name}" in compiled.text
    # float32 parameters and two moments: 12 bytes times 8.03e9 over 32, and norms whole
    assert compiled.argument_bytes == pytest.approx(3.015e9, rel=1e-3)
    # 14.0 GB with libtpu 0.0.50, 8.8 GB with 0.0.52; whole gradients of all blocks would be 28 GB more
    assert compiled.temporary_bytes < 16e9


@tpu
def test_micro_batches_over_fsdp_8_tensor_4(tpus):
    """Beside the weights, activations over tensor.

    A block's two sums of partial products, after attention and after the feed-forward layer, are all-reduces; so are
    the two of their mirror images in the backward pass, which computes attention's again too, but not the other, which
    nothing there reads. Outside, the rows of the embedding are summed, and in each chunk of the loss the gradient of
    the last hidden state.

    The two collective-permutes are the compiler's: it pads the shares of two reduce-scatters (gate's and up's, from 512
    rows to 560) and then moves rows to where they belong. A bare reduce-scatter of that shape brings the same one.
    """
    experiment = absent.llama3_8b({"fsdp": 8, "tensor": 4}, batch_size=128, accumulate=4)
    compiled = absent.compile_step(experiment, tpus("v5p:2x4x4"))
    assert large(compiled) == weights("reduce-scatter", MICRO) | {
        ((MICRO, FORWARD), "all-reduce", TENSOR): 2,
        ((MICRO, BACKWARD), "all-reduce", TENSOR): 3,
        ((MICRO, BACKWARD), "collective-permute", FSDP): 2,
        ((MICRO,), "all-reduce", TENSOR): 1,
        ((MICRO, LOSS), "all-reduce", TENSOR): 1,
    }


@tpu
def test_data_crosses_slices_once_a_step(tpus):
    """Nine matrices, each device its share; nothing crosses in the loops, not even the loss."""
    experiment = absent.llama3_8b({"data": 2, "fsdp": 4, "slices": 2}, batch_size=64, accumulate=4)
    compiled = absent.compile_step(experiment, tpus("v5p:2x2x1", 2))
    assert large(compiled) == weights("reduce-scatter", MICRO) | {((), "all-reduce", SLICE): 9}
    assert not [x for x in hlo.collectives(compiled.text, compiled.mesh) if x.axes == SLICE and x.loops]


@tpu
def test_a_pipeline_passes_on_and_keeps_little(tpus):
    """Activations go to the neighbour by one permute a pass; the vocabulary, over all stages, sums what it is read for.

    1f1b keeps the inputs of 2 x 4 - 1 micro-batches; gpipe, 7.93 GB with libtpu 0.0.52, keeps those of 16 + 4 - 1 and
    the gradients of all 16 last outputs. The sequences are long enough for that to outweigh what the compiler spends on
    parameters, now more and now less.
    """
    experiment = absent.llama3_8b(
        {"pipe": 4, "fsdp": 2},
        4,
        4096,
        batch_size=32,
        accumulate=16,
        vocab_size=8192,
        pipeline="1f1b",
        loss={"chunk": 0},
    )
    compiled = absent.compile_step(experiment, tpus("v5p:2x2x2"))
    found = {place: num for place, num in large(compiled).items() if "pipe" in place[2]}
    runs, moved, summed = ("pipeline_runs",), ("collective-permute", ("pipe",)), ("all-reduce", ("pipe",))
    assert {place: num for place, num in found.items() if place[0] == runs} == {(runs, *moved): 2, (runs, *summed): 4}
    assert {(kind, axes) for _, kind, axes in found} == {moved, summed}
    micro_batch = 4096 * 4096 * 2  # bytes of a device's share of activations in bfloat16
    assert compiled.temporary_bytes < 7.93e9 - (16 + 3 - 7) * micro_batch


@tpu
def test_around_a_ring_keys_are_passed_on_and_no_sequence_is_gathered(tpus):
    """The gradients of a small model; over context there are permutes, and sums at the end.

    A ring of four passes keys and values on three times, two arrays each time: while its own keys are attended to, in
    the one turn of its loop, and before the last products from there. The backward pass does so too, and their
    gradients travel in its loop, before the last products, and home. The numbers of documents travel with the keys.
    """
    heads = AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=128)
    model = ModelConfig(vocab_size=1024, d_model=256, num_layers=2, attention=heads, mlp=MLPConfig(d_ff=512))
    mesh = MeshConfig(fsdp=2, context=4)
    experiment = tiny.experiment(model, mesh, precision=PrecisionConfig(), shape=(4, 1024))
    program = assemble(experiment, model, tpus("v5p:2x2x2"))
    with jax.set_mesh(program.mesh):
        function = jax.jit(tiny.differentiate(program, experiment))
        traced = function.trace(program.abstract_state().params, program.abstract_batch(4, 1024))
        text = str(traced.lower(lowering_platforms=("tpu",)).compile().as_text())
    for name in ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"):
        assert f"%{name}" in text
    over_context = [x for x in hlo.collectives(text, program.mesh.shape) if "context" in x.axes]
    permutes = [x for x in over_context if x.kind == "collective-permute"]
    keys = 2 * 256 * 128 * 2  # bytes: two rows, a quarter of the sequence, one head, bfloat16
    assert Counter((*x.loops[:1], len(x.loops)) for x in permutes if x.size >= keys) == {
        (FORWARD, 1): 2,
        (FORWARD, 2): 2,
        (BACKWARD, 1): 2 + 2 + 2,
        (BACKWARD, 2): 2 + 2,
    }
    assert {x.kind for x in over_context if x not in permutes} == {"all-reduce"}
    assert not [x for x in over_context if x not in permutes and x.loops]


@tpu
def test_tokens_travel_to_experts_and_experts_stay(tpus):
    """A mixture's gradients. In each round rows go there and results back, then rows and gradients there and back.

    Experts are gathered over fsdp only, once for each pass, and their gradients summed over it; no product is of more
    rows than there are.
    """
    mesh_config = MeshConfig(fsdp=2, expert=2)
    mesh = sharding.make_mesh(mesh_config, tpus("v5p:2x2x1"))
    recipe = Recipe(sharding.make_rules(mesh_config, dict(mesh.shape)), compute="bfloat16")
    chosen = ExpertsConfig(num_experts=16, experts_per_token=1)
    module, rules = MoE(MLPConfig(d_ff=256), chosen, 128, 0.02, 0.02, recipe), recipe.rules
    declared = declarations(module)

    def gradient(params, x_BTD, segments_BT):
        @functools.partial(jax.checkpoint, policy=all_but_gathered)
        def total(params, x_BTD):
            return jnp.sum(merge(module, params)(x_BTD, segments_BT)[0].astype(jnp.float32))

        prepared = tree_map(lambda value, leaf: prepare(value, leaf, recipe), params, declared)
        value, (dparams, dx_BTD) = jax.value_and_grad(total, argnums=(0, 1))(prepared, x_BTD)
        return value, reduce(lay(dparams, declared, recipe), declared, recipe), dx_BTD

    def shape(dims, dtype, spec):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        params = tree_map(lambda leaf: shape(leaf.shape, "float32", rules.storage(leaf.axes)), declared)
        x_BTD = shape((8, 512, 128), "bfloat16", rules.activation("batch", "sequence", None))
        segments_BT = shape((8, 512), "int32", rules.activation("batch", "sequence"))
        traced = jax.jit(gradient).trace(params, x_BTD, segments_BT)
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    found = hlo.count(hlo.collectives(str(compiled.as_text()), mesh.shape), at_least=2**14)
    rows = {(("shard_map",), "all-to-all", ("expert",)): 2 + 3}
    assert found == rows | {((), "all-gather", FSDP): 2 * 3, ((), "reduce-scatter", FSDP): 3}
    rows_of_a_round = 2 * 640  # 5 / 4 of 512, from each of two devices
    passes = 1 + 1 + 2  # forward, again in the backward pass, and its two gradients
    assert compiled.cost_analysis()["flops"] < 1.1 * passes * 3 * 2 * rows_of_a_round * 128 * 256


@gpu
def test_the_8b_on_eight_h100(tmp_path):
    compiled = absent.compile_for_gpus(
        "H100", (1, 8), tmp_path, mesh={"fsdp": 8}, num_layers=32, sequence_length=4096, batch_size=8
    )
    assert large(compiled) == weights("reduce-scatter")
    assert "__cudnn$fmha" in compiled.text
    # 12 bytes times 8.03e9 over 8
    assert compiled.argument_bytes == pytest.approx(12.05e9, rel=1e-3)
    assert compiled.temporary_bytes < 10e9
