"""What was watched of a run: norms by group of parameters, and what there is a number a layer of.

A model may have a hundred layers, so a chart of them has three curves: the largest of a step's values, their median
and the smallest; a note names the layer of the largest.
"""

import math
import statistics

from jaxllm.train import figures
from jaxllm.train.report.chart import Chart, Curve
from jaxllm.train.report.frame import columns_of, fitted, marks, smoothing_window, span, tokens
from jaxllm.train.report.runs import Run
from jaxllm.train.report.series import Axis, Points, smooth, thin

_GROUPS = (
    ("grad_norm/", "Gradient norm by group", "before clipping"),
    ("update_ratio/", "Size of an update by group", "norm of the update over norm of the parameters"),
)
_LAYERS = (
    ("activation_rms", "Activations", "root mean square behind a layer"),
    ("activation_max", "Largest activation", "magnitude behind a layer"),
    ("attention_logit_max", "Largest attention logit", "of a layer, before a soft cap"),
)
_MIXTURES = (
    ("max_violation", "MaxVio", "largest load of a layer's experts over their mean, less 1"),
    ("router_entropy", "Router entropy", "nats, mean over the tokens of a layer"),
    ("bias_spread", "Balancing bias", "largest of a layer less its smallest"),
)
"""Of the layers that have experts."""

_COLOURS = ("run-0", "run-2", "run-3", "run-4", "run-5", "run-6", "run-7")


def charts(runs: list[Run]) -> list[Chart]:
    """The charts of one run; of several runs there would be too many curves."""
    if len(runs) > 1:
        return []
    run, found = runs[0], []
    for prefix, title, unit in _GROUPS:
        names = dict.fromkeys(name for record in run.records for name in record if name.startswith(prefix))
        if names:
            found.append(_by_group(run, prefix, list(names), title, unit))
    for field, title, unit in (*_LAYERS, *_MIXTURES):
        looks = [(record["step"], record[field]) for record in run.records if field in record]
        # a run without balancing biases tells that they do not spread
        if looks and (field != "bias_spread" or any(any(values) for _, values in looks)):
            found.append(_over_layers(run, field, looks, title, unit))
    return found


def _by_group(run: Run, prefix: str, names: list[str], title: str, unit: str) -> Chart:
    """A curve a group, as they come in the records."""
    x, window = Axis(*span([run])), smoothing_window(len(run.records))
    curves = [
        Curve(name.removeprefix(prefix), thin(smooth(run.points(name), window), x, columns_of([run]) // 2), colour)
        for name, colour in zip(names, _COLOURS * len(names), strict=False)
    ]
    unit += f", mean of {window} points" if window > 1 else ""
    return _chart(run, prefix + "groups", title, unit, curves, [])


def _over_layers(run: Run, field: str, looks: list[tuple[int, list[float]]], title: str, unit: str) -> Chart:
    """The largest, the median and the smallest of the layers' values."""
    # what is not a number leaves a gap in the curve of the largest, as infinity does
    ordered = [(step, sorted(math.inf if math.isnan(value) else value for value in values)) for step, values in looks]
    spreads: tuple[tuple[str, str, Points], ...] = (
        ("largest", "run-0", [(step, values[-1]) for step, values in ordered]),
        ("median", "run-2", [(step, statistics.median(values)) for step, values in ordered]),
        ("smallest", "run-3", [(step, values[0]) for step, values in ordered]),
    )
    x = Axis(*span([run]))
    curves = [Curve(label, thin(points, x, columns_of([run]) // 2), colour) for label, colour, points in spreads]
    step, values = looks[-1]
    layer = max(range(len(values)), key=lambda index: (not math.isfinite(values[index]), values[index]))
    where = f"layer {layer} of 0 to {len(values) - 1}"
    if any(field == one[0] for one in _MIXTURES):
        where += ", of those that have experts"
    return _chart(run, field, title, unit, curves, [f"At step {figures.integer(step)} the largest is that of {where}."])


def _chart(run: Run, key: str, title: str, unit: str, curves: list[Curve], notes: list[str]) -> Chart:
    y = fitted(curves, may_be_log=True)
    return Chart(
        key=key,
        title=title,
        unit=unit + (", log scale" if y.log else ""),
        x=Axis(*span([run])),
        y=y,
        curves=curves,
        marks=[mark for mark in marks([run]) if mark.label],
        notes=notes,
        tokens=tokens([run]),
    )
