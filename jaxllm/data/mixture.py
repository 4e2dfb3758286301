"""Mixtures: which source each sample of a phase comes from, in the shares that the config gives.

The samples of a phase come in blocks of n. In every block source i has exactly q_i of them: n w_i / sum(w) rounded by
the largest remainder (Hamilton's method), so that no count is off by one or more. A permutation keyed by the block
decides which of its slots are whose. So shares hold over any n samples that a block holds, not only on average, and the
source of a sample, with the number of that source's samples before it, is computed from the sample's number alone.

n is 1,024, or as many times twice that as the smallest weight needs to get 32 slots, which keeps its rounding within
about 3 % of it.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jaxllm.data.order import Permutation

_SMALLEST_BLOCK, _LARGEST_BLOCK = 1 << 10, 1 << 20
_SLOTS = 32
"""That the smallest weight gets, as far as the largest block has room."""


class Mixture:
    """The sources of a phase's samples.

    Args:
        weights: of each source, 0 for those that are left out; at least one is not.
        key: of the order in a block, such as a seed and a phase; None puts the sources one after the other.

    Attributes:
        counts: samples of each source in a block, int64[num_sources]; 0 also for weights too small for a block.
        size: samples of a block.
    """

    def __init__(self, weights: Sequence[float], key: tuple[int, ...] | None):
        shares = np.asarray(weights, np.float64) / np.sum(weights)
        size = _SMALLEST_BLOCK
        while size < _LARGEST_BLOCK and size * shares[shares > 0].min() < _SLOTS:
            size *= 2
        self.size = size
        self.counts = np.floor(shares * size).astype(np.int64)
        by_remainder = np.argsort(self.counts - shares * size, kind="stable")
        self.counts[by_remainder[: size - self.counts.sum()]] += 1
        self._key = key

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each sample of the phase, and how many of that source's samples come before it.

        Args:
            samples: int64[n], ascending.

        Returns:
            Two arrays int64[n].
        """
        blocks, slots = np.divmod(samples, self.size)
        sources, before = np.empty_like(samples), np.empty_like(samples)
        for block in np.unique(blocks).tolist():
            of_slot, before_slot = self._block(block)
            inside = blocks == block
            sources[inside] = of_slot[slots[inside]]
            before[inside] = block * self.counts[sources[inside]] + before_slot[slots[inside]]
        return sources, before

    def taken(self, num_samples: int) -> np.ndarray:
        """How many of the first samples each source gives, int64[num_sources]."""
        blocks, rest = divmod(num_samples, self.size)
        begun = np.bincount(self._block(blocks)[0][:rest], minlength=len(self.counts)) if rest else 0
        return blocks * self.counts + begun

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        return _block(tuple(self.counts.tolist()), None if self._key is None else (*self._key, block))


@functools.lru_cache(maxsize=4)
def _block(counts: tuple[int, ...], key: tuple[int, ...] | None) -> tuple[np.ndarray, np.ndarray]:
    """The source of each slot of a block, and how many slots before it are the same source's: int64[n] each."""
    sources = np.repeat(np.arange(len(counts)), counts)
    if key is not None:
        sources = sources[Permutation(len(sources), *key)(np.arange(len(sources)))]
    in_order = np.argsort(sources, kind="stable")
    before = np.empty_like(sources)
    before[in_order] = np.concatenate([np.arange(count) for count in counts])
    return sources, before
