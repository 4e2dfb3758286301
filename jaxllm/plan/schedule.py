"""A step as the TPU compiler schedules it, without the code generation behind that.

The compiler first makes a program of instructions in their order, and gives each array its place in memory; it then
writes machine code for each of them, which takes ten times as long and changes neither. Where only the program is
wanted, the worker (`worker`) is told to write down what it has, and is ended when that is there.
"""

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxllm.config import Experiment, resolved
from jaxllm.plan.compile import Machine, environment, read_result, require_compiler
from jaxllm.roofline.transformer import vocabulary

_POLL_SECONDS = 0.05
_LAST = "*.after_optimizations_after_buffer_assignment.txt"
"""What the compiler writes down behind all that is wanted."""


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """A scheduled program of one device.

    Attributes:
        text: of the module.
        memory_bytes: of the device's memory: arguments and temporaries.
    """

    text: str
    memory_bytes: int


def scheduled(experiment: Experiment, machine: Machine) -> Scheduled:
    """Schedule an experiment's step for TPUs that are not here.

    Args:
        experiment: mesh, remat and micro-batches as they are to be; its first phase gives the batch, and the model's
            vocabulary must be a number.
        machine: TPUs.

    Raises:
        DoesNotFit: the compiler found no way to run the step in the device's memory.
        ValueError: the compiler is not installed, the machine has no such shape, or the experiment does not fit the
            mesh.
        RuntimeError: the compiler failed, in its own words.
    """
    assert machine.platform == "tpu"
    require_compiler(machine.platform)
    vocabulary(experiment.model)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        order = {
            "experiment": resolved(experiment),
            "machine": dataclasses.asdict(machine),
            "export": "",
            "path": str(place / "compiled.json"),
        }
        flags = f"--xla_dump_to={place} --xla_dump_hlo_as_text"
        with (place / "errors").open("w") as errors:
            worker = subprocess.Popen(
                [sys.executable, "-m", "jaxllm.plan.worker"],
                stdin=subprocess.PIPE,
                env=environment(machine) | {"XLA_FLAGS": flags},
                stderr=errors,
                text=True,
            )
            try:
                assert worker.stdin is not None
                with worker.stdin:
                    worker.stdin.write(json.dumps(order))
                while worker.poll() is None and not any(place.glob(_LAST)):
                    time.sleep(_POLL_SECONDS)
            finally:
                worker.kill()
                worker.wait()
        if not any(place.glob(_LAST)):
            read_result(place / "compiled.json", (place / "errors").read_text(), machine)
        assignment = next(place.glob("*.after_optimizations-buffer-assignment.txt")).read_text()
        return Scheduled(next(place.glob("*.after_optimizations.txt")).read_text(), memory_bytes(assignment))


def memory_bytes(assignment: str) -> int:
    """Main memory that a compiler's buffer assignment asks for: arguments and temporaries.

    Places of other colors are not in main memory; those that it calls thread-local stand for what a called computation
    is given, which has its place already. The compiler's own report of usage counts these a second time.
    """
    found = re.findall(r"^allocation \d+: size (\d+), (.*)", assignment, re.MULTILINE)
    return sum(int(size) for size, kind in found if "thread-local" not in kind and not kind.startswith("color"))
