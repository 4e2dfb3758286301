"""A place where a benchmark or a test can disturb a run on purpose, and nobody else: no config leads here.

What happens to rows can belong to samples, so that skipping them avoids it; to a step, so that it comes back with it;
or to the moment, so that it happens once.
"""

from collections.abc import Mapping

import numpy as np

from jaxllm.data.steps import Range
from jaxllm.train.state import TrainState


class Trouble:
    """Changes nothing; subclasses do. Each method sees a run just before a step is dispatched."""

    def rows(self, samples: Range, rows: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The rows of a batch that this process reads; `samples` are their numbers."""
        del samples
        return rows

    def learning_rate(self, step: int) -> float:
        """A factor of a step's learning rate; steps count from 0."""
        del step
        return 1.0

    def state(self, step: int, state: TrainState) -> TrainState:
        """The state that a step starts from; steps count from 0."""
        del step
        return state
