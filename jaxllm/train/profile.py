"""A trace of some steps, for TensorBoard's profiler or Perfetto (ui.perfetto.dev): `profile.start`, `profile.steps`."""

from pathlib import Path

import jax

from jaxllm.config import ProfileConfig


class Profile:
    """Traces the steps that the config names, each process its own devices, into RUN/profile.

    Args:
        config: which steps.
        directory: of the run.
    """

    def __init__(self, config: ProfileConfig, directory: Path) -> None:
        self._config, self._directory = config, directory / "profile"
        self._tracing = False

    def before(self, step: int) -> None:
        """To be called before a step, counted from 0, is dispatched."""
        if self._tracing and step >= self._config.start + self._config.steps:
            self.stop()
        elif step == self._config.start and self._config.steps:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True

    def stop(self) -> None:
        """End the trace, if there is one."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
