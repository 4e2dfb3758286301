"""The command line: the only place that parses arguments and prints.

Exit codes: 0 done, 2 a mistake in config or usage, 3 stopped by the guard, 75 saved after a signal (start again to go
on), 1 anything else.

A `ValueError` that jaxllm itself raises is a user's mistake and becomes one sentence; one raised by anything below is a
bug, like every other exception, and keeps its traceback.
"""

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jaxllm import cli_bench as bench
from jaxllm import cli_budget, cli_convert, cli_generate, cli_plan
from jaxllm.allocator import keep_memory
from jaxllm.arguments import DONE, FAILED, GUARDED, MISTAKE, OVERRIDES, STOPPED, from_preset, joined, load, none
from jaxllm.config import Experiment, ModelConfig, describe

if TYPE_CHECKING:
    from jaxllm.roofline.memory import Adapters


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    logging.basicConfig(format="jaxllm: %(message)s", level=logging.WARNING)
    # what fails in a library below is told by our own sentence; orbax would add pages of tracebacks
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    arguments, rest = _parser().parse_known_args(joined(sys.argv[1:] if argv is None else argv))
    try:
        code = arguments.command(arguments, rest)
    except ValueError as error:
        if not _raised_here(error.__traceback__):
            raise
        print(f"jaxllm: {error}", file=sys.stderr)
        code = MISTAKE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        print(f"jaxllm: {error.filename}: {error.strerror.lower()}", file=sys.stderr)
        code = FAILED
    except KeyboardInterrupt:
        print("jaxllm: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _raised_here(trace: TracebackType | None) -> bool:
    """Whether the innermost frame of a traceback is jaxllm's own."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0] == "jaxllm"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxllm",
        description="Train large language models in JAX: plan it, train it, trust it.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[..., int], text: str, where: Any = commands) -> argparse.ArgumentParser:
        one = where.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.set_defaults(command=command)
        return one

    train = add("train", _train, "Train; goes on by itself where the run exists.")
    train.add_argument("config", nargs="?", help="experiment, a TOML file")
    train.add_argument(
        "--force",
        action="store_true",
        help="go on with another config's run, begin again where its checkpoints are lost, try too little memory",
    )
    train.add_argument("--fields", nargs="?", const="", metavar="SECTION", help="list the config's fields and stop")
    train.epilog = OVERRIDES

    show = add("show", _show, "A model in numbers: parameters, FLOPs per token, memory per device.")
    show.add_argument("config", nargs="?", help="experiment, a TOML file")
    show.add_argument("--preset", metavar="NAME", help="a published model instead of a config")
    show.add_argument("--devices", type=int, help="how many, where the config leaves a mesh axis at -1")
    show.add_argument("--json", action="store_true", help="for programs")
    show.epilog = OVERRIDES + f"; presets: {', '.join(_presets())}"

    cli_plan.register(add)
    cli_budget.register(add)
    cli_generate.register(add)

    data = commands.add_parser("data", help="Text into tokens.", allow_abbrev=False).add_subparsers(
        metavar="COMMAND", required=True
    )
    build = add("build", _data_build, "Tokenise an experiment's text into its store; goes on where it stopped.", data)
    build.add_argument("config", help="experiment, a TOML file")
    build.add_argument("--force", action="store_true", help="build anew what is there")
    build.epilog = OVERRIDES

    place = add("where", _data_where, "Which documents a step of a run was trained on.", data)
    place.add_argument("run", metavar="RUN", help="a run's directory, or its URL")
    place.add_argument("step", type=int, metavar="STEP", help="as metrics.jsonl counts, from 1")
    place.add_argument("--json", action="store_true", help="for programs")

    merge = add("merge", _merge, "Fold a run's adapters into the parameters that they adapt.")
    merge.add_argument("run", metavar="RUN", help="directory of a run with tune.lora")
    merge.add_argument("out", metavar="OUT", help="where to: a new directory, for run.init_from to name")

    cli_convert.register(add)

    for name, text in (
        ("events", "What happened to a run: its starts, checkpoints, spikes and what was done about them."),
        ("checkpoints", "A run's checkpoints: which are good, which are set aside."),
    ):
        one = add(name, _history, text)
        one.add_argument("run", metavar="RUN", help="a run's directory, or its URL")
        one.set_defaults(what=name)

    report = add("report", _report, "Draw one run, or several over each other, into one HTML file.")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory, or its URL")
    report.add_argument("--out", help="where to; RUN/report.html for one run, report.html for several")

    bench.register(commands)
    return parser


def _presets() -> list[str]:
    from jaxllm.models import PRESETS

    return list(PRESETS)


def _train(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    if arguments.fields is not None:
        return _fields(arguments.fields)
    if arguments.config is None:
        raise ValueError("name a config, as in: jaxllm train configs/quickstart.toml")
    keep_memory()
    from jaxllm.train.signals import stop_on_signals

    with stop_on_signals(at_once=True) as stop:
        experiment = load(arguments, rest)
        from jaxllm.train.lock import LockLost
        from jaxllm.train.loop import train

        try:
            run = train(experiment, force=arguments.force, stop=stop)
        except LockLost as error:
            print(f"jaxllm: {error}", file=sys.stderr)
            return FAILED
    if run.stopped:
        return GUARDED
    return STOPPED if run.interrupted else DONE if run.saved else FAILED


def _fields(section: str) -> int:
    """List the config's fields."""
    for row in describe(section):
        kind = f" ({row.kind})" if row.kind else ""
        print(f"--{row.name}{kind}  {row.type}  default {row.default}\n    {row.text}")
    return DONE


def _show(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jaxllm.roofline import summary

    if (arguments.config is None) == (arguments.preset is None):
        raise ValueError("name either a config or --preset NAME, as in: jaxllm show --preset llama3-8b")
    if arguments.devices is not None and arguments.devices < 1:
        raise ValueError(f"--devices {arguments.devices}: give 1 or more")
    experiment = from_preset(arguments.preset, rest) if arguments.preset else load(arguments, rest)
    numbers = _summarise(experiment, arguments.devices or 0)
    if arguments.json:
        print(json.dumps(numbers, indent=2))
        return DONE
    print(summary.text(numbers))
    shape = ", ".join(f"{axis} {size}" for axis, size in numbers["mesh"].items() if size > 1) or "no axis split"
    on = f"{numbers['devices']} device{'s' * (numbers['devices'] > 1)}: {shape}"
    tokens = f"{numbers['tokens_per_device']:,} tokens of a micro-batch on each"
    print(f"{'mesh':<20}{on}; {tokens}; --devices N asks for others")
    return DONE


def _summarise(experiment: Experiment, num_devices: int) -> dict[str, Any]:
    """An experiment's numbers; without a number of devices, on as few as its mesh allows."""
    from jaxllm import mesh_sizes
    from jaxllm.roofline import device, summary

    model, mesh, phase = experiment.model, experiment.mesh, experiment.data.phases[0]
    if model.vocab_size == 0:
        from jaxllm.data.store import open_store
        from jaxllm.train.assemble import resolve_vocabulary

        model = resolve_vocabulary(model, open_store(experiment.data).tokenizer.vocab_size)
    least = math.prod(size for size in mesh.shape if size != -1)
    sizes = mesh_sizes.resolve(mesh, num_devices or least)
    mesh_sizes.check_model(model, sizes)
    adapters = _adapters(experiment, model, sizes)
    numbers = summary.summarise(
        model,
        phase.sequence_length,
        device.of_experiment(experiment, model, sizes, adapters),
        name=experiment.run.name,
        train=experiment.train,
        adapters=adapters,
    )
    tokens = max(device.micro_batch_tokens(experiment, sizes))
    return {"devices": math.prod(sizes.values()), "mesh": sizes, "tokens_per_device": tokens, **numbers}


def _adapters(experiment: Experiment, model: ModelConfig, mesh: Mapping[str, int]) -> "Adapters | None":
    """The adapters of an experiment on a mesh, where it trains any."""
    if experiment.tune.lora is None:
        return None
    from jaxllm.tune import lora

    return lora.count(experiment.tune.lora, model, experiment.mesh, mesh)


def _data_build(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jaxllm.data.store import build

    said: set[str] = set()

    def progress(what: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what}: {done:,} of {total:,}\033[K", end="", file=sys.stderr, flush=True)
        elif what not in said:
            said.add(what)
            print(what, file=sys.stderr, flush=True)

    store = build(load(arguments, rest).data, progress, force=arguments.force)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(store.describe())
    return DONE


def _data_where(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jaxllm.train import where

    none(rest)
    found = where.where(arguments.run, arguments.step)
    print(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else where.text(found))
    return DONE


def _merge(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jaxllm.tune.merge import merge

    none(rest)
    meta = merge(arguments.run, arguments.out)
    print(f"{arguments.out}: step {meta.step} of {arguments.run}, adapters merged")
    return DONE


def _report(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jaxllm.train.report import write_report

    none(rest)
    out = arguments.out or (
        f"{arguments.runs[0].rstrip('/')}/report.html" if len(arguments.runs) == 1 else "report.html"
    )
    write_report(arguments.runs, out)
    print(out)
    return DONE


def _history(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    none(rest)
    from jaxllm.train import history

    print({"events": history.events, "checkpoints": history.checkpoints}[arguments.what](arguments.run))
    return DONE
