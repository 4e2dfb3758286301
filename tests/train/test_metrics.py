"""metrics.jsonl and events.jsonl: what is written comes back, whatever happened to the process in between."""

import errno
import json
import logging
import math
import os
import random
import struct

import numpy as np
import pytest

from jaxllm.train.lines import JsonLines
from jaxllm.train.metrics import EVENTS, METRICS, EventLog, evaluations, read_events, read_metrics


def write_metrics(directory, *attempts_and_steps):
    with JsonLines(directory / METRICS) as lines:
        for attempt, step in attempts_and_steps:
            lines.write({"attempt": attempt, "step": step, "loss": attempt + step / 100})


def kept(directory):
    return [(record["attempt"], record["step"]) for record in read_metrics(directory)]


def test_the_last_attempt_of_a_step_is_kept(tmp_path):
    write_metrics(tmp_path, (1, 1), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4))
    assert kept(tmp_path) == [(1, 1), (1, 2), (2, 3), (2, 4)]


def test_an_attempt_makes_obsolete_what_earlier_ones_logged_beyond_its_own_end(tmp_path):
    write_metrics(tmp_path, (1, 1), (1, 2), (1, 3), (1, 4), (2, 3))
    assert kept(tmp_path) == [(1, 1), (1, 2), (2, 3)]


def test_an_attempt_that_a_later_one_went_behind_disappears(tmp_path):
    write_metrics(tmp_path, (1, 10), (1, 20), (1, 30), (2, 25), (2, 35), (3, 20))
    assert kept(tmp_path) == [(1, 10), (3, 20)]


def test_steps_come_in_order_and_a_step_once(tmp_path):
    write_metrics(tmp_path, (1, 1), (1, 2), (3, 3), (2, 2), (3, 4))
    assert kept(tmp_path) == [(1, 1), (2, 2), (3, 3), (3, 4)]


def test_losses_come_back_bit_for_bit(tmp_path):
    generator = random.Random(0)
    floats32 = [np.float32(generator.uniform(0, 12)) for _ in range(500)]
    floats64 = [struct.unpack("d", generator.randbytes(8))[0] for _ in range(500)]
    with JsonLines(tmp_path / METRICS) as lines:
        for step, (single, double) in enumerate(zip(floats32, floats64, strict=True)):
            lines.write({"attempt": 1, "step": step, "single": single, "double": double})
    records = read_metrics(tmp_path)
    assert [np.float32(record["single"]).tobytes() for record in records] == [x.tobytes() for x in floats32]
    for record, double in zip(records, floats64, strict=True):
        assert record["double"] == double or (math.isnan(record["double"]) and math.isnan(double))


def test_numbers_that_json_lacks_are_strings_on_disk_and_floats_again_when_read(tmp_path):
    with JsonLines(tmp_path / METRICS) as lines:
        lines.write({"attempt": 1, "step": 1, "loss": math.nan, "norms": [np.float32(np.inf), {"low": -math.inf}]})
    text = (tmp_path / METRICS).read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(text, parse_constant=refuse)["norms"] == ["Infinity", {"low": "-Infinity"}]
    (record,) = read_metrics(tmp_path)
    assert math.isnan(record["loss"])
    assert record["norms"] == [math.inf, {"low": -math.inf}]


def test_arrays_and_any_text_are_written(tmp_path):
    texts = ["中文", "a\nb\u2028c\x00", "lone \ud800 surrogate", "</script>"]
    with JsonLines(tmp_path / METRICS) as lines:
        lines.write({"attempt": 1, "step": np.int64(7), "skipped": np.bool_(True), "cursor": (0, 5), "texts": texts})
    assert (tmp_path / METRICS).read_bytes().count(b"\n") == 1
    assert "中文" in (tmp_path / METRICS).read_text(encoding="utf-8")
    assert read_metrics(tmp_path) == [{"attempt": 1, "step": 7, "skipped": True, "cursor": [0, 5], "texts": texts}]


@pytest.mark.parametrize("torn", [b'{"attempt": 1, "st', b'{"attempt": 1, "step": 3}', b"x" * 200_000])
def test_a_torn_last_line_is_left_out_loudly_and_cut_off_on_reopening(tmp_path, torn, caplog):
    write_metrics(tmp_path, (1, 1), (1, 2))
    path = tmp_path / METRICS
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with caplog.at_level(logging.WARNING):
        assert kept(tmp_path) == [(1, 1), (1, 2)]
    assert f"{len(torn)} bytes" in caplog.text
    JsonLines(path).close()
    assert path.read_bytes() == whole
    write_metrics(tmp_path, (2, 3))
    assert kept(tmp_path) == [(1, 1), (1, 2), (2, 3)]


