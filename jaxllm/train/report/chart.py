"""Curves as HTML and SVG.

Only lines and dots are SVG, stretched to whatever width the page has with strokes that do not stretch along; titles,
ticks and labels are HTML placed in percent, so they stay legible on a phone and on paper. A dot is a line of no length
with round ends, since a stretched circle would be an ellipse.
"""

import collections
import math
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from jaxllm.train import figures
from jaxllm.train.report.series import Axis, Points, interpolate, ticks

WIDTH, HEIGHT = 2000, 1000
"""Units of a drawing: two a pixel of a wide chart, so rounding to whole ones shows nowhere."""

_FORMS = {"loss": figures.loss, "count": figures.count, "three_digits": figures.three_digits}
_EVENTS = {"phase": "new phase", "rolled_back": "rolled back", "saved": "checkpoint saved", "skipped": "update skipped"}
_LABEL_ROWS = 3
# More dots than this touch each other.
_CROWD = 100
# Share of a narrow page's plot that a character of a label takes.
_CHARACTER = 0.015


@dataclass(frozen=True)
class Curve:
    """Points of one colour.

    Attributes:
        label: in the legend; empty keeps the curve out of the legend and the read-outs.
        points: at most a few for each pixel column.
        colour: name of a custom property of page.css.
        kind: `faint` for what is noisy, `line`, or `dots`.
    """

    label: str
    points: Points
    colour: str
    kind: Literal["faint", "line", "dots"] = "line"


@dataclass(frozen=True)
class Level:
    """A labelled dashed line at one y."""

    label: str
    value: float


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step.

    Attributes:
        kind: the event's name.
        label: what the line is called, on wide charts; empty for a short tick at the plot's edge: at the top for
            skipped updates, at the bottom for saves.
    """

    x: float
    kind: str
    label: str


@dataclass(frozen=True)
class Chart:
    """What is drawn in one frame.

    Attributes:
        key: names the chart within the page.
        title, unit: above the plot, in plain words.
        x, y: what the plot shows.
        x_unit: `step` or `tokens`.
        form: how values read: a function of jaxllm/train/figures.py.
        tokens: (step, tokens seen), for a second row under the ticks of steps; empty for none.
        wide: across the page, else half of it.
    """

    key: str
    title: str
    unit: str
    x: Axis
    y: Axis
    curves: list[Curve]
    form: Literal["loss", "count", "three_digits"] = "three_digits"
    levels: list[Level] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    x_unit: Literal["step", "tokens"] = "step"
    tokens: Points = field(default_factory=list)
    wide: bool = False


def draw(chart: Chart) -> str:
    """The chart as a `<figure>`."""
    marks, num_rows = _mark_labels(chart) if chart.wide else ("", 0)
    svg = "".join([_grid(chart), _mark_lines(chart), _level_lines(chart), *(_curve(chart, c) for c in chart.curves)])
    labels = "".join([_y_labels(chart), _x_labels(chart), _level_labels(chart), marks])
    events = _event_legend(chart) if chart.wide else ""
    notes = f'<p class="note">{escape(" ".join(chart.notes))}</p>' if chart.notes else ""
    name = escape(f"{chart.title}, {chart.unit}")
    num_dots = sum(len(curve.points) for curve in chart.curves if curve.kind == "dots")
    classes = ["chart", *(["wide"] if chart.wide else []), *(["crowded"] if num_dots > _CROWD else [])]
    rows = f"--rows:{num_rows};--feet:{2 if chart.tokens else 1}"
    return (
        f'<figure class="{" ".join(classes)}" data-chart="{chart.key}"><figcaption><h2>{escape(chart.title)}</h2>'
        f'<span class="unit">{escape(chart.unit)}</span>{_legend(chart)}</figcaption>'
        f'<div class="frame" style="{rows}"><div class="plot" tabindex="0" aria-label="{name}">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{name}">{svg}</svg>'
        f"{labels}</div></div>{events}{notes}</figure>"
    )


def read_out(chart: Chart) -> dict[str, Any]:
    """What page.js needs to say which value is under the pointer."""
    return {
        "x": [chart.x.low, chart.x.high],
        "y": [chart.y.low, chart.y.high],
        "log": chart.y.log,
        "unit": chart.x_unit,
        "form": chart.form,
        "tokens": [[x, float(f"{y:.6g}")] for x, y in chart.tokens],
        "curves": [
            {
                "x": [x for x, _ in curve.points],
                "y": [float(f"{y:.6g}") if math.isfinite(y) else None for _, y in curve.points],
            }
            if curve.label
            else None
            for curve in chart.curves
        ],
    }


def _place(chart: Chart, x: float, y: float) -> tuple[int, int]:
    """Drawing units; a y outside the plot lies on its edge."""
    height = 1 - min(max(chart.y(y), 0.0), 1.0)
    return round(chart.x(x) * WIDTH), round(height * HEIGHT)


def _curve(chart: Chart, curve: Curve) -> str:
    colour = f'style="--c:var(--{curve.colour})"'
    places = [_place(chart, x, y) if math.isfinite(y) else None for x, y in curve.points]
    if curve.kind == "dots" or len(places) == 1:
        path = "".join(f"M{place[0]} {place[1]}h0" for place in places if place)
        return f'<path class="halo" d="{path}"/><path class="dots" {colour} d="{path}"/>'
    path, pen_down = "", False
    for place in places:
        if place:
            # The h0 makes a dot of a point between two gaps.
            path += f"L{place[0]} {place[1]}" if pen_down else f"M{place[0]} {place[1]}h0"
        pen_down = place is not None
    return f'<path class="{curve.kind}" {colour} d="{path}"/>'


def _legend(chart: Chart) -> str:
    items = "".join(
        f'<li><i class="{curve.kind}" style="--c:var(--{curve.colour})"></i>{escape(curve.label)} '
        f'<output data-curve="{index}">{_last(chart, curve)}</output></li>'
        for index, curve in enumerate(chart.curves)
        if curve.label
    )
    return f'<ul class="legend">{items}</ul>'


def _last(chart: Chart, curve: Curve) -> str:
    finite = [y for _, y in curve.points if math.isfinite(y)]
    return _FORMS[chart.form](finite[-1]) if finite else "no number"


def _grid(chart: Chart) -> str:
    lines = "".join(f"M0 {_place(chart, chart.x.low, tick)[1]}h{WIDTH}" for tick in ticks(chart.y, 5))
    return f'<path class="grid" d="{lines}"/><path class="base" d="M0 {HEIGHT}h{WIDTH}"/>'


def _y_labels(chart: Chart) -> str:
    return "".join(
        f'<span class="y" style="top:{100 * (1 - chart.y(tick)):.2f}%">{tick_label(tick, chart.form)}</span>'
        for tick in ticks(chart.y, 5)
    )


def _x_labels(chart: Chart) -> str:
    labels = [f'<span class="x caption">{chart.x_unit}{"<br>tokens" if chart.tokens else ""}</span>']
    # Steps are whole: a short run has fewer of them than ticks would fit.
    num = min(10 if chart.wide else 5, math.ceil(chart.x.high - chart.x.low))
    for index, tick in enumerate(ticks(chart.x, num)):
        text = figures.integer(tick) if chart.x_unit == "step" else tick_label(tick, "count")
        if chart.tokens:
            text += f"<br>{figures.count(interpolate(chart.tokens, tick))}"
        odd = " odd" if index % 2 else ""
        labels.append(f'<span class="x{odd}" style="left:{100 * chart.x(tick):.2f}%">{text}</span>')
    return "".join(labels)


def tick_label(value: float, form: str) -> str:
    """A round number, as short as it can be: 0.5, 5e-4, 2 M."""
    if form == "count" and abs(value) >= 1000:
        number, unit = figures.count(value).split()
        return f"{float(number):g} {unit}"
    mantissa, _, exponent = f"{value:g}".partition("e")
    if 0 < abs(value) < 1e-3 and not exponent:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        mantissa = f"{float(mantissa):g}"
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _level_lines(chart: Chart) -> str:
    lines = "".join(f"M0 {_place(chart, chart.x.low, level.value)[1]}h{WIDTH}" for level in chart.levels)
    return f'<path class="level" d="{lines}"/>' if lines else ""


def _level_labels(chart: Chart) -> str:
    """On the line's right end, above it or, near the top, below it."""
    labels = ""
    for level in chart.levels:
        top = 1 - chart.y(level.value)
        side = "below" if top < 0.1 else "above"
        labels += f'<span class="level {side}" style="top:{100 * top:.2f}%">{escape(level.label)}</span>'
    return labels


