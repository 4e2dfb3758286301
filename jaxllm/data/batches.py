"""Batches: which tokens a step sees, as a function of the store, the seed and the phases.

Each step takes the next samples of its phase (see steps and phases), as many as the phase's batches have. The number of
its first sample, the cursor, is all that a resumed run needs to know; neither the mesh nor the number of processes
changes what is trained on. The held-out split is read in its own order, in batches of the first phase's shape.
"""

from collections.abc import Callable, Generator, Iterable

import numpy as np

from jaxllm.config import DataConfig, PhaseConfig
from jaxllm.data.packing import Bin, empty_bin, make_bin
from jaxllm.data.phases import Location, Phases
from jaxllm.data.split import SplitName
from jaxllm.data.steps import Range, Steps
from jaxllm.data.store import Store

Batch = dict[str, np.ndarray]
"""`tokens`, `targets`, `positions` and `segments` (int32) and `weights` (float32), each [B, T]; see packing.Bin. Of the
training split also `sources`, int32[B]: the source of each sample, by its place in the config."""

_PADDING = -1


def all_rows(num_rows: int) -> slice:
    """The rows of a process that is alone."""
    return slice(num_rows)


class Batches:
    """The batches of a run, or of one pass over the held-out split in its own order.

    Args:
        store: the tokens.
        config: phases, seed, shuffling and prefetching. Held-out batches have the shape of the first phase's.
        split: `train`, or `held_out`.
        source: of the held-out split read this source alone, by its index; None reads all.
        skipped: samples that training leaves out.

    Raises:
        ValueError: as `Phases`.
    """

    def __init__(
        self,
        store: Store,
        config: DataConfig,
        split: SplitName = "train",
        source: int | None = None,
        skipped: Iterable[Range] = (),
    ):
        self._streams = store.streams(split)[slice(None) if source is None else slice(source, source + 1)]
        self._config = config
        self._store = store
        self.steps = Steps(config, skipped)
        self._eos_id = store.manifest.tokenizer.eos_id
        self._phases = None
        if split == "train":
            self._phases = Phases(config, [len(stream.tokens) for stream in self._streams])
        length = config.phases[0].sequence_length
        # The number of held-out bins in all sources before each source, and in all of them.
        self._borders = np.cumsum([0, *(stream.num_bins(length) for stream in self._streams)])

    @property
    def num_batches(self) -> int:
        """Batches of the run; of the held-out split, those that hold every sample once."""
        if self._phases:
            return self._config.num_steps
        return -(-int(self._borders[-1]) // self._config.phases[0].batch_size)

    @property
    def num_steps(self) -> int:
        """Another name of num_batches, for what counts attempts."""
        return self.num_batches

    def skipping(self, skipped: Iterable[Range]) -> "Batches":
        """The batches of the same run with other samples left out."""
        return Batches(self._store, self._config, skipped=skipped)

    def phase(self, step: int) -> PhaseConfig:
        """What shapes a step's batch, steps counted from 0."""
        return self._config.phases[self.steps.phase(step) if self._phases else 0]

    def shares(self, phase: int) -> dict[str, float]:
        """The share of a phase's samples that each of its sources gives."""
        assert self._phases
        return self._phases.shares(phase)

    def cursor(self, step: int) -> int:
        """The number of the first sample of a step's batch."""
        return self.steps.cursor(step) if self._phases else step * self._config.phases[0].batch_size

    def locate(self, sample: int) -> Location:
        """Where a sample comes from."""
        phase, first = self._find(sample)
        epochs, sources, bins = self._locate(phase, np.array([sample - first]))
        return Location(phase, int(epochs[0]), int(sources[0]), int(bins[0]))

    def length(self, sample: int) -> int:
        """Tokens of a sample."""
        return self._config.phases[self._find(sample)[0]].sequence_length

    def tokens(self, sample: int) -> np.ndarray:
        """A sample's tokens as they are trained on, int32[n], without padding."""
        place = self.locate(sample)
        row = self._row(place.source, place.bin, self.length(sample))
        return row.tokens[row.segments > 0]

    def batch(self, cursor: int) -> Batch:
        """The batch whose first sample is `cursor`."""
        return self.rows(cursor, slice(None))

    def rows(self, cursor: int, row_slice: slice) -> Batch:
        """Some rows of the batch whose first sample is `cursor`; only these are read."""
        phase, first = self._find(cursor)
        length, batch_size = self._config.phases[phase].sequence_length, self._config.phases[phase].batch_size
        samples = np.arange(batch_size)[row_slice] + (cursor - first)
        _, sources, bins = self._locate(phase, samples)
        rows = [self._row(source, index, length) for source, index in zip(sources.tolist(), bins.tolist(), strict=True)]
        batch = {field: np.stack([getattr(row, field) for row in rows]) for field in Bin._fields}
        return batch | ({"sources": sources.astype(np.int32)} if self._phases else {})

    def iterate(self, start_step: int = 0, rows: Callable[[int], slice] = all_rows) -> Generator[Batch]:
        """The batches from a step on, prepared ahead of their use by Grain's threads.

        Args:
            start_step: the first.
            rows: from the number of a batch's rows to those that are wanted.
        """
        import grain  # takes seconds to import, and brings jax along

        steps = grain.MapDataset.source(_Steps(self, rows)).slice(slice(start_step, None))
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._config.prefetch)
        iterator = iter(steps.to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()

    def _find(self, sample: int) -> tuple[int, int]:
        return self._phases.find(sample) if self._phases else (0, 0)

    def _locate(self, phase: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Epochs, sources and bins, each int64[n], of ascending samples, int64[n], counted from the phase's first."""
        if self._phases:
            return self._phases.locate(phase, samples)
        sources = np.searchsorted(self._borders, samples, side="right") - 1
        padding = sources == len(self._streams)
        bins = samples - self._borders[sources]
        return np.zeros_like(samples), np.where(padding, _PADDING, sources), np.where(padding, _PADDING, bins)

    def _row(self, source: int, index: int, length: int) -> Bin:
        if source == _PADDING:
            return empty_bin(self._eos_id, length)
        return make_bin(self._streams[source], index, length)


class _Steps:
    """The batches by step, as Grain reads them."""

    def __init__(self, batches: Batches, rows: Callable[[int], slice]):
        self._batches = batches
        self._rows = rows

    def __len__(self) -> int:
        return self._batches.num_batches

    def __getitem__(self, index: int) -> Batch:
        row_slice = self._rows(self._batches.phase(index).batch_size)
        return self._batches.rows(self._batches.cursor(index), row_slice)
