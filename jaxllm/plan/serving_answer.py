"""Serving as an answer: plain data that JSON can hold, and the same as tables for people."""

import math
from collections.abc import Mapping
from typing import Any

from jaxllm.plan import table
from jaxllm.plan.prices import Price
from jaxllm.plan.serving import (
    BITS,
    Served,
    Setting,
    chips_needed,
    concurrency,
    cost_per_million,
    decode,
    expert_parallel,
    most_requests,
    prefill_seconds,
    token_parallel,
)
from jaxllm.train import figures


def answer(model: Served, setting: Setting, mfu: float = 0.4, price: Price | None = None) -> dict[str, Any]:
    """What a model takes to be served.

    Args:
        model: served.
        setting: on what, in how many bits.
        mfu: of reading prompts.
        price: of a chip; None leaves the cost out.

    Returns:
        memory, chips, prefill, decode by requests at a time, other bits, and for a mixture how experts are split.
    """
    chips = setting.target.num_chips
    most = most_requests(model, setting)
    prefill = prefill_seconds(model, setting, setting.context, mfu)
    found: dict[str, Any] = {
        "model": model.name,
        "target": setting.target.describe(),
        "num_chips": chips,
        "context": setting.context,
        "bits": setting.bits,
        "cache_bits": setting.cache_bits,
        "parameters": model.held,
        "active_parameters": model.active,
        "num_experts": model.num_experts,
        "weight_bytes": setting.weight_bytes(model.held),
        "usable_bytes": setting.usable * chips,
        "cache_bytes_per_request": setting.cache_bytes(model),
        "most_requests": most,
        "chips_for_weights": chips_needed(model, setting),
        "prefill": {"tokens": setting.context, "seconds": prefill, "mfu": mfu},
        "decode": [_step(model, setting, requests, price) for requests in concurrency(most)],
        "by_bits": [_by_bits(model, setting, bits) for bits in BITS],
        "splits": [_splits(model, setting, requests) for requests in concurrency(most)] if model.num_experts else [],
    }
    if model.num_experts:
        found["requests_that_read_all"] = math.ceil(math.log(0.01) / math.log1p(-model.num_chosen / model.num_experts))
    if price is not None:
        found["price"] = {"dollars_per_chip_hour": price.dollars_per_hour, "source": price.source}
        found["prefill"]["dollars_per_million_tokens"] = cost_per_million(
            price.dollars_per_hour, chips, setting.context / prefill
        )
    return found


def _step(model: Served, setting: Setting, requests: int, price: Price | None) -> dict[str, Any]:
    step = decode(model, setting, requests)
    found = {
        "requests": requests,
        "seconds": step.seconds,
        "tokens_per_second": step.tokens_per_second,
        "tokens_per_second_per_request": 1 / step.seconds,
        "bound": step.bound,
        "weight_bytes_read": setting.weight_bytes(model.read(requests)),
        "experts_read": model.experts_read(requests),
    }
    if price is not None:
        found["dollars_per_million_tokens"] = cost_per_million(
            price.dollars_per_hour, setting.target.num_chips, step.tokens_per_second
        )
    return found


def _by_bits(model: Served, setting: Setting, bits: int) -> dict[str, Any]:
    other = Setting(target=setting.target, context=setting.context, bits=bits, cache_bits=setting.cache_bits)
    most = most_requests(model, other)
    return {
        "bits": bits,
        "weight_bytes": other.weight_bytes(model.held),
        "chips_for_weights": chips_needed(model, other),
        "most_requests": most,
        "tokens_per_second_alone": 1 / decode(model, other, 1).seconds if most else None,
        "tokens_per_second": decode(model, other, most).tokens_per_second if most else None,
    }


def _splits(model: Served, setting: Setting, requests: int) -> dict[str, Any]:
    ways = {"expert_parallel": expert_parallel(model, setting, requests)}
    ways["token_parallel"] = token_parallel(model, setting, requests)
    return {
        "requests": requests,
        **{
            name: {
                "weight_bytes_per_chip": way.held_bytes,
                "fits": way.held_bytes <= setting.usable,
                "read_seconds": way.read,
                "exchange_seconds": way.exchange,
            }
            for name, way in ways.items()
        },
    }


