"""Steps: which samples each step of a run reads, as a function of phases and skipped ranges.

The samples of a run are numbered from 0, phase after phase; what a sample holds never depends on what is skipped. A
step reads as many as its phase's batches have, the next that no range leaves out; what is left before a range or a
phase's end and does not fill a batch is left out too. So a phase in which something is skipped has fewer steps, and the
run's last phase, which goes on without end, has as many more.
"""

import bisect
from collections.abc import Iterable
from typing import NamedTuple

from jaxllm.config import DataConfig, PhaseConfig


class Range(NamedTuple):
    """Samples from `start` on, `stop` not among them."""

    start: int
    stop: int


class _Stretch(NamedTuple):
    """Steps whose batches follow each other without a gap: the first's number, its first sample, and the phase."""

    step: int
    sample: int
    phase: int


class Steps:
    """The steps of a run.

    Args:
        config: phases.
        skipped: ranges that no step reads; they may overlap.
    """

    def __init__(self, config: DataConfig, skipped: Iterable[Range] = ()):
        self._phases = config.phases
        self.skipped = union(skipped)
        self._stretches: list[_Stretch] = []
        step = first = 0
        for index, phase in enumerate(config.phases):
            end = first + phase.num_steps * phase.batch_size if index + 1 < len(config.phases) else None
            for start, stop in _kept(first, end, self.skipped):
                num_steps = (stop - start) // phase.batch_size if stop is not None else 1
                if num_steps:
                    self._stretches.append(_Stretch(step, start, index))
                step += num_steps
            first = end or 0

    def phase(self, step: int) -> int:
        """The phase of a step, both counted from 0."""
        return self._stretch(step).phase

    def is_border(self, step: int) -> bool:
        """Whether another phase than the step before's begins at a step."""
        return step > 0 and self.phase(step) != self.phase(step - 1)

    def cursor(self, step: int) -> int:
        """The first sample of a step's batch."""
        stretch = self._stretch(step)
        return stretch.sample + (step - stretch.step) * self._phases[stretch.phase].batch_size

    def samples(self, step: int) -> Range:
        """The samples of a step's batch."""
        cursor = self.cursor(step)
        return Range(cursor, cursor + self._phases[self.phase(step)].batch_size)

    def num_tokens(self, num_steps: int) -> int:
        """Tokens of the first so many steps."""
        borders = [*(stretch.step for stretch in self._stretches[1:]), num_steps]
        return sum(
            max(min(border, num_steps) - stretch.step, 0) * _tokens(self._phases[stretch.phase])
            for stretch, border in zip(self._stretches, borders, strict=True)
        )

    def num_steps(self, start: int, tokens: int) -> int:
        """Steps from one on that have so many tokens, or a little more."""
        step = start
        while tokens > 0:
            index = self._index(step)
            each, last = _tokens(self._phases[self._stretches[index].phase]), index + 1 == len(self._stretches)
            needed = -(-tokens // each)
            taken = needed if last else min(needed, self._stretches[index + 1].step - step)
            step, tokens = step + taken, tokens - taken * each
        return step - start

    def _index(self, step: int) -> int:
        return bisect.bisect_right(self._stretches, step, key=lambda stretch: stretch.step) - 1

    def _stretch(self, step: int) -> _Stretch:
        return self._stretches[self._index(step)]


def union(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same samples as ranges that neither touch nor overlap, in their order."""
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1].stop:
            merged[-1] = Range(merged[-1].start, max(stop, merged[-1].stop))
        else:
            merged.append(Range(start, stop))
    return tuple(merged)


def _kept(first: int, end: int | None, skipped: Iterable[Range]) -> Iterable[tuple[int, int | None]]:
    """What ranges leave of the samples from `first` to `end`, or on without end."""
    for start, stop in skipped:
        if stop > first and (end is None or start < end):
            if start > first:
                yield first, start
            first = max(first, stop)
    if end is None or first < end:
        yield first, end


def _tokens(phase: PhaseConfig) -> int:
    """Tokens of a batch."""
    return phase.batch_size * phase.sequence_length