def test_a_file_of_nothing_but_a_torn_line_starts_anew(tmp_path):
    (tmp_path / METRICS).write_bytes(b'{"attempt"')
    write_metrics(tmp_path, (1, 1))
    assert kept(tmp_path) == [(1, 1)]


def test_a_line_is_on_disk_before_the_writer_closes(tmp_path):
    lines = JsonLines(tmp_path / METRICS)
    lines.write({"attempt": 1, "step": 1})
    assert kept(tmp_path) == [(1, 1)]
    lines.close()


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"attempt": 1}', ""])
def test_a_broken_line_in_the_middle_is_named(tmp_path, line):
    (tmp_path / METRICS).write_text('{"attempt": 1, "step": 1}\n' + line + '\n{"attempt": 1, "step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not .*mend the line"):
        read_metrics(tmp_path)


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run: it has no metrics.jsonl"):
        read_metrics(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run: it has no events.jsonl"):
        read_events(tmp_path)


def test_events_keep_their_time_order_and_facts(tmp_path, monkeypatch):
    clock = iter([1000.5, 1001.25])
    monkeypatch.setattr("jaxllm.train.metrics.time.time", lambda: next(clock))
    log = EventLog(tmp_path)
    started = log.write("started", attempt=1, step=0, mesh={"data": 2})
    log.write("saved", attempt=1, step=10)
    log.close()
    assert started == {"time": 1000.5, "event": "started", "attempt": 1, "step": 0, "mesh": {"data": 2}}
    assert read_events(tmp_path) == [started, {"time": 1001.25, "event": "saved", "attempt": 1, "step": 10}]
    assert (tmp_path / EVENTS).read_text().count("\n") == 2


def test_an_unknown_event_is_a_bug(tmp_path):
    log = EventLog(tmp_path)
    with pytest.raises(AssertionError, match="finnished"):
        log.write("finnished", attempt=1, step=0)
    log.close()


def test_evaluations_of_steps_that_were_run_again_are_left_out(tmp_path):
    write_metrics(tmp_path, (1, 10), (1, 20), (1, 30), (2, 20), (2, 30))
    log = EventLog(tmp_path)
    for attempt, step, name in [(1, 10, "held_out"), (1, 20, "held_out"), (1, 30, "held_out"), (2, 20, "code")]:
        log.write("evaluated", attempt=attempt, step=step, set=name, loss=attempt + step / 100)
    log.write("evaluated", attempt=2, step=20, set="held_out", loss=2.2)
    # Attempt 2 may have started from the very state that attempt 1 evaluated here.
    log.write("evaluated", attempt=1, step=20, set="math", loss=1.2)
    log.close()
    counted = evaluations(read_metrics(tmp_path), read_events(tmp_path))
    assert [(event["set"], event["step"], event["attempt"]) for event in counted] == [
        ("code", 20, 2),
        ("held_out", 10, 1),
        ("held_out", 20, 2),
        ("math", 20, 1),
    ]


def test_an_evaluation_counts_before_its_attempt_logs_a_step(tmp_path):
    write_metrics(tmp_path, (1, 1), (1, 2))
    log = EventLog(tmp_path)
    log.write("evaluated", attempt=2, step=2, loss=3.0)
    log.close()
    assert [event["loss"] for event in evaluations(read_metrics(tmp_path), read_events(tmp_path))] == [3.0]


def test_a_full_disk_keeps_lines_waiting_and_tears_none(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    write, room = os.write, [10_000]

    def narrow(descriptor, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(descriptor, bytes(data)[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr("os.write", narrow)
    with JsonLines(path) as lines:
        lines.write({"step": 1})
        room[0] = 4  # the next line begins, and cannot end
        lines.write({"step": 2})
        lines.write({"step": 3})
        assert path.read_text() == '{"step": 1}\n'
        room[0] = 10_000
        lines.write({"step": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert [record.message.split(": ")[-1] for record in caplog.records] == [
        "No space left on device; what belongs there waits in memory",
        f"{path} can be written again, and what waited is there",
    ]
