"""`jaxllm bench`: its arguments, and what it prints. A part of the command line (see cli)."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxllm.allocator import keep_memory
from jaxllm.arguments import DONE, FAILED, OVERRIDES, from_preset, load, none
from jaxllm.config import Experiment


def register(commands: Any) -> None:
    """Add `bench` to the command line's commands."""
    bench = commands.add_parser("bench", help="Measure.", allow_abbrev=False).add_subparsers(
        metavar="WHAT", required=True
    )

    def add(name: str, command: Callable[..., int], text: str) -> argparse.ArgumentParser:
        one = bench.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.set_defaults(command=command)
        one.add_argument("--json", action="store_true", help="for programs")
        return one

    step = add("step", _step, "Time the training step of an experiment on synthetic tokens.")
    step.add_argument("config", help="experiment, a TOML file")
    step.add_argument("--steps", type=int, default=10, help="timed steps (10)")
    step.add_argument("--peer", metavar="PYTHON", help="a Python with torch and transformers: take turns with it")
    step.epilog = OVERRIDES
    loop = add("train", _train, "Time a run's steps beside the bare step's, in turns.")
    loop.add_argument("config", help="experiment, a TOML file")
    loop.add_argument("--steps", type=int, default=20, help="timed steps of each (20)")
    loop.add_argument("--pairs", type=int, default=5, help="how often (5)")
    loop.epilog = OVERRIDES
    matmul = add(
        "matmul", _matmul, "Time products of a model's shapes and of squares: what share of the peak is reached."
    )
    _of_a_model(matmul)
    matmul.add_argument(
        "--squares", type=int, nargs="+", metavar="SIDE", help="of the square products (256 to 8192, by twos)"
    )
    matmul.add_argument("--out", metavar="FILE", help="write the measured ceilings, a small JSON file")
    layer = add("layer", _layer, "Time a model's block and its parts beside what the roofline predicts of them.")
    _of_a_model(layer)
    layer.add_argument("--ceilings", metavar="FILE", help="measure against what `bench matmul --out` wrote")
    kill = add("kill", _kill, "Kill a run again and again, and compare it with one that is left alone.")
    kill.add_argument("config", help="experiment with a checkpoint.interval; seconds long is enough")
    kill.add_argument("--kills", type=int, default=30, help="how often (30)")
    kill.add_argument("--in-write", type=int, default=10, help="of them, while a checkpoint is written (10)")
    kill.add_argument("--at", type=int, nargs="+", default=(), metavar="STEP", help="when these are logged instead")
    kill.add_argument("--in-rollback", type=int, default=0, metavar="RUNS", help="runs killed about a rollback instead")
    kill.add_argument("--processes", type=int, default=1, help="of the run (1)")
    kill.add_argument("--devices", type=int, default=0, help="simulated CPU devices of each process")
    kill.epilog = OVERRIDES
    guard = add("guard", _guard, "Time an experiment's step with its guard and without it, in turns.")
    guard.add_argument("config", help="experiment, a TOML file")
    guard.add_argument("--pairs", type=int, default=100, help="steps of each (100)")
    guard.epilog = OVERRIDES
    experts = add("experts", _experts, "Time an experiment with experts beside a dense one and ones with more experts.")
    experts.add_argument("config", help="experiment, a TOML file")
    experts.add_argument("--turns", type=int, default=10, help="timed steps of each (10)")
    experts.add_argument("--times", type=int, default=8, help="how many times more experts (8)")
    experts.add_argument("--tokens", type=int, default=2**14, help="of a step (16384; 0: the experiment's batch)")
    experts.epilog = OVERRIDES
    balance = add(
        "balance", _balance, "Train an experiment with experts balanced by a bias, by a loss, and not at all."
    )
    balance.add_argument("config", help="experiment, a TOML file")
    balance.add_argument("--seeds", type=int, default=3, help="runs of each (3)")
    balance.add_argument("--steps", type=int, default=0, help="of a run (the experiment's)")
    balance.epilog = OVERRIDES
    meshes = add("meshes", _meshes, "Take an experiment's first steps on several meshes and compare their losses.")
    meshes.add_argument("config", help="experiment, a TOML file")
    meshes.add_argument("--mesh", dest="meshes", nargs="+", metavar="AXES", help="such as expert=4,fsdp=2 (eight)")
    meshes.add_argument("--steps", type=int, default=5, help="of each (5)")
    meshes.epilog = OVERRIDES
    truth = add("plan-truth", _plan_truth, "Put the plan's memory and communication beside the real compilers'.")
    truth.add_argument("pairs", nargs="*", metavar="PAIR", help="model, chips and mesh (all; minutes each)")
    order = add("plan-rank", _plan_rank, "Put the plan's order of meshes beside that of the TPU compiler's programs.")
    order.add_argument("models", nargs="*", metavar="MODEL", help="llama3.2-1b, qwen3-4b (both; 20 minutes each)")
    spikes = add("spikes", _spikes, "Make a small run's loss spike in eight ways, and see whether it recovers.")
    spikes.add_argument("--kinds", nargs="+", metavar="KIND", help="of trouble (all eight)")
    spikes.add_argument("--seeds", type=int, help="runs of each kind and mode (5)")
    spikes.add_argument("--policy", choices=("ladder", "palm"), default="ladder", help="of the guard (ladder)")
    spikes.add_argument("--quick", action="store_true", help="one kind, one seed, a tiny model: under a minute")
    loading = add("hf-load", _hf_load, "Load a random Hugging Face model: time beside safetensors' loader, and memory.")
    loading.add_argument("--megabytes", type=int, default=2000, help="of its tensors (2000)")
    loading.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of its tensors (float32)")
    loading.add_argument("--turns", type=int, default=5, help="of each loader (5)")
    add("plan", _plan, "Compare the plan's predictions with published steps.")


