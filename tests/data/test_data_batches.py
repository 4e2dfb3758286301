"""Batches: each epoch holds every token once, any step is computed at once, held-out tokens count once."""

import time
from collections import Counter

import numpy as np
import pytest

from jaxllm.config import DataConfig, PhaseConfig
from jaxllm.data.batches import Batches
from jaxllm.data.packing import make_bin
from jaxllm.data.split import SplitName
from jaxllm.data.store import Store
from tests.data.small import make_config


@pytest.fixture
def config(tmp_path) -> DataConfig:
    return make_config(tmp_path)


def num_bins(store: Store, length: int, split: SplitName = "train") -> int:
    return sum(stream.num_bins(length) for stream in store.streams(split))


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def inputs(batch: dict) -> Counter:
    return Counter(batch["tokens"][batch["segments"] > 0].tolist())


def test_a_batch_has_the_contract_s_arrays(store, config):
    batch = Batches(store, config).batch(0)
    assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == {
        "tokens": ((4, 64), "int32"),
        "targets": ((4, 64), "int32"),
        "weights": ((4, 64), "float32"),
        "positions": ((4, 64), "int32"),
        "segments": ((4, 64), "int32"),
        "sources": ((4,), "int32"),
    }


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("source", [0, 1])
def test_each_epoch_holds_every_token_once(store, source, shuffle):
    name, stream = ("lines", "files")[source], store.streams("train")[source]
    phase = PhaseConfig(sequence_length=64, batch_size=4, steps=50, mixture={name: 1})
    batches, bins = Batches(store, make_config(store.directory, shuffle=shuffle, phases=(phase,))), stream.num_bins(64)
    targets = Counter(map(int, stream.tokens))
    targets.subtract(map(int, stream.tokens[stream.offsets[:-1].astype(int)]))  # every token but a document's first
    for epoch in range(3):
        locations = [batches.locate(sample) for sample in range(epoch * bins, (epoch + 1) * bins)]
        assert {(location.epoch, location.source) for location in locations} == {(epoch, source)}
        assert sorted(location.bin for location in locations) == list(range(bins))
        seen, aimed = Counter(), Counter()
        for sample in range(epoch * bins, (epoch + 1) * bins):
            row = batches.rows(sample, slice(1))
            seen += inputs(row)
            aimed += Counter(row["targets"][row["weights"] > 0].tolist())
        assert seen == Counter(map(int, stream.tokens)) and aimed == +targets


def test_rows_are_the_bins_that_locate_names(store, config):
    batches = Batches(store, config)
    for cursor in (0, 4, 5, 1001):
        batch = batches.batch(cursor)
        for row in range(4):
            location = batches.locate(cursor + row)
            assert batch["sources"][row] == location.source
            expected = make_bin(store.streams("train")[location.source], location.bin, 64)
            for name, array in expected._asdict().items():
                np.testing.assert_array_equal(batch[name][row], array)


def test_epochs_and_seeds_have_their_own_orders_and_shuffling_may_be_off(store, config):
    bins = num_bins(store, 64)

    def order(batches: Batches, epoch: int) -> list:
        samples = range(epoch * bins, (epoch + 1) * bins)
        return [(batches.locate(sample).source, batches.locate(sample).bin) for sample in samples]

    shuffled, other = Batches(store, config), Batches(store, make_config(store.directory, seed=1))
    plain = Batches(store, make_config(store.directory, shuffle=False))
    orders = [order(shuffled, 0), order(shuffled, 1), order(other, 0), order(plain, 0)]
    for first in range(len(orders)):
        for second in range(first):
            assert orders[first] != orders[second]
    assert order(Batches(store, config), 0) == orders[0]


def test_rows_can_be_built_apart(store, config):
    batches = Batches(store, config)
    whole = batches.batch(12)
    parts = [batches.rows(12, slice(0, 1)), batches.rows(12, slice(1, 4))]
    assert equal(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})


@pytest.mark.parametrize("start", [0, 1, 17, 49, 50])
def test_iteration_from_any_step_is_the_tail(store, config, start):
    batches = Batches(store, config)
    assert batches.num_steps == 50
    tail = list(batches.iterate(start))
    assert len(tail) == 50 - start
    for step, batch in zip(range(start, 50), tail, strict=True):
        assert equal(batch, batches.batch(batches.cursor(step)))
        assert batches.cursor(step) == 4 * step


