"""A run on an object store as a user makes it: trained, gone on with, asked about. A directory is the store."""

import json
import pathlib
import shutil

import pytest
from obstore.store import LocalStore

from jaxllm import cli
from jaxllm.storage import objects, open_storage
from jaxllm.train.initial import find_origin
from jaxllm.train.metrics import METRICS, read_events, read_metrics
from tests.e2e.conftest import start
from tests.e2e.test_e2e_mistakes import sentence
from tests.fakes import make_bucket

RUN = "gs://bucket/runs/a"
TRAIN = ["train", "tiny.toml", "--run.directory", RUN, "--data.phases.0.steps", "6", "--checkpoint.interval", "2"]
SHORT = ["--evaluation.batches", "1", "--evaluation.sample_tokens", "0", "--checkpoint.good_after", "1"]

SCRIPT = """
import shutil, sys
from pathlib import Path
from obstore.store import LocalStore
from jaxllm.cli import main
from jaxllm.storage import ObjectStorage, objects

objects.connect = lambda scheme, bucket: LocalStore(bucket, mkdir=True)

def train():
    try:
        main()
    except SystemExit as end:
        assert end.code == 0

write, refused = ObjectStorage.write, []

def refuse(self, name, content):
    # While the checkpoint of step 4 is written the store is away, for three requests of whatever kind.
    if len(refused) < 3 and (refused or "step-00000004" in name):
        refused.append(name)
        raise OSError(5, "503 Slow Down", name)
    write(self, name, content)

ObjectStorage.write = refuse
train()
assert len(refused) == 3
shutil.rmtree("bucket/runs/a/checkpoints/step-00000006.attempt-0000")
train()
"""


@pytest.fixture(scope="module")
def printed(home: pathlib.Path) -> str:
    """What was printed by a run on a store that is away for a while, and by its going on from step 2."""
    process = start([*TRAIN, *SHORT], home, code=SCRIPT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, f"{out}\n{err}"
    return out


@pytest.fixture
def bucket(printed: str, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The directory that all code of this process takes for the bucket."""
    store = LocalStore(home / "bucket")
    monkeypatch.setattr(objects, "connect", lambda scheme, bucket: store)
    monkeypatch.chdir(home)
    return home / "bucket"


def test_a_run_goes_on_bit_for_bit(bucket: pathlib.Path, printed: str, home: pathlib.Path) -> None:
    storage = open_storage(RUN)
    lines = [json.loads(line) for name in storage.list(METRICS) for line in storage.read(name).splitlines()]
    assert [(line["attempt"], line["step"]) for line in lines] == [
        *((0, n) for n in range(1, 7)),
        *((1, n) for n in range(3, 7)),
    ]
    assert [line["loss"] for line in lines[2:6]] == [line["loss"] for line in lines[6:]]
    events = [event["event"] for event in read_events(RUN)]
    assert events[0] == "started" and events[-1] == "finished" and events.count("resumed") == 1
    assert {"config.toml", "environment.json", "report.html"} <= set(storage.list())
    assert printed.count(f"report    {RUN}/report.html") == 2
    assert not (home / "runs" / "tiny").exists() and not (home / "gs:").exists()


def test_all_commands_know_it(bucket: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["report", RUN, "--out", "gs://bucket/other.html"])
    assert b"<html" in (bucket / "other.html").read_bytes()
    with pytest.raises(SystemExit, match="0"):
        cli.main(["data", "where", RUN, "6"])
    assert "as logged" in capsys.readouterr().out
    for name, words in (("events", "resumed"), ("checkpoints", "step-00000006.attempt-0001")):
        with pytest.raises(SystemExit, match="0"):
            cli.main([name, RUN])
        assert words in capsys.readouterr().out
    assert find_origin("", RUN, pytest.fail).newest.step == 6
    assert "model.d_model" in sentence([*TRAIN, *SHORT, "--model.d_model", "64"], capsys)


def test_a_copy_of_it_on_the_disk_is_a_run(bucket: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(bucket / "runs" / "a", tmp_path / "a")
    assert read_metrics(tmp_path / "a") == read_metrics(RUN)
    assert find_origin("", tmp_path / "a", pytest.fail).newest.step == 6


def test_a_store_that_is_away_for_a_while_stops_no_training(bucket: pathlib.Path, printed: str) -> None:
    assert printed.count("the checkpoint of step 4 was not saved (OSError: ") == 1
    saved = [(event["attempt"], event["step"]) for event in read_events(RUN) if event["event"] == "saved"]
    assert saved == [(0, 2), (0, 6), (1, 4), (1, 6)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "tiny.toml", "--run.directory", "ftp://bucket/a"], ["run.directory = 'ftp://bucket/a'", "gs://"]),
        (["train", "tiny.toml", "--run.directory", "gs://b?key=secret"], ["run.directory", "environment"]),
        ([*TRAIN, "--run.init_from", "gs://bucket/nothing"], ["run.init_from = 'gs://bucket/nothing'", "config.toml"]),
        ([*TRAIN, "--run.init_from", f"{RUN}/"], ["run.init_from", "that is this run itself"]),
        ([*TRAIN, "--run.init_from", "hdfs://a/b"], ["run.init_from = 'hdfs://a/b'", "gs://"]),
        ([*TRAIN, "--log.loggers", '["tensorboard"]'], ["log.loggers: tensorboard", RUN]),
        (["report", "gs://bucket/nothing"], ["gs://bucket/nothing holds no run", METRICS]),
        (["checkpoints", "gs://bucket/nothing"], ["gs://bucket/nothing holds no run"]),
        (["data", "where", "gs://bucket/nothing", "1"], ["gs://bucket/nothing holds no run", "config.toml"]),
        (["merge", "gs://bucket/nothing", "gs://bucket/out"], ["gs://bucket/nothing", "config.toml"]),
    ],
)
def test_a_mistake_gets_one_sentence(
    home: pathlib.Path,
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = make_bucket(monkeypatch)
    monkeypatch.chdir(home)
    err = sentence(arguments, capsys)
    assert all(word in err for word in words) and "secret" not in err, err
    assert not open_storage(bucket).list()