def _plan(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    none(rest)
    from jaxllm.bench import plan

    result = plan.measure()
    print(json.dumps(result, indent=2) if arguments.json else plan.text(result))
    return DONE


def _hf_load(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    none(rest)
    if min(arguments.megabytes, arguments.turns) < 1:
        raise ValueError(f"--megabytes {arguments.megabytes} --turns {arguments.turns}: use 1 or more of each")
    from jaxllm.bench import hf_load

    result = hf_load.measure(arguments.megabytes, arguments.dtype, arguments.turns)
    print(json.dumps(result, indent=2) if arguments.json else hf_load.text(result))
    return DONE


def _step(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    keep_memory()
    from jaxllm.bench import step

    result = step.measure(load(arguments, rest), num_steps=arguments.steps, peer=arguments.peer)
    print(json.dumps(result, indent=2) if arguments.json else step.text(result))
    return DONE


def _train(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    keep_memory()
    from jaxllm.bench import loop

    result = loop.measure(load(arguments, rest), arguments.steps, arguments.pairs)
    print(json.dumps(result, indent=2) if arguments.json else loop.text(result))
    return DONE


def _of_a_model(parser: argparse.ArgumentParser) -> None:
    """Arguments of what measures a model's shapes."""
    parser.add_argument("config", nargs="?", help="experiment, a TOML file")
    parser.add_argument("--preset", metavar="NAME", help="a published model instead of a config")
    parser.add_argument("--repeats", type=int, default=10, help="timed turns (10)")
    parser.epilog = OVERRIDES


def _experiment(arguments: argparse.Namespace, rest: Sequence[str]) -> Experiment:
    if (arguments.config is None) == (arguments.preset is None):
        raise ValueError("name either a config or --preset NAME, as in --preset llama3-8b")
    return from_preset(arguments.preset, rest) if arguments.preset else load(arguments, rest)


def _matmul(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    experiment = _experiment(arguments, rest)
    if arguments.out and not Path(arguments.out).parent.is_dir():
        raise ValueError(f"--out {arguments.out}: no such directory; make {Path(arguments.out).parent} first")
    from jaxllm.bench import matmul

    result = matmul.measure(experiment, arguments.repeats, arguments.squares or matmul.SQUARES)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result["ceilings"], indent=2) + "\n")
    print(json.dumps(result, indent=2) if arguments.json else matmul.text(result))
    if arguments.out:
        print(f"{arguments.out}: the measured ceilings", file=sys.stderr)
    return DONE


def _layer(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    experiment = _experiment(arguments, rest)
    from jaxllm.bench import layer
    from jaxllm.roofline import ceilings

    measured = ceilings.load(arguments.ceilings) if arguments.ceilings else None
    result = layer.measure(experiment, arguments.repeats, measured)
    print(json.dumps(result, indent=2) if arguments.json else layer.text(result))
    return DONE


def _kill(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jaxllm.bench import kill

    result = kill.measure(
        load(arguments, rest),
        [arguments.config, *rest],
        arguments.kills,
        arguments.in_write,
        arguments.processes,
        arguments.devices,
        arguments.at,
        arguments.in_rollback,
    )
    print(json.dumps(result, indent=2) if arguments.json else kill.text(result))
    wrong = result["differing"] or result["ledgers_differ"] or result["most_lost"] > result["bound"]
    return FAILED if wrong else DONE


def _guard(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    keep_memory()
    from jaxllm.bench import guard

    result = guard.measure(load(arguments, rest), arguments.pairs)
    print(json.dumps(result, indent=2) if arguments.json else guard.text(result))
    return DONE if result["identical"] else FAILED


def _experts(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    keep_memory()
    from jaxllm.bench import experts

    result = experts.measure(load(arguments, rest), arguments.turns, arguments.times, arguments.tokens)
    print(json.dumps(result, indent=2) if arguments.json else experts.text(result))
    return DONE


def _balance(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    keep_memory()
    from jaxllm.bench import balance

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    result = balance.measure(load(arguments, rest), arguments.seeds, arguments.steps, say)
    print(json.dumps(result, indent=2) if arguments.json else balance.text(result))
    return DONE if all(claim["held"] for claim in result["claims"]) else FAILED


def _meshes(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jaxllm.bench import meshes

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    result = meshes.measure(load(arguments, rest), arguments.meshes or meshes.MESHES, arguments.steps, say)
    print(json.dumps(result, indent=2) if arguments.json else meshes.text(result))
    return DONE


def _plan_truth(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    none(rest)
    from jaxllm.bench import plan_truth

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    result = plan_truth.measure(arguments.pairs, say)
    print(json.dumps(result, indent=2) if arguments.json else plan_truth.text(result))
    return DONE


def _plan_rank(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    none(rest)
    from jaxllm.bench import plan_rank

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    result = plan_rank.measure(arguments.models, say)
    print(json.dumps(result, indent=2) if arguments.json else plan_rank.text(result))
    return DONE


def _spikes(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    none(rest)
    from jaxllm.bench import spikes

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    plan = spikes.QUICK if arguments.quick else spikes.FULL
    result = spikes.measure(plan, arguments.kinds, arguments.seeds, arguments.policy, say)
    print(json.dumps(result, indent=2) if arguments.json else spikes.text(result))
    return DONE if all(claim["held"] for claim in result["claims"]) else FAILED
