"""Phases: what a run trains on, as a function of the number of a sample.

The samples of a run are numbered from 0, phase after phase. Sample s of a phase is of the source, and is that source's
j-th sample of the phase, that the phase's mixture says; source and j give the bin, through the source's epochs. All of
it is arithmetic, so that any batch is computed at once, without those before it.

What a sample is depends on the phases before it, on its own phase, but not on how long that lasts, and on the least
common multiple of all sequence lengths: a run may be made longer, and phases added, without another past.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.config import DataConfig
from jaxllm.data.epochs import Position, Walk
from jaxllm.data.mixture import Mixture

_SLOTS, _UNITS = 0, 1
"""First numbers of the keys of permutations, which tell the two kinds apart."""


class Location(NamedTuple):
    """Where a sample comes from: the phase, the epoch of the source, the source, and the bin of its stream; all from 0.

    In the padding after the held-out split, source and bin are -1.
    """

    phase: int
    epoch: int
    source: int
    bin: int


class Phases:
    """The samples of a run's phases.

    Args:
        config: phases, sources, seed and shuffling.
        num_tokens: of each source's training split.

    Raises:
        ValueError: a phase has fewer samples than a batch, or a source's share of it is too small.
    """

    def __init__(self, config: DataConfig, num_tokens: Sequence[int]):
        self._config = config
        self._mixtures: list[Mixture] = []
        self._walks: list[list[Walk | None]] = []
        positions = [Position(0, 0)] * len(num_tokens)
        for index, phase in enumerate(config.phases):
            mixture = self._mixture(index, num_tokens)
            walks = [
                Walk(
                    num_tokens[source],
                    config.unit,
                    phase.sequence_length,
                    phase.batch_size,
                    positions[source],
                    (config.seed, _UNITS, source) if config.shuffle else None,
                )
                if count
                else None
                for source, count in enumerate(mixture.counts.tolist())
            ]
            taken = mixture.taken(phase.num_steps * phase.batch_size).tolist()
            positions = [walk.end(taken[source]) if walk else positions[source] for source, walk in enumerate(walks)]
            self._mixtures.append(mixture)
            self._walks.append(walks)

    def shares(self, phase: int) -> dict[str, float]:
        """The share of a phase's samples that each of its sources gives, exact in every block of the mixture."""
        mixture = self._mixtures[phase]
        return {
            name: count / mixture.size
            for name, count in zip(self._config.source_names, mixture.counts.tolist(), strict=True)
            if count
        }

    def find(self, sample: int) -> tuple[int, int]:
        """The phase of a sample, and that phase's first sample; the last phase goes on without end."""
        first = 0
        for index, phase in enumerate(self._config.phases[:-1]):
            if sample < first + phase.num_steps * phase.batch_size:
                return index, first
            first += phase.num_steps * phase.batch_size
        return len(self._config.phases) - 1, first

    def locate(self, phase: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Epochs, sources and bins, int64[n] each, of ascending samples, int64[n], counted from the phase's first."""
        sources, numbers = self._mixtures[phase].locate(samples)
        epochs, bins = np.empty_like(samples), np.empty_like(samples)
        for source in np.unique(sources).tolist():
            walk = self._walks[phase][source]
            assert walk is not None
            inside = sources == source
            epochs[inside], bins[inside] = walk.locate(numbers[inside])
        return epochs, sources, bins

    def _mixture(self, index: int, num_tokens: Sequence[int]) -> Mixture:
        """The mixture of a phase, checked against what there is to read."""
        config, phase = self._config, self._config.phases[index]
        names = config.source_names
        weights = [phase.mixture.get(name, 0.0) for name in names] if phase.mixture else list(map(float, num_tokens))
        mixture = Mixture(weights, (config.seed, _SLOTS, index) if config.shuffle else None)
        for name, weight, count in zip(names, weights, mixture.counts.tolist(), strict=True):
            if weight and not count:
                raise ValueError(
                    f"data.phases.{index}.mixture: the share of {name}, {weight / sum(weights):.1e}, gives it no "
                    f"sample of {mixture.size:,}: raise its weight, or leave it out"
                )
        read = [num for num, weight in zip(num_tokens, weights, strict=True) if weight]
        num_bins = sum(-(-num // phase.sequence_length) for num in read)
        if num_bins < phase.batch_size:
            raise ValueError(
                f"data.phases.{index}.batch_size = {phase.batch_size}: its sources have {sum(read):,} tokens to train "
                f"on, {num_bins} samples of {phase.sequence_length}: add text, or lower batch_size or sequence_length"
            )
        return mixture
