"""The maths of a curve: thinning it to what a screen can show, smoothing it, and the ticks of its axes.

Thinning keeps the lowest and the highest point of each pixel column, which draws the same picture as all points do
(Jugel et al. 2014, "M4: a visualization-oriented time series data aggregation"): a spike of one step stays visible.
"""

import bisect
import itertools
import math
from dataclasses import dataclass

Points = list[tuple[float, float]]
"""(x, y) pairs in the order of x; y may be NaN or infinite."""


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers mapped to 0..1, by their logarithm if `log`."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; outside 0..1 if it lies outside the stretch."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return -math.inf
        return math.log(value / self.low) / math.log(self.high / self.low)


def thin(points: Points, axis: Axis, num_columns: int) -> Points:
    """Keep of each of the columns that the axis is cut into the lowest and the highest point, and both ends.

    A column without a finite y keeps one point, so that the gap stays.
    """
    if len(points) <= 2 * num_columns:
        return points
    kept: Points = [points[0]]
    columns = itertools.groupby(points[1:-1], key=lambda point: math.floor(axis(point[0]) * num_columns))
    for _, column in columns:
        members = list(column)
        finite = [point for point in members if math.isfinite(point[1])]
        if not finite:
            kept.append(members[0])
            continue
        low, high = min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])
        kept += sorted({low, high})
    return [*kept, points[-1]]


def smooth(points: Points, window: int) -> Points:
    """Replace each y by the mean of the finite ones among the `window` points centred on it.

    Near the start, where losses fall steeply, the window shrinks on both sides; near the end, on the right only.
    A window without a finite y gives NaN.
    """
    half = window // 2
    values = [y if math.isfinite(y) else 0.0 for _, y in points]
    sums = [0.0, *itertools.accumulate(values)]
    nums = [0, *itertools.accumulate(int(math.isfinite(y)) for _, y in points)]
    smoothed: Points = []
    for index, (x, _) in enumerate(points):
        reach = min(half, index)
        start, stop = index - reach, min(index + reach + 1, len(points))
        num = nums[stop] - nums[start]
        smoothed.append((x, (sums[stop] - sums[start]) / num if num else math.nan))
    return smoothed


def interpolate(points: Points, x: float) -> float:
    """The y at x on the straight lines between points; the end's beyond an end."""
    index = bisect.bisect_left(points, x, key=lambda point: point[0])
    if index == 0:
        return points[0][1]
    if index == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def quantile(values: list[float], fraction: float) -> float:
    """The smallest of the values that a fraction of them does not exceed."""
    return sorted(values)[max(math.ceil(fraction * len(values)) - 1, 0)]


def ticks(axis: Axis, num: int) -> list[float]:
    """About `num` round numbers inside an axis: 1, 2 or 5 times a power of ten."""
    return _log_ticks(axis, num) if axis.log else _linear_ticks(axis, num)


def _linear_ticks(axis: Axis, num: int) -> list[float]:
    rough = (axis.high - axis.low) / num
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    # Rounded, since 3 * 0.1 is not 0.3.
    return [round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1)]


def _log_ticks(axis: Axis, num: int) -> list[float]:
    first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    inside: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        marks = (float(f"{factor}e{power}") for power in range(first, last + 1) for factor in factors)
        inside = [mark for mark in marks if axis.low <= mark <= axis.high]
        if len(inside) <= num:
            break
    return inside[:: math.ceil(len(inside) / num)] if inside else [axis.low, axis.high]
