"""Bins: no token is lost, none sees another document, every target is its document's next token."""

from collections import Counter

import numpy as np
import pytest

from jaxllm.data.packing import Stream, empty_bin, make_bin

EOS = 999


def make_stream(lengths: list[int]) -> tuple[Stream, list[tuple[int, ...]]]:
    """A stream of documents, each of so many tokens and its end; all other tokens are different."""
    documents, token = [], 1000
    for length in lengths:
        documents.append((*range(token, token + length), EOS))
        token += length
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.uint64)
    return Stream(np.array([token for document in documents for token in document], np.uint16), offsets, EOS), documents


def reference(documents: list[tuple[int, ...]], index: int, length: int) -> list[tuple[int, int, float, int, int]]:
    """A bin, token by token: token, target, weight, position, segment."""
    stream = [(number, place) for number, document in enumerate(documents) for place in range(len(document))]
    rows, segment, position, previous = [], 0, 0, None
    for number, place in stream[index * length : (index + 1) * length]:
        segment, position = (segment, position + 1) if number == previous else (segment + 1, 0)
        previous = number
        document = documents[number]
        last = place == len(document) - 1
        rows.append((document[place], EOS if last else document[place + 1], 0.0 if last else 1.0, position, segment))
    return rows + [(EOS, EOS, 0.0, 0, 0)] * (length - len(rows))


CASES = {
    "mixed": [3, 1, 7, 2, 12, 5],
    "one": [10],
    "empty documents": [0, 0, 4, 0],
    "long": [50, 3, 40],
    "exact": [3, 3, 3, 3],
    "random": np.random.default_rng(0).integers(0, 30, 60).tolist(),
}


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 16, 100, 2000])
@pytest.mark.parametrize("case", CASES)
def test_bins_are_what_the_definition_says(case, length):
    stream, documents = make_stream(CASES[case])
    for index in range(stream.num_bins(length)):
        result = make_bin(stream, index, length)
        assert [array.dtype for array in result] == [np.int32, np.int32, np.float32, np.int32, np.int32]
        assert list(zip(*(array.tolist() for array in result), strict=True)) == reference(documents, index, length)


@pytest.mark.parametrize("length", [2, 5, 64])
def test_every_token_is_an_input_once_and_every_inner_token_a_target_once(length):
    stream, documents = make_stream(CASES["random"])
    bins = [make_bin(stream, index, length) for index in range(stream.num_bins(length))]
    inputs = np.concatenate([item.tokens[item.segments > 0] for item in bins])
    np.testing.assert_array_equal(inputs, stream.tokens)
    targets = Counter(int(token) for item in bins for token in item.targets[item.weights > 0])
    assert targets == Counter(token for document in documents for token in document[1:])
    assert sum(item.weights.sum() for item in bins) == len(stream.tokens) - len(documents)


def test_segments_separate_documents():
    """Two tokens of a bin have one segment exactly if they come from one document."""
    stream, _ = make_stream(CASES["random"])
    document_of = np.searchsorted(stream.offsets, np.arange(len(stream.tokens), dtype=np.uint64), side="right")
    for index in range(stream.num_bins(32)):
        segments = make_bin(stream, index, 32).segments
        ours = document_of[index * 32 : (index + 1) * 32]
        same = segments[: len(ours), None] == segments[None, : len(ours)]
        np.testing.assert_array_equal(same, ours[:, None] == ours[None, :])


def test_large_token_ids_are_kept():
    stream = Stream(np.array([100_000, 4_000_000, 2], np.uint32), np.array([0, 3], np.uint64), 2)
    assert make_bin(stream, 0, 4).tokens.tolist() == [100_000, 4_000_000, 2, 2]


def test_an_empty_bin_is_padding():
    result = empty_bin(EOS, 5)
    assert result.tokens.tolist() == [EOS] * 5
    assert result.weights.sum() == result.segments.sum() == result.positions.sum() == 0
