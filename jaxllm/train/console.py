"""What a person sees of a run while it trains.

On a terminal: a header, one live line at the bottom, and above it a line for each evaluation and note. Elsewhere (a
pipe, a log file, continuous integration) plain lines without escape codes: one in 5 seconds at first, rarer as the run
grows older, at least one a minute. All of it goes to standard output, since `jaxllm train` prints nothing else there;
libraries' warnings go to standard error.

MaxVio is how far the fullest expert of a layer is above the mean: its load over theirs, less 1; the mean over layers.

Text that comes from outside (samples, names, notes) loses its control characters, so that no sample can move the
cursor or change the terminal's state. Long names are folded; a path stays on one line, to be copied.

The fields of facts and records are those of metrics.jsonl and events.jsonl: see jaxllm/train/metrics.py. Every field
but a record's step and loss may be absent.
"""

import statistics
import time
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console as Output
from rich.console import ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxllm.train import figures

_ACCENT = "cyan"
_LABEL_WIDTH = 10
_MIN_BAR_WIDTH = 10
_REFRESHES_PER_SECOND = 4

# Seconds between plain lines: a share of the run's age, within limits.
_SHORTEST_GAP, _LONGEST_GAP, _GAP_SHARE = 5.0, 60.0, 0.02

# They reverse the text around them, line ends of the terminal's own text included.
_DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Console:
    """Shows one attempt of a run. As a context manager it leaves the terminal as it found it, whatever happens.

    Args:
        output: where to; standard output by default.
        clock: seconds.
        quiet: show nothing, as all processes of a run but the first do.
    """

    def __init__(
        self, output: Output | None = None, clock: Callable[[], float] = time.monotonic, quiet: bool = False
    ) -> None:
        self._output = output or Output(highlight=False, quiet=quiet)
        self._clock = clock
        self._progress = _Progress({}, clock)
        self._printed = clock()
        self._live: Live | None = None

    def start(self, facts: Mapping[str, Any]) -> None:
        """Show the header, and the live line where there is a terminal. Takes the `started` event's facts."""
        self._progress = _Progress(facts, self._clock)
        self._row("", Text(self._clean(str(facts.get("name", ""))), style="bold"), indent=0)
        self._rows(_header(facts))
        if "directory" in facts:
            self._path("files", facts["directory"])
        self._output.print()
        # rich takes FORCE_COLOR for a terminal, and continuous integration sets it: ask the file itself too.
        if not self._output.quiet and self._output.is_interactive and self._output.file.isatty():
            progress = self._progress
            self._live = Live(
                get_renderable=lambda: _LiveLine(progress),
                console=self._output,
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=True,
            )
            self._live.start()

    def step(self, record: Mapping[str, Any]) -> None:
        """Show a logged step: a record of metrics.jsonl."""
        progress, now = self._progress, self._clock()
        first = progress.record is None
        progress.advance(record)
        gap = min(max(_SHORTEST_GAP, _GAP_SHARE * (now - progress.began)), _LONGEST_GAP)
        due = first or progress.fraction == 1.0 or now - self._printed >= gap
        if self._live is None and due:
            self._printed = now
            line = _fit([f"step {progress.position}", *progress.readings()], self._output.width)
            self._output.print(Text(line, no_wrap=True, overflow="crop"))

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Show an evaluation: the facts of an `evaluated` event."""
        name = str(record.get("set", "held_out")).replace("_", "-")
        step = f"step {figures.integer(record['step'])}  "
        self._row(step, Text(self._clean(f"{name} loss {_quality(record)}")), indent=len(step))

    def phase(self, record: Mapping[str, Any]) -> None:
        """Show that a phase begins: the facts of a `phase` event."""
        step = f"step {figures.integer(record['step'])}  "
        shares = ", ".join(f"{name} {figures.percent(share)}" for name, share in record["shares"].items())
        text = (
            f"data.phases.{record['phase']} begins: {figures.integer(record['batch_size'])} samples of "
            f"{figures.integer(record['sequence_length'])} tokens a step; {shares}"
        )
        self._row(step, Text(self._clean(text)), indent=len(step))

    def note(self, text: str) -> None:
        """Show one sentence about the run."""
        self._row("", Text(self._clean(text)), indent=0)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Take the live line away and show the result: the `finished` event's facts, and `report`, a path."""
        self.close()
        self._output.print()
        self._rows(_summary({**self._progress.facts, **facts}, self._progress.record or {}))
        if facts.get("sample"):
            self._row(
                "sample",
                Text(self._clean(str(facts.get("prompt", ""))), style="bold").append(
                    self._clean(str(facts["sample"])), style="not bold"
                ),
            )
        if "report" in facts:
            self._path("report", facts["report"])

    def close(self) -> None:
        """Take the live line away; the console can still print."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, rows: list[tuple[str, str]]) -> None:
        for label, value in rows:
            self._row(label, Text(self._clean(value)))

    def _row(self, label: str, value: Text, indent: int = _LABEL_WIDTH) -> None:
        """Print a label and, beside it, a text of any number of lines, without spaces at their ends."""
        lines = value.wrap(self._output, max(self._output.width - indent, 1), overflow="fold", tab_size=4)
        for index, line in enumerate(lines):
            line.rstrip()
            self._output.print(Text((label if index == 0 else "").ljust(indent), style="dim") + line)

    def _path(self, label: str, path: object) -> None:
        line = Text(label.ljust(_LABEL_WIDTH), style="dim").append(self._clean(str(path)), style="not dim")
        self._output.print(line, soft_wrap=True)

    def _clean(self, text: str) -> str:
        """The text without what would command the terminal and what its encoding cannot hold."""
        encoding = self._output.encoding
        shown = "".join("\N{REPLACEMENT CHARACTER}" if _commands(c) else c for c in text.replace("\r\n", "\n"))
        return shown.encode(encoding, "replace").decode(encoding)


class _Progress:
    """How far the run is, and how fast."""

    def __init__(self, facts: Mapping[str, Any], clock: Callable[[], float]):
        self.facts = facts
        self.began = clock()
        self.record: Mapping[str, Any] | None = None
        self._clock = clock
        self._first_step, self._first_time = 0, self.began

    def advance(self, record: Mapping[str, Any]) -> None:
        if self.record is None:
            self._first_step, self._first_time = record["step"], self._clock()
        self.record = record

    @property
    def position(self) -> str:
        """The step, of how many."""
        assert self.record is not None
        steps = self.facts.get("steps")
        return figures.integer(self.record["step"]) + (f"/{figures.integer(steps)}" if steps else "")

    @property
    def fraction(self) -> float:
        """Share of the run that is done; 0 where the number of steps is unknown."""
        assert self.record is not None
        steps = self.facts.get("steps")
        return min(self.record["step"] / steps, 1.0) if steps else 0.0

    @property
    def waiting(self) -> str:
        """What there is to say before the first step."""
        return f"compiling the first step, {figures.duration(self._clock() - self.began)}"

    def readings(self) -> list[str]:
        """The numbers of the last record, the most important first."""
        assert self.record is not None
        record = self.record
        parts = [f"loss {figures.loss(record['loss'])}"]
        if record.get("skipped"):
            parts.append("skipped")
        if (left := self._seconds_left()) is not None:
            parts.append(f"{figures.duration(left)} left")
        if "tokens_per_second" in record:
            parts.append(f"{figures.count(record['tokens_per_second'])} tokens/s")
        if "mfu" in record:
            parts.append(f"MFU {figures.percent(record['mfu'])}")
        if "grad_norm" in record:
            parts.append(f"gradient norm {figures.three_digits(record['grad_norm'])}")
        if "max_violation" in record:
            parts.append(f"MaxVio {figures.three_digits(statistics.fmean(record['max_violation']))}")
        if "learning_rate" in record:
            parts.append(f"rate {figures.three_digits(record['learning_rate'])}")
        return parts

    def _seconds_left(self) -> float | None:
        """By the mean pace since the first step of this attempt, evaluations and saves included."""
        assert self.record is not None
        steps, done = self.facts.get("steps"), self.record["step"] - self._first_step
        if not steps or done <= 0 or self.record["step"] >= steps:
            return None
        return (steps - self.record["step"]) * (self._clock() - self._first_time) / done


class _LiveLine:
    """The live line, made anew at each refresh; where the terminal is narrow, its last parts go first."""

    def __init__(self, progress: _Progress):
        self._progress = progress

    def __rich_console__(self, console: Output, options: ConsoleOptions) -> RenderResult:
        progress = self._progress
        if progress.record is None:
            yield Text(progress.waiting, style="dim", no_wrap=True, overflow="ellipsis")
            return
        position = progress.position
        readings = _fit(progress.readings(), options.max_width - len(position) - _MIN_BAR_WIDTH - 4)
        grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        bar = ProgressBar(total=1.0, completed=progress.fraction, complete_style=_ACCENT, finished_style=_ACCENT)
        grid.add_row(Text(position), bar, Text(readings))
        yield grid


def _fit(parts: list[str], width: int) -> str:
    """As many parts, from the first on, as fit into the width; the first always."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += "  " + part
    return line


