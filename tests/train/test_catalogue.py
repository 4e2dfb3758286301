"""The catalogue, alike on a directory and on an object store."""

import pytest

from jaxllm.storage import LocalStorage, Storage
from jaxllm.train import catalogue
from jaxllm.train.catalogue import COMMITTED, GOOD, META, QUARANTINED, Catalogue, Entry, Leaf, Meta, place
from tests.fakes import object_storage


@pytest.fixture(params=["local", "object store"])
def storage(request, tmp_path) -> Storage:
    return LocalStorage(tmp_path / "checkpoints") if request.param == "local" else object_storage()


def meta(step: int, attempt: int = 0) -> Meta:
    return Meta(
        step=step,
        attempt=attempt,
        optimizer_step=step,
        data_cursor=8 * step,
        time=1e9,
        bytes=64,
        leaves={"params.w": Leaf(shape=(4, 4), dtype="float32", digest="0123456789abcdef")},
        extra={"skips": [[3, 7]]},
    )


def add(book: Catalogue, storage: Storage, *steps: int, attempt: int = 0) -> None:
    for step in steps:
        storage.write(f"{place(step, attempt)}/params/d/values", b"values")
        book.commit(meta(step, attempt))


def numbers(entries: list[Entry]) -> list[tuple[int, int]]:
    return [(entry.step, entry.attempt) for entry in entries]


def steps(entries: list[Entry]) -> list[int]:
    return [entry.step for entry in entries]


def test_a_checkpoint_exists_from_its_commit_on(storage: Storage):
    book = Catalogue(storage)
    storage.write(f"{place(10, 0)}/params/values", b"values")
    assert (book.entries(), book.unfinished(), book.begun()) == ([], [place(10, 0)], False)
    book.commit(meta(10))
    assert book.entries() == [Entry(place="step-00000010.attempt-0000", step=10, attempt=0)]
    assert (book.unfinished(), book.begun()) == ([], True)
    assert book.meta(place(10, 0)) == meta(10)
    assert Catalogue(storage).entries() == book.entries()


def test_later_attempts_come_first(storage: Storage):
    book = Catalogue(storage)
    add(book, storage, 10, 200_000_000, 30)
    add(book, storage, 20, attempt=2)
    assert numbers(book.entries()) == [(20, 2), (200_000_000, 0), (30, 0), (10, 0)]
    assert book.next_attempt() == 3


def test_good_and_quarantined(storage: Storage):
    book = Catalogue(storage)
    add(book, storage, 10, 20, 30, 40)
    assert steps(book.mark_good(36, 0, through=26)) == [20, 10]
    assert book.mark_good(37, 0, through=27) == []
    assert steps(book.candidates(good=True)) == [20, 10]
    book.quarantine([entry for entry in book.entries() if entry.step >= 20], "the loss spiked", 1)
    assert steps(book.candidates()) == [10]
    assert [entry.quarantine for entry in book.entries()] == ["the loss spiked"] * 3 + [""]
    book.quarantine(book.entries()[:1], "another reason", 2)
    assert book.entries()[0].quarantine == "the loss spiked"
    assert steps(book.mark_good(99, 1, through=99)) == []
    add(book, storage, 20, attempt=1)
    assert numbers(book.candidates()) == [(20, 1), (10, 0)]
    assert numbers(book.candidates(at_or_before=15)) == [(10, 0)]


@pytest.mark.parametrize("mark", [META, GOOD, QUARANTINED])
def test_a_flipped_bit_of_a_mark_is_found(storage: Storage, mark: str):
    book = Catalogue(storage)
    add(book, storage, 10)
    book.mark_good(20, 0, through=10)
    if mark == QUARANTINED:
        book.quarantine(book.entries(), "the loss spiked", 1)
    name = f"{place(10, 0)}/{mark}"
    content = storage.read(name)
    for bit in range(0, len(content) * 8, 5):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        storage.write(name, changed)
        (entry,) = book.entries()
        if mark == META:
            assert f"{META} is damaged" in entry.damage
            assert book.candidates() == []
        elif mark == GOOD:
            assert entry.usable
            assert not entry.good
        else:
            assert entry.quarantine == "the quarantine mark is damaged"


