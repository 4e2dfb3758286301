"""Reads compiled HLO for the work that it does: FLOPs of its matrix products, and the compiler's own cycles.

    dot            2 x values of the result x values contracted
    convolution    the same, summed over the places where the window lies on the input: the TPU compiler writes products
                   of several dims as convolutions whose windows lie mostly on padding

What a kernel does (`custom-call`: Pallas, cuDNN) is its own affair, and not counted; a product by cuBLAS is.

The TPU compiler notes beside each instruction the cycles that it expects of it. It notes none for collectives, for
kernels, nor for what the transfer engine does, so their sum is what the cores are expected to compute, without waiting.
"""

import re
from collections.abc import Mapping

import numpy as np

from jaxllm.plan.hlo import Instruction, Program, sizes_of, walk

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_ESTIMATE = 2**62
"""Cycles at or above this say that there is no estimate."""


def flops(program: Program) -> float:
    """FLOPs of the matrix products that one device does in a step."""
    computations, _ = program
    types = {name: {one.name: one.result for one in lines} for name, lines in computations.items()}
    return float(
        sum(placed.repeats * flops_of(placed.instruction, types[placed.computation]) for placed in walk(program))
    )


def cycles(program: Program) -> int:
    """Cycles that the TPU compiler expects of one core; 0 where the compiler notes none."""
    total = 0
    for placed in walk(program):
        noted = None if placed.fused else _CYCLES.search(placed.instruction.rest)
        if noted and int(noted[1]) < _NO_ESTIMATE:
            total += placed.repeats * int(noted[1])
    return total


def flops_of(one: Instruction, types: Mapping[str, str]) -> int:
    """FLOPs of one instruction.

    Args:
        one: the instruction.
        types: of its computation's instructions, by name.
    """
    if one.opcode not in ("dot", "convolution", "custom-call"):
        return 0
    names = re.findall(r"%([\w.\-]+)", one.rest.partition(")")[0])[:2]
    operands = [_dims(types[name]) for name in names]
    match one.opcode:
        case "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
        case "custom-call" if 'custom_call_target="__cublas' in one.rest:
            contracted = re.search(r'"lhs_contracting_dimensions":\[([\d",]*)\]', one.rest)
        case "convolution":
            return _convolution(one, *operands)
        case _:
            return 0
    assert contracted, one.rest[:300]
    inner = [operands[0][int(dim)] for dim in re.findall(r"\d+", contracted[1])]
    return 2 * sizes_of(one.result)[0][0] * int(np.prod(inner, dtype=np.int64))


def _convolution(one: Instruction, left: list[int], right: list[int]) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    assert labels, one.rest[:300]
    result = _dims(one.result)
    window = dict(re.findall(r"(\w+)=([\d_x\-]+)", (re.search(r"window=\{([^}]*)\}", one.rest) or [""])[0]))
    product = 2 * result[labels[3].index("b")] * result[labels[3].index("f")] * right[labels[2].index("i")]
    for dim in range(len(left) - 2):

        def part(name: str, default: str, dim: int = dim) -> list[int]:
            entries = window[name].split("x") if name in window else [default] * (dim + 1)
            return [int(n) for n in re.findall(r"-?\d+", entries[dim])]

        outputs, taps = result[labels[3].index(str(dim))], right[labels[2].index(str(dim))]
        starts = np.arange(outputs)[:, None] * part("stride", "1")[0] - part("pad", "0_0")[0]
        places = starts + np.arange(taps)[None, :] * part("rhs_dilate", "1")[0]
        dilated = part("lhs_dilate", "1")[0]
        inside = (places >= 0) & (places % dilated == 0) & (places // dilated < left[labels[1].index(str(dim))])
        product *= int(inside.sum())
    return product


def _dims(types: str) -> list[int]:
    found = re.search(r"\[([\d,]*)\]", types)
    assert found, types
    return [int(n) for n in found[1].split(",") if n]
