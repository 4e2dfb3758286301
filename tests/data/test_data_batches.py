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
    }


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_holds_every_token_once(store, config, shuffle):
    config = make_config(store.directory, shuffle=shuffle)
    batches, bins = Batches(store, config), num_bins(store, 64)
    everything = Counter(int(token) for stream in store.streams("train") for token in stream.tokens)
    for epoch in range(3):
        locations = [batches.locate(sample) for sample in range(epoch * bins, (epoch + 1) * bins)]
        assert {location.epoch for location in locations} == {epoch}
        assert len({(location.source, location.bin) for location in locations}) == bins
        seen = Counter()
        for sample in range(epoch * bins, (epoch + 1) * bins):
            seen += inputs(batches.rows(sample, slice(1)))
        assert seen == everything


def test_targets_of_an_epoch_are_every_token_but_the_first_of_each_document(store, config):
    batches, expected = Batches(store, config), Counter()
    for stream in store.streams("train"):
        tokens = Counter(map(int, stream.tokens))
        tokens.subtract(map(int, stream.tokens[stream.offsets[:-1].astype(int)]))
        expected += tokens
    seen = Counter()
    for sample in range(num_bins(store, 64)):
        row = batches.rows(sample, slice(1))
        seen += Counter(row["targets"][row["weights"] > 0].tolist())
    assert seen == expected


def test_rows_are_the_bins_that_locate_names(store, config):
    batches = Batches(store, config)
    for cursor in (0, 4, 5, 1001):
        batch = batches.batch(cursor)
        for row in range(4):
            location = batches.locate(cursor + row)
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
    assert order(plain, 0) == order(plain, 1) == sorted(orders[0])
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
    mine = list(batches.iterate(45, slice(2, 4)))
    assert equal(mine[0], batches.rows(45 * 4, slice(2, 4)))
    assert mine[0]["tokens"].shape == (2, 64)


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
        f"data.phases.0.batch_size = {bins + 1}: the training split has {tokens:,} tokens, {bins} samples of 64: "
        "add text, or lower batch_size or sequence_length"
    )
