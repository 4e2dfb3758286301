"""Which charts a report has, and what those of the loss show."""

import dataclasses
import math

from jaxllm.train import figures
from jaxllm.train.report import pace, sources, watched
from jaxllm.train.report.chart import Chart, Curve, Level
from jaxllm.train.report.frame import (
    Quantity,
    colour_of,
    columns_of,
    marks,
    padded,
    plain,
    smoothing_window,
    span,
    steps,
    tokens,
)
from jaxllm.train.report.runs import Run
from jaxllm.train.report.series import Axis, Points, interpolate, quantile, smooth, thin

_LATER_PART = 0.2
_SET_COLOURS = ("run-0", "run-2", "run-3", "run-4", "run-5", "run-6", "run-7")
_TRAINING = (
    Quantity("grad_norm", "Gradient norm", "over all parameters, before clipping", may_be_log=True),
    Quantity("learning_rate", "Learning rate", "of the schedule", from_zero=True),
)
_MEMORY = Quantity("memory_bytes", "Memory", "GiB at the peak, fullest device", scale=2.0**-30, from_zero=True)


def build(runs: list[Run]) -> list[Chart]:
    """The charts of one run, or of several laid over each other."""
    whole = Axis(*span(runs))
    curves = [_run_curves(runs, index, whole) for index in range(len(runs))]
    loss = _loss(runs, whole, [curve for own in curves for curve in own])
    charts = [loss]
    later = [run for run in runs if len(run.records) >= 50]
    if later:
        charts.append(_later_loss(later, runs))
    if len(runs) > 1 and not tokens(runs) and all(run.points("tokens_seen") for run in runs):
        charts.append(_loss_by_tokens(runs, loss, curves))
    charts += sources.charts(runs)
    charts += _evaluations(runs, whole)
    charts += [plain(quantity, runs) for quantity in _TRAINING if any(run.points(quantity.field) for run in runs)]
    charts += watched.charts(runs)
    charts += pace.speed(runs)
    if any(run.points(_MEMORY.field) for run in runs):
        charts.append(plain(_MEMORY, runs))
    return charts + pace.processes(runs)


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
    undone = [points for run in runs for points in run.undone] if len(runs) == 1 else []
    top = max(loss_top([*run.points("loss"), *(point for own in run.undone for point in own)], others) for run in runs)
    for index, points in enumerate(undone):
        shown = [(step, min(y, top)) for step, y in points]
        curves = [*curves, Curve("" if index else "rolled back", thin(shown, x, columns_of(runs) // 2), "alarm")]
    return Chart(
        key="loss",
        title="Loss",
        unit="nats per token",
        x=x,
        y=padded(bottom, top),
        curves=curves,
        form="loss",
        levels=baselines,
        marks=marks(runs),
        notes=_loss_notes(runs, top),
        tokens=tokens(runs),
        wide=True,
    )


def _later_loss(later: list[Run], runs: list[Run]) -> Chart:
    """The part of the run where the loss moves little, on a scale that shows how."""
    low, high = span(later)
    x = Axis(low + _LATER_PART * (high - low), high)
    shown = [y for run in later for step, y in run.points("loss") if step >= x.low and math.isfinite(y)] or [0.0, 1.0]
    held_out = [event["loss"] for run in later for event in run.held_out if event["step"] >= x.low]
    held_out = [y for y in held_out if math.isfinite(y)]
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
        y=padded(min([quantile(shown, 0.005), *held_out]), max([quantile(shown, 0.995), *held_out])),
        curves=[curve for curve in curves if curve.points],
        form="loss",
        marks=[mark for mark in marks(runs) if mark.x >= x.low],
        notes=["The farthest 1 % of the training points may lie outside."],
        tokens=tokens(runs),
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


def _evaluations(runs: list[Run], x: Axis) -> list[Chart]:
    """A run's evaluation sets in one chart, or each set of several runs in one; none where there is one set only."""
    sets = {event.get("set", "held_out"): None for run in runs for event in run.evaluations}
    if len(sets) < 2:
        return []
    points = {
        (name, index): [(e["step"], e["loss"]) for e in run.evaluations if e.get("set", "held_out") == name]
        for name in sets
        for index, run in enumerate(runs)
    }
    if len(runs) == 1:
        parts = [name for name in sets if name != "held_out"]
        colours = {name: _SET_COLOURS[index % len(_SET_COLOURS)] for index, name in enumerate(parts)}
        curves = [
            curve
            for name in sets
            for curve in _dotted("all together" if name == "held_out" else name, points[name, 0], colours.get(name))
        ]
        return [_evaluation(runs, x, "evaluation", "Evaluation sets", curves)]
    return [
        _evaluation(runs, x, f"evaluation-{number}", f"Evaluation on {name}", curves)
        for number, name in enumerate(name for name in sets if name != "held_out")
        if (curves := [c for i, run in enumerate(runs) for c in _dotted(run.name, points[name, i], colour_of(i))])
    ]


def _dotted(label: str, points: Points, colour: str | None) -> list[Curve]:
    """A line through dots."""
    colour = colour or "held-out"
    return [Curve(label, points, colour), Curve("", points, colour, "dots")] if points else []


def _evaluation(runs: list[Run], x: Axis, key: str, title: str, curves: list[Curve]) -> Chart:
    losses = [y for curve in curves for _, y in curve.points if math.isfinite(y)] or [0.0, 1.0]
    return Chart(
        key=key,
        title=title,
        unit="nats per token",
        x=x,
        y=padded(min(losses), max(losses)),
        curves=curves,
        form="loss",
        marks=[mark for mark in marks(runs) if mark.label],
        tokens=tokens(runs),
        wide=len(runs) == 1,
    )


def _run_curves(runs: list[Run], index: int, x: Axis) -> list[Curve]:
    """One run's losses: every point faintly, a smoothed line over them, and the held-out points."""
    run, alone, columns = runs[index], len(runs) == 1, columns_of(runs)
    colour = colour_of(index)
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


def _loss_notes(runs: list[Run], top: float) -> list[str]:
    notes: list[str] = []
    for run in runs:
        whose = "" if len(runs) == 1 else f"{run.name}: "
        points = run.points("loss")
        cut = [(step, y) for step, y in points if math.isfinite(y) and y > top]
        if cut:
            step, highest = max(cut, key=lambda point: point[1])
            notes.append(
                f"{whose}{steps(len(cut))} above {top:.2f} cut off, the highest "
                f"{figures.three_digits(highest)} at step {figures.integer(step)}."
            )
        broken = [step for step, y in points if not math.isfinite(y)]
        if broken:
            notes.append(f"{whose}{steps(len(broken))} without a finite loss, the first {figures.integer(broken[0])}.")
    return notes
