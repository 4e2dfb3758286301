"""A run's directory read for its report."""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from jaxllm.storage import Place, Storage, open_storage
from jaxllm.train.history import dossiers
from jaxllm.train.metrics import METRICS, evaluations, read_events, read_metrics, undone
from jaxllm.train.report.series import Points


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run wrote down.

    Attributes:
        name: of the run; among runs of one name, the directory.
        records: the last attempt's record of each logged step, with `data_share`, the part of its time that the step
            waited for data, where it can be known.
        events: every event of every attempt.
        evaluations: the `evaluated` events that still count.
        facts: of the last `started` or `resumed` event; empty if there is none.
        result: the `finished` event; empty if there is none, or if the run was taken up again.
        config: config.toml as asked; empty if there is none.
        environment: environment.json's entry of the last attempt; empty if there is none.
        undone: (step, loss) of the steps that each rollback has undone.
        spikes: the dossiers of its spikes, in their order.
    """

    name: str
    records: list[dict[str, Any]]
    events: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    facts: dict[str, Any]
    result: dict[str, Any]
    config: str
    environment: dict[str, Any]
    undone: list[Points] = dataclasses.field(default_factory=list)
    spikes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    _points: dict[str, Points] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def last_step(self) -> int:
        """The last logged step."""
        return self.records[-1]["step"]

    @property
    def final_evaluation(self) -> dict[str, Any]:
        """The last evaluation of the held-out split; empty if there was none."""
        return self.held_out[-1] if self.held_out else {}

    @property
    def held_out(self) -> list[dict[str, Any]]:
        """The evaluations of the held-out split."""
        return [event for event in self.evaluations if event.get("set", "held_out") == "held_out"]

    @property
    def seconds(self) -> float:
        """From the first event to the last, pauses between attempts included."""
        return self.events[-1]["time"] - self.events[0]["time"] if self.events else 0.0

    def points(self, field: str) -> Points:
        """(step, value) of the records that hold the field."""
        if field not in self._points:
            held = [(record["step"], record[field]) for record in self.records if record.get(field) is not None]
            self._points[field] = held
        return self._points[field]

    def median(self, field: str) -> float | None:
        """The median of a field's finite values."""
        values = [value for _, value in self.points(field) if math.isfinite(value)]
        return statistics.median(values) if values else None


def load_runs(directories: Sequence[Place]) -> list[Run]:
    """Read the runs, named so that they can be told apart.

    Raises:
        ValueError: a directory holds no run, a run without a step, or a broken file.
    """
    runs = [_load(directory) for directory in directories]
    names = [run.name for run in runs]
    return [
        dataclasses.replace(run, name=str(directory)) if names.count(run.name) > 1 else run
        for run, directory in zip(runs, directories, strict=True)
    ]


def _load(directory: Place) -> Run:
    records, events = read_metrics(directory), read_events(directory)
    if not records:
        raise ValueError(f"{directory}/{METRICS} has no step yet; make the report once a step is logged")
    facts = next((event for event in reversed(events) if event["event"] in ("started", "resumed")), {})
    ends = [event for event in events if event["event"] in ("started", "resumed", "finished")]
    storage = open_storage(directory)
    return Run(
        name=str(facts.get("name") or str(storage).rpartition("/")[2]),
        records=[_with_data_share(record) for record in records],
        events=events,
        evaluations=evaluations(records, events),
        facts=facts,
        result=ends[-1] if ends and ends[-1]["event"] == "finished" else {},
        config=(_content(storage, "config.toml") or b"").decode(errors="replace"),
        environment=_environment(storage),
        undone=[
            [(record["step"], record["loss"]) for record in piece if math.isfinite(record["loss"])]
            for piece in undone(directory, events)
        ],
        spikes=list(dossiers(directory).values()),
    )


def _with_data_share(record: dict[str, Any]) -> dict[str, Any]:
    seconds, waited = record.get("step_seconds"), record.get("data_seconds")
    return record | {"data_share": min(waited / seconds, 1.0)} if seconds and waited is not None else record


def _environment(storage: Storage) -> dict[str, Any]:
    content = _content(storage, "environment.json")
    if content is None:
        return {}
    try:
        entries = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{storage}/environment.json: not JSON ({error}); mend or remove the file") from error
    return entries[-1]


def _content(storage: Storage, name: str) -> bytes | None:
    try:
        return storage.read(name)
    except FileNotFoundError:
        return None