def _header(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if "parameters" in facts:
        rows.append(("model", _size(facts)))
    if "init_from" in facts:
        rows.append(("from", "{run}, step {step}".format(**facts["init_from"])))
    if "devices" in facts:
        rows.append(("devices", str(facts["devices"])))
    if "mesh" in facts:
        rows.append(("mesh", figures.mesh(facts["mesh"])))
    if "pipeline_bubble" in facts:
        rows.append(("bubble", f"{facts['pipeline_bubble']:.1%} of the ideal time: (pipe - 1) / train.accumulate"))
    length = [f"{figures.integer(facts['steps'])} steps"] if "steps" in facts else []
    length += [f"{figures.count(facts['tokens'])} tokens"] if "tokens" in facts else []
    length += [f"{facts['phases']} phases"] if facts.get("phases", 1) > 1 else []
    if length:
        rows.append(("training", ", ".join(length)))
    if facts.get("event") == "resumed":
        rows.append(("resumed", f"at step {figures.integer(facts['step'])}, as attempt {facts['attempt']}"))
    if "unigram_entropy" in facts:
        rows.append(("unigram", _baseline(facts)))
    if "mfu_convention" in facts:
        rows.append(("MFU", str(facts["mfu_convention"])))
    return rows


def _size(facts: Mapping[str, Any]) -> str:
    """Parameters, and how many of them are trained where not all are."""
    total = facts["parameters"]
    trained = facts.get("trainable_parameters", total)
    only = f", {figures.count(trained)} of them trained" if trained < total else ""
    return f"{figures.count(total)} parameters{only}"


def _summary(facts: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if "loss" in facts:
        rows.append(("held-out", _quality(facts)))
    if "unigram_entropy" in facts:
        rows.append(("unigram", _baseline(facts)))
    trained = [f"{figures.integer(record['step'])} steps"] if "step" in record else []
    trained += [f"{figures.count(record['tokens_seen'])} tokens"] if "tokens_seen" in record else []
    trained += [figures.duration(facts["seconds"])] if "seconds" in facts else []
    if trained:
        rows.append(("trained", ", ".join(trained)))
    return rows


def _quality(facts: Mapping[str, Any]) -> str:
    """An evaluation's numbers."""
    parts = [f"{figures.loss(facts['loss'])} nats/token"]
    if "bits_per_byte" in facts:
        parts.append(f"{figures.loss(facts['bits_per_byte'])} bits/byte")
    if "perplexity" in facts:
        parts.append(f"perplexity {figures.three_digits(facts['perplexity'])}")
    return "  ".join(parts)


def _baseline(facts: Mapping[str, Any]) -> str:
    """The loss of a model that knows nothing but how often each token occurs."""
    return f"{figures.loss(facts['unigram_entropy'])} nats/token  entropy of token frequencies alone"


def _commands(character: str) -> bool:
    """Whether a terminal would obey the character instead of showing it."""
    control = unicodedata.category(character) == "Cc" and character not in "\n\t"
    return control or character in _DIRECTION_MARKS