def test_iteration_gives_a_process_its_rows(store, config):
    batches = Batches(store, config)
    mine = list(batches.iterate(45, lambda num_rows: slice(num_rows // 2, num_rows)))
    assert equal(mine[0], batches.rows(45 * 4, slice(2, 4)))
    assert mine[0]["tokens"].shape == (2, 64)


THREE = (
    PhaseConfig(sequence_length=32, batch_size=6, steps=5, mixture={"lines": 3, "files": 1}),
    PhaseConfig(sequence_length=64, batch_size=4, steps=4),
    PhaseConfig(sequence_length=64, batch_size=2, steps=3, mixture={"files": 1}),
)


def test_three_phases_resume_anywhere_and_in_parts(store):
    """Any step on its own, and put together from the rows of two processes, is what a run from the start sees."""
    batches = Batches(store, make_config(store.directory, phases=THREE))
    whole = list(batches.iterate())
    assert [batch["tokens"].shape for batch in whole] == [(6, 32)] * 5 + [(4, 64)] * 4 + [(2, 64)] * 3
    assert [batches.cursor(step) for step in range(13)] == [0, 6, 12, 18, 24, 30, 34, 38, 42, 46, 48, 50, 52]
    sources = [np.concatenate([batch["sources"] for batch in part]) for part in (whole[:5], whole[5:9], whole[9:])]
    assert [set(found.tolist()) for found in sources] == [{0, 1}, {0, 1}, {1}]
    for start in (4, 5, 6, 8, 9, 11):
        halves = [
            Batches(store, make_config(store.directory, phases=THREE)).iterate(start, rows)
            for rows in (lambda num: slice(num // 2), lambda num: slice(num // 2, num))
        ]
        for step, (first, second) in enumerate(zip(*halves, strict=True), start):
            assert equal(whole[step], {name: np.concatenate([first[name], second[name]]) for name in first}), step
            assert equal(whole[step], batches.batch(batches.cursor(step)))


def test_starting_late_takes_no_longer(store):
    config = make_config(store.directory, phases=(PhaseConfig(sequence_length=64, batch_size=4, steps=10**12),))
    batches = Batches(store, config)
    next(batches.iterate())
    started = time.perf_counter()
    first = next(batches.iterate(10**12 - 5))
    assert time.perf_counter() - started < 5
    assert equal(first, batches.batch((10**12 - 5) * 4))


def test_the_phase_s_tokens_give_its_steps(store):
    config = make_config(store.directory, phases=(PhaseConfig(sequence_length=64, batch_size=4, tokens=1000),))
    assert Batches(store, config).num_steps == 4


def test_held_out_batches_count_every_token_once(store, config):
    batches = Batches(store, config, "held_out")
    assert batches.num_batches == -(-num_bins(store, 64, "held_out") // 4)
    found = [batches.batch(batches.cursor(step)) for step in range(batches.num_batches)]
    tokens = np.concatenate([batch["tokens"][batch["segments"] > 0] for batch in found])
    np.testing.assert_array_equal(tokens, np.concatenate([stream.tokens for stream in store.streams("held_out")]))
    documents = store.manifest.total("held_out", "num_documents")
    assert sum(batch["weights"].sum() for batch in found) == len(tokens) - documents
    assert all(equal(first, second) for first, second in zip(found, batches.iterate(), strict=True))
    assert found[0]["tokens"].shape == found[-1]["tokens"].shape == (4, 64)


def test_the_last_held_out_batch_is_filled_with_empty_rows(store):
    bins = num_bins(store, 64, "held_out")
    config = make_config(store.directory, phases=(PhaseConfig(sequence_length=64, batch_size=bins + 3, steps=1),))
    batches = Batches(store, config, "held_out")
    assert batches.num_batches == 1
    batch = batches.batch(0)
    assert (batch["segments"][:bins].max(axis=1) > 0).all()
    assert batch["segments"][bins:].sum() == batch["weights"][bins:].sum() == 0
    assert batches.locate(bins) == (0, 0, -1, -1)


def test_a_corpus_smaller_than_a_batch_is_refused(store):
    bins = num_bins(store, 64)
    Batches(store, make_config(store.directory, phases=(PhaseConfig(sequence_length=64, batch_size=bins, steps=1),)))
    config = make_config(store.directory, phases=(PhaseConfig(sequence_length=64, batch_size=bins + 1, steps=1),))
    with pytest.raises(ValueError) as caught:
        Batches(store, config)
    tokens = store.manifest.total("train", "num_tokens")
    assert str(caught.value) == (
        f"data.phases.0.batch_size = {bins + 1}: its sources have {tokens:,} tokens to train on, {bins} samples of 64: "
        "add text, or lower batch_size or sequence_length"
    )
