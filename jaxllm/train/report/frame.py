"""What the charts of a report have in common: their steps, axes, marks and colours; and the chart of one quantity."""

import dataclasses
import math
from typing import Literal

from jaxllm.train import figures
from jaxllm.train.report.chart import Chart, Curve, Mark
from jaxllm.train.report.runs import Run
from jaxllm.train.report.series import Axis, Points, quantile, thin

NUM_COLOURS = 8
"""Colours `run-0` to `run-7` of page.css; more runs use them again."""

_COLUMNS = 1000
_SMOOTHED_SHARE = 0.01
_LABELS = {
    "resumed": "resumed",
    "phase": "new phase",
    "spiked": "spiked",
    "rolled_back": "rolled back",
    "preempted": "preempted",
}
_TICKS = ("saved", "skipped")


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A field of a run's records that has a chart of its own; `label` is a curve's where the title does not fit it."""

    field: str
    title: str
    unit: str
    label: str = ""
    form: Literal["count", "three_digits"] = "three_digits"
    scale: float = 1.0
    from_zero: bool = False
    may_be_log: bool = False


def plain(quantity: Quantity, runs: list[Run]) -> Chart:
    """The chart of a quantity: a curve a run."""
    x = Axis(*span(runs))
    curves = [
        Curve(
            run.name if len(runs) > 1 else quantity.label or quantity.title.lower(),
            thin([(step, y * quantity.scale) for step, y in run.points(quantity.field)], x, columns_of(runs) // 2),
            colour_of(index),
        )
        for index, run in enumerate(runs)
        if run.points(quantity.field)
    ]
    y = fitted(curves, from_zero=quantity.from_zero, may_be_log=quantity.may_be_log)
    return Chart(
        key=quantity.field,
        title=quantity.title,
        unit=quantity.unit + (", log scale" if y.log else ""),
        x=x,
        y=y,
        curves=curves,
        form=quantity.form,
        marks=[mark for mark in marks(runs) if mark.label],
        tokens=tokens(runs),
    )


def colour_of(index: int) -> str:
    """A run's colour."""
    return f"run-{index % NUM_COLOURS}"


def columns_of(runs: list[Run]) -> int:
    """Pixel columns of a wide chart that a run gets: the more runs, the fewer, so that the file stays small."""
    return _COLUMNS // math.ceil(len(runs) / 2)


def span(runs: list[Run]) -> tuple[float, float]:
    """From step 0 to the last step; a run of one step has a width too."""
    return 0.0, float(max(1, *(run.last_step for run in runs)))


def padded(low: float, high: float, *, from_zero: bool = False) -> Axis:
    """An axis with some air above and below; also where all values are the same."""
    air = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
    return Axis(low if from_zero else low - air, high + air)


def fitted(curves: list[Curve], *, from_zero: bool = False, may_be_log: bool = False) -> Axis:
    """An axis that shows all of some curves, by logarithm where that may be and their values lie far apart."""
    values = [y for curve in curves for _, y in curve.points if math.isfinite(y)] or [0.0, 1.0]
    positive = [y for y in values if y > 0]
    if may_be_log and positive and max(positive) > 30 * quantile(positive, 0.01):
        return Axis(min(positive) / 1.1, max(positive) * 1.1, log=True)
    return padded(0.0 if from_zero else min(values), max(values), from_zero=from_zero)


def tokens(runs: list[Run]) -> Points:
    """(step, tokens seen) where one relation holds for all runs, within a percent; else empty."""
    seen = [run.points("tokens_seen") for run in runs]
    if not all(seen):
        return []
    per_step = [points[-1][1] / max(points[-1][0], 1) for points in seen]
    if max(per_step) > 1.01 * min(per_step):
        return []
    longest = max(seen, key=len)
    stride = math.ceil(len(longest) / 100)
    return [(0.0, 0.0), *longest[stride - 1 :: stride], longest[-1]]


def marks(runs: list[Run]) -> list[Mark]:
    """What happened to a run; over several runs there would be too much of it."""
    if len(runs) > 1:
        return []
    run = runs[0]
    known = [event for event in run.events if event["event"] in _LABELS or event["event"] in _TICKS]
    found = [
        Mark(event["step"], event["event"], _LABELS.get(event["event"], ""))
        for event in known
        if event["step"] <= run.last_step
    ]
    # A run that was killed behind the border of a phase came to it again.
    return [mark for index, mark in enumerate(found) if mark.kind != "phase" or mark not in found[:index]]


def smoothing_window(num_points: int) -> int:
    """Points that a smoothed curve averages: one in a hundred, an odd number."""
    return 2 * round(_SMOOTHED_SHARE * num_points / 2) + 1


def steps(num: int) -> str:
    """A count of steps in words."""
    return "1 step" if num == 1 else f"{figures.integer(num)} steps"
