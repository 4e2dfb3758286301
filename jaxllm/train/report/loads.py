"""How evenly a run's experts were loaded: a heat map a layer.

A map has a row an expert, the first on top, and time to the right; the colour of a cell says how often the expert was
chosen, over the mean of its layer's experts, in the mean of a few logged steps. The scale is of seven classes, alike
above and below the mean by ratio, and sequential: the lightness of its colours only falls (or, on a dark page, rises),
so that it reads in grey and with any kind of colour vision. Where routing is even a map has one colour.

Cells of a class that lie side by side are drawn as one, and of many layers some are drawn, so that the file stays
small.
"""

import bisect
import itertools
import statistics
from html import escape

from jaxllm.train import figures
from jaxllm.train.report.runs import Run

FIELD = "expert_load"

_EDGES = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)
_CLASSES = ("below 1/4", "1/4 to 1/2", "1/2 to 0.8", "0.8 to 1.25: even", "1.25 to 2", "2 to 4", "4 times or more")
"""Loads over the mean, between the edges."""

_COLUMNS = 120
_MOST_LAYERS, _MOST_CELLS = 12, 60_000

type Loads = list[list[float]]
"""Of each layer that has experts, of each expert: its choices over the mean."""


def draw(runs: list[Run]) -> str:
    """The maps of one run as a `<figure>`; nothing for several runs, or where no step tells of experts."""
    looks: list[tuple[int, Loads]] = [
        (record["step"], record[FIELD]) for run in runs for record in run.records if FIELD in record
    ]
    if len(runs) > 1 or not looks:
        return ""
    num_layers, num_experts = len(looks[0][1]), len(looks[0][1][0])
    shown = _spaced(num_layers, _MOST_LAYERS)
    num_columns = min(_COLUMNS, len(looks), max(_MOST_CELLS // (len(shown) * num_experts), 1))
    borders = [round(index * len(looks) / num_columns) for index in range(num_columns + 1)]
    maps = "".join(_map(looks, borders, layer) for layer in shown)
    legend = "".join(f'<li><i class="heat-{index}"></i>{text}</li>' for index, text in enumerate(_CLASSES))
    return (
        '<figure class="chart wide heat"><figcaption><h2>Load of the experts</h2>'
        '<span class="unit">choices of each expert over the mean of its layer</span>'
        f'<ul class="legend">{legend}</ul></figcaption><div class="maps">{maps}</div>'
        f'<p class="note">{escape(_note(num_layers, num_experts, shown, looks, num_columns))}</p></figure>'
    )


def _spaced(num: int, most: int) -> list[int]:
    """Numbers below `num`, at most so many, the first and the last among them."""
    if num <= most:
        return list(range(num))
    return [round(index * (num - 1) / (most - 1)) for index in range(most)]


def _map(looks: list[tuple[int, Loads]], borders: list[int], layer: int) -> str:
    """A layer's map, its columns the means of the logged steps between borders."""
    by_step = [loads[layer] for _, loads in looks]
    columns = [
        [statistics.fmean(values) for values in zip(*by_step[low:high], strict=True)]
        for low, high in itertools.pairwise(borders)
    ]
    paths = [""] * len(_CLASSES)
    for expert in range(len(columns[0])):
        classes = [bisect.bisect_right(_EDGES, column[expert]) for column in columns]
        start = 0
        for end in range(1, len(classes) + 1):
            if end == len(classes) or classes[end] != classes[start]:
                paths[classes[start]] += f"M{start} {expert}h{end - start}v1h{start - end}z"
                start = end
    shapes = "".join(f'<path class="heat-{index}" d="{path}"/>' for index, path in enumerate(paths) if path)
    first, last, now, num = looks[0][0], looks[-1][0], by_step[-1], len(by_step[-1])
    name = (
        f"Layer {layer} of those with experts: loads from {figures.three_digits(min(now))} to "
        f"{figures.three_digits(max(now))} times the mean at step {figures.integer(last)}"
    )
    return (
        f'<div><h3>layer {layer}<span class="unit">MaxVio {figures.three_digits(max(now) - 1)}</span></h3>'
        f'<svg viewBox="0 0 {len(columns)} {num}" preserveAspectRatio="none" role="img" aria-label="{name}">{shapes}'
        f'</svg><p class="ends"><span>step {figures.integer(first)}</span><span>{figures.integer(last)}</span></p>'
        "</div>"
    )


def _note(num_layers: int, num_experts: int, shown: list[int], looks: list[tuple[int, Loads]], num_columns: int) -> str:
    """What the maps show, and the expert that has most to do at the end."""
    step, loads = looks[-1]
    load, layer, expert = max(
        (load, -layer, -expert) for layer, of_layer in enumerate(loads) for expert, load in enumerate(of_layer)
    )
    parts = [
        "A map a layer that has experts, 0 the first of these, and a row an expert, 0 at the top and "
        f"{num_experts - 1} at the bottom."
    ]
    if len(shown) < num_layers:
        parts.append(f"{len(shown)} of {num_layers} layers are drawn.")
    if num_columns < len(looks):
        parts.append(f"A column is the mean of {figures.three_digits(len(looks) / num_columns)} logged steps.")
    parts.append(
        f"At step {figures.integer(step)} expert {-expert} of layer {-layer} has most to do, "
        f"{figures.three_digits(load)} times the mean. MaxVio is the largest load less 1, of the last step."
    )
    return " ".join(parts)
