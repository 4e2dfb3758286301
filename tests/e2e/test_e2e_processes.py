"""A run in one process and in two (`launch/local.sh`), stopped, gone on with on another mesh, and made longer."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from jaxllm.train.metrics import read_events, read_metrics
from tests import quick
from tests.e2e.conftest import run, wait_for_step

ROOT = pathlib.Path(__file__).parents[2]
COMMON = {
    "optim.learning_rate": 1e-4,
    "optim.schedule.type": "constant",
    "log.all_processes": True,
    "evaluation.sample_tokens": 0,
}
SAME = {"mesh.fsdp": 4, "mesh.tensor": 2}
MIXED = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "mesh.sequence_parallel": True}


def words(name: str, steps: int, mesh: dict[str, object]) -> list[str]:
    flags = {"run.name": name, "data.phases.0.steps": steps, **COMMON, **mesh}
    return ["tiny.toml", *(word for field, value in flags.items() for word in (f"--{field}", str(value).lower()))]


def go(home: pathlib.Path, name: str, steps: int, mesh: dict[str, object]) -> str:
    """One process of eight devices, to the end: what it printed."""
    return run(["train", *words(name, steps, mesh)], home, devices=8)[0]


def launch(home: pathlib.Path, name: str, steps: int) -> subprocess.Popen[str]:
    """The same in two processes of four devices."""
    environment = os.environ | {
        "JAXLLM": f"{sys.executable} -m jaxllm",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": quick.FLAGS,
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [str(ROOT / "launch" / "local.sh"), "2", *words(name, steps, SAME)]
    return subprocess.Popen(
        command, cwd=home, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.skipif(not shutil.which("bash"), reason="launch/local.sh needs bash")
def test_any_processes_and_mesh_go_on(home: pathlib.Path) -> None:
    go(home, "one", 26, SAME)
    whole = read_metrics(home / "runs" / "one")

    both = launch(home, "two", 24)
    directory = home / "runs" / "two"
    wait_for_step(directory, 6)
    both.send_signal(signal.SIGTERM)
    out, err = both.communicate(timeout=300)
    assert both.returncode == 75, out + err
    stopped = read_events(directory)[-1]["step"]
    assert read_events(directory)[-1]["event"] == "preempted" and 6 <= stopped < 24
    first, second = (read_metrics(directory, f"metrics.{process}.jsonl") for process in (0, 1))
    assert [record["loss"].hex() for record in first] == [record["loss"].hex() for record in second]
    assert len(first) == stopped
    assert [record["loss"] for record in first] == pytest.approx(
        [record["loss"] for record in whole[:stopped]], rel=1e-6
    )

    assert "resumed" in go(home, "two", 26, MIXED)
    records = read_metrics(directory)
    assert [record["step"] for record in records] == list(range(1, 27))
    assert [record["attempt"] for record in records] == [0] * stopped + [1] * (26 - stopped)
    assert [record["batch_digest"] for record in records] == [record["batch_digest"] for record in whole]
    assert [record["loss"] for record in records] == pytest.approx([record["loss"] for record in whole], rel=1e-4)


def test_processes_that_disagree_say_so(home: pathlib.Path) -> None:
    together = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{20000 + os.getpid() % 20000}",
        "JAX_NUM_PROCESSES": "2",
        "PYTHONPATH": str(ROOT),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxllm", "train", "tiny.toml", "--run.name", "two-minds", "--run.seed", seed],
            cwd=home,
            env=together | {"JAX_PROCESS_ID": str(index)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index, seed in enumerate("12")
    ]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2, err
        assert "the config: process 1 and process 0 disagree" in err and "Traceback" not in err
    assert not (home / "runs" / "two-minds").exists()
