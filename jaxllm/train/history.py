"""What happened to a run, as lines for people: its events, each spike with its dossier, and its checkpoints."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from jaxllm.storage import Place, open_storage
from jaxllm.train import figures
from jaxllm.train.catalogue import Catalogue
from jaxllm.train.directory import CHECKPOINTS, CONFIG
from jaxllm.train.metrics import floats, read_events

_WIDTH = 100
"""Characters of a dossier's text on one line."""


def dossiers(directory: Place) -> dict[str, dict[str, Any]]:
    """The dossiers of a run's spikes by the names that its events give them; damaged ones are left out."""
    found = {}
    for event in read_events(directory):
        name = event.get("dossier")
        if event["event"] == "spiked" and isinstance(name, str):
            try:
                found[name] = floats(json.loads(open_storage(directory).read(name)))
            except (OSError, ValueError):
                continue
    return found


def events(directory: Place) -> str:
    """A run's events, one line each, and below each spike what is known of it.

    Raises:
        ValueError: the directory holds no run.
    """
    known = dossiers(directory)
    lines = []
    for event in read_events(directory):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event["time"]))
        what = f"{when}  attempt {event['attempt']}  step {figures.integer(event['step']):>9}  {event['event']:<12}"
        lines.append(f"{what}{sentence(event)}".rstrip())
        if event.get("dossier") in known:
            lines += [f"    {line}" for line in _dossier(known[event["dossier"]])]
    return "\n".join(lines)


def sentence(event: Mapping[str, Any]) -> str:
    """What an event says beside its name and step."""
    name = event["event"]
    if name == "evaluated":
        return f"{event.get('set', 'held_out')}: loss {figures.loss(event['loss'])}"
    if name == "saved":
        return f"{figures.gibibytes(event['bytes'])} in {event['seconds']:.1f} s"
    if name == "skipped":
        first, stop = event["samples"]
        return f"update dropped ({', '.join(event['flags'])}): loss {event['loss']:.4g}, samples {first} to {stop - 1}"
    if name == "spiked":
        return f"from step {figures.integer(event['onset'])} ({', '.join(event['flags'])}): {event.get('action', '')}"
    if name == "rolled_back":
        return f"from step {figures.integer(event['from_step'])}, {event['policy']}, rung {event['rung']}"
    if name == "stopped":
        return str(event["reason"])
    if name == "phase":
        return f"data.phases.{event['phase']} begins"
    if name == "compiled":
        return f"{'taken from' if event['taken'] else 'kept in'} {event['compilation_cache']}"
    if name == "preempted":
        return str(event.get("signal", ""))
    if name == "finished":
        return f"loss {figures.loss(event['loss'])}"
    return ""


def checkpoints(directory: Place) -> str:
    """A run's checkpoints, the newest first, one line each.

    Raises:
        ValueError: the directory holds no run.
    """
    storage = open_storage(directory)
    if CONFIG not in storage.list(CONFIG):  # a merged run has no events
        raise ValueError(
            f"{directory} holds no run: it has no {CONFIG}; name a run's directory such as runs/quickstart"
        )
    lines = []
    for entry in Catalogue(storage.below(CHECKPOINTS)).entries():
        worth = "good" if entry.good else "not yet good"
        if entry.quarantine or entry.damage:
            worth = f"quarantined: {entry.quarantine}" if entry.quarantine else f"damaged: {entry.damage}"
        lines.append(f"step {figures.integer(entry.step):>9}  attempt {entry.attempt}  {worth}  {entry.place}")
    return "\n".join(lines) or "no finished checkpoint"


def _dossier(found: Mapping[str, Any]) -> Iterator[str]:
    """What is known of a spike."""
    if found["signals"]:
        rose = (
            f"{one['signal']} at step {one['step']} ({one['median']:.3g} to {one['value']:.3g})"
            for one in found["signals"]
        )
        yield f"first to rise: {', '.join(rose)}"
    for one in found["samples"]:
        loss = one["loss"]
        documents = ", ".join(one["documents"][:2]) + (" ..." if len(one["documents"]) > 2 else "")
        yield (
            f"sample {one['sample']} of step {one['step']}, loss {loss if math.isnan(loss) else f'{loss:.4g}'}: "
            f"{one['source']}, {documents}"
        )
        yield f"    {shown(one['text'])[:_WIDTH]}"


def shown(text: str) -> str:
    """A text on one line, with nothing that moves a cursor."""
    return "".join(character if character.isprintable() else " " for character in text)
