"""The training loss of each source of a mixture, in one chart."""

import math

from jaxllm.train.report.chart import Chart, Curve
from jaxllm.train.report.frame import columns_of, marks, padded, smoothing_window, span, tokens
from jaxllm.train.report.runs import Run
from jaxllm.train.report.series import Axis, Points, quantile, smooth, thin

_FIELD = "loss/"
_COLOURS = ("run-0", "run-2", "run-3", "run-4", "run-5", "run-6", "run-7")
"""As the chart of evaluation sets takes them, in the same order."""


def charts(runs: list[Run]) -> list[Chart]:
    """The chart of one run with several sources; of several runs there would be too many curves."""
    run = runs[0]
    names = sorted({name for record in run.records for name in record if name.startswith(_FIELD)})
    if len(runs) > 1 or len(names) < 2:
        return []
    x, window = Axis(*span(runs)), smoothing_window(len(run.records))
    curves = [
        Curve(field.removeprefix(_FIELD), _points(run, field, x, window, columns_of(runs) // 2), colour)
        for field, colour in zip(names, _COLOURS * len(names), strict=False)
    ]
    values = [y for curve in curves for _, y in curve.points if math.isfinite(y)] or [0.0, 1.0]
    return [
        Chart(
            key="sources",
            title="Loss by source",
            unit="nats per token" + (f", mean of {window} points" if window > 1 else ""),
            x=x,
            y=padded(min(values), quantile(values, 0.99)),
            curves=curves,
            form="loss",
            marks=[mark for mark in marks(runs) if mark.label],
            tokens=tokens(runs),
        )
    ]


def _points(run: Run, field: str, x: Axis, window: int, num_columns: int) -> Points:
    """A source's losses, with a gap where the run takes nothing of it for longer than the window."""
    losses = [(record["step"], record.get(field, math.nan)) for record in run.records]
    return thin(smooth(losses, window), x, num_columns)
