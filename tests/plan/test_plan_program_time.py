"""The time of a small scheduled program, instruction by instruction, by hand."""

import pytest

from jaxllm.plan.program_time import Spent, seconds

PEAK, BANDWIDTH, LINK = 1e6, 1e3, 100.0

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %y)
}

%slice_of_a_stack (stack: f32[3,10,10], turn: s32[]) -> f32[10,10] {
  %stack = f32[3,10,10]{2,1,0} parameter(0)
  %turn.1 = s32[] parameter(1)
  ROOT %layer = f32[1,10,10]{2,1,0} dynamic-slice(%stack, %turn.1), dynamic_slice_sizes={1,10,10}
}

%fewer (s: (f32[10])) -> pred[] {
  %turns = s32[] constant(3)
  ROOT %less = pred[] compare(%turn, %turns), direction=LT
}

%body (s: (f32[3,10,10], f32[10,10], s32[])) -> (f32[10,10]) {
  %s = (f32[3,10,10]{2,1,0}, f32[10,10]{1,0:T(8,128)S(1)}, s32[]) parameter(0)
  %weight = f32[10,10]{1,0:T(8,128)S(1)} fusion(%s#0, %s#2), kind=kLoop, calls=%slice_of_a_stack
  %product = f32[10,10]{1,0:T(8,128)S(1)} dot(%s#1, %weight), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%busy (b: f32[50]) -> f32[50] {
  %b = f32[50]{0} parameter(0)
  ROOT %twice = f32[50]{0} add(%b, %b)
}

%idle (b: f32[50]) -> f32[50] {
  ROOT %b.1 = f32[50]{0} parameter(0)
}

ENTRY %main (p: f32[100], q: f32[3,10,10]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  %q = f32[3,10,10]{2,1,0} parameter(1)
  %start = (f32[25]{0}, f32[100]{0}) all-gather-start(%share), replica_groups=[2,4]<=[8]
  %copy = f32[100]{0} copy(%p)
  %kernel = f32[100]{0} custom-call(%p), custom_call_target="tpu_custom_call"
  %done = f32[100]{0} all-gather-done(%start)
  %loop = (f32[10,10]{1,0}) while(%t), condition=%fewer, body=%body
  %sum = f32[50]{0} all-reduce(%h), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  ROOT %end = f32[50]{0} conditional(%is, %sum, %sum), branch_computations={%busy, %idle}
}
"""


def spent(program):
    asked = []

    def cost(kind, axes, size):
        asked.append((kind, axes, size))
        return size / LINK

    return seconds(program, {"data": 2, "fsdp": 4}, PEAK, BANDWIDTH, cost), asked


def test_a_program_by_hand():
    found, asked = spent(PROGRAM)
    assert asked == [("all-gather", ("fsdp",), 400), ("all-reduce", ("data",), 200)]
    copy = 800 / BANDWIDTH  # read and written
    layer = 400 / BANDWIDTH  # of three, one is read; it stays in the core's memory
    turns = 8 / BANDWIDTH  # the counter, read to slice, and its limit
    product = 2 * 10**3 / PEAK
    branch = 3 * 200 / BANDWIDTH  # two operands and a result: the longer branch
    assert found.computed == pytest.approx(copy + 3 * (layer + turns + product) + branch)
    hidden = copy  # of the gather; the kernel is nothing's
    assert found.waited == pytest.approx(400 / LINK - hidden + 200 / LINK)
    assert found.total == found.computed + found.waited


def test_transfers_take_turns_on_the_links():
    """A sum behind a gather that is under way waits for it."""
    first, _ = spent(PROGRAM.replace("%done = f32[100]{0} all-gather-done(%start)\n", ""))
    whole = 400 / LINK + 200 / LINK
    assert first.waited == pytest.approx(whole - (first.computed - 3 * 200 / BANDWIDTH))


def test_sums_of_times():
    assert Spent(1.0, 2.0).plus(Spent(3.0, 4.0), 2) == Spent(7.0, 10.0)
