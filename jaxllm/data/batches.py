"""Batches: which tokens a step sees, as a function of the store, the seed and the phases.

The samples of a run are numbered from 0. Sample s of a phase belongs to epoch s // n, where n is the number of bins of
the phase's length in all sources together, and is bin P(s mod n), where P is that epoch's permutation. So any batch is
computed at once, without those before it: resuming costs nothing, and neither the mesh nor the number of processes
changes what is trained on.
"""

import functools
from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from jaxllm.config import DataConfig
from jaxllm.data.order import Permutation
from jaxllm.data.packing import Bin, empty_bin, make_bin
from jaxllm.data.split import SplitName
from jaxllm.data.store import Store

Batch = dict[str, np.ndarray]
"""`tokens`, `targets`, `positions` and `segments` (int32) and `weights` (float32), each [B, T]; see packing.Bin."""

_PADDING = -1


class Location(NamedTuple):
    """Where a sample comes from: the phase, the epoch in it, the source, and the bin of its stream; all from 0.

    In the padding after the held-out split, source and bin are -1.
    """

    phase: int
    epoch: int
    source: int
    bin: int


class Batches:
    """The batches of a run, or of one pass over the held-out split in its own order.

    Args:
        store: the tokens.
        config: phases, seed, shuffling and prefetching. Held-out batches have the shape of the first phase's.
        split: `train`, or `held_out`.
        source: read this source alone, by its index; None reads all.

    Raises:
        ValueError: the training split has fewer samples than a batch.
    """

    def __init__(self, store: Store, config: DataConfig, split: SplitName = "train", source: int | None = None):
        self._streams = store.streams(split)[slice(None) if source is None else slice(source, source + 1)]
        self._config = config
        self._train = split == "train"
        self._eos_id = store.manifest.tokenizer.eos_id
        # Per phase, the number of bins in all sources before each source, and in all of them.
        self._bins = [
            np.cumsum([0, *(stream.num_bins(phase.sequence_length) for stream in self._streams)])
            for phase in config.phases
        ]
        for index, (phase, bins) in enumerate(zip(config.phases, self._bins, strict=True)):
            if self._train and bins[-1] < phase.batch_size:
                raise ValueError(
                    f"data.phases.{index}.batch_size = {phase.batch_size}: the training split has "
                    f"{store.manifest.total('train', 'num_tokens'):,} tokens, {bins[-1]} samples of "
                    f"{phase.sequence_length}: add text, or lower batch_size or sequence_length"
                )

    @property
    def num_batches(self) -> int:
        """Batches of the run; of the held-out split, those that hold every sample once."""
        if self._train:
            return self._config.num_steps
        return -(-int(self._bins[0][-1]) // self._config.phases[0].batch_size)

    @property
    def num_steps(self) -> int:
        """Another name of num_batches, for what counts attempts."""
        return self.num_batches

    def cursor(self, step: int) -> int:
        """The number of the first sample of a step's batch."""
        cursor = 0
        for phase in self._config.phases:
            if step < phase.num_steps or not self._train:
                break
            cursor += phase.num_steps * phase.batch_size
            step -= phase.num_steps
        return cursor + step * phase.batch_size

    def locate(self, sample: int) -> Location:
        """Where a sample comes from."""
        phase, first = self._phase(sample)
        epochs, sources, bins = self._locate(phase, np.array([sample - first]))
        return Location(phase, int(epochs[0]), int(sources[0]), int(bins[0]))

    def batch(self, cursor: int) -> Batch:
        """The batch whose first sample is `cursor`."""
        return self.rows(cursor, slice(None))

    def rows(self, cursor: int, row_slice: slice) -> Batch:
        """Some rows of the batch whose first sample is `cursor`; only these are read."""
        phase, first = self._phase(cursor)
        length, batch_size = self._config.phases[phase].sequence_length, self._config.phases[phase].batch_size
        samples = np.arange(batch_size)[row_slice] + (cursor - first)
        _, sources, bins = self._locate(phase, samples)
        rows = [self._row(source, index, length) for source, index in zip(sources.tolist(), bins.tolist(), strict=True)]
        return {field: np.stack([getattr(row, field) for row in rows]) for field in Bin._fields}

    def iterate(self, start_step: int = 0, row_slice: slice = slice(None)) -> Generator[Batch]:
        """The batches (or some rows of each) from a step on, prepared ahead of their use by Grain's threads."""
        import grain  # takes seconds to import, and brings jax along

        steps = grain.MapDataset.source(_Steps(self, row_slice)).slice(slice(start_step, None))
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._config.prefetch)
        iterator = iter(steps.to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()

    def _phase(self, sample: int) -> tuple[int, int]:
        """The phase of a sample, and that phase's first sample; the last phase goes on without end."""
        first = 0
        for index, phase in enumerate(self._config.phases[:-1] if self._train else ()):
            if sample < first + phase.num_steps * phase.batch_size:
                return index, first
            first += phase.num_steps * phase.batch_size
        return (len(self._config.phases) - 1 if self._train else 0), first

    def _locate(self, phase: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Epochs, sources and bins, each int64[n], of ascending samples, int64[n], counted from the phase's first."""
        borders = self._bins[phase]
        if not self._train:
            indices = samples
            epochs = np.zeros_like(samples)
        else:
            epochs, indices = np.divmod(samples, borders[-1])
            if self._config.shuffle:
                indices = indices.copy()
                for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
                    order = _permutation(int(borders[-1]), self._config.seed, phase, epoch)
                    indices[epochs == epoch] = order(indices[epochs == epoch])
        sources = np.searchsorted(borders, indices, side="right") - 1
        padding = sources == len(self._streams)
        bins = indices - borders[sources]
        return epochs, np.where(padding, _PADDING, sources), np.where(padding, _PADDING, bins)

    def _row(self, source: int, index: int, length: int) -> Bin:
        if source == _PADDING:
            return empty_bin(self._eos_id, length)
        return make_bin(self._streams[source], index, length)


_permutation = functools.lru_cache(maxsize=8)(Permutation)
"""The same few epochs are asked for again and again."""


class _Steps:
    """The batches by step, as Grain reads them."""

    def __init__(self, batches: Batches, row_slice: slice):
        self._batches = batches
        self._row_slice = row_slice

    def __len__(self) -> int:
        return self._batches.num_batches

    def __getitem__(self, index: int) -> Batch:
        return self._batches.rows(self._batches.cursor(index), self._row_slice)
