"""The run told to other services: TensorBoard, Weights & Biases, SwanLab.

Training metrics go under `train/`, those of an evaluation under its set's name, all other events under `events/` as
text. What is wrong with a service never stops a run: it is said once, and training goes on.

Steps that repeat, after a kill or a rollback, replace what was logged before them as far as the service can:

    tensorboard   a restart is marked, from which its readers drop what was logged of that step and later ones
    wandb         its own step only counts up, so ours is a number like the others, and the axis of all charts; both
                  attempts are drawn, and `train/attempt` tells them apart
    swanlab       keeps the first value of a step; what a process repeats is left out, as it would only warn about it

W&B and SwanLab know the run by a random name kept in its directory, so a resumed run goes on in its charts, even from
another machine. Mode, project and keys are their own environment's: WANDB_MODE=offline, SWANLAB_MODE=offline.
"""

import importlib.util
import math
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxllm.storage import Place, Storage, is_url, open_storage

_RUN_ID = "run_id.txt"
_PROJECT = "jaxllm"
_NOT_FACTS = ("time", "event", "attempt", "step", "set")


class Logger(Protocol):
    """A service that can be told of a run. Any method may raise anything."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step, by names such as `train/loss`; NaN and infinity among them."""
        ...

    def event(self, step: int, kind: str, text: str) -> None:
        """Something that happened at a step."""
        ...

    def close(self) -> None:
        """Hand over what is left."""
        ...


def check_loggers(names: Iterable[str], directory: Place) -> None:
    """Refuse services that cannot work, before a run has cost anything.

    Args:
        names: of LogConfig.loggers.
        directory: of the run.

    Raises:
        ValueError: naming the first whose package is missing, or that cannot write where the run is.
    """
    for name in names:
        if name == "tensorboard" and is_url(directory):
            raise ValueError(
                f"log.loggers: tensorboard appends to files, which {directory} cannot; leave it out (`jaxllm report` "
                "draws the run), or use a local run.directory"
            )
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"log.loggers: {name} is not installed; uv sync --extra loggers (or pip install 'jaxllm[loggers]')"
            )


