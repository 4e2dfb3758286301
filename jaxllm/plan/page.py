"""A plan as one HTML file that opens offline, in the looks of a run's report.

The roofline with the best option's operations on it; step time by component, memory and communication of the first
options as bars. Shapes are drawn here: there is no script.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from jaxllm.plan.answer import Option, Plan
from jaxllm.plan.computed import operations
from jaxllm.plan.report import asked_for, count, parts, seconds

_NUM_OPTIONS = 12
_WIDTH, _HEIGHT = 1000.0, 380.0
_STYLE = """
.bars { display: grid; grid-template-columns: minmax(120px, max-content) 1fr max-content; gap: 6px 12px;
  margin-top: 12px; align-items: center; font-size: 13px; }
.bar { display: flex; height: 16px; background: var(--rule); border-radius: 3px; overflow: hidden; }
.bar i { background: var(--c); height: 100%; }
.key { display: inline-block; width: 10px; height: 10px; margin-right: 7px; border-radius: 2px; background: var(--c); }
svg.roof { width: 100%; height: auto; font: 13px system-ui, sans-serif; overflow: visible; }
svg.roof text { fill: var(--muted); } svg.roof text.name { fill: var(--text); }
svg.roof path { fill: none; stroke: var(--run-0); stroke-width: 2.5; }
svg.roof path.grid { stroke: var(--rule); stroke-width: 1; }
svg.roof circle { fill: var(--run-1); }
"""


def write(plan: Plan, out: str) -> None:
    """Write the page.

    Raises:
        ValueError: nothing fits, so there is nothing to draw.
        OSError: the file cannot be written.
    """
    if not plan.options:
        raise ValueError(f"--html {out}: nothing of the plan fits on {plan.target.name}, so there is nothing to draw")
    Path(out).write_text(_page(plan), encoding="utf-8")


def _page(plan: Plan) -> str:
    best, shown = plan.options[0], plan.options[:_NUM_OPTIONS]
    title = f"{plan.experiment.run.name or 'model'} on {plan.target.name}"
    looks = resources.files("jaxllm.train.report").joinpath("page.css").read_text("utf-8") + _STYLE
    time = max(option.time.total for option in shown)
    figures = [
        _figure("Roofline", "the best option's operations at the peaks", _roofline(plan, best)),
        _figure("Step time", "seconds by component", _bars(shown, [parts(one) for one in shown], time, seconds)),
        _figure(
            "Memory of a device",
            f"GiB; the full width is the {plan.memory_limit / 2**30:,.1f} GiB that a program gets",
            _bars(shown, [one.memory for one in shown], plan.memory_limit, lambda size: f"{size / 2**30:,.1f}"),
        ),
        _figure("Communication", "seconds by mesh axis, hidden or not", _communication(shown)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - jaxllm plan</title><style>{looks}</style></head>\n"
        f"<body>{_header(plan, best, title)}<main>{''.join(figures)}</main></body></html>\n"
    )


def _header(plan: Plan, best: Option, title: str) -> str:
    dollars = plan.dollars(best)
    cells = {
        "step": seconds(best.time.total),
        "MFU (palm)": f"{100 * plan.mfu(best):.1f} %",
        "tokens a second": count(plan.tokens_per_second(best)),
        "bound by": best.time.binds,
        "days": f"{plan.days(best):,.1f}",
        "US dollars": "no price" if dollars is None else f"{dollars:,.0f}",
    }
    boxes = "".join(
        f'<div class="figure"><dt>{name}</dt><dd>{escape(value)}</dd></div>' for name, value in cells.items()
    )
    status = (
        f"{plan.target.describe()}; {plan.batch_tokens:,} tokens a step, {count(plan.tokens)} in all; best: "
        f"{_name(best)}. Predicted, not measured."
    )
    use = " ".join(f"--{key} {str(value).lower()}" for key, value in asked_for(best).items())
    return (
        f'<header><h1>{escape(title)}</h1><p class="status">{escape(status)}</p></header>'
        f'<dl class="figures" style="--num:{len(cells)}">{boxes}</dl><pre>{escape(use)}</pre>'
    )


def _figure(title: str, unit: str, body: str) -> str:
    return (
        f'<figure class="chart wide"><figcaption><h2>{escape(title)}</h2><span class="unit">{escape(unit)}</span>'
        f"</figcaption>{body}</figure>"
    )


def _name(option: Option) -> str:
    one = option.candidate
    return f"{one.mesh.describe()}; {one.remat}; {one.accumulate} micro-batch{'es' * (one.accumulate > 1)}"


def _bars(
    options: Sequence[Option], values: Sequence[Mapping[str, float]], full: float, form: Callable[[float], str]
) -> str:
    """A stacked bar an option, with a legend."""
    names = list(dict.fromkeys(name for one in values for name in one if one[name] > 0))
    legend = "".join(
        f'<li><span class="key" style="{_colour(names, name)}"></span>{escape(name)}</li>' for name in names
    )
    rows = "".join(
        f'<span>{escape(_name(option))}</span><span class="bar">'
        + "".join(
            f'<i style="width:{100 * one[name] / full:.2f}%;{_colour(names, name)}" '
            f'title="{escape(name)} {escape(form(one[name]))}"></i>'
            for name in names
            if one.get(name, 0) > 0
        )
        + f"</span><b>{escape(form(sum(one.values())))}</b>"
        for option, one in zip(options, values, strict=True)
    )
    return f'<ul class="legend">{legend}</ul><div class="bars">{rows}</div>'


def _colour(names: Sequence[str], name: str) -> str:
    return f"--c:var(--run-{names.index(name) % 8})"


def _communication(options: Sequence[Option]) -> str:
    values = []
    for option in options:
        moved = {f"{axes}, beside": one for axes, one in option.time.moved.items()}
        values.append({**moved, **{f"{axes}, waited for": one for axes, one in option.time.waited.items()}})
    full = max((sum(one.values()) for one in values), default=0.0)
    if full == 0:
        return '<p class="note">One device: nothing is sent.</p>'
    return _bars(options, values, full, seconds)


def _roofline(plan: Plan, best: Option) -> str:
    """FLOP/s over FLOPs a byte, both by logarithm: the chip's roof, and what it allows each operation."""
    chip = plan.chip
    peak = chip.flops_per_second[plan.experiment.train.precision.compute] / chip.devices_per_chip
    memory = chip.hbm_bytes_per_second / chip.devices_per_chip
    found = operations(best.work)
    ridge = peak / memory
    low = math.log10(min(0.5, *(one.intensity for one in found)) / 2)
    high = math.log10(4 * max(ridge, *(one.intensity for one in found)))
    top = math.log10(2 * peak)
    bottom = math.log10(memory * 10**low)

    def place(intensity: float, rate: float) -> tuple[float, float]:
        across = (math.log10(intensity) - low) / (high - low)
        up = (math.log10(rate) - bottom) / (top - bottom)
        return 60 + across * (_WIDTH - 80), 20 + (1 - up) * (_HEIGHT - 60)

    corners = [place(10**low, memory * 10**low), place(ridge, peak), place(10**high, peak)]
    roof = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    marks = ""
    for number, one in enumerate(sorted(found, key=lambda one: one.intensity)):
        x, y = place(one.intensity, min(peak, memory * one.intensity))
        shift = 20 + 15 * (number % 8)
        marks += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{one.intensity:,.1f} FLOPs a byte</title></circle>'
        marks += f'<text class="name" x="{x:.1f}" y="{y + shift:.1f}" text-anchor="middle">{escape(one.name)}</text>'
    grid = ""
    for power in range(math.ceil(low), math.floor(high) + 1):
        x, _ = place(10**power, peak)
        grid += f'<path class="grid" d="M{x:.1f} 20V{_HEIGHT - 40}"/>'
        grid += f'<text x="{x:.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{10**power:,.10g}</text>'
    x, y = corners[1]
    label = f"{peak / 1e12:,.0f} TFLOP/s; from {ridge:,.0f} FLOPs a byte on, products bind"
    return (
        f'<svg class="roof" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="roofline">{grid}'
        f'<path d="{roof}"/>{marks}<text x="{x:.1f}" y="{y - 9:.1f}" text-anchor="end">{escape(label)}</text>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 2}" text-anchor="middle">FLOPs a byte</text></svg>'
    )