def test_meta_of_another_checkpoint_is_damage(storage: Storage):
    book = Catalogue(storage)
    add(book, storage, 10, 20)
    storage.write(f"{place(20, 0)}/{META}", storage.read(f"{place(10, 0)}/{META}"))
    assert steps(book.candidates()) == [10]
    assert f"is of {place(10, 0)}" in book.entries()[0].damage


def test_that_a_checkpoint_once_existed_is_remembered(storage: Storage):
    book = Catalogue(storage)
    add(book, storage, 10)
    book.remove(place(10, 0))
    assert storage.list() == [COMMITTED]
    assert (book.entries(), book.begun()) == ([], True)


def test_a_newer_format_stops_the_reader(storage: Storage, monkeypatch):
    book = Catalogue(storage)
    add(book, storage, 10)
    monkeypatch.setattr(catalogue, "FORMAT_VERSION", 1)
    with pytest.raises(ValueError, match=r"step-00000010\.attempt-0000: format_version = 2, .* up to 1; update jaxllm"):
        book.entries()


def test_retention_keeps_the_last_every_and_the_good(storage: Storage):
    book = Catalogue(storage)
    add(book, storage, *range(10, 110, 10))
    book.mark_good(75, 0, through=65)
    gone = book.prune(keep=2, keep_every=40, keep_good=1)
    # 100 and 90 are the last, 80 and 40 fall on 40, 60 is good, 70 is the next that may become good
    assert steps(book.entries()) == [100, 90, 80, 70, 60, 40]
    assert gone == [place(step, 0) for step in (10, 20, 30, 50)]
    assert not any(storage.list(f"{one}/") for one in gone)
    assert book.prune(keep=2, keep_every=40, keep_good=1) == []


@pytest.mark.parametrize("interval", [10, 40, 150])
def test_there_is_always_a_good_one_however_rare_or_frequent_saves_are(storage: Storage, interval: int):
    book = Catalogue(storage)
    for step in range(interval, 600, interval):
        add(book, storage, step)
        book.mark_good(step, 0, through=step - 100)
        book.prune(keep=1, keep_good=1)
        assert len(book.entries()) <= 3
        if step >= interval + 200:
            assert book.candidates(good=True)


def test_retention_never_removes_the_newest_usable_nor_the_newest_good(storage: Storage):
    book = Catalogue(storage)
    add(book, storage, 10, 20, 30)
    book.mark_good(20, 0, through=10)
    storage.write(f"{place(30, 0)}/{META}", b"damaged")
    book.prune(keep=1, keep_good=1)
    assert steps(book.candidates()) == [20, 10]
    assert steps(book.entries()) == [30, 20, 10]  # what cannot be read is left alone


def test_evidence_is_limited(storage: Storage):
    book = Catalogue(storage)
    add(book, storage, 10, 20, 30, 40)
    book.quarantine([entry for entry in book.entries() if entry.step > 10], "the loss spiked", 1)
    book.prune(keep=1)
    assert steps(book.entries()) == [40, 30, 10]


def test_leftovers_go_but_not_what_is_being_written(storage: Storage):
    book = Catalogue(storage)
    add(book, storage, 10)
    for step in (20, 30):
        storage.write(f"{place(step, 1)}/params.orbax-checkpoint-tmp/values", b"half")
    storage.write("notes.txt", b"not ours")
    storage.write("step-7/notes.txt", b"not ours")
    assert book.prune(keep=1, writing=[place(30, 1)]) == [place(20, 1)]
    assert book.unfinished() == [place(30, 1)]
    assert {"notes.txt", "step-7/notes.txt"} <= set(storage.list())


def test_a_kill_while_removing_leaves_no_checkpoint_that_looks_whole(storage: Storage, monkeypatch):
    book = Catalogue(storage)
    add(book, storage, 10, 20)
    book.quarantine(book.entries()[1:], "the loss spiked", 1)
    total = len(storage.list(place(10, 0)))
    remove = storage.remove
    for survived in range(1, total):
        add(book, storage, 10)
        left = iter(range(survived))

        def dying(name: str, left=left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            remove(name)

        monkeypatch.setattr(storage, "remove", dying)
        with pytest.raises(KeyboardInterrupt):
            book.remove(place(10, 0))
        monkeypatch.setattr(storage, "remove", remove)
        assert place(10, 0) in book.unfinished()
        assert steps(book.entries()) == [20]
        assert storage.list(f"{place(10, 0)}/{QUARANTINED}")
