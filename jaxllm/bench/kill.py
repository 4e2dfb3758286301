"""A run that is killed again and again, against one that is not: `jaxllm bench kill`.

Both train the same experiment in processes of their own. One is never disturbed; the other is killed with SIGKILL at
random moments of its start and its training, and, for a part of the kills, in the midst of writing a checkpoint, and
started again each time. Or the steps to kill it at are given, such as those around a new phase. In the end every step's
loss, of its last attempt, must have the same bits in both, and a kill may cost at most the steps of two intervals
between checkpoints: those since the last one, and those of a write in flight. Where the guard acts, both ledgers must
say the same.

`in_rollback` looks at the guard alone: runs that are killed once each, at a random moment from the onset of the first
spike to a few steps behind the rollback.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import Experiment
from jaxllm.storage import LocalStorage
from jaxllm.train.guard.ledger import Ledger, read, same
from jaxllm.train.metrics import METRICS, read_events, read_metrics

_POLL = 0.02


class Runner:
    """Starts `jaxllm train` with a config and overrides, in one process or several on loopback.

    Args:
        arguments: of `jaxllm train`.
        num_processes: of the run.
        num_devices: simulated CPU devices of each; 0 leaves the devices as they are.
        cache: directory of compiled programs, so that only the first start compiles.
    """

    def __init__(self, arguments: Sequence[str], num_processes: int, num_devices: int, cache: Path) -> None:
        self._arguments, self._num_processes = arguments, num_processes
        self._environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if num_devices:
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
            self._environment |= {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}

    def start(self, directory: Path) -> list[subprocess.Popen[bytes]]:
        """The run's processes."""
        command = [sys.executable, "-m", "jaxllm", "train", *self._arguments, "--run.directory", str(directory)]
        together = {}
        if self._num_processes > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            together = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(self._num_processes),
            }
        return [
            subprocess.Popen(
                command,
                env=self._environment | together | ({"JAX_PROCESS_ID": str(index)} if together else {}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for index in range(self._num_processes)
        ]


def finish(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for a run's end.

    Raises:
        ValueError: it failed, with the last line it wrote.
    """
    for process in processes:
        _, errors = process.communicate()
        if process.returncode:
            for other in processes:
                other.kill()
            *_, last = [b"it said nothing", *errors.splitlines()]
            raise ValueError(f"the run ended with {process.returncode}: {last.decode(errors='replace')}")


def measure(
    experiment: Experiment,
    arguments: Sequence[str],
    num_kills: int = 30,
    num_in_write: int = 10,
    num_processes: int = 1,
    num_devices: int = 0,
    at: Sequence[int] = (),
    num_in_rollback: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Kill a run and compare.

    Args:
        experiment: what the arguments load to.
        arguments: of `jaxllm train`: the config and overrides.
        num_kills: in all.
        num_in_write: of them, in the midst of a checkpoint's write.
        num_processes: of the run, on this machine.
        num_devices: simulated devices of each process; 0 leaves the devices as they are.
        at: kill as soon as each of these steps is logged, instead of at random.
        num_in_rollback: runs that are killed once each, about the first rollback, instead.
        seed: of the moments.

    Returns:
        kills, killed_at (the last step logged before each), in_write (as it came), resumed (starts that went on from a
        checkpoint), steps, differing (steps whose losses differ), rollbacks, ledgers_differ, most_lost (steps), bound.
        Of kills about a rollback also undecided, begun and done: how many came before the decision was written down,
        before it was carried out, and later.

    Raises:
        ValueError: the experiment saves no checkpoints, it has no such steps, or an undisturbed run fails.
    """
    interval, num_steps = experiment.checkpoint.interval, experiment.data.num_steps
    if not 0 < interval < num_steps:
        raise ValueError(f"checkpoint.interval = {interval}: use one below the run's {num_steps} steps")
    if wrong := [step for step in at if not 0 < step < num_steps]:
        raise ValueError(f"--at {wrong[0]}: name steps from 1 to {num_steps - 1}")
    draw = random.Random(seed)
    in_write = set(draw.sample(range(num_kills), min(num_in_write, num_kills)))
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        runner = Runner(arguments, num_processes, num_devices, root / "compiled")
        began = time.monotonic()
        finish(runner.start(root / "whole"))
        usual = time.monotonic() - began
        if num_in_rollback:
            return _about_rollback(runner, root, draw, num_in_rollback) | {
                "processes": num_processes,
                "bound": 2 * interval,
            }
        broken, writing, killed_at = root / "broken", list[bool](), list[int]()
        for step in sorted(at):
            writing.append(_kill_at(runner, broken, step))
            killed_at.append(_last_record(broken)[1])
        for index in range(0 if at else num_kills):
            low, high = (num_steps * (index + more) // (num_kills + 1) for more in (0, 1))
            writing.append(_kill(runner, broken, draw, index in in_write, usual, low, high))
            killed_at.append(_last_record(broken)[1])
        finish(runner.start(broken))
        whole, again = (_losses(directory) for directory in (root / "whole", broken))
        starts = [event["step"] for event in read_events(broken) if event["event"] in ("started", "resumed")]
        return {
            "kills": len(writing),
            "killed_at": killed_at,
            "in_write": sum(writing),
            "resumed": sum(step > 0 for step in starts),
            "processes": num_processes,
            "steps": len(whole),
            "differing": sum(whole[step] != again.get(step) for step in whole) + len(again.keys() - whole.keys()),
            **_ledgers(root / "whole", broken),
            "most_lost": _most_lost(broken),
            "bound": 2 * interval,
        }


def _about_rollback(runner: Runner, root: Path, draw: random.Random, num_kills: int) -> dict[str, Any]:
    """Runs that are killed once each about the first rollback, beside one that is not."""
    whole = _losses(root / "whole")
    rollbacks = Ledger(read(LocalStorage(root / "whole"))).rollbacks
    if not rollbacks:
        raise ValueError("--in-rollback: the guard rolls nothing back in this run; name a config in which it does")
    events = read_events(root / "whole")
    spiked, back = (next(one for one in events if one["event"] == name) for name in ("spiked", "rolled_back"))
    window = 2 * (back["time"] - spiked["time"]) + 1.0
    moments = {"undecided": 0, "begun": 0, "done": 0}
    killed_at, differing, ledgers_differ, lost, resumed = [], 0, False, 0, 0
    for index in range(num_kills):
        broken = root / str(index)
        processes = runner.start(broken)
        while all(process.poll() is None for process in processes) and _last_step(broken) < rollbacks[0].onset:
            time.sleep(_POLL)
        time.sleep(draw.uniform(0.0, window))
        for process in draw.sample(processes, len(processes)):
            process.kill()
            process.communicate()
        decided = bool(Ledger(read(LocalStorage(broken))).rollbacks)
        carried_out = any(event["event"] == "rolled_back" for event in read_events(broken))
        moments["done" if carried_out else "begun" if decided else "undecided"] += 1
        killed_at.append(_last_record(broken)[1])
        finish(runner.start(broken))
        again = _losses(broken)
        differing += sum(whole[step] != again.get(step) for step in whole) + len(again.keys() - whole.keys())
        ledgers_differ |= _ledgers(root / "whole", broken)["ledgers_differ"]
        lost = max(lost, _most_lost(broken))
        resumed += any(event["event"] == "resumed" for event in read_events(broken))
        shutil.rmtree(broken)
    return {
        "kills": num_kills,
        "killed_at": killed_at,
        "in_write": 0,
        "resumed": resumed,
        "steps": len(whole) * num_kills,
        "differing": differing,
        "rollbacks": len(rollbacks),
        "ledgers_differ": ledgers_differ,
        **moments,
        "most_lost": lost,
    }


def _ledgers(one: Path, other: Path) -> dict[str, Any]:
    """What the guard did in two runs, compared."""
    entries, others = (read(LocalStorage(directory)) for directory in (one, other))
    equal = len(entries) == len(others) and all(map(same, entries, others))
    return {"rollbacks": len(Ledger(entries).rollbacks), "ledgers_differ": not equal}


def _kill(
    runner: Runner, directory: Path, draw: random.Random, in_write: bool, usual: float, low: int, high: int
) -> bool:
    """Start, and kill: at a random moment, at the latest when a step is reached, or in a write behind another step.

    Returns:
        Whether a checkpoint was being written then.
    """
    leftovers = _unfinished(directory)
    processes = runner.start(directory)
    end = time.monotonic() + draw.uniform(0.1, usual)
    while all(process.poll() is None for process in processes):
        if in_write:
            if _unfinished(directory) - leftovers and _last_step(directory) >= low and draw.random() < 0.2:
                break
        elif time.monotonic() > end or _last_step(directory) >= high:
            break
        time.sleep(_POLL)
    writing = bool(_unfinished(directory) - leftovers)
    first = draw.choice(processes)
    first.kill()  # one process alone dies at first, as one machine does
    time.sleep(draw.uniform(0.0, 0.3))
    for process in processes:
        process.kill()
        process.communicate()
    return writing


def _kill_at(runner: Runner, directory: Path, step: int) -> bool:
    """Start, and kill when this start has logged a step: whether a checkpoint was being written then."""
    leftovers, (attempt, _) = _unfinished(directory), _last_record(directory)
    processes = runner.start(directory)
    while all(process.poll() is None for process in processes):
        now = _last_record(directory)
        if now[0] > attempt and now[1] >= step:
            break
        time.sleep(_POLL)
    for process in processes:
        process.kill()
        process.communicate()
    return bool(_unfinished(directory) - leftovers)


def _unfinished(directory: Path) -> set[str]:
    """Checkpoints that lie there and are not committed: one that is written now, or what a kill left of one."""
    try:
        places = [place for place in (directory / "checkpoints").iterdir() if place.is_dir()]
    except FileNotFoundError:
        return set()
    return {place.name for place in places if not (place / "meta.json").exists()}


def _last_record(directory: Path) -> tuple[int, int]:
    """Attempt and step of the last whole line of metrics.jsonl; (-1, 0) without one."""
    try:
        *lines, _ = (directory / METRICS).read_bytes().split(b"\n")
    except FileNotFoundError:
        return -1, 0
    last = json.loads(lines[-1]) if lines else {"attempt": -1, "step": 0}
    return last["attempt"], last["step"]


def _last_step(directory: Path) -> int:
    """The step of the last whole line of metrics.jsonl; 0 without one."""
    try:
        return int(read_metrics(directory)[-1]["step"]) if (directory / METRICS).stat().st_size else 0
    except (FileNotFoundError, IndexError):
        return 0


def _losses(directory: Path) -> dict[int, str]:
    return {record["step"]: float(record["loss"]).hex() for record in read_metrics(directory)}


def _most_lost(directory: Path) -> int:
    """The largest number of steps that an attempt had to do again because the one before was killed."""
    lines = [json.loads(line) for line in (directory / METRICS).read_bytes().splitlines()]
    decided = {entry.attempt for entry in Ledger(read(LocalStorage(directory))).rollbacks}
    last, lost = {}, 0
    for line in lines:
        attempt, step = line["attempt"], line["step"]
        if attempt not in last and last and not decided & set(range(max(last), attempt)):
            lost = max(lost, max(last.values()) - (step - 1))
        if attempt not in last and decided & set(range(max(last, default=0), attempt)):
            last = {}  # where the run went back by itself
        last[attempt] = step
    return lost


def text(result: dict[str, Any]) -> str:
    """A measurement as lines for people."""
    same = "bit for bit the same" if not result["differing"] else f"{result['differing']} of them DIFFERENT"
    at = ", ".join(map(str, result["killed_at"]))
    moments = ""
    if "undecided" in result:
        moments = (
            f"; killed before the decision was written down {result['undecided']}, before it was carried out "
            f"{result['begun']}, later {result['done']}"
        )
    return (
        f"{result['kills']} kills, {result['in_write']} of them in the midst of a write, "
        f"{result['processes']} processes; {result['resumed']} starts went on from a checkpoint\n"
        f"killed at   step {at}\n"
        f"losses      {result['steps']} steps, {same}\n"
        f"guard       {result['rollbacks']} rollbacks; the ledgers "
        f"{'DIFFER' if result['ledgers_differ'] else 'say the same'}{moments}\n"
        f"lost        at most {result['most_lost']} steps a kill, bound {result['bound']}"
    )
