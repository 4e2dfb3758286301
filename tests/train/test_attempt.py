"""A run's records that are damaged, and what a start and an end of the run make of them."""

from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AxisType

from jaxllm.storage import LocalStorage
from jaxllm.train import environment
from jaxllm.train.attempt import Attempt


def test_damaged_records_cost_the_report_and_nothing_else(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("no record\n")
    said = []
    ended = SimpleNamespace(directory=tmp_path, console=SimpleNamespace(note=said.append))
    assert Attempt._report(ended) == ""  # pyright: ignore[reportArgumentType]
    (sentence,) = said
    assert "metrics.jsonl, line 1: not JSON" in sentence and f"`jaxllm report {tmp_path}`" in sentence
    assert not (tmp_path / "report.html").exists()


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(tmp_path):
    began = SimpleNamespace(directory=tmp_path, storage=LocalStorage(tmp_path))
    began._events = lambda: Attempt._events(began)  # pyright: ignore[reportArgumentType]
    assert Attempt._refuse_to_begin_again(began) == 0  # pyright: ignore[reportArgumentType]
    line = '{"time":1.0,"event":"saved","attempt":0,"step":%d,"seconds":1.0,"bytes":8}\n'
    (tmp_path / "events.jsonl").write_text(line % 4 + line % 8)
    with pytest.raises(
        ValueError, match=r"saved its step 8, and checkpoints/ has no trace of it; bring it back, begin"
    ):
        Attempt._refuse_to_begin_again(began)  # pyright: ignore[reportArgumentType]


def test_a_damaged_environment_is_named_and_kept(tmp_path):
    mesh, storage = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,)), LocalStorage(tmp_path)
    environment.record(storage, 0, mesh)
    environment.record(storage, 1, mesh)
    whole = storage.read("environment.json")
    assert whole.count(b'"attempt"') == 2
    for damaged in (whole[:-9], b"{}", b"\xff"):
        storage.write("environment.json", damaged)
        with pytest.raises(ValueError, match=r"environment\.json is damaged \(.*\); mend it, or move it away"):
            environment.record(storage, 2, mesh)
        assert storage.read("environment.json") == damaged
