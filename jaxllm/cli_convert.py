"""`jaxllm import` and `jaxllm export`. A part of the command line (see cli)."""

import argparse
from collections.abc import Callable, Sequence

from jaxllm.arguments import DONE, none


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `import` and `export` to the command line's commands."""
    come = add("import", _import, "Make a Hugging Face model a run, for run.init_from to name.")
    come.add_argument("model", metavar="HF_DIR", help="directory with config.json and safetensors, or hf://OWNER/NAME")
    come.add_argument("out", metavar="OUT", help="where to: a new directory")

    go = add("export", _export, "Write a run's newest parameters as a Hugging Face model.")
    go.add_argument("run", metavar="RUN", help="a run's directory, or its URL")
    go.add_argument("out", metavar="OUT", help="where to: a new directory")
    go.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the tensors; those of an imported model as they were, else the run's train.precision.parameters",
    )


def _import(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    none(rest)
    from jaxllm.convert import import_model

    model = import_model(arguments.model, arguments.out)
    print(f"{arguments.out}: {model}\nto train it on: base = {arguments.out + '/config.toml'!r} and run.init_from")
    return DONE


def _export(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    none(rest)
    from jaxllm.convert import export_run

    print(f"{arguments.out}: {export_run(arguments.run, arguments.out, dtype=arguments.dtype)}")
    return DONE
