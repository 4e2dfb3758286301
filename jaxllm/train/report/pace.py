"""How fast a run went, and what held it up: slow steps, waiting for data, the slowest process."""

import collections
import dataclasses
from typing import Any

from jaxllm.train import figures
from jaxllm.train.report.chart import Chart, Curve
from jaxllm.train.report.frame import Quantity, columns_of, padded, plain, steps
from jaxllm.train.report.runs import Run
from jaxllm.train.report.series import Axis, thin

SLOW = 2.0
"""Medians of a step's seconds beyond which a step counts as slow."""

_THROUGHPUT = Quantity(
    "tokens_per_second", "Throughput", "tokens per second, all devices", form="count", from_zero=True
)
_WAITING = Quantity("data_share", "Waiting for data", "percent of a step's time", scale=100.0, from_zero=True)
_SLOWEST = (
    Quantity("slowest_step_seconds", "Slowest process", "seconds of its step", "seconds", from_zero=True),
    Quantity(
        "slowest_data_seconds", "Slowest process to get data", "seconds of waiting in a step", "seconds", from_zero=True
    ),
)


def speed(runs: list[Run]) -> list[Chart]:
    """Throughput with its slow steps, and the share of the time that went into waiting for data."""
    charts: list[Chart] = []
    if any(run.points(_THROUGHPUT.field) for run in runs):
        charts.append(_throughput(runs))
    if any(run.points(_WAITING.field) for run in runs):
        chart = plain(_WAITING, runs)
        # Of a percent or two nobody needs to see how they waver.
        charts.append(dataclasses.replace(chart, y=padded(0.0, max(10.0, chart.y.high / 1.04), from_zero=True)))
    return charts


def processes(runs: list[Run]) -> list[Chart]:
    """What the slowest of several processes took."""
    return [
        dataclasses.replace(plain(quantity, runs), notes=_which(runs))
        for quantity in _SLOWEST
        if any(run.points(quantity.field) for run in runs)
    ]


def slow_steps(run: Run) -> list[dict[str, Any]]:
    """Records of the steps that took more than twice the median; the first of an attempt, which compiles, left out."""
    median = run.median("step_seconds")
    if median is None:
        return []
    previous = [None, *(record["attempt"] for record in run.records)]
    return [
        record
        for record, attempt in zip(run.records, previous, strict=False)
        if record["attempt"] == attempt and record.get("step_seconds", 0.0) > SLOW * median
    ]


def _throughput(runs: list[Run]) -> Chart:
    chart = plain(_THROUGHPUT, runs)
    if len(runs) > 1:
        return chart
    slow = slow_steps(runs[0])
    points = [(record["step"], record["tokens_per_second"]) for record in slow if "tokens_per_second" in record]
    if not points:
        return chart
    dots = Curve("slow steps", thin(points, Axis(chart.x.low, chart.x.high), columns_of(runs) // 8), "alarm", "dots")
    return dataclasses.replace(chart, curves=[*chart.curves, dots], notes=[_stalls(runs[0], slow)])


def _stalls(run: Run, slow: list[dict[str, Any]]) -> str:
    """How much the slow steps cost."""
    median = run.median("step_seconds") or 0.0
    longest = max(slow, key=lambda record: record["step_seconds"])
    lost = sum(record["step_seconds"] - median for record in slow)
    waited = sum(record.get("data_seconds", 0.0) > 0.5 * record["step_seconds"] for record in slow)
    data = f" {figures.integer(waited)} of them mostly waited for data." if waited else ""
    return (
        f"Slow: {steps(len(slow))} beyond twice the median of {figures.three_digits(median)} s, "
        f"{figures.duration(lost)} lost; the longest, {figures.three_digits(longest['step_seconds'])} s, at step "
        f"{figures.integer(longest['step'])}.{data}"
    )


def _which(runs: list[Run]) -> list[str]:
    """Which processes were the slowest how often."""
    notes: list[str] = []
    for run in runs:
        whose = "" if len(runs) == 1 else f"{run.name}: "
        counts = collections.Counter(int(process) for _, process in run.points("slowest_process"))
        shares = [
            f"process {process} in {figures.percent(num / counts.total())}"
            for process, num in sorted(counts.most_common(3))
        ]
        if shares:
            notes.append(f"{whose}The slowest was {', '.join(shares)} of the steps.")
    return notes
