"""Phases and mixtures: exact shares, whole epochs over any phases, one past whatever is still to come."""

from collections import Counter

import numpy as np
import pytest

from jaxllm.config import DataConfig, PhaseConfig, SourceConfig
from jaxllm.data.epochs import Position, Walk
from jaxllm.data.mixture import Mixture
from jaxllm.data.phases import Phases

TOKENS = (5000, 3333, 999)


def config(*phases: PhaseConfig, **fields) -> DataConfig:
    sources = tuple(SourceConfig(path=name) for name in "abc")
    return DataConfig(sources=sources, phases=phases, **fields)


def phase(length: int, rows: int, steps: int, **mixture: float) -> PhaseConfig:
    return PhaseConfig(sequence_length=length, batch_size=rows, steps=steps, mixture=mixture)


def locations(given: DataConfig) -> list[tuple[int, int, int, int]]:
    """(phase, epoch, source, bin) of every sample of the phases."""
    phases, found = Phases(given, TOKENS), []
    for index, one in enumerate(given.phases):
        samples = phases.locate(index, np.arange(one.num_steps * one.batch_size))
        found += [(index, *place) for place in zip(*(array.tolist() for array in samples), strict=True)]
    return found


@pytest.mark.parametrize("weights", [(3, 1), (1, 0, 1e-3), (0.4, 0.35, 0.25), (7,), (1, 1, 1)])
def test_shares_are_exact_in_every_block(weights):
    mixture = Mixture(weights, (5,))
    shares = np.array(weights) / sum(weights)
    assert mixture.size in (1024, 32768) and mixture.counts.sum() == mixture.size
    assert (np.abs(mixture.counts - shares * mixture.size) < 1).all()
    assert (np.abs(mixture.counts / mixture.size - shares) <= 0.03 * shares).all()
    sources, before = mixture.locate(np.arange(3 * mixture.size))
    for block in sources.reshape(3, -1):
        assert np.bincount(block, minlength=len(weights)).tolist() == mixture.counts.tolist()
    for source in range(len(weights)):
        assert before[sources == source].tolist() == list(range(3 * mixture.counts[source]))
    for num in (0, 1, 777, mixture.size, 2 * mixture.size + 5):
        assert mixture.taken(num).tolist() == np.bincount(sources[:num], minlength=len(weights)).tolist()


def test_a_mixture_is_shuffled_anew_in_every_block_and_phase():
    first, second = (Mixture((1, 1), (seed,)).locate(np.arange(2048))[0] for seed in (0, 1))
    assert (first[:1024] != first[1024:]).any() and (first != second).any()
    plain = Mixture((1, 1), None).locate(np.arange(1024))[0]
    assert plain.tolist() == [0] * 512 + [1] * 512


