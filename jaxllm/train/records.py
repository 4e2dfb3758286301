"""Which process writes which of a run's records.

Process 0 writes metrics.jsonl and events.jsonl and tells the loggers; with `log.all_processes` each process writes its
own metrics.N.jsonl as well, process 0 included.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxllm.config import LogConfig
from jaxllm.storage import Place
from jaxllm.train.lines import open_lines
from jaxllm.train.loggers import Loggers
from jaxllm.train.metrics import METRICS, EventLog


class Records:
    """Writes one attempt's records.

    Args:
        directory: of the run.
        attempt: stands in every record.
        config: which loggers, and whether every process writes its metrics.
        tree: the experiment as plain values, for the loggers.
        say: told, once a logger, what fails.
    """

    def __init__(
        self, directory: Place, attempt: int, config: LogConfig, tree: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self.attempt = attempt
        first, process = jax.process_index() == 0, jax.process_index()
        names = [METRICS] * first + [f"metrics.{process}.jsonl"] * config.all_processes
        self._metrics = [open_lines(directory, name) for name in names]
        self._events = EventLog(directory) if first else None
        self._loggers = Loggers(config.loggers if first else (), directory, str(tree["run"]["name"]), tree, say)

    def step(self, record: Mapping[str, Any]) -> None:
        """Append a step's record."""
        for lines in self._metrics:
            lines.write(record)
        self._loggers.step(record)

    def event(self, event: str, step: int, **facts: Any) -> dict[str, Any]:
        """Append an event, and return what it says."""
        if self._events is None:
            return {"event": event, "attempt": self.attempt, "step": step, **facts}
        record = self._events.write(event, attempt=self.attempt, step=step, **facts)
        self._loggers.event(record)
        return record

    def sync(self) -> None:
        """Return when all records would survive a loss of power. From any thread.

        Raises:
            OSError: an object store does not take them.
        """
        for lines in [*self._metrics, *([self._events] if self._events else [])]:
            lines.sync()

    def close(self) -> None:
        """Sync and close."""
        for lines in self._metrics:
            lines.close()
        if self._events is not None:
            self._events.close()
        self._loggers.close()