def _mark_lines(chart: Chart) -> str:
    """A line through the plot for what has a label, a tick at the top for skipped updates, at the bottom for saves."""
    paths: dict[str, set[str]] = {}
    for mark in chart.marks:
        x = round(chart.x(mark.x) * WIDTH)
        path = f"M{x} 0v{HEIGHT}" if mark.label else f"M{x} 0v30" if mark.kind == "skipped" else f"M{x} {HEIGHT}v-30"
        paths.setdefault(mark.kind, set()).add(path)
    return "".join(f'<path class="mark {kind}" d="{"".join(sorted(lines))}"/>' for kind, lines in paths.items())


def _event_legend(chart: Chart) -> str:
    """How each kind of event is drawn, and how many there are."""
    counts = collections.Counter(mark.kind for mark in chart.marks)
    items = "".join(
        f'<li><i class="mark {kind}"></i>{_EVENTS.get(kind, kind)}{f", {num} times" if num > 1 else ""}</li>'
        for kind, num in counts.items()
    )
    return f'<ul class="legend events">{items}</ul>' if items else ""


def _mark_labels(chart: Chart) -> tuple[str, int]:
    """Above the plot, in so many rows; a label that finds no room is left out, its line stays."""
    free = [-1.0] * _LABEL_ROWS
    labels = ""
    # Rows fill from the bottom up: of several at one step, the last goes first, so that they read from the top down.
    for mark in sorted(reversed(chart.marks), key=lambda mark: mark.x):
        width = _CHARACTER * (len(mark.label) + 1)
        # Near the right end a label stands left of its line.
        start = min(chart.x(mark.x), 1 - width)
        row = next((row for row in range(_LABEL_ROWS) if mark.label and start >= free[row]), None)
        if row is None:
            continue
        free[row] = start + width
        side = f"left:{100 * chart.x(mark.x):.2f}%" if start == chart.x(mark.x) else "right:0"
        labels += f'<span class="mark {mark.kind}" style="{side};--row:{row}">{escape(mark.label)}</span>'
    return labels, sum(end > 0 for end in free)
