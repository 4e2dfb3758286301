"""A roofline in text: FLOP/s over FLOPs a byte, both logarithmic (Williams et al. 2009).

The line is min(peak, intensity x bandwidth). A point on it reaches all that its roof allows; a point above it, where
both roofs are measured, reads from a cache what the roof takes for memory.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxllm.roofline.intensity import attainable

_WIDTH, _HEIGHT = 72, 14


@dataclass(frozen=True, kw_only=True)
class Point:
    """Something measured.

    Attributes:
        intensity: FLOPs a byte.
        flops_per_second: reached.
        mark: one letter.
    """

    intensity: float
    flops_per_second: float
    mark: str


def plot(points: Sequence[Point], *, peak: float, bandwidth: float) -> str:
    """The roof and points under it, with both axes' ends."""
    ridge = peak / bandwidth
    left = _decade(min(ridge, *(one.intensity for one in points)), math.floor)
    right = _decade(max(ridge, *(one.intensity for one in points)), math.ceil)
    reached = [one.flops_per_second for one in points]
    bottom = _decade(min(reached), math.floor)
    top = _decade(max(peak, *reached), math.ceil)
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]

    def put(intensity: float, rate: float, mark: str) -> None:
        column = round((_WIDTH - 1) * math.log(intensity / left) / math.log(right / left))
        row = round((_HEIGHT - 1) * math.log(top / rate) / math.log(top / bottom))
        if 0 <= row < _HEIGHT:
            grid[row][column] = mark

    for column in range(_WIDTH):
        intensity = left * (right / left) ** (column / (_WIDTH - 1))
        put(intensity, attainable(intensity, peak=peak, bandwidth=bandwidth), "-" if intensity > ridge else "/")
    for one in points:
        put(one.intensity, one.flops_per_second, one.mark)
    labels = {0: f"{top / 1e12:g}", _HEIGHT - 1: f"{bottom / 1e12:g}"}
    lines = [f"{labels.get(row, ''):>8} |{''.join(line).rstrip()}" for row, line in enumerate(grid)]
    ends = f"{left:g}" + f"{right:g}".rjust(_WIDTH - len(f"{left:g}"))
    return "\n".join([f"{'TFLOP/s':>8}", *lines, f"{'':8} +{'-' * _WIDTH}", f"{'':10}{ends}  FLOPs/byte"])


def _decade(value: float, whole: Callable[[float], int]) -> float:
    """The power of ten next to a value."""
    return 10.0 ** whole(math.log10(value))
