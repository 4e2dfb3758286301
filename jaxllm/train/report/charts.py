"""Which charts a report has, and what each of them shows."""

import dataclasses
import math
from typing import Any, Literal

from jaxllm.train import figures
from jaxllm.train.report.chart import Chart, Curve, Level, Mark
from jaxllm.train.report.runs import Run
from jaxllm.train.report.series import Axis, Points, interpolate, quantile, smooth, thin

NUM_COLOURS = 8
"""Colours `run-0` to `run-7` of page.css; more runs use them again."""

_COLUMNS = 1000
_SMOOTHED_SHARE = 0.01
_LATER_PART = 0.2
_LABELS = {"resumed": "resumed", "spiked": "spiked", "rolled_back": "rolled back", "preempted": "preempted"}
_TICKS = ("saved", "skipped")


@dataclasses.dataclass(frozen=True)
class _Quantity:
    """A field of metrics.jsonl that has a chart of its own."""

    field: str
    title: str
    unit: str
    form: Literal["count", "three_digits"] = "three_digits"
    scale: float = 1.0
    from_zero: bool = False
    may_be_log: bool = False
    note: str = ""


_QUANTITIES = (
    _Quantity("grad_norm", "Gradient norm", "over all parameters, before clipping", may_be_log=True),
    _Quantity("learning_rate", "Learning rate", "of the schedule", from_zero=True),
    _Quantity("tokens_per_second", "Throughput", "tokens per second, all devices", "count", from_zero=True),
    _Quantity("memory_bytes", "Memory", "GiB at the peak, fullest device", scale=2.0**-30, from_zero=True),
)


def build(runs: list[Run]) -> list[Chart]:
    """The charts of one run, or of several laid over each other."""
    span = Axis(*_span(runs))
    curves = [_run_curves(runs, index, span) for index in range(len(runs))]
    loss = _loss(runs, span, [curve for own in curves for curve in own])
    charts = [loss]
    later = [run for run in runs if len(run.records) >= 50]
    if later:
        charts.append(_later_loss(later, runs))
    if len(runs) > 1 and not _tokens(runs) and all(run.points("tokens_seen") for run in runs):
        charts.append(_loss_by_tokens(runs, loss, curves))
    for quantity in _QUANTITIES:
        if any(run.points(quantity.field) for run in runs):
            charts.append(_quantity(quantity, runs))
    return charts


def smoothing_window(num_points: int) -> int:
    """Points that a smoothed curve averages: one in a hundred, an odd number."""
    return 2 * round(_SMOOTHED_SHARE * num_points / 2) + 1


def loss_top(points: Points, others: list[float]) -> float:
    """The highest loss worth showing: spikes may reach 1.5 times beyond the rest of the curve, no farther."""
    finite = [y for _, y in points if math.isfinite(y)]
    # A few of a hundred points are exceptions, and so are two of twenty.
    share = min(0.995, 1 - 2 / max(len(finite), 2))
    ordinary = max([quantile(finite, share), finite[0], *others]) if finite else max([1.0, *others])
    return min(max([*finite, *others, 0.0]), 1.5 * ordinary)


def levels(runs: list[Run]) -> list[Level]:
    """The unigram entropy of each corpus, once."""
    values = sorted({run.facts["unigram_entropy"] for run in runs if "unigram_entropy" in run.facts})
    return [Level(f"unigram entropy {value:.2f}: token frequencies alone", value) for value in values]


def _loss(runs: list[Run], x: Axis, curves: list[Curve]) -> Chart:
    held_out = [event["loss"] for run in runs for event in run.held_out if math.isfinite(event["loss"])]
    baselines = levels(runs)
    others = held_out + [level.value for level in baselines]
    bottom = min([y for run in runs for _, y in run.points("loss") if math.isfinite(y)] + others, default=0.0)
    top = max(loss_top(run.points("loss"), others) for run in runs)
    return Chart(
        key="loss",
        title="Loss",
        unit="nats per token",
        x=x,
        y=_padded(bottom, top),
        curves=curves,
        form="loss",
        levels=baselines,
        marks=_marks(runs),
        notes=_loss_notes(runs, top),
        tokens=_tokens(runs),
        wide=True,
    )


def _later_loss(later: list[Run], runs: list[Run]) -> Chart:
    """The part of the run where the loss moves little, on a scale that shows how."""
    low, high = _span(later)
    x = Axis(low + _LATER_PART * (high - low), high)
    shown = [y for run in later for step, y in run.points("loss") if step >= x.low and math.isfinite(y)]
    shown += [event["loss"] for run in later for event in run.held_out if event["step"] >= x.low]
    shown = [y for y in shown if math.isfinite(y)] or [0.0, 1.0]
    curves = [
        dataclasses.replace(curve, points=[point for point in curve.points if point[0] >= x.low])
        for index in range(len(runs))
        for curve in _run_curves(runs, index, x)
    ]
    return Chart(
        key="later",
        title=f"Loss, the last {100 * (1 - _LATER_PART):.0f} % of the steps",
        unit="nats per token",
        x=x,
        y=_padded(quantile(shown, 0.005), quantile(shown, 0.995)),
        curves=[curve for curve in curves if curve.points],
        form="loss",
        marks=[mark for mark in _marks(runs) if mark.x >= x.low],
        notes=["The farthest 1 % of the points may lie outside."],
        tokens=_tokens(runs),
        wide=True,
    )