@pytest.mark.parametrize("key", [(3,), None], ids=["shuffled", "in order"])
@pytest.mark.parametrize("start", [Position(0, 0), Position(2, 5)])
@pytest.mark.parametrize(("num_tokens", "unit", "length"), [(1000, 8, 8), (1000, 64, 8), (1001, 64, 16), (70, 64, 8)])
def test_an_epoch_holds_each_bin_once(num_tokens, unit, length, start, key):
    if start.unit >= -(-num_tokens // unit):
        start = Position(2, 1)
    walk = Walk(num_tokens, unit, length, 4, start, key)
    epoch = -(-num_tokens // length)
    rest = epoch - start.unit * (unit // length)
    epochs, bins = walk.locate(np.arange(rest + 2 * epoch))
    assert epochs.tolist() == [start.epoch] * rest + [start.epoch + 1] * epoch + [start.epoch + 2] * epoch
    for whole in (bins[rest : rest + epoch], bins[rest + epoch :]):
        assert sorted(whole.tolist()) == list(range(epoch))
    assert len(set(bins[:rest].tolist())) == rest
    assert (bins[rest : rest + epoch].tolist() == bins[rest + epoch :].tolist()) == (key is None or num_tokens == 70)
    if key is None:
        assert bins[rest : rest + epoch].tolist() == list(range(epoch))


def test_neighbours_do_not_share_a_batch():
    _, bins = Walk(6400, 64, 8, 4, Position(0, 0), (0,)).locate(np.arange(800))
    for first in range(0, 800, 4):
        batch = np.sort(bins[first : first + 4])
        assert (np.diff(batch) > 1).all()


@pytest.mark.parametrize("num_samples", [0, 1, 3, 4, 5, 31, 32, 33, 799, 800, 801, 1234])
def test_a_phase_goes_on_where_the_one_before_stopped(num_samples):
    """Nothing is read twice, and what is given up is less than a window."""
    first = Walk(6400, 64, 8, 4, Position(0, 3), (0,))
    end = first.end(num_samples)
    second = Walk(6400, 64, 16, 4, end, (0,))
    epochs, bins = (found[:num_samples] for found in first.locate(np.arange(max(num_samples, 1))))
    later_epochs, later = second.locate(np.arange(400))
    units = {(int(epoch), int(one) // 8) for epoch, one in zip(epochs, bins, strict=True)}
    assert not units & {(int(epoch), int(one) // 4) for epoch, one in zip(later_epochs, later, strict=True)}
    done = end.epoch * 100 + end.unit - 3
    assert done == len(units)
    assert 0 <= 8 * done - num_samples < 4 * 8


THREE = (phase(32, 8, 40, a=3, b=1), phase(64, 4, 50, a=1, b=2), phase(64, 4, 60, c=1))


def test_three_phases_take_what_they_are_given_and_repeat_nothing_before_its_epoch_ends():
    found = locations(config(*THREE))
    assert len(found) == 320 + 200 + 240
    assert [Counter(source for index, _, source, _ in found if index == one) for one in range(3)][2] == {2: 240}
    for number, source in ((0, 0), (1, 0), (0, 1), (1, 1)):
        want = 320 * (0.75, 0.25)[source] if number == 0 else 200 * (1 / 3, 2 / 3)[source]
        # of a block's beginning only the mean is exact
        assert sum(one[0] == number and one[2] == source for one in found) == pytest.approx(want, abs=30)
    pieces = Counter(
        (epoch, source, piece)
        for index, epoch, source, one in found
        for piece in ([one] if index == 0 else [2 * one, 2 * one + 1])  # of 32 tokens
    )
    assert max(pieces.values()) == 1


def test_shares_are_named():
    phases = Phases(config(*THREE), TOKENS)
    assert [phases.shares(index) for index in range(3)] == [
        {"a": 0.75, "b": 0.25},
        {"a": 341 / 1024, "b": 683 / 1024},
        {"c": 1.0},
    ]
    by_tokens = Phases(config(phase(32, 8, 1)), TOKENS).shares(0)
    assert by_tokens == {
        name: pytest.approx(num / sum(TOKENS), abs=1e-3) for name, num in zip("abc", TOKENS, strict=True)
    }


def test_what_is_to_come_does_not_change_the_past():
    past = locations(config(*THREE))
    longer = (*THREE[:2], phase(64, 4, 90, c=1), phase(16, 4, 9, a=1))
    assert locations(config(*longer))[: len(past)] == past
    assert locations(config(*THREE[:2]))[:520] == past[:520]
    other_unit = locations(config(*THREE, phase(192, 1, 1)))[: len(past)]
    assert other_unit != past, "which config/compare refuses"


def test_a_source_that_is_named_elsewhere_has_its_own_order():
    alone = [one[3] for one in locations(config(phase(32, 8, 20, a=1)))]
    mixed = [one[3] for one in locations(config(phase(32, 8, 40, a=1, b=3))) if one[2] == 0]
    assert alone[: len(mixed)] == mixed[: len(alone)]


def test_a_share_that_gives_no_sample_is_refused():
    with pytest.raises(ValueError) as caught:
        Phases(config(phase(32, 8, 1), phase(32, 8, 1, a=1, b=1e-9)), TOKENS)
    assert str(caught.value) == (
        "data.phases.1.mixture: the share of b, 1.0e-09, gives it no sample of 1,048,576: raise its weight, "
        "or leave it out"
    )


def test_sources_smaller_than_a_batch_are_refused():
    with pytest.raises(ValueError) as caught:
        Phases(config(phase(32, 8, 1), phase(128, 9, 1, c=1)), TOKENS)
    assert str(caught.value) == (
        "data.phases.1.batch_size = 9: its sources have 999 tokens to train on, 8 samples of 128: add text, "
        "or lower batch_size or sequence_length"
    )