def text(found: Mapping[str, Any]) -> str:
    """`answer` for people."""
    rows = [f"  {label:<10}{value}" for label, value in _facts(found)]
    lines = [f"{found['model']} on {found['target']}", *rows, ""]
    if not found["decode"]:
        short = found["weight_bytes"] > found["usable_bytes"]
        why = "the weights do not fit" if short else "no cache of a request fits beside the weights"
        lines += [f"These chips cannot serve it: {why}.", ""]
    else:
        lines += ["Decode, at best: memory and products at their peaks, no time for what travels between chips", ""]
        lines += [*table.lines(*_decode_rows(found)), ""]
    if found["splits"]:
        lines += [*_experts_read(found), ""]
        lines += [
            "Experts split over chips, the rest of the model on each: a step's weights and what tokens travel",
            "",
        ]
        lines += [*table.lines(*_split_rows(found)), ""]
    rows = [
        (
            f"{one['bits']}",
            _gigabytes(one["weight_bytes"]),
            f"{one['chips_for_weights']:,}",
            f"{one['most_requests']:,}",
            *(
                figures.three_digits(one[name]) if one["most_requests"] else ""
                for name in ("tokens_per_second_alone", "tokens_per_second")
            ),
        )
        for one in found["by_bits"]
    ]
    head = ("bits a weight", "GB of weights", "chips for them", "requests", "tokens/s of one", "of all")
    return "\n".join(lines + table.lines(head, rows))


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    cost = f", ${found['prefill']['dollars_per_million_tokens']:.3g} a million tokens" if "price" in found else ""
    active = f" ({figures.count(found['active_parameters'])} for a token)" if found["num_experts"] else ""
    chips = found["chips_for_weights"]
    facts = [
        ("model", f"{figures.count(found['parameters'])} parameters{active}, weights in {found['bits']} bits"),
        (
            "memory",
            f"{_gigabytes(found['weight_bytes'])} GB of weights, {_gigabytes(found['usable_bytes'])} GB usable; "
            f"{chips:,} chip{'s' * (chips > 1)} at least",
        ),
        (
            "cache",
            f"{_gigabytes(found['cache_bytes_per_request'])} GB a request of {found['context']:,} tokens in "
            f"{found['cache_bits']} bits: {found['most_requests']:,} at a time",
        ),
        (
            "prefill",
            f"{found['context']:,} tokens in {_seconds(found['prefill']['seconds'])} at "
            f"{100 * found['prefill']['mfu']:g} % MFU{cost}",
        ),
    ]
    if "price" in found:
        price = found["price"]
        facts.append(("price", f"${price['dollars_per_chip_hour']:g} an hour and chip ({price['source']})"))
    return facts


def _experts_read(found: Mapping[str, Any]) -> list[str]:
    """From where on more requests read no more."""
    full, one = found["requests_that_read_all"], _gigabytes(found["decode"][0]["weight_bytes_read"])
    return [
        f"One request reads {one} GB of weights. From {full:,} on, 99 % of the experts are read in every step,",
        "so that further requests cost caches and products, and no weights.",
    ]


def _decode_rows(found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    money = "price" in found
    head = ("requests", "a step", "tokens/s a request", "tokens/s", "bound by", "GB of weights read")
    rows = []
    for one in found["decode"]:
        row = (
            f"{one['requests']:,}",
            _seconds(one["seconds"]),
            figures.three_digits(one["tokens_per_second_per_request"]),
            figures.three_digits(one["tokens_per_second"]),
            one["bound"],
            _gigabytes(one["weight_bytes_read"]),
        )
        rows.append((*row, f"{one['dollars_per_million_tokens']:.3g}") if money else row)
    return ((*head, "$ a million") if money else head), rows


def _split_rows(found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = []
    for one in found["splits"]:
        row = [f"{one['requests']:,}"]
        for name in ("expert_parallel", "token_parallel"):
            way = one[name]
            held = _gigabytes(way["weight_bytes_per_chip"])
            row += [
                _seconds(way["read_seconds"] + way["exchange_seconds"]),
                held if way["fits"] else f"{held}: too many",
            ]
        rows.append(tuple(row))
    return ("requests", "by experts", "GB", "by tokens", "GB"), rows


def _gigabytes(size: float) -> str:
    return figures.three_digits(size / 1e9)


def _seconds(value: float) -> str:
    """12.3 ms, 1.23 s."""
    return f"{figures.three_digits(1000 * value)} ms" if value < 1 else f"{figures.three_digits(value)} s"
