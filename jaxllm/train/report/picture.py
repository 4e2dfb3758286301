"""A run's loss as a stand-alone SVG picture, for a README or a slide.

A picture cannot ask which background it stands on (the colour scheme that it sees is the reader's system's, not the
page's), so its colours are middling ones with a contrast of 3.5 or more against white and near-black alike.
"""

import math
from html import escape
from pathlib import Path

from jaxllm.train import figures
from jaxllm.train.report.chart import tick_label
from jaxllm.train.report.charts import levels, loss_top, smoothing_window
from jaxllm.train.report.runs import Run, load_runs
from jaxllm.train.report.series import Axis, Points, interpolate, smooth, thin, ticks

_WIDTH, _HEIGHT = 960, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 26, 54, 58
_TEXT, _RULE, _LINE, _DOTS, _UNDONE = "#76818d", "#80808040", "#3f83f0", "#dd6b20", "#d64545"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def write_loss_picture(directory: Path, out: Path) -> None:
    """Write an SVG of a run's training loss, what rollbacks undid of it, its held-out points and its corpus's entropy.

    Args:
        directory: of the run.
        out: the file to write; its directory is made if absent.

    Raises:
        ValueError: the directory holds no run, a run without a step, or a broken file.
    """
    (run,) = load_runs([directory])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_picture(run), encoding="utf-8", errors="replace")


def _picture(run: Run) -> str:
    points = run.points("loss")
    held_out: Points = [(event["step"], event["loss"]) for event in run.held_out if math.isfinite(event["loss"])]
    baselines = levels([run])
    others = [y for _, y in held_out] + [level.value for level in baselines]
    top = loss_top([*points, *(point for piece in run.undone for point in piece)], others)
    bottom = min([y for _, y in points if math.isfinite(y)] + others, default=0.0)
    air = 0.05 * (top - bottom) or 1.0
    x, y = Axis(0.0, max(run.last_step, 1)), Axis(bottom - air, top + air)
    tokens: Points = [(0.0, 0.0), *run.points("tokens_seen")] if run.points("tokens_seen") else []
    window = smoothing_window(len(points))
    columns = _WIDTH - _LEFT - _RIGHT
    parts = [_axes(x, y, tokens)]
    for level in baselines:
        parts.append(_baseline(level.label, _down(y, level.value)))
    if window >= 3:
        parts.append(_line(thin(points, x, columns), x, y, 'stroke-width="1" opacity="0.4"'))
    parts.append(_line(thin(smooth(points, window), x, columns), x, y, 'stroke-width="2"'))
    for piece in run.undone:
        parts.append(_line(thin(piece, x, columns), x, y, 'stroke-width="1.6"', _UNDONE))
    radius = 3.6 if len(held_out) <= 100 else 1.8
    for step, value in held_out:
        parts.append(f'<circle cx="{_across(x, step):.1f}" cy="{_down(y, value):.1f}" r="{radius}" fill="{_DOTS}"/>')
    parts.append(_cut_off(points, x, y, top))
    parts.append(_legend(window, held_out, bool(run.undone)))
    title = escape(f"Training loss of {run.name}, {figures.integer(run.last_step)} steps")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'font-family="{_FONT}" font-size="14" fill="{_TEXT}" role="img"><title>{title}</title>{"".join(parts)}</svg>\n'
    )


def _across(axis: Axis, value: float) -> float:
    return _LEFT + axis(value) * (_WIDTH - _LEFT - _RIGHT)


def _down(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - min(max(axis(value), 0.0), 1.0) * (_HEIGHT - _TOP - _BOTTOM)


def _line(points: Points, x: Axis, y: Axis, style: str, colour: str = _LINE) -> str:
    path, pen_down = "", False
    for step, value in points:
        if math.isfinite(value):
            path += f"{'L' if pen_down else 'M'}{_across(x, step):.1f} {_down(y, value):.1f}"
        pen_down = math.isfinite(value)
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-linejoin="round" {style}/>'


def _axes(x: Axis, y: Axis, tokens: Points) -> str:
    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [f'<path d="M{_LEFT} {floor}H{right}" stroke="{_TEXT}"/>']
    for tick in ticks(y, 6):
        down = _down(y, tick)
        parts.append(f'<path d="M{_LEFT} {down:.1f}H{right}" stroke="{_RULE}"/>')
        parts.append(f'<text x="{_LEFT - 10}" y="{down + 5:.1f}" text-anchor="end">{tick_label(tick, "loss")}</text>')
    for tick in ticks(x, 7):
        across = f'x="{_across(x, tick):.1f}" text-anchor="middle"'
        parts.append(f'<text {across} y="{floor + 22}">{figures.integer(tick)}</text>')
        if tokens and tick:
            parts.append(f'<text {across} y="{floor + 42}">{figures.count(interpolate(tokens, tick))}</text>')
    parts.append(f'<text x="{_LEFT - 24}" y="{floor + 22}" text-anchor="end">step</text>')
    if tokens:
        parts.append(f'<text x="{_LEFT - 24}" y="{floor + 42}" text-anchor="end">tokens</text>')
    return "".join(parts)


def _baseline(label: str, down: float) -> str:
    right = _WIDTH - _RIGHT
    return (
        f'<path d="M{_LEFT} {down:.1f}H{right}" stroke="{_TEXT}" stroke-width="1.4" stroke-dasharray="6 5"/>'
        f'<text x="{right}" y="{down - 8:.1f}" text-anchor="end">{escape(label)}</text>'
    )


def _cut_off(points: Points, x: Axis, y: Axis, top: float) -> str:
    """Where the highest point lies above the picture, how high it is."""
    step, highest = max(
        (point for point in points if math.isfinite(point[1])), key=lambda point: point[1], default=(0, 0)
    )
    if highest <= top:
        return ""
    shift, anchor = (-8, "end") if x(step) > 0.5 else (8, "start")
    place = f'x="{_across(x, step) + shift:.1f}" y="{_down(y, y.high) + 12:.1f}" text-anchor="{anchor}"'
    return f"<text {place}>{figures.three_digits(highest)} at step {figures.integer(step)}</text>"


def _legend(window: int, held_out: Points, undone: bool) -> str:
    """Above the plot: what is measured on the left, what the lines are on the right."""
    items = ['<text x="4" y="26" font-weight="600">Loss, nats per token</text>']
    names = [(f"training, mean of {window} points" if window >= 3 else "training", _LINE)]
    names += [("rolled back", _UNDONE)] if undone else []
    names += [(f"held-out, {figures.loss(held_out[-1][1])} at the end", _DOTS)] if held_out else []
    end = _WIDTH - _RIGHT
    for name, colour in reversed(names):
        items.append(f'<text x="{end}" y="26" text-anchor="end">{name}</text>')
        # What the widest of the fonts takes for a character.
        start = end - round(7.3 * len(name))
        swatch = f'<path d="M{start - 26} 21h18" stroke="{colour}" stroke-width="2"/>'
        items.append(f'<circle cx="{start - 10}" cy="21" r="3.6" fill="{_DOTS}"/>' if colour == _DOTS else swatch)
        end = start - 44
    return "".join(items)
