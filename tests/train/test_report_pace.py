"""What the report shows of stalls, slow processes, evaluation sets and events."""

import re
from typing import Any

import pytest

from jaxllm.train.lines import JsonLines
from jaxllm.train.metrics import METRICS, EventLog
from jaxllm.train.report import write_report
from jaxllm.train.report.charts import build
from jaxllm.train.report.pace import slow_steps
from jaxllm.train.report.runs import load_runs
from tests.train.test_report import Page


def make_run(directory, seconds, *, attempts=(), waits=None, extra=None, events=(), evaluations=(), name="run"):
    """A run with a record a step, `seconds` long; `attempts` are the steps that later ones begin with."""
    with JsonLines(directory / METRICS) as lines:
        for step, one in enumerate(seconds, start=1):
            record = {"attempt": sum(step >= first for first in attempts), "step": step, "loss": 5 - step / 100}
            record |= {"step_seconds": one, "tokens_per_second": 1000 / one, "tokens_seen": step * 1000}
            record |= {"data_seconds": waits[step - 1]} if waits else {}
            lines.write(record | (extra(step) if extra else {}))
    log = EventLog(directory)
    log.write("started", attempt=0, step=0, name=name)
    for event, step in events:
        log.write(event, attempt=0, step=step)
    for set_name, step, loss in evaluations:
        log.write("evaluated", attempt=len(attempts), step=step, set=set_name, loss=loss)
    log.close()
    return directory


def chart(key, *directories) -> Any:
    return next((one for one in build(load_runs(list(directories))) if one.key == key), None)


def page(tmp_path, *directories) -> Page:
    write_report(list(directories), tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_slow_steps_are_marked_and_counted(tmp_path):
    seconds, waits = [1.0] * 100, [0.01] * 100
    seconds[0] = seconds[59] = 90.0  # compilation, at the start and after a resume
    seconds[20], waits[20] = 2.5, 2.0
    seconds[30], seconds[31] = 41.0, 1.9
    run = make_run(tmp_path / "run", seconds, waits=waits, attempts=(60,))
    throughput = chart("tokens_per_second", run)
    assert throughput.curves[1].points == [(21, 400.0), (31, 1000 / 41)] and throughput.curves[1].kind == "dots"
    assert throughput.notes == [
        "Slow: 2 steps beyond twice the median of 1.00 s, 42 s lost; the longest, 41.0 s, at step 31. "
        "1 of them mostly waited for data."
    ]


def test_an_even_run_has_no_slow_steps(tmp_path):
    run = make_run(tmp_path / "run", [1.0, 1.2, 1.9] * 10)
    assert chart("tokens_per_second", run).notes == [] and len(chart("tokens_per_second", run).curves) == 1
    assert chart("data_share", run) is None


def test_a_run_that_logged_no_seconds_has_no_slow_steps(tmp_path):
    with JsonLines(tmp_path / METRICS) as lines:
        lines.write({"attempt": 0, "step": 1, "loss": 1.0, "tokens_per_second": 10.0})
    EventLog(tmp_path).close()
    (run,) = load_runs([tmp_path])
    assert slow_steps(run) == []


@pytest.mark.parametrize(("waited", "share", "top"), [(0.01, 1.0, 10.0), (0.5, 50.0, 50.0), (3.0, 100.0, 100.0)])
def test_waiting_for_data_is_a_share_on_a_calm_scale(tmp_path, waited, share, top):
    waiting = chart("data_share", make_run(tmp_path / "run", [1.0] * 20, waits=[waited] * 20))
    assert waiting.curves[0].points[-1] == (20, pytest.approx(share))
    assert waiting.y.low == 0.0 and top <= waiting.y.high <= 1.1 * top


def test_the_slowest_processes_are_named(tmp_path):
    def extra(step: int) -> dict:
        return {"slowest_process": 3 if step % 4 else 1, "slowest_data_seconds": 0.1}

    run = make_run(tmp_path / "run", [1.0] * 20, extra=extra)
    assert chart("slowest_data_seconds", run).notes == [
        "The slowest was process 1 in 25.0 %, process 3 in 75.0 % of the steps."
    ]
    assert chart("slowest_step_seconds", run) is None
    assert "Slowest process to get data" in page(tmp_path, run).texts["h2"]


def test_each_evaluation_set_has_a_curve(tmp_path):
    evaluations = [("prose", 10, 4.0), ("code", 10, 3.0), ("held_out", 10, 3.5), ("prose", 20, 3.9)]
    run = make_run(tmp_path / "run", [1.0] * 20, evaluations=evaluations)
    curves = {one.label: one for one in chart("evaluation", run).curves if one.label}
    assert {label: one.points for label, one in curves.items()} == {
        "code": [(10, 3.0)],
        "all together": [(10, 3.5)],
        "prose": [(10, 4.0), (20, 3.9)],
    }
    assert len({one.colour for one in curves.values()}) == 3
    other = make_run(tmp_path / "other", [1.0] * 20, evaluations=[("prose", 20, 3.0)], name="other")
    assert chart("evaluation", run, other) is None
    titles = page(tmp_path, run, other).texts["h2"]
    assert "Evaluation on prose" in titles and "Evaluation on code" in titles and "held_out" not in titles


def test_one_set_is_in_the_loss_chart_only(tmp_path):
    run = make_run(tmp_path / "run", [1.0] * 20, evaluations=[("held_out", 10, 4.0)])
    assert chart("evaluation", run) is None
    assert chart("loss", run).curves[-1].points == [(10, 4.0)]


def test_the_later_chart_holds_all_of_its_held_out_points(tmp_path):
    evaluations = [("held_out", step, 1.0 + step / 100) for step in range(40, 201, 40)]
    later = chart("later", make_run(tmp_path / "run", [1.0] * 200, evaluations=evaluations))
    assert later.y.low < 1.4 and later.y.high > 4.5


def test_the_legend_says_how_events_are_drawn_and_how_many_there_are(tmp_path):
    kinds = ["saved", "preempted", "resumed", "skipped", "spiked", "rolled_back"]
    events = [(kind, 5 + index) for index, kind in enumerate(kinds)] + [("saved", 12), ("saved", 14)]
    run = make_run(tmp_path / "run", [1.0] * 20, events=events)
    write_report([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    # The loss chart's is the only one: the small charts draw events the same way.
    (legend,) = re.findall(r'<ul class="legend events">(.*?)</ul>', text)
    assert re.findall(r'<i class="mark (\w+)"></i>([^<]*)', legend) == [
        ("saved", "checkpoint saved, 3 times"),
        ("preempted", "preempted"),
        ("resumed", "resumed"),
        ("skipped", "update skipped"),
        ("spiked", "spiked"),
        ("rolled_back", "rolled back"),
    ]
    assert all(f'<path class="mark {kind}"' in text for kind in kinds)
