"""Compiled programs, read: collectives, loops, the work of matrix products."""

import pytest

from jaxllm.plan import buffers, hlo, target, work
from jaxllm.plan.compile import machine_of

HLO = """HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %y)
}

%fewer (s: (bf16[16,8])) -> pred[] {
  %turns = s32[]{:T(128)} constant(3)
  %turn = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %less = pred[]{:T(512)} compare(%turn, %turns), direction=LT
}

%all-reduce-scatter.1 (g: f32[64,8]) -> f32[16,8] {
  %g = f32[64,8]{1,0} parameter(0)
  %whole = f32[64,8]{1,0} all-reduce(%g), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %share = f32[16,8]{1,0} dynamic-slice(%whole, %place, %zero), dynamic_slice_sizes={16,8}
}

%body (s: (bf16[16,8])) -> (bf16[16,8]) {
  %start = (bf16[16,8]{1,0:T(8,128)}, bf16[64,8]{1,0:T(8,128)}) all-gather-start(%w), replica_groups={{0,2,4,6},{1,3,5,7}}
  %done = bf16[64,8]{1,0} all-gather-done(%start)
  %pair = (f32[], bf16[4,8]) all-reduce(%loss, %x), replica_groups=mesh['fsdp'=4,'tensor'=2] {'tensor'}, to_apply=%add
  %fused = f32[16,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}

ENTRY %main (p: bf16[16,8]) -> bf16[16,8] {
  %loop = (bf16[16,8]{1,0}) while(%t), condition=%fewer, body=%body, metadata={op_name="jit(step)/jvp(blocks)/while"}
  %out = (f32[16,8]{1,0}, u32[]{:S(2)}, token[]) send(%g, %t), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %moved = f32[2,8]{1,0} collective-permute(%rows), source_target_pairs={{0,2},{2,4},{1,3}}
}
"""  # noqa: E501


def test_collectives_are_found_in_a_program():
    loop, fsdp, tensor = ("jvp(blocks)",), ("fsdp",), ("tensor",)
    assert sorted(map(str, hlo.collectives(HLO, {"data": 1, "fsdp": 4, "tensor": 2}))) == sorted(
        str(hlo.Collective(*fields))
        for fields in (
            ("all-gather", fsdp, loop, 1024, 3),
            ("all-reduce", tensor, loop, 4, 3),
            ("all-reduce", tensor, loop, 64, 3),
            ("reduce-scatter", fsdp, loop, 2048, 3),
            ("all-reduce", ("slice",), (), 512),
            ("collective-permute", fsdp, (), 64),
        )
    )


def test_loops_count_as_often_as_they_run():
    known = HLO.replace("body=%body, ", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}, ')
    found = hlo.collectives(known, {"data": 1, "fsdp": 4, "tensor": 2})
    assert {x.repeats for x in found if x.loops} == {5}


def test_a_reduce_scatter_is_as_large_as_what_goes_in():
    text = """
ENTRY %main (g: f32[64,8]) -> f32[16,8] {
  %share = f32[16,8]{1,0} reduce-scatter(%g), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}
"""
    (one,) = hlo.collectives(text, {"tensor": 2, "fsdp": 4})
    assert (one.kind, one.axes, one.size) == ("reduce-scatter", ("fsdp",), 2048)


PRODUCTS = """
%half (x: bf16[8,512,4096,1], w: bf16[4096,32,128,1]) -> bf16[8,512,32,128] {
  %x = bf16[8,512,4096,1]{2,1,0,3} parameter(0)
  %w = bf16[4096,32,128,1]{2,0,1,3} parameter(1)
  ROOT %y = bf16[8,512,32,128]{3,1,2,0} convolution(%x, %w), window={size=1x32 pad=0_0x31_31 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f
}

%fewer (s: (s32[])) -> pred[] {
  %turns = s32[] constant(3)
  ROOT %less = pred[] compare(%turn, %turns), direction=LT
}

%body (s: (s32[])) -> (s32[]) {
  %heads = bf16[8,512,32,128]{3,1,2,0} fusion(%p, %q), kind=kOutput, calls=%half, backend_config={"estimated_cycles":"100"}
  %moved = bf16[8]{0} fusion(%p), kind=kCustom, calls=%other, backend_config={"estimated_cycles":"9223372036854775807"}
}

ENTRY %main (p: bf16[8,512,4096]) -> bf16[8,512,4096] {
  %a = bf16[8,512,4096]{2,1,0} parameter(0)
  %b = bf16[4096,1024]{1,0} parameter(1)
  %loop = (s32[]) while(%t), condition=%fewer, body=%body, metadata={op_name="jit(step)/jvp(blocks)/while"}
  %c = bf16[8,512,1024]{2,1,0} dot(%a, %b), lhs_contracting_dims={2}, rhs_contracting_dims={0}, backend_config={"estimated_cycles":"7"}
  %d = bf16[4096,1024]{1,0} custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["0"]}}}
  %e = bf16[8,512,1024]{2,1,0} custom-call(%a, %b), custom_call_target="tpu_custom_call"
}
"""  # noqa: E501


def test_work_is_that_of_products_and_of_loops_as_often_as_they_run():
    """Of 32 x 32 places of a window all but 32 lie on padding; a kernel and what has no estimate count nothing."""
    program = hlo.parse(PRODUCTS)
    tokens = 8 * 512
    assert work.flops(program) == 3 * 2 * tokens * 4096 * 32 * 128 + 2 * 2 * tokens * 4096 * 1024
    assert work.cycles(program) == 3 * 100 + 7


def field(number, value):
    """A field in protobuf's wire format: an integer or bytes."""

    def varint(n):
        return bytes([n & 0x7F | (0x80 if n > 0x7F else 0)]) + (varint(n >> 7) if n > 0x7F else b"")

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def test_memory_over_time():
    """Three arrays, one of them in another memory; the second takes the place of the first."""
    sizes = {1: (300, 0), 2: (1000, 0), 3: (50, 1)}
    logical = b"".join(
        field(1, field(1, n) + field(2, size) + field(3, field(2, b"made%d" % n)) + field(4, color))
        for n, (size, color) in sizes.items()
    )
    events = [(0, 1, b"a"), (0, 3, b"a"), (1, 1, b"b"), (0, 2, b"b"), (1, 2, b"c")]
    trace = b"".join(
        field(1, field(1, kind) + field(2, n) + field(3, b"main") + field(4, at)) for kind, n, at in events
    )
    told = buffers.timeline(logical + field(4, trace))
    assert told.moments == (("a", 300), ("b", 0), ("b", 1000), ("c", 0))
    assert (told.peak, told.fullest) == (1000, (buffers.Buffer("made2", 1000),))
    assert buffers.timeline(b"").peak == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5p-256", "v5p:4x4x8"),
        ("v6e-16 x 2", "v6e:4x4 x 2 slices"),
        ("tpu7x:2x2x1", "tpu7x:2x2x1"),
        ("h100x64", "H100 SXM:8x8"),
        ("h100x4", "H100 SXM:1x4"),
    ],
)
def test_targets_are_machines(name, words):
    assert str(machine_of(target.parse(name))) == words
