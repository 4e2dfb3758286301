"""A tiny experiment on a tiny text, and ways to run it."""

import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from tests import quick

WORDS = ("quick brown fox jumps over lazy dog while seven wizards brew potions of amber and jade").split()  # noqa: SIM905
CONFIG = """
[model]
d_model = 32
num_layers = 2
attention = {{ num_heads = 4, num_kv_heads = 2 }}
mlp = {{ d_ff = 64 }}

[data]
sources = [{{ path = "{text}", documents = "line" }}]
tokenizer = {{ type = "bytes" }}
store = "{store}"
phases = [{{ sequence_length = 32, batch_size = 8, steps = 24 }}]

[train]
remat = "none"
precision = {{ compute = "float32" }}

[optim]
learning_rate = 3e-3
schedule = {{ type = "cosine", warmup_steps = 4 }}

[evaluation]
batches = 2
sample_tokens = 4

[checkpoint]
interval = 4
"""


PHASES = """
base = "tiny.toml"

[data]
sources = [
    {{ path = "{foxes}", documents = "line", name = "foxes" }},
    {{ path = "{digits}", documents = "line", name = "digits" }},
]
store = ""
phases = [
    {{ sequence_length = 32, batch_size = 8, steps = 8, mixture = {{ foxes = 3, digits = 1 }} }},
    {{ sequence_length = 64, batch_size = 2, steps = 8 }},
    {{ sequence_length = 64, batch_size = 2, steps = 8, mixture = {{ digits = 1 }} }},
]

[model]
num_layers = 1

[evaluation]
batches = 1
sample_tokens = 0
"""
"""Two sources in three phases."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What the homes of all files share: texts, a store of one of them, configs, compiled functions."""
    place = tmp_path_factory.mktemp("built")
    (place / "compiled").mkdir()
    draw = random.Random(0)
    lines = (" ".join(draw.choices(WORDS, k=draw.randint(4, 30))) for _ in range(400))
    (place / "foxes.txt").write_text("\n".join(lines) + "\n")
    (place / "tiny.toml").write_text(CONFIG.format(text=place / "foxes.txt", store=place / "store"))
    (place / "digits.txt").write_text("\n".join(" ".join(map(str, range(n, n + 12))) for n in range(200)) + "\n")
    paths = {"foxes": place / "foxes.txt", "digits": place / "digits.txt"}
    (place / "phases.toml").write_text(PHASES.format(**paths))
    run(["data", "build", "tiny.toml"], place)
    return place


@pytest.fixture(scope="module")
def home(built: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with a text and a config that trains on it; its runs are those of one file's tests."""
    place = tmp_path_factory.mktemp("home")
    for entry in built.iterdir():
        (place / entry.name).symlink_to(entry)
    return place


def start(
    arguments: list[str], cwd: pathlib.Path, devices: int = 1, code: str = "from jaxllm.cli import main; main()"
) -> subprocess.Popen[str]:
    """`jaxllm ARGUMENTS` in its own process, on simulated devices; or other code with these arguments."""
    flags = f"--xla_force_host_platform_device_count={devices} {quick.FLAGS}"
    environment = os.environ | {"XLA_FLAGS": flags, "COLUMNS": "120"}
    environment["PYTHONPATH"] = str(pathlib.Path(__file__).parents[2])
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # every run compiles the same few functions: once is enough
    environment["JAX_COMPILATION_CACHE_DIR"] = str(cwd / "compiled")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(arguments: list[str], cwd: pathlib.Path, code: int = 0, devices: int = 1) -> tuple[str, str]:
    """Run to the end, expect an exit code: what it printed and what it complained of."""
    process = start(arguments, cwd, devices)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out, err


def wait_for_step(directory: pathlib.Path, step: int) -> None:
    """Return when a run has logged a step."""
    path, deadline = directory / "metrics.jsonl", time.monotonic() + 300
    while time.monotonic() < deadline:
        if path.exists() and f'"step":{step},' in path.read_text().replace(" ", ""):
            return
        time.sleep(0.01)
    raise AssertionError(f"{directory} did not come to step {step}")
