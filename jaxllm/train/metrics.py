"""What a run writes down: metrics.jsonl and events.jsonl, one JSON object a line, as `lines` writes them.

An unfinished last line is left out by reading, with a warning in the log; any other line that is not a record stops the
reader: nothing is skipped silently.

JSON has no number for what a diverged run logs. Such numbers are written as the strings "NaN", "Infinity" and
"-Infinity" (as protobuf's JSON mapping does), which every JSON parser accepts and Python's `float`, JavaScript's
`Number` and pandas turn into the number. The readers here give floats back. Finite floats are written with the fewest
digits that read back to the same bits.

A record of metrics.jsonl holds `attempt`, `step` and the step's numbers:

    loss, unigram and held-out losses      nats per token
    tokens_per_second, tokens_seen         tokens, over all devices
    step_seconds, data_seconds             seconds of a step; of it, waiting for data
    mfu                                    a fraction, by the convention that the `started` event names
    memory_bytes                           peak of the fullest device
    loss/NAME, tokens/NAME                 of several sources each: its mean loss in the step, and its valid tokens;
                                           absent where it has none
    skipped                                1 where the update was dropped, else 0
    loss_limit                             the loss above which a step is part of a spike
    flags                                  what the guard's rules flagged (see train/guard/rules); absent if nothing
    worst_samples                          beside flags: the samples with the highest losses, each with its loss
    grad_norm/GROUP, update_ratio/GROUP    of the groups embedding, head, norms, attention and mlp: gradient norm, and
                                           update norm over parameter norm
    activation_rms, activation_max,        every `watch.interval` steps, lists with a number a layer, first to last:
    attention_logit_max                    see jaxllm/train/watch
    balance_loss                           of a model with experts: what `train.loss` adds to the loss for routers
    max_violation, router_entropy,         likewise, lists with a number a layer that has experts, first to last: the
    bias_spread, dropped_tokens,           largest load over the mean, less 1; nats; the largest balancing bias less the
    expert_load                            smallest; choices of tokens that no expert counts, 0 as there is no capacity;
                                           and of each layer the list of its experts' loads over the mean
    qk_clipped                             of a step behind which `optim.qk_clip` acts: heads scaled, over all layers

After a kill or a rollback steps repeat under a higher attempt, which makes what earlier attempts logged from its first
step on obsolete. An event holds `time` (unix seconds), `event`, `attempt`, `step` and facts:

    started, resumed     name, parameters, trainable_parameters, init_from ({run, step, digest}), devices (text),
                         mesh ({axis: size}), steps, tokens and phases of the whole run, unigram_entropy (nats per
                         token), mfu_convention (text), directory
    phase                which begins behind the step: phase (from 0), sequence_length, batch_size, shares
                         ({source: share of the samples})
    evaluated            set ("held_out", ...), loss, perplexity, bits_per_byte
    skipped              an update was dropped: flags, samples ([first, last + 1]), loss
    spiked               trouble has lasted: onset (the step where it began), flags, policy
    rolled_back          to the state behind the event's step: from_step, onset, flags, policy, rung, skipped_samples
                         ([first, last + 1]), learning_rate_factor until the step lowered_until
    stopped              by the guard: reason
    finished             loss, perplexity, bits_per_byte, seconds, prompt and sample (text)

Every fact is optional to the readers.
"""

import json
import logging
import math
import time
from collections.abc import Iterable
from typing import Any

from jaxllm.storage import Place
from jaxllm.train.lines import open_lines, read_parts

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
EVENT_NAMES = (
    "started",
    "resumed",
    "compiled",
    "phase",
    "saved",
    "evaluated",
    "skipped",
    "spiked",
    "rolled_back",
    "stopped",
    "preempted",
    "finished",
)

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_log = logging.getLogger(__name__)


