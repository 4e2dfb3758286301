"""Lines in an object store: whole objects, each of one process, and nothing lost while the store is away."""

import logging
import time

import pytest

from jaxllm.storage import ObjectStorage
from jaxllm.train import lines
from jaxllm.train.lines import ObjectLines, open_lines
from jaxllm.train.metrics import METRICS, read_metrics
from tests.fakes import make_bucket, object_storage


@pytest.fixture
def run(monkeypatch) -> str:
    """URL of a run."""
    return f"{make_bucket(monkeypatch)}/runs/a"


def steps(run: str) -> list[tuple[int, int]]:
    return [(record["attempt"], record["step"]) for record in read_metrics(run)]


def names(run: str) -> list[str]:
    return lines.open_storage(run).list()


def test_lines_come_by_themselves_after_a_while(run):
    log = open_lines(run, METRICS, seconds=0.01)
    log.write({"attempt": 0, "step": 1})
    deadline = time.monotonic() + 30
    while not names(run) or not steps(run):
        assert time.monotonic() < deadline
    assert steps(run) == [(0, 1)]
    log.close()


def test_a_sync_stores_what_was_written_and_writes_nothing_twice(run, monkeypatch):
    log = open_lines(run, METRICS, seconds=3600)
    for step in (1, 2):
        log.write({"attempt": 0, "step": step})
    log.sync()
    assert steps(run) == [(0, 1), (0, 2)]
    monkeypatch.setattr(ObjectStorage, "write", None)
    log.sync()
    log.close()


def test_every_process_that_opens_a_file_writes_objects_of_its_own(run):
    """One that has lost the run, and does not know it, takes nothing back."""
    old = open_lines(run, METRICS, seconds=3600)
    old.write({"attempt": 0, "step": 1})
    old.write({"attempt": 0, "step": 2})
    old.sync()
    new = open_lines(run, METRICS, seconds=3600)
    new.write({"attempt": 1, "step": 2})
    new.close()
    old.write({"attempt": 0, "step": 3})
    old.close()
    assert names(run) == [METRICS, f"{METRICS}.0001"]
    assert steps(run) == [(0, 1), (1, 2)]


def test_a_full_object_is_left_alone(run, monkeypatch):
    monkeypatch.setattr(lines, "_PART", 100)
    log = open_lines(run, METRICS, seconds=3600)
    sizes = []
    for step in range(1, 21):
        log.write({"attempt": 0, "step": step})
        log.sync()
        sizes.append(len(names(run)))
    log.close()
    assert steps(run) == [(0, step) for step in range(1, 21)]
    assert sizes[3] == 1 and sizes[-1] == 5
    open_lines(run, METRICS).close()
    assert len(names(run)) == 5, "a file that is opened and not written leaves nothing"


def test_while_the_store_is_away_lines_wait(run, monkeypatch, caplog):
    log = open_lines(run, METRICS, seconds=3600)
    log.write({"attempt": 0, "step": 1})
    write = ObjectStorage.write

    def refuse(*_: object) -> None:
        raise OSError(5, "503 Slow Down")

    monkeypatch.setattr(ObjectStorage, "write", refuse)
    with caplog.at_level(logging.WARNING):
        for step in (2, 3):
            with pytest.raises(OSError, match="Slow Down"):
                log.sync()
            log.write({"attempt": 0, "step": step})
        assert [record.message for record in caplog.records] == [f"{run}/{METRICS}: 503 Slow Down; it waits in memory"]
        monkeypatch.setattr(ObjectStorage, "write", write)
        log.sync()
        assert "can be written again" in caplog.text
        assert steps(run) == [(0, 1), (0, 2), (0, 3)]
        log.write({"attempt": 0, "step": 4})
        monkeypatch.setattr(ObjectStorage, "write", refuse)
        log.close()
        assert "its last lines are lost" in caplog.text


def test_what_cannot_be_written_is_tried_again_by_itself(monkeypatch):
    storage, tried = object_storage(), []
    write = ObjectStorage.write

    def refuse_once(*arguments) -> None:
        tried.append(1)
        if len(tried) == 1:
            raise OSError(5, "503 Slow Down")
        write(*arguments)

    monkeypatch.setattr(ObjectStorage, "write", refuse_once)
    log = ObjectLines(storage, METRICS, seconds=0.01)
    log.write({"attempt": 0, "step": 1})
    deadline = time.monotonic() + 30
    while len(tried) < 2:
        assert time.monotonic() < deadline
    log.close()
    assert storage.read(METRICS) == b'{"attempt": 0, "step": 1}\n'
