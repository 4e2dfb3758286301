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
