"""What the terminal shows, and what a log file gets instead."""

import io
import re

import pytest
from rich.console import Console as Output

from jaxllm.train.console import Console

FACTS = {
    "name": "quickstart",
    "parameters": 3_412_992,
    "devices": "8 x TPU v5e",
    "mesh": {"pipe": 1, "data": 2, "fsdp": 4},
    "steps": 1000,
    "tokens": 8_192_000,
    "unigram_entropy": 6.1234,
    "mfu_convention": "6 N + 12 L D T FLOPs a token over 197 TFLOP/s",
    "directory": "runs/quickstart",
}


def record(step, **fields):
    known = {"loss": 5.0, "tokens_per_second": 25_600, "mfu": 0.412, "grad_norm": 0.4, "learning_rate": 3e-4}
    return {"step": step, "tokens_seen": step * 8192, **known, **fields}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def plain():
    """A console that writes to a file of 80 columns, its clock, and what it wrote."""
    file, clock = io.StringIO(), Clock()
    return Console(Output(file=file, width=80, highlight=False), clock), clock, file.getvalue


def live(width):
    file, clock = Terminal(), Clock()
    output = Output(file=file, width=width, force_terminal=True, color_system="truecolor", highlight=False)
    return Console(output, clock), clock, file.getvalue


def without_codes(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def run_through(console, name="quickstart"):
    console.start({**FACTS, "name": name})
    for step in range(1, 1001):
        console.step(record(step))
    console.evaluated({"step": 1000, "set": "held_out", "loss": 3.2, "perplexity": 24.5, "bits_per_byte": 0.98})
    console.note("A note about the run that is long enough to need a second line on a terminal of eighty columns.")
    console.finish({"loss": 3.2145, "perplexity": 24.9, "bits_per_byte": 0.987, "seconds": 192, "sample": "x" * 300})


def test_plain_output_has_no_codes_and_keeps_to_the_width(plain):
    console, _, written = plain
    run_through(console, name="a-very-long-name-" * 20)
    assert "\x1b" not in written() and "\r" not in written()
    assert max(len(line) for line in written().splitlines()) <= 80
    assert all(line == line.rstrip() for line in written().splitlines())
    assert "a-very-long-name-" * 20 in written().replace("\n", "")


def test_plain_lines_are_rare_and_show_the_first_and_last_step(plain):
    console, clock, written = plain
    console.start(FACTS)
    for step in range(1, 1001):
        clock.now += 0.5
        console.step(record(step))
    lines = [line for line in written().splitlines() if line.startswith("step ")]
    # 500 seconds: one line in 5 seconds at first, in 10 at the end.
    assert 60 <= len(lines) <= 102
    assert lines[0].startswith("step 1/1,000  loss 5.0000")
    assert lines[-1].startswith("step 1,000/1,000  loss 5.0000")


def test_plain_lines_never_stay_away_longer_than_a_minute(plain):
    console, clock, written = plain
    console.start({**FACTS, "steps": 10**9})
    clock.now = 10**6
    for step in range(1, 122):
        clock.now += 1
        console.step(record(step))
    assert len([line for line in written().splitlines() if line.startswith("step ")]) == 3


def test_the_time_left_follows_the_pace(plain):
    console, clock, written = plain
    console.start(FACTS)
    clock.now = 100.0
    console.step(record(401))
    clock.now = 160.0
    console.step(record(461))
    # The 100 seconds before the first step shown (compiling) do not count: 539 steps at 1 second.
    assert "step 461/1,000  loss 5.0000  8 min 59 s left  25.6 k tokens/s  MFU 41.2 %" in written()


def test_header_and_result_name_what_matters(plain):
    console, _, written = plain
    run_through(console)
    for line in [
        "quickstart",
        "model     3.41 M parameters",
        "devices   8 x TPU v5e",
        "mesh      data 2 x fsdp 4",
        "training  1,000 steps, 8.19 M tokens",
        "MFU       6 N + 12 L D T FLOPs a token over 197 TFLOP/s",
        "files     runs/quickstart",
        "step 1,000  held-out loss 3.2000 nats/token  0.9800 bits/byte  perplexity 24.5",
        "held-out  3.2145 nats/token  0.9870 bits/byte  perplexity 24.9",
        "unigram   6.1234 nats/token  entropy of token frequencies alone",
        "trained   1,000 steps, 8.19 M tokens, 3 min 12 s",
    ]:
        assert line in written().splitlines()


def test_a_step_of_a_model_with_experts_tells_how_full_the_fullest_is_in_the_mean_over_layers(plain):
    console, _, written = plain
    console.start(FACTS)
    console.step({"step": 5, "loss": 5.0, "max_violation": [0.25, 0.75], "learning_rate": 3e-4})
    assert "step 5/1,000  loss 5.0000  MaxVio 0.500  rate 3.00e-4" in written().splitlines()


def test_a_resumed_run_says_so(plain):
    console, _, written = plain
    console.start({**FACTS, "event": "resumed", "attempt": 2, "step": 400})
    assert "resumed   at step 400, as attempt 2" in written().splitlines()


def test_skipped_updates_and_missing_facts(plain):
    console, _, written = plain
    console.start({})
    console.step({"step": 5, "loss": float("nan"), "skipped": 1})
    console.finish({})
    assert "step 5  loss nan  skipped" in written().splitlines()


def test_a_path_stays_on_one_line(plain):
    console, _, written = plain
    console.finish({"report": "/runs/" + "deep/" * 40 + "report.html"})
    assert "report    /runs/" + "deep/" * 40 + "report.html" in written().splitlines()


def test_no_text_commands_the_terminal(plain):
    console, _, written = plain
    console.start({**FACTS, "name": "\x1b]0;owned\x07name"})
    console.note("a\x1b[2Jb\rc\u202ed")
    console.finish({"prompt": "def ", "sample": "f():\r\n\treturn '\x9b31m[bold]中文'\x00"})
    assert not set(written()) & set("\x1b\x07\r\x9b\x00\u202e")
    assert "sample    def f():\n" in written()
    assert "return '\N{REPLACEMENT CHARACTER}31m[bold]中文'" in written()


def test_text_that_the_encoding_lacks_does_not_stop_the_run():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    Console(Output(file=file, width=80)).finish({"sample": "caf\u00e9 中文 \ud800"})
    file.flush()
    assert b"sample    caf? ?? ?" in raw.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_live_line_fits_the_terminal(width):
    console, clock, written = live(width)
    with console:
        console.start(FACTS)
        clock.now = 3.0
        assert console._live is not None
        console._live.refresh()
        console.step(record(1))
        clock.now += 60
        console.step(record(61))
        console._live.refresh()
    frames = re.split(r"\r|\n", without_codes(written()))
    assert any(frame.startswith("compiling the first step, 3 s") for frame in frames)
    bar = next(frame for frame in frames if frame.startswith("61/1,000"))
    assert "loss 5.0000" in bar and "━" * 9 in bar
    assert ("MFU 41.2 %" in bar) == (width >= 80)
    assert max(len(frame) for frame in frames) <= width


def test_the_terminal_gets_its_cursor_back_after_an_error():
    console, _, written = live(80)
    with pytest.raises(RuntimeError), console:
        console.start(FACTS)
        raise RuntimeError
    assert written().rindex("\x1b[?25h") > written().rindex("\x1b[?25l")


def test_forced_colour_in_a_log_file_brings_no_live_line():
    file = io.StringIO()
    console = Console(Output(file=file, width=80, force_terminal=True))
    console.start(FACTS)
    console.step(record(1))
    console.close()
    assert "\x1b[?25l" not in file.getvalue() and "step 1/1,000" in file.getvalue()


def test_a_new_phase_says_what_it_takes():
    output = io.StringIO()
    console = Console(Output(file=output, width=120))
    console.start(FACTS | {"phases": 2})
    facts = {"phase": 1, "sequence_length": 8192, "batch_size": 64, "shares": {"code": 0.75, "books": 0.25}}
    console.phase({"event": "phase", "step": 400, **facts})
    assert "1,000 steps, 8.19 M tokens, 2 phases" in output.getvalue()
    assert (
        "step 400  data.phases.1 begins: 64 samples of 8,192 tokens a step; code 75.0 %, books 25.0 %\n"
        in output.getvalue()
    )
