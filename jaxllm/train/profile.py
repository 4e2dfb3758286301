"""A trace of some steps, for TensorBoard's profiler or Perfetto (ui.perfetto.dev): `profile.start`, `profile.steps`."""

import shutil
import tempfile
from pathlib import Path

import jax

from jaxllm.config import ProfileConfig
from jaxllm.storage import LocalStorage, Storage

_DIRECTORY = "profile"


class Profile:
    """Traces the steps that the config names, each process its own devices, into RUN/profile.

    Args:
        config: which steps.
        run: its files.
    """

    def __init__(self, config: ProfileConfig, run: Storage) -> None:
        self._config, self._run = config, run
        self._place = Path()
        self._tracing = False

    def before(self, step: int) -> None:
        """To be called before a step, counted from 0, is dispatched."""
        if self._tracing and step >= self._config.start + self._config.steps:
            self.stop()
        elif step == self._config.start and self._config.steps:
            if isinstance(self._run, LocalStorage):
                self._place = self._run.path(_DIRECTORY)
            else:
                self._place = Path(tempfile.mkdtemp(prefix="jaxllm-"))
            jax.profiler.start_trace(str(self._place))
            self._tracing = True

    def stop(self) -> None:
        """End the trace, if there is one."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            if not isinstance(self._run, LocalStorage):
                self._bring()

    def _bring(self) -> None:
        """Move a trace from the local disk to where the run is."""
        for path in [path for path in self._place.rglob("*") if path.is_file()]:
            self._run.write(f"{_DIRECTORY}/{path.relative_to(self._place).as_posix()}", path.read_bytes())
        shutil.rmtree(self._place)
