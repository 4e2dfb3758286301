"""Epochs: in what order the samples of one source come, over all the phases of a run.

A source's stream of N tokens (see packing) is cut into units of U tokens, where U is the least common multiple of all
phases' sequence lengths: whatever its length T, a phase reads a unit as U / T bins. An epoch is a sequence of all
units: the whole ones permuted by a key of seed, source and epoch, then the rest of the stream, if there is one. A
position in this sequence means the same in every phase, so a phase goes on where the one before it stopped, and no
token comes twice before its epoch ends.

The bins of a unit are neighbours, often of one document, and should not be in one batch. So a phase reads w units, a
window, at a time: first the first bin of each, then the second of each, and so on; two neighbours are w samples apart.
What is left of the units that a phase has begun when it ends is not read in that epoch: less than a window.
"""

import functools
from typing import NamedTuple

import numpy as np

from jaxllm.data.order import Permutation


class Position(NamedTuple):
    """Before the unit that comes next: the epoch, and the units of it that are done; both from 0."""

    epoch: int
    unit: int


class Walk:
    """The samples of a source in one phase.

    Args:
        num_tokens: N, 1 or more.
        unit: U, a multiple of the length.
        length: T.
        window: w, usually a batch's samples.
        start: where the phase before stopped.
        key: of the order, such as a seed and the source; None keeps the stream's own order.
    """

    def __init__(
        self, num_tokens: int, unit: int, length: int, window: int, start: Position, key: tuple[int, ...] | None
    ):
        self._parts = unit // length
        self._num_whole = num_tokens // unit
        self._num_units = -(-num_tokens // unit)
        self._num_bins = -(-num_tokens // length)
        self._window = window if key is not None and self._parts > 1 else 1
        self._start = start
        self._key = key

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The epochs and the bins of samples, counted from the phase's first: int64[n] of each, from int64[n]."""
        epochs, first, part, place = self._find(samples)
        units = first + place
        shuffled = (units < self._num_whole) & (self._key is not None)
        for epoch in np.unique(epochs[shuffled]).tolist():
            inside = shuffled & (epochs == epoch)
            units[inside] = _permutation(self._num_whole, *(self._key or ()), epoch)(units[inside])
        return epochs, units * self._parts + part

    def end(self, num_samples: int) -> Position:
        """Where the phase stops after so many samples: before the first unit that it has read nothing of."""
        if not num_samples:
            return self._start
        epochs, first, part, place = (int(found[0]) for found in self._find(np.array([num_samples - 1])))
        width = min(self._window, self._num_units - first)
        unit = first + (place + 1 if part == 0 else width)
        return Position(epochs, unit) if unit < self._num_units else Position(epochs + 1, 0)

    def _find(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Epoch, first unit of the window, part (which bin of its unit) and place in the window, of each sample."""
        parts = self._parts
        epochs, bins = np.divmod(samples + self._start.unit * parts, self._num_bins)
        base = np.where(epochs == 0, self._start.unit, 0)  # windows begin where the phase does
        windows, inside = np.divmod(bins - base * parts, self._window * parts)
        first = base + windows * self._window
        width = np.minimum(self._window, self._num_units - first)
        # The stream's rest, the last unit, has fewer bins: beyond these the window is narrower by one.
        common = self._num_bins - (self._num_units - 1) * parts
        full = np.where(first + width == self._num_units, common, parts)
        beyond = inside >= full * width
        inside = inside - np.where(beyond, full * width, 0)
        width = np.maximum(width - beyond, 1)
        part = np.where(beyond, full, 0) + inside // width
        return epochs + self._start.epoch, first, part, inside % width


_permutation = functools.lru_cache(maxsize=64)(Permutation)
"""Of each source the same one or two epochs are asked for again and again."""
