"""What TensorBoard, W&B and SwanLab are told, and that none of them stops a run."""

import importlib.machinery
import math
import sys
import types

import pytest

from jaxllm.config import LogConfig
from jaxllm.train.loggers import Loggers, check_loggers

RECORD = {
    "attempt": 0,
    "step": 3,
    "loss": 2.5,
    "tokens_seen": 3000,
    "skipped": 0.0,
    "batch_digest": "ab",
    "grad_norm": math.nan,
}
EVALUATED = {"time": 1.0, "event": "evaluated", "attempt": 0, "step": 3, "set": "prose", "loss": 2.0, "tokens": 10}
SAVED = {"time": 1.0, "event": "saved", "attempt": 0, "step": 2, "bytes": 7}


class FakeService(types.ModuleType):
    """wandb or swanlab as far as a run uses them; fails on demand."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.calls: list[tuple[str, tuple, dict]] = []
        self.failing: set[str] = set()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **settings):
            if name in self.failing:
                raise ConnectionError("no route to host\nand more")
            self.calls.append((name, args, settings))
            return self

        return call

    def of(self, name: str) -> list[tuple]:
        return [args for called, args, _ in self.calls if called == name]


@pytest.fixture
def wandb(monkeypatch) -> FakeService:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeService("wandb"))
    return fake


@pytest.fixture
def swanlab(monkeypatch) -> FakeService:
    monkeypatch.delenv("SWANLAB_PROJ_NAME", raising=False)
    fake = FakeService("swanlab")
    fake.__dict__["Text"] = lambda text: ("text", text)
    monkeypatch.setitem(sys.modules, "swanlab", fake)
    return fake


def make(names, directory, say=pytest.fail) -> Loggers:
    return Loggers(names, directory, "small", {"run": {"seed": 1}}, say)


def step(number: int, loss: float, attempt: int = 0) -> dict:
    return {"attempt": attempt, "step": number, "loss": loss}


@pytest.mark.parametrize("name", LogConfig.__annotations__["loggers"].__args__[0].__args__)
def test_a_missing_package_is_one_sentence(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    sentence = rf"log\.loggers: {name} is not installed; uv sync --extra loggers \(or pip install 'jaxllm\[loggers\]'\)"
    with pytest.raises(ValueError, match=sentence):
        check_loggers([name], "runs/a")


def test_a_present_package_is_fine(wandb):
    check_loggers(["wandb"], "runs/a")


def test_without_services_nothing_is_written(tmp_path):
    loggers = make([], tmp_path)
    loggers.step(RECORD)
    loggers.event(SAVED)
    loggers.close()
    assert list(tmp_path.iterdir()) == []


def test_wandb_gets_numbers_over_our_own_step(tmp_path, wandb):
    loggers = make(["wandb"], tmp_path)
    loggers.step(RECORD)
    loggers.event(EVALUATED)
    loggers.event(SAVED)
    loggers.step(step(1, 4.0, attempt=1))
    loggers.close()
    ((_, _, settings),) = [call for call in wandb.calls if call[0] == "init"]
    assert settings == {
        "project": "jaxllm",
        "id": (tmp_path / "run_id.txt").read_text(),
        "name": "small",
        "resume": "allow",
        "dir": str(tmp_path),
        "config": {"run": {"seed": 1}},
        "allow_val_change": True,
    }
    assert [(args, settings) for name, args, settings in wandb.calls if name == "define_metric"] == [
        (("step",), {}),
        (("*",), {"step_metric": "step"}),
    ]
    (first,), *rest = wandb.of("log")
    assert math.isnan(first.pop("train/grad_norm"))
    assert first == {
        "step": 3,
        "train/attempt": 0,
        "train/loss": 2.5,
        "train/tokens_seen": 3000,
        "train/skipped": 0,
    }
    assert rest == [
        ({"step": 3, "prose/loss": 2.0, "prose/tokens": 10.0},),
        ({"step": 2, "events/saved": "saved at step 2  \nbytes: 7"},),
        ({"step": 1, "train/attempt": 1, "train/loss": 4.0},),
    ]
    assert wandb.calls[-1] == ("finish", (), {})


def test_of_a_number_a_layer_the_largest_is_told(tmp_path, wandb):
    layers = {"activation_rms": [1.0, 3.0, 2.0], "activation_max": [9.0, math.nan, 1.0]}
    make(["wandb"], tmp_path).step({"attempt": 0, "step": 5, "flags": ["loss"], "none": [], **layers})
    ((told,),) = wandb.of("log")
    assert math.isnan(told.pop("train/activation_max"))
    assert told == {"step": 5, "train/attempt": 0, "train/activation_rms": 3.0}


def test_a_resumed_run_goes_on_under_its_id_and_another_has_its_own(tmp_path, wandb, swanlab):
    for directory in ("one", "one", "two"):
        (tmp_path / directory).mkdir(exist_ok=True)
        make(["wandb", "swanlab"], tmp_path / directory).close()
    ids = [settings["id"] for name, _, settings in wandb.calls + swanlab.calls if name == "init"]
    assert ids[0] == ids[1] == ids[3] == ids[4] != ids[2] == ids[5]
    assert all(len(one) == 21 and one.isalnum() and one.islower() for one in ids)


def test_the_project_is_the_environments(tmp_path, wandb, swanlab, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("SWANLAB_PROJ_NAME", "ours")
    make(["wandb", "swanlab"], tmp_path)
    assert wandb.calls[0][2]["project"] == "mine" and swanlab.calls[0][2]["project"] == "ours"


def test_swanlab_gets_each_step_once_and_finite(tmp_path, swanlab):
    loggers = make(["swanlab"], tmp_path)
    loggers.step(RECORD)
    loggers.event(EVALUATED)
    loggers.event(SAVED)
    loggers.event(SAVED)
    loggers.step(step(2, 9.0))
    loggers.step(step(3, 9.0))
    loggers.step(step(4, 1.0))
    loggers.close()
    assert [(args[0], settings["step"]) for name, args, settings in swanlab.calls if name == "log"] == [
        ({"train/attempt": 0, "train/loss": 2.5, "train/tokens_seen": 3000, "train/skipped": 0}, 3),
        ({"prose/loss": 2.0, "prose/tokens": 10.0}, 3),
        ({"events/saved": ("text", "saved at step 2  \nbytes: 7")}, 2),
        ({"train/attempt": 0, "train/loss": 1.0}, 4),
    ]
    settings = swanlab.calls[0][2]
    assert settings["resume"] == "allow" and settings["experiment_name"] == "small"
    assert settings["logdir"] == str(tmp_path / "swanlab") and (tmp_path / "swanlab").is_dir()


def test_a_failing_service_is_said_once_and_stops_nothing(tmp_path, wandb, swanlab):
    said = []
    loggers = make(["wandb", "swanlab"], tmp_path, said.append)
    wandb.failing = {"log", "finish"}
    loggers.step(RECORD)
    loggers.event(SAVED)
    wandb.failing = set()
    loggers.step(step(4, 1.0))
    wandb.failing = {"finish"}
    loggers.close()
    assert said == [
        "log.loggers: wandb failed (ConnectionError: no route to host); the run goes on, and its own files hold "
        "everything"
    ]
    assert len(wandb.of("log")) == 1 and len(swanlab.of("log")) == 3 and len(swanlab.of("finish")) == 1


def test_a_service_that_cannot_start_is_left_out(tmp_path, wandb, swanlab):
    said = []
    wandb.failing = {"init"}
    loggers = make(["wandb", "swanlab"], tmp_path, said.append)
    loggers.step(RECORD)
    loggers.close()
    assert len(said) == 1 and "wandb failed" in said[0]
    assert wandb.calls == [] and len(swanlab.of("log")) == 1


def test_tensorboard_reads_what_the_last_attempt_wrote(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the tensorboard package")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = make(["tensorboard"], tmp_path)
    loggers.step(RECORD)
    loggers.event(EVALUATED)
    loggers.step(step(4, 40.0))
    loggers.step(step(5, 50.0))
    loggers.event(EVALUATED | {"step": 5, "loss": 5.0})
    loggers.event({"event": "rolled_back", "attempt": 0, "step": 5, "reason": "grad norm ü 9"})
    # A rollback repeats a step within an attempt.
    loggers.step(step(4, 4.0))
    loggers.event(SAVED)
    loggers.step(step(5, 5.0))
    loggers.step(step(6, math.inf))
    # The process was killed: nothing is closed before it is read. The next attempt starts from step 5.
    later = make(["tensorboard"], tmp_path)
    later.step(step(6, 6.0, attempt=1))
    later.close()

    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [(one.step, one.value) for one in reader.Scalars("train/loss")] == [(3, 2.5), (4, 4.0), (5, 5.0), (6, 6.0)]
    assert [(one.step, one.value) for one in reader.Scalars("prose/loss")] == [(3, 2.0)]
    assert math.isnan(reader.Scalars("train/grad_norm")[0].value)
    (saved,) = reader.Tensors("events/saved")
    assert (saved.step, saved.tensor_proto.string_val[0].decode()) == (2, "saved at step 2  \nbytes: 7")
    assert "train/batch_digest" not in reader.Tags()["scalars"]
    assert not {"torch", "tensorflow"} & set(sys.modules)
    loggers.close()