def _loss_by_tokens(runs: list[Run], loss: Chart, curves: list[list[Curve]]) -> Chart:
    """For runs whose steps hold different numbers of tokens: the loss chart with another x."""
    seen = [run.points("tokens_seen") for run in runs]
    moved = [
        dataclasses.replace(curve, points=[(interpolate(points, step), y) for step, y in curve.points])
        for points, own in zip(seen, curves, strict=True)
        for curve in own
    ]
    x = Axis(0.0, max(points[-1][1] for points in seen))
    return dataclasses.replace(loss, key="tokens", title="Loss by tokens", x=x, x_unit="tokens", curves=moved, notes=[])


def _run_curves(runs: list[Run], index: int, x: Axis) -> list[Curve]:
    """One run's losses: every point faintly, a smoothed line over them, and the held-out points."""
    run, alone, columns = runs[index], len(runs) == 1, _columns(len(runs))
    colour = f"run-{index % NUM_COLOURS}"
    points, window = run.points("loss"), smoothing_window(len(run.records))
    name = "training" if alone else run.name
    if window < 3:
        curves = [Curve(name, thin(points, x, columns), colour)]
    else:
        # Of several runs the legend has room for the smoothed line only.
        curves = [
            Curve(name if alone else "", thin(points, x, columns), colour, "faint"),
            Curve(f"mean of {window} points" if alone else name, thin(smooth(points, window), x, columns // 2), colour),
        ]
    held_out: Points = [(event["step"], event["loss"]) for event in run.held_out]
    if held_out:
        curves.append(Curve("held-out", held_out, "held-out" if alone else colour, "dots"))
    return curves


def _quantity(quantity: _Quantity, runs: list[Run]) -> Chart:
    x = Axis(*_span(runs))
    curves = [
        Curve(
            run.name if len(runs) > 1 else quantity.title.lower(),
            thin([(step, y * quantity.scale) for step, y in run.points(quantity.field)], x, _columns(len(runs)) // 2),
            f"run-{index % NUM_COLOURS}",
        )
        for index, run in enumerate(runs)
        if run.points(quantity.field)
    ]
    values = [y for curve in curves for _, y in curve.points if math.isfinite(y)] or [0.0, 1.0]
    positive = [y for y in values if y > 0]
    log = quantity.may_be_log and bool(positive) and max(positive) > 30 * quantile(positive, 0.01)
    if log:
        y = Axis(min(positive) / 1.1, max(positive) * 1.1, log=True)
    else:
        y = _padded(0.0 if quantity.from_zero else min(values), max(values), from_zero=quantity.from_zero)
    return Chart(
        key=quantity.field,
        title=quantity.title,
        unit=quantity.unit + (", log scale" if log else ""),
        x=x,
        y=y,
        curves=curves,
        form=quantity.form,
        marks=[mark for mark in _marks(runs) if mark.label],
        tokens=_tokens(runs),
    )


def _columns(num_runs: int) -> int:
    """Pixel columns of a wide chart that a run gets: the more runs, the fewer, so that the file stays small."""
    return _COLUMNS // math.ceil(num_runs / 2)


def _span(runs: list[Run]) -> tuple[float, float]:
    """From step 0 to the last step; a run of one step has a width too."""
    return 0.0, float(max(1, *(run.last_step for run in runs)))


def _padded(low: float, high: float, *, from_zero: bool = False) -> Axis:
    """An axis with some air above and below; also where all values are the same."""
    air = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
    return Axis(low if from_zero else low - air, high + air)


def _tokens(runs: list[Run]) -> Points:
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


def _marks(runs: list[Run]) -> list[Mark]:
    """What happened to a run; over several runs there would be too much of it."""
    if len(runs) > 1:
        return []
    run = runs[0]
    known = [event for event in run.events if event["event"] in _LABELS or event["event"] in _TICKS]
    return [
        Mark(event["step"], event["event"], _LABELS.get(event["event"], ""))
        for event in known
        if event["step"] <= run.last_step
    ]


def _loss_notes(runs: list[Run], top: float) -> list[str]:
    notes: list[str] = []
    for run in runs:
        whose = "" if len(runs) == 1 else f"{run.name}: "
        points = run.points("loss")
        cut = [(step, y) for step, y in points if math.isfinite(y) and y > top]
        if cut:
            step, highest = max(cut, key=lambda point: point[1])
            notes.append(
                f"{whose}{_steps(len(cut))} above {top:.2f} cut off, the highest "
                f"{figures.three_digits(highest)} at step {figures.integer(step)}."
            )
        broken = [step for step, y in points if not math.isfinite(y)]
        if broken:
            notes.append(f"{whose}{_steps(len(broken))} without a finite loss, the first {figures.integer(broken[0])}.")
    kinds: set[Any] = {mark.kind for mark in _marks(runs)}
    notes += ["Short lines at the bottom: checkpoints saved."] if "saved" in kinds else []
    notes += ["Short lines at the top: updates skipped."] if "skipped" in kinds else []
    return notes


def _steps(num: int) -> str:
    return "1 step" if num == 1 else f"{figures.integer(num)} steps"
