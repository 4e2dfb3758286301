"""`jaxllm budget` and `jaxllm serving`: their arguments, and what they print. A part of the command line (see cli)."""

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jaxllm.arguments import DONE, OVERRIDES, from_preset, load, none

if TYPE_CHECKING:
    from jaxllm.plan.prices import Price
    from jaxllm.plan.serving import Served
    from jaxllm.plan.target import Target
    from jaxllm.roofline.hardware import Chip


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `budget` and `serving` to the command line's commands."""
    budget = add("budget", _budget, "What a training budget buys: which model, how many tokens, what loss.")
    budget.add_argument("--flops", type=_number, metavar="C", help="FLOPs of the whole training, as in 1e23")
    budget.add_argument("--loss", type=_number, help="to reach, in nats a token, instead: the cheapest training to it")
    budget.add_argument("--cards", metavar="CHIPS", help="8xh100, v5p-256 or any target; alone: which sizes they hold")
    budget.add_argument("--days", type=_number, help="how long they are yours")
    budget.add_argument("--mfu", type=_number, default=0.4, help="share of the peak, at 6 N FLOPs a token (0.4)")
    budget.add_argument(
        "--served", type=_number, metavar="TOKENS", help="read and written in use, over the model's life"
    )
    budget.add_argument("--parameters", type=_number, metavar="N", help="a size to look at beside the best ones")
    budget.add_argument("--batch", type=_number, default=524_288, metavar="TOKENS", help="of one step (524288)")
    budget.add_argument("--data", type=int, default=1, help="copies of the training state on the cards (1)")
    budget.add_argument("--length", type=int, default=4096, help="tokens of a sequence (4096)")
    serving = add("serving", _serving, "What it takes to serve a model: memory, speed, requests at a time, cost.")
    serving.add_argument("config", nargs="?", help="experiment, a TOML file")
    serving.add_argument("--preset", metavar="NAME", help="a published model instead; deepseek-v3 is one here")
    serving.add_argument("--target", required=True, metavar="CHIPS", help="8xh100, v5e-8 or any target")
    serving.add_argument("--context", type=int, default=8192, help="tokens of a request's cache (8192)")
    serving.add_argument("--bits", type=int, default=16, help="of a weight: 16, 8 or 4 (16)")
    serving.add_argument("--cache-bits", type=int, default=16, help="of a cached value: 16, 8 or 4 (16)")
    serving.add_argument("--mfu", type=_number, default=0.4, help="of reading prompts (0.4)")
    serving.epilog = OVERRIDES
    for one in (budget, serving):
        one.add_argument("--price", type=_number, metavar="DOLLARS", help="an hour and chip, instead of the list price")
        one.add_argument("--json", action="store_true", help="for programs")


def _number(text: str) -> float:
    """A positive number, with `_` or `,` between digits if any."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number; write it as in 1e12 or 40")
    return value


def _cards(text: str) -> "Target":
    """A target; also with the number of chips first, as people say it: `8xh100`, `8xv5e`."""
    from jaxllm.plan import target
    from jaxllm.roofline.hardware import find_chip

    found = re.fullmatch(r"\s*([0-9]+)\s*x\s*([a-z].*?)\s*", text, re.IGNORECASE)
    if found is None:
        return target.parse(text)
    number, name = int(found[1]), found[2]
    chip = find_chip(name)
    if chip is not None and chip.torus is not None:
        return target.parse(f"{name}-{number * chip.cores.count}")
    return target.parse(f"{name}x{number}")


def _price(asked: float | None, chip: "Chip") -> "Price | None":
    """What an hour of a chip costs; None where nobody says."""
    from jaxllm.plan.prices import PRICES, Price

    return PRICES.get(chip.name) if asked is None else Price(dollars_per_hour=asked, source="--price")


def _budget(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jaxllm.plan import budget_answer

    none(rest)
    given = [way for way in ("flops", "loss", "cards") if getattr(arguments, way) is not None]
    if len(given) != 1:
        raise ValueError(
            "give one of --cards CHIPS, --flops C and --loss L, as in: jaxllm budget --cards 8xh100 --days 7"
        )
    if arguments.cards is None and arguments.days is not None:
        raise ValueError(f"--days goes with --cards; --{given[0]} is a whole budget already")
    target = None if arguments.cards is None else _cards(arguments.cards)
    found = budget_answer.answer(
        flops=arguments.flops,
        loss=arguments.loss,
        target=target,
        days=arguments.days,
        mfu=_share(arguments.mfu),
        served=arguments.served or 0.0,
        parameters=arguments.parameters,
        batch=arguments.batch,
        data=arguments.data,
        length=arguments.length,
        price=None if target is None else _price(arguments.price, target.chip),
    )
    print(json.dumps(found, indent=2) if arguments.json else budget_answer.text(found))
    return DONE


def _serving(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jaxllm.plan import serving, serving_answer

    if (arguments.config is None) == (arguments.preset is None):
        raise ValueError(
            "name either a config or --preset NAME, as in: jaxllm serving --preset llama3-8b --target 8xh100"
        )
    setting = serving.Setting(
        target=_cards(arguments.target),
        context=arguments.context,
        bits=arguments.bits,
        cache_bits=arguments.cache_bits,
    )
    model = _served(arguments, rest)
    found = serving_answer.answer(model, setting, _share(arguments.mfu), _price(arguments.price, setting.target.chip))
    print(json.dumps(found, indent=2) if arguments.json else serving_answer.text(found))
    return DONE


def _share(mfu: float) -> float:
    if mfu > 1:
        raise ValueError(f"--mfu = {mfu:g}: it is a share of the peak; use a number up to 1, as in 0.4")
    return mfu


def _served(arguments: argparse.Namespace, rest: Sequence[str]) -> "Served":
    """The model that a command names."""
    from jaxllm.plan import serving

    if arguments.preset is None:
        from jaxllm.data.store import open_store
        from jaxllm.train.assemble import resolve_vocabulary

        experiment = load(arguments, rest)
        model = experiment.model
        if model.vocab_size == 0:
            model = resolve_vocabulary(model, open_store(experiment.data).tokenizer.vocab_size)
        return serving.dense(model, experiment.run.name)
    if re.sub("[^a-z0-9]", "", arguments.preset.lower()) == "deepseekv3":
        none(rest)
        return serving.deepseek_v3()
    experiment = from_preset(arguments.preset, rest)
    return serving.dense(experiment.model, experiment.run.name)