class EventLog:
    """A run's events.jsonl."""

    def __init__(self, directory: Place):
        self._lines = open_lines(directory, EVENTS, seconds=1.0)

    def write(self, event: str, *, attempt: int, step: int, **facts: Any) -> dict[str, Any]:
        """Append an event of EVENT_NAMES that happens now, and return it."""
        assert event in EVENT_NAMES, event
        record = {"time": time.time(), "event": event, "attempt": attempt, "step": step, **facts}
        self._lines.write(record)
        return record

    def sync(self) -> None:
        """See `Lines.sync`."""
        self._lines.sync()

    def close(self) -> None:
        """Sync and close."""
        self._lines.close()


def read_metrics(directory: Place, name: str = METRICS) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl (or another process's): the last attempt's record of each step, in their order.

    Raises:
        ValueError: the directory has no such file, or a line of it is not a record.
    """
    records = _read(directory, name, ("attempt", "step"))
    limits = _obsolete_from(records)
    steps = {record["step"]: record for record in records if record["step"] < limits[record["attempt"]]}
    return [steps[step] for step in sorted(steps)]


def undone(directory: Place, events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The records of the steps that rollbacks have undone: for each rollback those of the attempt before it.

    Args:
        directory: of the run.
        events: what `read_events` returned.
    """
    records = _read(directory, METRICS, ("attempt", "step"))
    back = {event["attempt"]: event["step"] for event in events if event["event"] == "rolled_back"}
    pieces = [
        [record for record in records if record["attempt"] == attempt - 1 and record["step"] > step]
        for attempt, step in sorted(back.items())
    ]
    return [piece for piece in pieces if piece]


def read_events(directory: Place) -> list[dict[str, Any]]:
    """Read a run's events.jsonl: every event of every attempt, in the order in which they happened.

    Raises:
        ValueError: the directory has no such file, or a line of it is not an event.
    """
    return _read(directory, EVENTS, ("time", "event", "attempt", "step"))


def evaluations(metrics: list[dict[str, Any]], events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The `evaluated` events that still count, in the order of sets and steps.

    An evaluation is obsolete if a later attempt started below its step (at its step, the later attempt may well have
    started from the very weights that were evaluated) or evaluated the same set at the same step.

    Args:
        metrics: what `read_metrics` returned.
        events: what `read_events` returned.
    """
    evaluated = [event for event in events if event["event"] == "evaluated"]
    limits = _obsolete_from(metrics, {event["attempt"] for event in evaluated})
    points = {
        (event.get("set", "held_out"), event["step"]): event
        for event in sorted(evaluated, key=lambda event: event["attempt"])
        if event["step"] <= limits[event["attempt"]]
    }
    return [points[key] for key in sorted(points)]


def _obsolete_from(records: list[dict[str, Any]], attempts: Iterable[int] = ()) -> dict[int, float]:
    """For each attempt, the lowest step that a later attempt logged; infinity if none did."""
    firsts: dict[int, int] = {}
    for record in records:
        attempt, step = record["attempt"], record["step"]
        firsts[attempt] = min(step, firsts.get(attempt, step))
    return {
        attempt: min((first for later, first in firsts.items() if later > attempt), default=math.inf)
        for attempt in {*firsts, *attempts}
    }


def _read(directory: Place, name: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    records, found = [], False
    for part, content in read_parts(directory, name):
        found, path = True, f"{directory}/{part}"
        *lines, unfinished = content.split(b"\n")
        if unfinished:
            _log.warning("%s ends in an unfinished line of %d bytes, which is left out", path, len(unfinished))
        records += [_record(line, fields, path, number) for number, line in enumerate(lines, start=1)]
    if not found:
        raise ValueError(f"{directory} holds no run: it has no {name}; name a run's directory such as runs/quickstart")
    return records


def _record(line: bytes, fields: tuple[str, ...], path: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error}); remove or mend the line") from error
    if not isinstance(record, dict) or not all(field in record for field in fields):
        raise ValueError(f"{path}, line {number}: not an object with {', '.join(fields)}; remove or mend the line")
    # Few lines hold such strings: the others are spared the walk.
    return floats(record) if b'"NaN"' in line or b'Infinity"' in line else record


def floats(value: Any) -> Any:
    """A decoded JSON value with the numbers that JSON has no form for restored."""
    if isinstance(value, dict):
        return {key: floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [floats(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