class Loggers:
    """All services that a run tells. Nothing here raises.

    Args:
        names: of LogConfig.loggers.
        directory: of the run.
        run: its name.
        config: the experiment as a tree of plain values.
        say: told what fails, once a service.
    """

    def __init__(
        self, names: Iterable[str], directory: Place, run: str, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._say, self._failed = say, set[str]()
        self._loggers: dict[str, Logger] = {}
        for name in names:
            self._try(name, lambda name=name: self._loggers.update({name: _open(name, directory, run, config)}))

    def step(self, record: Mapping[str, Any]) -> None:
        """A record of metrics.jsonl; of a list of numbers, one a layer, the largest."""
        scalars = {name: _largest(value) if _is_list(value) else value for name, value in record.items()}
        numbers = {f"train/{name}": float(value) for name, value in scalars.items() if _is_number(value)}
        del numbers["train/step"]
        for name, logger in self._loggers.items():
            self._try(name, lambda logger=logger: logger.log(record["step"], numbers))

    def event(self, record: Mapping[str, Any]) -> None:
        """A record of events.jsonl."""
        facts = {name: value for name, value in record.items() if name not in _NOT_FACTS}
        step, kind = record["step"], record["event"]
        if kind == "evaluated":
            numbers = {f"{record['set']}/{name}": float(value) for name, value in facts.items() if _is_number(value)}
            for name, logger in self._loggers.items():
                self._try(name, lambda logger=logger: logger.log(step, numbers))
            return
        # Two spaces at the end of a line are Markdown's line break.
        text = "  \n".join([f"{kind} at step {step}", *(f"{name}: {value}" for name, value in facts.items())])
        for name, logger in self._loggers.items():
            self._try(name, lambda logger=logger: logger.event(step, f"events/{kind}", text))

    def close(self) -> None:
        """Hand over what is left."""
        for name, logger in self._loggers.items():
            self._try(name, logger.close)
        self._loggers = {}

    def _try(self, name: str, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception as error:  # whatever a service raises, the training is worth more
            if name not in self._failed:
                self._failed.add(name)
                what = f"{type(error).__name__}: {error}".splitlines()[0]
                self._say(f"log.loggers: {name} failed ({what}); the run goes on, and its own files hold everything")


def _open(name: str, directory: Place, run: str, config: Mapping[str, Any]) -> Logger:
    """A service, and where on the disk it may keep its own files."""
    local = Path(tempfile.mkdtemp(prefix="jaxllm-")) if is_url(directory) else Path(directory)
    if name == "tensorboard":
        return _TensorBoard(local / "tensorboard")
    service = {"wandb": _WandB, "swanlab": _SwanLab}[name]
    return service(local, run, _run_id(open_storage(directory)), config)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _largest(values: list[float]) -> float:
    """NaN if any of them is."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def _run_id(storage: Storage) -> str:
    """21 lowercase letters and digits (as SwanLab wants them) that stay with the run."""
    storage.create(_RUN_ID, secrets.token_hex(11)[:21].encode())
    return storage.read(_RUN_ID).decode()


class _TensorBoard:
    """Event files, one an attempt, written through at every call; needs the `tensorboard` package alone."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # pyright: ignore[reportMissingImports]
        from tensorboard.summary.writer.record_writer import RecordWriter  # pyright: ignore[reportMissingImports]

        self._event: Any = event_pb2
        self._summary: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
        directory.mkdir(parents=True, exist_ok=True)
        # Readers take the files of a directory in the order of their names, and look for this beginning.
        name = f"events.out.tfevents.{time.time_ns():019d}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(open(directory / name, "xb", buffering=0))  # noqa: SIM115
        self._write(file_version="brain.Event:2")
        self._last: dict[str, int] | None = None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Logger.log`."""
        if self._last is None or any(step <= self._last.get(name, -1) for name in numbers):
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._write(step=step, session_log=start)
            self._last = {}
        self._last |= dict.fromkeys(numbers, step)
        self._write_values(step, [{"tag": name, "simple_value": value} for name, value in numbers.items()])

    def event(self, step: int, kind: str, text: str) -> None:
        """See `Logger.event`."""
        content = [text.encode("utf-8", "replace")]
        tensor = {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": 1}]}, "string_val": content}
        plugin = {"plugin_data": {"plugin_name": "text"}}
        self._write_values(step, [{"tag": kind, "metadata": plugin, "tensor": tensor}])

    def close(self) -> None:
        """See `Logger.close`."""
        self._writer.close()

    def _write_values(self, step: int, values: list[dict[str, Any]]) -> None:
        self._write(step=step, summary=self._summary(value=[self._summary.Value(**value) for value in values]))

    def _write(self, **content: Any) -> None:
        self._writer.write(self._event.Event(wall_time=time.time(), **content).SerializeToString())


class _WandB:
    def __init__(self, directory: Path, run: str, run_id: str, config: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            id=run_id,
            name=run,
            resume="allow",
            dir=str(directory),
            config=dict(config),
            allow_val_change=True,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Logger.log`."""
        self._run.log({"step": step, **numbers})

    def event(self, step: int, kind: str, text: str) -> None:
        """See `Logger.event`."""
        self._run.log({"step": step, kind: text})

    def close(self) -> None:
        """See `Logger.close`."""
        self._run.finish()


class _SwanLab:
    def __init__(self, directory: Path, run: str, run_id: str, config: Mapping[str, Any]) -> None:
        import swanlab  # pyright: ignore[reportMissingImports]

        (directory / "swanlab").mkdir(exist_ok=True)
        swanlab.init(
            project=os.environ.get("SWANLAB_PROJ_NAME") or _PROJECT,
            id=run_id,
            experiment_name=run,
            resume="allow",
            logdir=str(directory / "swanlab"),
            config=dict(config),
        )
        self._swanlab = swanlab
        self._last: dict[str, int] = {}

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Logger.log`. What is not finite is left out: a chart that begins so stays broken."""
        self._log(step, {name: value for name, value in numbers.items() if math.isfinite(value)})

    def event(self, step: int, kind: str, text: str) -> None:
        """See `Logger.event`."""
        self._log(step, {kind: self._swanlab.Text(text)})

    def close(self) -> None:
        """See `Logger.close`."""
        self._swanlab.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        fresh = {name: value for name, value in values.items() if step > self._last.get(name, -1)}
        if fresh:
            self._last |= dict.fromkeys(fresh, step)
            self._swanlab.log(fresh, step=step)
