"""`jaxllm plan`: its arguments, and what it prints. A part of the command line (see cli)."""

import argparse
import json
from collections.abc import Callable, Sequence

from jaxllm.arguments import DONE, OVERRIDES, load


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `plan` to the command line's commands."""
    plan = add(
        "plan", _plan, "Which mesh to use on chips that are not here: how fast, what binds, what fits, how much."
    )
    plan.add_argument("config", help="experiment, a TOML file")
    plan.add_argument(
        "--target", required=True, nargs="+", help="chips: v5p-256, v5p:4x4x8, 'v6e-256 x 4', h100x64, rtx4090x1"
    )
    plan.add_argument(
        "--tokens", type=_count, default=0, help="to train on, such as 15e12; those of the config's phases"
    )
    plan.add_argument("--batch", type=_count, default=0, metavar="TOKENS", help="of a step; the first phase's")
    plan.add_argument("--price", type=_dollars, metavar="DOLLARS", help="an hour and chip, instead of the list price")
    plan.add_argument(
        "--ceilings", metavar="FILE", default="", help="peaks that `bench matmul --out` measured on such a chip"
    )
    plan.add_argument("--top", type=_count, default=10, help="options that are shown (10)")
    plan.add_argument("--verify", type=_count, nargs="?", const=1, metavar="N", help="compile the N best options (1)")
    plan.add_argument("--export", metavar="DIR", help="with --verify: keep program, memory over time and executable")
    plan.add_argument("--html", metavar="FILE", help="draw it into one file as well")
    plan.add_argument("--json", action="store_true", help="for programs")
    plan.epilog = OVERRIDES


def _count(text: str) -> int:
    """A positive whole number, `15e12` too."""
    try:
        value = float(text.replace(",", "").replace("_", ""))
    except ValueError:
        value = 0.0
    if not (1 <= value < 1e18 and value == int(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0, such as 4194304 or 15e12")
    return int(value)


def _dollars(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no price; give US dollars an hour and chip, such as 2.5")
    return value


def _plan(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jaxllm.plan import report, search

    found = search.plan(
        load(arguments, rest),
        target=" ".join(arguments.target),
        tokens=arguments.tokens,
        batch=arguments.batch,
        price=arguments.price,
        ceilings=arguments.ceilings,
    )
    if arguments.html:
        from jaxllm.plan import page

        page.write(found, arguments.html)
    if arguments.export and not arguments.verify:
        raise ValueError("--export: it keeps what --verify compiles; give --verify too")
    told = report.as_data(found, arguments.top) if arguments.json else {}
    if not arguments.json:
        print(report.text(found, arguments.top), flush=True)
    if arguments.verify:
        from jaxllm.plan import verify

        verified = []
        for one in verify.verify(found, arguments.verify, arguments.export or ""):
            verified.append(one)
            if not arguments.json:
                print(f"\n{verify.text(one)}", flush=True)
        told["verified"] = verify.as_data(verified)
    if arguments.json:
        print(json.dumps(told, indent=2))
    return DONE
