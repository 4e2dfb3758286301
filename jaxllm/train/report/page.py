"""The report: charts, figures and texts in one HTML file.

Everything that comes from a run is data: text is escaped, the script gets numbers only, and the page's own policy
allows no script but ours, by its hash, and no connection at all.
"""

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from jaxllm.storage import Place, is_url, open_storage
from jaxllm.train import figures
from jaxllm.train.report import loads
from jaxllm.train.report.chart import draw, read_out
from jaxllm.train.report.charts import build
from jaxllm.train.report.frame import colour_of
from jaxllm.train.report.runs import Run, load_runs

_MAX_LISTED_EVENTS = 500


def write_report(directories: Sequence[Place], out: Place) -> None:
    """Write one HTML file that shows a run, or several laid over each other. It needs no other file and no network.

    Args:
        directories: of the runs, one or more.
        out: the file to write; its directory is made if absent.

    Raises:
        ValueError: a directory holds no run, a run without a step, or a broken file.
    """
    # Text may hold lone surrogates, which UTF-8 does not.
    page = _page(load_runs(directories)).encode(errors="replace")
    if is_url(out):
        directory, _, name = str(out).rpartition("/")
        open_storage(directory).write(name, page)
        return
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)


def _page(runs: list[Run]) -> str:
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    charts = build(runs)
    style, script = (resources.files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    data = json.dumps({chart.key: read_out(chart) for chart in charts}, separators=(",", ":"))
    body = "".join(
        [
            _header(runs, title),
            f"<main>{''.join(draw(chart) for chart in charts)}{loads.draw(runs)}</main>",
            *(_texts(run, alone=len(runs) == 1) for run in runs),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} - jaxllm report</title><style>{style}</style></head>\n<body>{body}\n"
        f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script></body></html>\n'
    )


def _header(runs: list[Run], title: str) -> str:
    if len(runs) > 1:
        return f"<header><h1>{escape(title)}</h1></header>{_table(runs)}"
    run = runs[0]
    cells = _key_figures(run)
    facts = "".join(f"<div><dt>{label}</dt><dd>{escape(value)}</dd></div>" for label, value in _facts(run))
    strip = "".join(
        f'<div class="figure"><dt>{label}</dt><dd>{escape(value)}<small>{escape(unit)}</small></dd></div>'
        for label, value, unit in cells
    )
    return (
        f'<header><h1>{escape(title)}</h1><p class="status">{escape(_status(run))}</p></header>'
        f'<dl class="figures" style="--num:{len(cells)}">{strip}</dl><dl class="facts">{facts}</dl>'
    )


def _status(run: Run) -> str:
    steps = run.facts.get("steps")
    of = f" of {figures.integer(steps)}" if steps else ""
    state = "finished" if run.result else "not finished"
    started = time.strftime(", started %Y-%m-%d %H:%M UTC", time.gmtime(run.events[0]["time"])) if run.events else ""
    return f"{state}, step {figures.integer(run.last_step)}{of}{started}"


def _key_figures(run: Run) -> list[tuple[str, str, str]]:
    """Label, value and unit of what a reader looks for first; what the run did not log is left out."""
    final, last = run.final_evaluation, run.records[-1]
    cells: list[tuple[str, str, str]] = []
    if "loss" in final:
        cells.append(("Held-out loss", figures.loss(final["loss"]), "nats per token"))
    else:
        cells.append(("Training loss", figures.loss(last["loss"]), "nats per token"))
    if "bits_per_byte" in final:
        cells.append(("Bits per byte", figures.loss(final["bits_per_byte"]), "held-out"))
    if "unigram_entropy" in run.facts:
        cells.append(("Unigram entropy", figures.loss(run.facts["unigram_entropy"]), "nats per token"))
    if "parameters" in run.facts:
        total = run.facts["parameters"]
        trained = run.facts.get("trainable_parameters", total)
        cells.append(
            ("Parameters", figures.count(total), f"{figures.count(trained)} trained" if trained < total else "")
        )
    if "tokens_seen" in last:
        cells.append(("Tokens", figures.count(last["tokens_seen"]), "seen"))
    if run.events:
        attempts = last["attempt"] - run.records[0]["attempt"]
        cells.append(("Wall time", figures.duration(run.seconds), "with pauses" if attempts else ""))
    speed, mfu = run.median("tokens_per_second"), run.median("mfu")
    if speed is not None:
        cells.append(("Throughput", figures.count(speed), "tokens/s, median"))
    if mfu is not None:
        cells.append(("MFU", figures.percent(mfu), "median"))
    return cells


def _facts(run: Run) -> list[tuple[str, str]]:
    """Label and text of what takes more than a number."""
    rows: list[tuple[str, str]] = []
    if "devices" in run.facts:
        rows.append(("Devices", str(run.facts["devices"])))
    if "mesh" in run.facts:
        rows.append(("Mesh", figures.mesh(run.facts["mesh"])))
    if "mfu_convention" in run.facts:
        rows.append(("MFU counts", str(run.facts["mfu_convention"])))
    versions = run.environment.get("versions", {})
    if "python" in run.environment:
        versions = {"python": run.environment["python"], **versions}
    if versions:
        rows.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows


def _table(runs: list[Run]) -> str:
    """One row a run, one column a key figure."""
    figures_of = [{label: (value, unit) for label, value, unit in _key_figures(run)} for run in runs]
    columns: dict[str, str] = {}
    for row in figures_of:
        for label, (_, unit) in row.items():
            columns[label] = columns.get(label) or unit
    # Runs without an evaluation have a training loss instead of a held-out one: the two stand side by side.
    columns = dict(sorted(columns.items(), key=lambda column: not column[0].endswith("loss")))
    head = "".join(f"<th>{label}<small>{escape(unit)}</small></th>" for label, unit in columns.items())
    body = ""
    for index, (run, row) in enumerate(zip(runs, figures_of, strict=True)):
        cells = "".join(f"<td>{escape(row.get(label, ('', ''))[0])}</td>" for label in columns)
        swatch = f'<i class="line" style="--c:var(--{colour_of(index)})"></i>'
        body += f"<tr><th>{swatch}{escape(run.name)}</th>{cells}</tr>"
    conventions = sorted({str(run.facts["mfu_convention"]) for run in runs if "mfu_convention" in run.facts})
    counts = f'<dl class="facts"><div><dt>MFU counts</dt><dd>{escape("; ".join(conventions))}</dd></div></dl>'
    return (
        f'<div class="table"><table><thead><tr><th>Run</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"{counts if conventions else ''}"
    )


def _texts(run: Run, *, alone: bool) -> str:
    """Sample, spikes, events and config of a run."""
    parts: list[str] = []
    if run.result.get("sample"):
        prompt, sample = escape(str(run.result.get("prompt", ""))), escape(str(run.result["sample"]))
        parts.append(f'<h2>A sample of its text</h2><pre class="sample"><b>{prompt}</b>{sample}</pre>')
    if run.spikes:
        parts.append(f"<h2>Loss spikes</h2>{''.join(_spike(spike) for spike in run.spikes)}")
    listed = [event for event in run.events if event["event"] != "evaluated"][-_MAX_LISTED_EVENTS:]
    if listed:
        rows = "".join(_event(event) for event in listed)
        head = "<tr><th>Time (UTC)</th><th>Event</th><th>Attempt</th><th>Step</th></tr>"
        parts.append(
            f'<details><summary>Events</summary><div class="table"><table class="events"><thead>{head}</thead>'
            f"<tbody>{rows}</tbody></table></div></details>"
        )
    if run.config:
        parts.append(f"<details><summary>Config, as asked</summary><pre>{escape(run.config)}</pre></details>")
    if not parts:
        return ""
    title = "" if alone else f"<h2>{escape(run.name)}</h2>"
    return f'<section class="texts">{title}{"".join(parts)}</section>'


def _spike(spike: dict[str, Any]) -> str:
    """What is known of a spike."""
    rose = "; ".join(
        f"{one['signal']} at step {figures.integer(one['step'])}, from {figures.three_digits(one['median'])} to "
        f"{figures.three_digits(one['value'])}"
        for one in spike["signals"]
    )
    rows = "".join(
        f"<tr><td>{figures.integer(one['step'])}</td><td>{figures.three_digits(one['loss'])}</td>"
        f"<td>{escape(one['source'])}</td><td>{escape(', '.join(one['documents'][:2]))}</td>"
        f'<td class="text">{escape(one["text"])}</td></tr>'
        for one in spike["samples"]
    )
    head = "<tr><th>Step</th><th>Loss</th><th>Source</th><th>Documents</th><th>Text</th></tr>"
    began = f"Step {figures.integer(spike['onset'])} ({', '.join(spike['flags'])}): {spike['action']}."
    return (
        f"<p>{escape(began)}</p>{f'<p>First to rise: {escape(rose)}.</p>' if rose else ''}"
        f'<details><summary>Samples with the highest losses</summary><div class="table"><table class="events">'
        f"<thead>{head}</thead><tbody>{rows}</tbody></table></div></details>"
    )


def _event(event: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event["time"]))
    name = escape(str(event["event"]).replace("_", " "))
    return (
        f"<tr><td>{when}</td><td>{name}</td><td>{event['attempt']}</td><td>{figures.integer(event['step'])}</td></tr>"
    )
