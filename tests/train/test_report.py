"""The report: the maths of its curves, what it shows, and that a run's text stays text."""

import base64
import hashlib
import html.parser
import json
import math
import random
import re
import xml.etree.ElementTree

import pytest

from jaxllm.train import figures
from jaxllm.train.lines import JsonLines
from jaxllm.train.metrics import METRICS, EventLog
from jaxllm.train.report import write_loss_picture, write_report
from jaxllm.train.report.chart import Chart, Curve, Mark, draw, tick_label
from jaxllm.train.report.charts import loss_top
from jaxllm.train.report.series import Axis, Points, interpolate, quantile, smooth, thin, ticks

VOID = {"meta", "br"}
ATTACK = "</script></pre><script>alert(1)</script><img src=x onerror=alert(1)> \"'& ]]> <!--"
FACTS = {
    "parameters": 124_475_904,
    "devices": "8 x H100",
    "mesh": {"data": 2, "fsdp": 4, "tensor": 1},
    "unigram_entropy": 7.6721,
    "mfu_convention": "6 N + 12 L D T",
}


class Page(html.parser.HTMLParser):
    """A parsed page: balanced tags, the text of each kind of element, and every tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.tags = [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag] = self.texts.get(tag, "") + data

    def attributes(self, tag, name):
        return [attrs[name] for found, attrs in self.tags if found == tag and name in attrs]


def make_run(directory, num_steps=300, *, name="small-run", tokens_per_step=1000, losses=None, sample="once upon"):
    generator = random.Random(0)
    losses = losses or [3 + 6 / (1 + step / 20) + generator.gauss(0, 0.05) for step in range(num_steps)]
    with JsonLines(directory / METRICS) as lines:
        for step, loss in enumerate(losses, start=1):
            record = {"attempt": 0, "step": step, "loss": loss, "grad_norm": 0.5, "learning_rate": 3e-4}
            record |= {"tokens_seen": step * tokens_per_step, "tokens_per_second": 2.1e6, "mfu": 0.421}
            lines.write(record | {"memory_bytes": 61 * 2**30})
    log = EventLog(directory)
    log.write("started", attempt=0, step=0, name=name, steps=len(losses), **FACTS)
    log.write("spiked", attempt=0, step=num_steps // 2)
    log.write("saved", attempt=0, step=num_steps // 2)
    quality = {"loss": 3.3456, "perplexity": 28.4, "bits_per_byte": 1.1234}
    log.write("evaluated", attempt=0, step=num_steps, set="held_out", **quality)
    log.write("finished", attempt=0, step=num_steps, prompt="It was ", sample=sample, **quality)
    log.close()
    (directory / "config.toml").write_text('[run]\nname = "small-run"\n')
    environment = [{"python": "3.11"}, {"python": "3.12.3", "versions": {"jax": "0.12.1"}}]
    (directory / "environment.json").write_text(json.dumps(environment))
    return directory


def report(tmp_path, *runs):
    out = tmp_path / "out" / "report.html"
    write_report(list(runs), out)
    return out.read_text(encoding="utf-8")


def test_the_report_holds_the_figures(tmp_path):
    page = Page(report(tmp_path, make_run(tmp_path / "run")))
    assert page.texts["h1"] == "small-run"
    for figure in ["3.3456", "1.1234", "7.6721", "124 M", "300 k", "2.10 M", "42.1 %", "data 2 x fsdp 4", "8 x H100"]:
        assert figure in page.texts["dd"]
    assert "6 N + 12 L D T" in page.texts["dd"] and "python 3.12.3, jax 0.12.1" in page.texts["dd"]
    assert "finished, step 300 of 300" in page.texts["p"]
    for title in ["Loss", "Gradient norm", "Learning rate", "Throughput", "Memory"]:
        assert title in page.texts["h2"]
    assert "unigram entropy 7.67" in page.texts["span"] and "spiked" in page.texts["span"]
    assert page.texts["pre"] == 'It was once upon[run]\nname = "small-run"\n'
    assert "spiked" in page.texts["td"]


def test_the_report_needs_nothing_from_outside(tmp_path):
    text = report(tmp_path, make_run(tmp_path / "run"))
    page = Page(text)
    assert not {"link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not page.attributes("script", "src") and "@import" not in text and "url(" not in text
    (policy,) = page.attributes("meta", "content")[:1]
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_text_of_a_run_never_becomes_markup(tmp_path):
    run = make_run(tmp_path / "run", name=ATTACK, sample=ATTACK)
    (run / "config.toml").write_text(f"# {ATTACK}\n")
    (run / "environment.json").write_text(json.dumps([{"versions": {ATTACK: ATTACK}}]))
    other = make_run(tmp_path / "other", name=f"{ATTACK} 2")
    for runs in [(run,), (run, other)]:
        page = Page(report(tmp_path, *runs))
        assert [attrs for tag, attrs in page.tags if tag == "script"] == [
            {"type": "application/json", "id": "data"},
            {},
        ]
        assert "img" not in {tag for tag, _ in page.tags}
        assert ATTACK in page.texts["pre"] and ATTACK in page.texts["h1" if len(runs) == 1 else "th"]
        assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_the_read_outs_are_json_of_the_logged_numbers(tmp_path):
    losses = [5.0, 4.5, math.nan, 4.0]
    text = report(tmp_path, make_run(tmp_path / "run", 4, losses=losses))
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    curve = json.loads(found[1])["loss"]["curves"][0]
    assert curve == {"x": [1, 2, 3, 4], "y": [5.0, 4.5, None, 4.0]}
    assert "1 step without a finite loss, the first 3." in Page(text).texts["p"]


def test_a_spike_beyond_the_picture_is_named(tmp_path):
    losses = [8.0 - step / 100 for step in range(200)]
    losses[150] = 500.0
    run = make_run(tmp_path / "run", 200, losses=losses)
    assert "1 step above 12.00 cut off, the highest 500 at step 151." in Page(report(tmp_path, run)).texts["p"]
    write_loss_picture(run, tmp_path / "loss.svg")
    assert ">500 at step 151<" in (tmp_path / "loss.svg").read_text()


def test_several_runs_lie_over_each_other(tmp_path):
    runs = [make_run(tmp_path / name, 300, name=name) for name in ("one", "two")]
    page = Page(report(tmp_path, *runs))
    assert page.texts["h1"] == "2 runs"
    assert "one" in page.texts["th"] and "two" in page.texts["th"] and page.texts["td"].count("3.3456") == 2
    colours = {style for style in page.attributes("path", "style")}
    assert {"--c:var(--run-0)", "--c:var(--run-1)"} <= colours
    assert page.texts["dd"] == "6 N + 12 L D T"
    # Both runs see as many tokens a step: one axis serves for both.
    assert "Loss by tokens" not in page.texts["h2"]


def test_runs_of_other_batch_sizes_are_also_shown_by_tokens(tmp_path):
    runs = [make_run(tmp_path / str(size), name=f"batch-{size}", tokens_per_step=size) for size in (1000, 4000)]
    assert "Loss by tokens" in Page(report(tmp_path, *runs)).texts["h2"]


def test_sources_have_a_chart_and_a_new_phase_one_mark_a_chart(tmp_path):
    run = make_run(tmp_path / "run")
    with JsonLines(run / METRICS) as lines:
        for step in range(301, 401):
            part = {"loss/code": 2.5} if step < 350 else {"loss/books": 3.5}
            lines.write({"attempt": 0, "step": step, "loss": 3.0, **part})
    log = EventLog(run)
    for attempt in (0, 1):
        log.write("phase", attempt=attempt, step=350, phase=1)
    log.close()
    page = Page(report(tmp_path, run))
    assert "Loss by source" in page.texts["h2"] and "code 2.5000" in page.texts["li"]
    assert page.texts["span"].count("new phase") == 2, "in each of the two wide charts"
    both = Page(report(tmp_path, run, make_run(tmp_path / "other")))
    assert "Loss by source" not in both.texts["h2"]
    assert "Loss by source" not in Page(report(tmp_path, tmp_path / "other")).texts["h2"]


def test_groups_and_layers_have_charts_that_name_the_largest_layer(tmp_path):
    run = make_run(tmp_path / "run")
    groups = {"grad_norm/embedding": 0.25, "grad_norm/mlp": 4.0, "update_ratio/mlp": 1e-3}
    layers = [1.0, 7.0, 3.0]
    with JsonLines(run / METRICS) as lines:
        for step in range(301, 401):
            watched = {"attention_logit_max": [step * value / 100 for value in layers]} if step % 50 == 0 else {}
            lines.write({"attempt": 0, "step": step, "loss": 3.0, **groups, **watched})
        lines.write({"attempt": 0, "step": 401, "loss": 3.0, "activation_max": [1.0, math.nan, 2.0]})
    page = Page(report(tmp_path, run))
    for title in ("Gradient norm by group", "Size of an update by group", "Largest attention logit"):
        assert title in page.texts["h2"]
    assert "Activations" not in page.texts["h2"], "no step tells of them"
    for curve in ("embedding 0.250", "mlp 4.00", "mlp 0.00100", "largest 28.0", "median 12.0", "smallest 4.00"):
        assert curve in page.texts["li"], curve
    assert "At step 400 the largest is that of layer 1 of 0 to 2." in page.texts["p"]
    assert "At step 401 the largest is that of layer 1 of 0 to 2." in page.texts["p"], "no number is the worst"
    assert len(set(page.attributes("figure", "data-chart"))) == len(page.attributes("figure", "data-chart"))
    both = Page(report(tmp_path, run, make_run(tmp_path / "other")))
    assert "by group" not in both.texts["h2"]


def test_runs_of_one_name_are_told_apart_by_directory(tmp_path):
    page = Page(report(tmp_path, make_run(tmp_path / "first"), make_run(tmp_path / "second")))
    assert str(tmp_path / "first") in page.texts["th"] and str(tmp_path / "second") in page.texts["th"]


def test_a_run_of_one_bare_step_has_a_report_and_a_picture(tmp_path):
    with JsonLines(tmp_path / METRICS) as lines:
        lines.write({"attempt": 0, "step": 1, "loss": math.nan})
    EventLog(tmp_path).close()
    page = Page(report(tmp_path, tmp_path))
    assert page.texts["h1"] == tmp_path.name and "not finished, step 1" in page.texts["p"]
    write_loss_picture(tmp_path, tmp_path / "loss.svg")
    xml.etree.ElementTree.parse(tmp_path / "loss.svg")


def test_a_directory_without_steps_is_named_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run"):
        write_report([tmp_path], tmp_path / "report.html")
    JsonLines(tmp_path / METRICS).close()
    EventLog(tmp_path).close()
    with pytest.raises(ValueError, match=r"metrics\.jsonl has no step yet; make the report once a step is logged"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_long_run_makes_a_small_file_that_shows_its_spike(tmp_path):
    losses = [3.0 + 0.1 * math.sin(step) for step in range(6000)]
    losses[4321] = 4.4321
    run = make_run(tmp_path / "run", 6000, losses=losses)
    text = report(tmp_path, run)
    assert len(text.encode()) < 300_000
    assert "4.4321" in text
    write_loss_picture(run, tmp_path / "loss.svg")
    assert (tmp_path / "loss.svg").stat().st_size < 100_000


def test_the_picture_is_an_svg_of_points_and_baseline(tmp_path):
    run = make_run(tmp_path / "run", name="a <b> & c")
    write_loss_picture(run, tmp_path / "pictures" / "loss.svg")
    root = xml.etree.ElementTree.parse(tmp_path / "pictures" / "loss.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{space}title") == "Training loss of a <b> & c, 300 steps"
    # One in the legend, one a held-out point.
    assert len(root.findall(f"{space}circle")) == 2
    texts = [element.text for element in root.iter(f"{space}text")]
    assert "unigram entropy 7.67: token frequencies alone" in texts
    assert "held-out, 3.3456 at the end" in texts
    assert {"Loss, nats per token", "step", "tokens", "100", "100 k"} <= set(texts)


@pytest.mark.parametrize("spike", [-50.0, 50.0])
def test_thinning_keeps_a_spike_of_one_step(spike):
    points: Points = [(step, math.cos(step / 100)) for step in range(100_000)]
    points[77_777] = (77_777, spike)
    kept = thin(points, Axis(0, 100_000), 500)
    assert (77_777, spike) in kept and len(kept) <= 2 * 500 + 2
    assert kept[0] == points[0] and kept[-1] == points[-1] and kept == sorted(kept)


def test_thinning_keeps_the_extremes_of_each_column_and_gaps():
    points: Points = [(step, float(step % 10)) for step in range(1000)]
    points[300:400] = [(step, math.nan) for step in range(300, 400)]
    kept = thin(points, Axis(0, 1000), 10)
    for column in range(10):
        values = [y for x, y in kept if 100 * column <= x < 100 * (column + 1)]
        if column == 3:
            assert len(values) == 1 and math.isnan(values[0])
        else:
            assert (min(values), max(values)) == (0, 9)


def test_few_points_are_left_as_they_are():
    points: Points = [(1, 2.0), (2, math.nan), (5, 1.0)]
    assert thin(points, Axis(0, 5), 2) is points


def test_smoothing_keeps_the_start_averages_the_middle_and_does_not_lag():
    line: Points = [(step, 5.0 - step) for step in range(101)]
    smoothed = smooth(line, 11)
    assert [y for _, y in smoothed[:96]] == pytest.approx([y for _, y in line[:96]])
    # At the end the window has only its left half: the mean of the last six.
    assert smoothed[-1][1] == pytest.approx(-95.0 + 2.5)
    spiked = smooth([(0, 1.0), (1, 1.0), (2, 10.0), (3, math.nan), (4, 1.0)], 3)
    assert [y for _, y in spiked] == pytest.approx([1.0, 4.0, 5.5, 5.5, 1.0])
    assert math.isnan(smooth([(0, math.nan)], 3)[0][1])


def test_the_loss_axis_leaves_room_for_spikes_but_not_for_any():
    calm: Points = [(step, 4.0) for step in range(1000)]
    assert loss_top(calm, []) == 4.0
    assert loss_top([*calm, (1000, 5.5)], []) == 5.5
    assert loss_top([*calm, (1000, 500.0)], []) == 6.0
    assert loss_top([*calm, (1000, 500.0)], [10.0]) == 15.0
    assert loss_top([(0, math.nan)], []) == 0.0


@pytest.mark.parametrize(
    ("axis", "num", "expected"),
    [
        (Axis(0, 19_560), 10, [0, 2000, 4000, 6000, 8000, 10_000, 12_000, 14_000, 16_000, 18_000]),
        (Axis(2.9, 3.3), 5, [2.9, 3.0, 3.1, 3.2, 3.3]),
        (Axis(0, 6e-4), 5, [0, 2e-4, 4e-4, 6e-4]),
        (Axis(0.15, 18, log=True), 5, [0.3, 1, 3, 10]),
        (Axis(1e-4, 1e4, log=True), 5, [1e-4, 1e-2, 1, 1e2, 1e4]),
        (Axis(2.1, 2.4, log=True), 5, [2.1, 2.4]),
    ],
)
def test_ticks_are_round(axis, num, expected):
    assert ticks(axis, num) == pytest.approx(expected, rel=1e-12)


def test_interpolation_and_quantiles():
    points = [(0.0, 0.0), (10.0, 100.0), (20.0, 400.0)]
    assert [interpolate(points, x) for x in (-5, 0, 5, 15, 20, 99)] == [0, 0, 50, 250, 400, 400]
    assert [quantile([3.0, 1.0, 2.0, 4.0], share) for share in (0.0, 0.25, 0.5, 1.0)] == [1, 1, 2, 4]


def test_labels_of_marks_do_not_overlap_and_their_lines_stay():
    marks = [Mark(500 + index, "resumed", "resumed") for index in range(5)] + [Mark(2000, "spiked", "spiked")]
    text = draw(Chart("loss", "Loss", "nats", Axis(0, 2000), Axis(0, 1), [], marks=marks, wide=True))
    labels = re.findall(r'<span class="mark (\w+)" style="(left:[\d.]+%|right:0);--row:(\d)">', text)
    assert [(kind, row) for kind, _, row in labels] == [("resumed", str(row)) for row in range(3)] + [("spiked", "0")]
    assert labels[-1][1] == "right:0"
    (lines,) = re.findall(r'<path class="mark resumed" d="([^"]*)"', text)
    assert lines.count("M") == 5


def test_a_curve_breaks_at_gaps_and_lies_on_the_edge_beyond_the_plot():
    points: Points = [(0, 0.0), (1, 5.0), (2, math.nan), (3, 0.5), (4, math.inf)]
    text = draw(Chart("k", "t", "u", Axis(0, 4), Axis(0, 1), [Curve("c", points, "run-0")]))
    assert 'd="M0 1000h0L500 0M1500 500h0"' in text


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (0.5, "loss", "0.5"),
        (5e-4, "three_digits", "5e-4"),
        (0, "count", "0"),
        (2e6, "count", "2 M"),
        (10, "loss", "10"),
    ],
)
def test_tick_labels_are_short(value, form, text):
    assert tick_label(value, form) == text


def test_figures_read_well():
    counts = [0, 5, 12.5, 999.7, 26_000, 999_499, 999_500, 124_475_904, 1.2e13, math.inf]
    expected = ["0", "5", "12.5", "1.00 k", "26.0 k", "999 k", "1.00 M", "124 M", "12.0 T", "inf"]
    assert [figures.count(value) for value in counts] == expected
    digits = [0.0, 9.999, 24.96, 31_415.9, 0.00314, 3e-4, 2.5e7, math.nan]
    expected = ["0", "10.0", "25.0", "31,416", "0.00314", "3.00e-4", "2.50e7", "nan"]
    assert [figures.three_digits(value) for value in digits] == expected
    seconds = [0.4, 59.6, 192, 3599.7, 7620, 273_600]
    expected = ["0 s", "1 min 00 s", "3 min 12 s", "1 h 00 min", "2 h 07 min", "3 d 04 h"]
    assert [figures.duration(value) for value in seconds] == expected
    assert figures.mesh({"pipe": 1, "data": 1}) == "one device"
