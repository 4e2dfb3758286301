"""Bins: a stream of documents cut into samples of one length, by arithmetic alone.

The documents of a source and split stand one after the other, each with its end token, in one stream of N tokens. Bin b
of length T is stream[bT : (b + 1)T]: every token is in exactly one bin, any T reads the same store, and nothing is
packed beforehand. The target of a token is the next token of its document, also where that lies in the next bin. The
last token of a document has none: its weight is 0. Documents are told apart by segments, counted from 1 in each bin;
positions begin at 0 with each segment. The last bin is filled up with end tokens of segment 0 and weight 0.

Cutting at fixed places, instead of fitting whole documents (Ding et al. 2024, "Fewer Truncations Improve Language
Modeling"), wastes no token and loses some context: the second part of a cut document begins without its first.
"""

from typing import NamedTuple

import numpy as np


class Stream(NamedTuple):
    """The tokens of one source and split.

    Attributes:
        tokens: unsigned, [N]; usually mapped from a file.
        offsets: where each document begins, and N: uint64[num_documents + 1].
        eos_id: the token that ends documents and fills the last bin.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    eos_id: int

    def num_bins(self, length: int) -> int:
        """Bins of the given length, the last of which may be partly empty."""
        return -(-len(self.tokens) // length)


class Bin(NamedTuple):
    """A sample: each array is [T].

    Attributes:
        tokens: int32.
        targets: int32; the end token where the weight is 0.
        weights: float32, 1 where there is a target, else 0.
        positions: int32, from 0 in each segment.
        segments: int32, from 1; 0 is padding.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    segments: np.ndarray


def make_bin(stream: Stream, index: int, length: int) -> Bin:
    """Bin `index` of a stream, from 0 to num_bins - 1, of `length` tokens."""
    start = index * length
    stop = min(start + length, len(stream.tokens))
    used = stop - start
    assert used > 0, "the bin lies beyond the stream"
    result = empty_bin(stream.eos_id, length)
    result.tokens[:used] = stream.tokens[start:stop]
    following = stream.tokens[start + 1 : stop + 1]
    result.targets[: len(following)] = following
    result.weights[:used] = 1

    # Borders inside the bin: where a document begins, after the bin's first token and up to one past its last.
    first, last = np.searchsorted(stream.offsets, np.array([start, stop], np.uint64), side="right")
    borders = stream.offsets[first:last].astype(np.int64) - start
    result.targets[borders - 1] = stream.eos_id
    result.weights[borders - 1] = 0
    begins = np.concatenate([[0], borders[borders < used]])
    result.segments[begins] = 1
    np.cumsum(result.segments[:used], out=result.segments[:used])
    result.positions[:used] = np.arange(used) - begins[result.segments[:used] - 1]
    return result


def empty_bin(eos_id: int, length: int) -> Bin:
    """A bin of nothing but padding."""
    return Bin(
        tokens=np.full(length, eos_id, np.int32),
        targets=np.full(length, eos_id, np.int32),
        weights=np.zeros(length, np.float32),
        positions=np.zeros(length, np.int32),
        segments=np.zeros(length, np.int32),
    )
