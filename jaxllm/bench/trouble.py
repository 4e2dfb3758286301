"""Eight kinds of trouble: what makes a loss spike, put into a run on purpose.

Five belong to a region of samples: a run that skips the region avoids the trouble, one that reads it again meets it
again. One belongs to steps, and comes back whenever they are reached: it is structural, no skipping of data helps. Two
happen once, as a fault of the hardware does.

    repeat         data      one byte over and over
    random         data      bytes drawn at random
    shuffle        data      each sample's targets in another order
    nan            data      gradients that are no numbers, by a weight that is none
    ramp           data      ever more targets replaced by random bytes, from none to all
    learning_rate  steps     30 times the learning rate for 10 steps
    weights        once      noise of 10 times its own size is added to one matrix
    moment         once      Adam's second moment is set to zero

What becomes of a sample is a function of its number and the run's seed alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxllm.data.steps import Range
from jaxllm.layers.param import leaves, nest
from jaxllm.train.state import TrainState
from jaxllm.train.trouble import Trouble

Cause = Literal["data", "steps", "once"]

Row = dict[str, np.ndarray]
"""One sample's arrays, each [T]."""


class Kind(NamedTuple):
    """A kind of trouble.

    Attributes:
        cause: what it belongs to: `data`, `steps`, or `once` for neither.
        length: steps that it lasts in a run of full size.
        text: what happens, for people.
    """

    cause: Cause
    length: int
    text: str


KINDS: Mapping[str, Kind] = {
    "repeat": Kind("data", 40, "one byte over and over"),
    "random": Kind("data", 40, "random bytes"),
    "shuffle": Kind("data", 40, "targets in another order"),
    "nan": Kind("data", 20, "gradients that are no numbers"),
    "ramp": Kind("data", 120, "ever more targets at random"),
    "learning_rate": Kind("steps", 10, "30 times the learning rate"),
    "weights": Kind("once", 1, "noise in one matrix"),
    "moment": Kind("once", 1, "no second moment"),
}

_NUM_BYTES = 256
_REPEATED = ord("\\")
_LEARNING_RATE_FACTOR = 30.0
_NOISE = 10.0
_MATRIX = "period.0.mlp.down"
"""Of its layers the first is disturbed."""


def make(kind: str, first: int, length: int, batch_size: int, seed: int) -> Trouble:
    """The trouble of one run.

    Args:
        kind: of KINDS.
        first: the step, counted from 0, that it begins at.
        length: steps that it lasts.
        batch_size: samples of a step.
        seed: of what is random in it.
    """
    region = Range(first * batch_size, (first + length) * batch_size)
    match kind:
        case "repeat":
            return Repeat(region, seed)
        case "random":
            return RandomBytes(region, seed)
        case "shuffle":
            return Shuffle(region, seed)
        case "nan":
            return NotANumber(region, seed)
        case "ramp":
            return Ramp(region, seed)
        case "learning_rate":
            return LearningRate(first, length)
        case "weights":
            return Weights(first, seed)
        case "moment":
            return Moment(first, seed)
    raise AssertionError(kind)


class Region(Trouble):
    """Spoils the samples of a region.

    Args:
        region: numbers of samples.
        seed: of what is random.
    """

    def __init__(self, region: Range, seed: int) -> None:
        self._region, self._seed = region, seed

    def rows(self, samples: Range, rows: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The rows, those of the region spoiled."""
        inside = range(max(samples.start, self._region.start), min(samples.stop, self._region.stop))
        if not inside:
            return rows
        spoiled = {name: value.copy() for name, value in rows.items()}
        for sample in inside:
            row = {name: value[sample - samples.start] for name, value in spoiled.items() if value.ndim > 1}
            share = (sample - self._region.start + 1) / (self._region.stop - self._region.start)
            self.spoil(row, share, np.random.default_rng((self._seed, sample)))
        return spoiled

    def spoil(self, row: Row, share: float, draw: np.random.Generator) -> None:
        """Change one sample's arrays in place; `share` of the region lies behind it."""
        raise NotImplementedError


class Repeat(Region):
    """One byte over and over: a backslash, as in samples that BLOOM's makers had under suspicion."""

    def spoil(self, row: Row, share: float, draw: np.random.Generator) -> None:
        """See Region."""
        row["tokens"][:] = row["targets"][:] = _REPEATED


class RandomBytes(Region):
    """Text without any pattern."""

    def spoil(self, row: Row, share: float, draw: np.random.Generator) -> None:
        """See Region."""
        drawn = draw.integers(0, _NUM_BYTES, len(row["tokens"]) + 1)
        row["tokens"][:], row["targets"][:] = drawn[:-1], drawn[1:]


class Shuffle(Region):
    """Targets that belong to other tokens of the sample."""

    def spoil(self, row: Row, share: float, draw: np.random.Generator) -> None:
        """See Region."""
        draw.shuffle(row["targets"])


class NotANumber(Region):
    """A loss, and so gradients, that are no numbers."""

    def spoil(self, row: Row, share: float, draw: np.random.Generator) -> None:
        """See Region."""
        row["weights"][0] = np.nan


class Ramp(Region):
    """Targets replaced by random bytes: none at the beginning of the region, all at its end."""

    def spoil(self, row: Row, share: float, draw: np.random.Generator) -> None:
        """See Region."""
        wrong = draw.random(len(row["targets"])) < share
        row["targets"][wrong] = draw.integers(0, _NUM_BYTES, int(wrong.sum()))


class LearningRate(Trouble):
    """A learning rate that is far too high for some steps, whenever they are reached."""

    def __init__(self, first: int, length: int) -> None:
        self._steps = range(first, first + length)

    def learning_rate(self, step: int) -> float:
        """The factor of a step."""
        return _LEARNING_RATE_FACTOR if step in self._steps else 1.0


class Once(Trouble):
    """Disturbs the state before one step, the first time that it is reached.

    Args:
        first: the step.
        seed: of what is random.
    """

    def __init__(self, first: int, seed: int) -> None:
        self._first, self._seed, self._done = first, seed, False

    def state(self, step: int, state: TrainState) -> TrainState:
        """The state, disturbed at its step."""
        if step != self._first or self._done:
            return state
        self._done = True
        return self.disturb(state)

    def disturb(self, state: TrainState) -> TrainState:
        """Another state."""
        raise NotImplementedError


class Weights(Once):
    """Noise in one matrix."""

    def disturb(self, state: TrainState) -> TrainState:
        """See Once."""
        flat = dict(leaves(state.params))
        stacked = np.array(flat[_MATRIX])
        matrix = stacked[0]
        size = _NOISE * np.sqrt(np.mean(np.square(matrix)))
        matrix += size * np.random.default_rng(self._seed).standard_normal(matrix.shape, matrix.dtype)
        flat[_MATRIX] = jax.device_put(stacked, flat[_MATRIX].sharding)
        return replace(state, params=nest(flat))


class Moment(Once):
    """Adam's second moment is lost, so that the next updates are larger than they should be."""

    def disturb(self, state: TrainState) -> TrainState:
        """See Once."""
        adam = state.optimizer["adam"]
        lost = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), adam.nu)
        optimizer = state.optimizer.copy()  # of its own type
        optimizer["adam"] = adam._replace(nu=lost)
        return replace(state, optimizer=optimizer)
