"""A training budget as an answer: plain data that JSON can hold, and the same as tables for people."""

from collections.abc import Mapping
from typing import Any

from jaxllm.config.base import require
from jaxllm.plan import table
from jaxllm.plan.budget import (
    BESIROGLU,
    FITTED_FLOPS,
    LAWS,
    Choice,
    least_flops,
    rule_of_thumb,
    training_days,
    training_flops,
)
from jaxllm.plan.capacity import RECIPES, USABLE, Recipe, largest, llama_shaped
from jaxllm.plan.prices import Price
from jaxllm.plan.target import Target
from jaxllm.roofline.transformer import parameters
from jaxllm.train import figures


def answer(
    *,
    flops: float | None = None,
    loss: float | None = None,
    target: Target | None = None,
    days: float | None = None,
    mfu: float = 0.4,
    served: float = 0.0,
    parameters: float | None = None,
    batch: float = 524_288,
    data: int = 1,
    length: int = 4096,
    price: Price | None = None,
) -> dict[str, Any]:
    """What a budget buys, and what cards hold.

    Args:
        flops: of the whole training; or
        loss: that it is to reach, by Besiroglu et al.'s fit; or
        target: the chips that it is done on, and
        days: for how long; without it only what they hold is said.
        mfu: of them, at 6 N FLOPs a token.
        served: tokens read and written in use.
        parameters: of a size to look at too.
        batch: tokens of one step, which a budget must have.
        data: copies of the training state.
        length: tokens of a sequence.
        price: of a chip; None leaves the cost out.

    Returns:
        flops; choices: what to train, by what rule; sizes: what the chips hold, by recipe; and what was asked.

    Raises:
        ValueError: the budget does not reach for one step, or the chips do not split into so many copies.
    """
    found: dict[str, Any] = {"mfu": mfu, "served_tokens": served, "choices": [], "sizes": []}
    if target is not None:
        fix = f"{target.num_devices} devices do not split into so many copies; use a divisor of that"
        require(data >= 1 and target.num_devices % data == 0, "--data", data, fix)
        require(length >= 1, "--length", length, "use 1 token or more")
        found |= {"target": target.describe(), "num_chips": target.num_chips, "days": days}
        found |= {"data": data, "sequence_length": length, "memory_per_device": target.memory, "usable": USABLE}
        found["price"] = price and {"dollars_per_chip_hour": price.dollars_per_hour, "source": price.source}
        flops = None if days is None else training_flops(target.chip, target.num_chips, days, mfu)
    if loss is not None:
        flops = BESIROGLU.cheapest(loss).training_flops
    least = least_flops(batch)
    if flops is not None and flops < least:
        asked = f"--flops = {flops:.3g}" if target is None else f"{flops:.3g} FLOPs in {days:.3g} days"
        raise ValueError(f"{asked}: too little for one step of {batch:,.0f} tokens; give {least:.2g} FLOPs or more")
    if target is not None:
        found["sizes"] = [_size(target, recipe, data, length) for recipe in RECIPES]
    if flops is None:
        return found
    found |= {"flops": flops, "extrapolated": not FITTED_FLOPS[0] <= flops <= FITTED_FLOPS[1]}
    chosen = _chosen(flops, served, parameters, batch)
    found["choices"] = [_choice(rule, choice, target, found) for rule, choice in chosen]
    return found


def _chosen(flops: float, served: float, asked: float | None, batch: float) -> list[tuple[str, Choice]]:
    """What to train with a budget, by what rule."""
    chosen = [("20 tokens a parameter", rule_of_thumb(flops))]
    chosen += [(f"least loss, {law.name}", law.optimal(flops)) for law in LAWS]
    if served:
        least_loss = BESIROGLU.loss(BESIROGLU.optimal(flops))
        rule = f"{BESIROGLU.name}, {figures.count(served)} served"
        chosen.append((rule, BESIROGLU.cheapest(least_loss, served)))
    if asked is not None:
        own = Choice(parameters=asked, tokens=flops / (6 * asked))
        if own.tokens < batch:
            raise ValueError(
                f"--parameters = {asked:.3g}: the budget gives it {own.tokens:,.0f} tokens, not one step of "
                f"{batch:,.0f}; give more FLOPs, or fewer parameters"
            )
        chosen.append(("the size asked for", own))
    return chosen


def _size(target: Target, recipe: Recipe, data: int, length: int) -> dict[str, Any]:
    model = largest(target.chip, recipe, num_chips=target.num_chips, data=data, sequence_length=length)
    return {
        "recipe": recipe.name,
        "bytes_per_parameter": recipe.bytes_per_parameter,
        "adapters_only": recipe.lora_rank > 0,
        "parameters": 0 if model is None else parameters(model).total,
        "num_layers": 0 if model is None else model.num_layers,
        "d_model": 0 if model is None else model.d_model,
    }


def _choice(rule: str, choice: Choice, target: Target | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    shape = _shape(choice.parameters)
    found: dict[str, Any] = {
        "rule": rule,
        "parameters": choice.parameters,
        "tokens": choice.tokens,
        "training_flops": choice.training_flops,
        "lifetime_flops": choice.lifetime_flops(asked["served_tokens"]),
        "loss": {law.name: law.loss(choice) for law in LAWS},
        "num_layers": shape,
        "d_model": shape and llama_shaped(shape).d_model,
    }
    if target is not None:
        found["days"] = training_days(choice, target.chip, target.num_chips, asked["mfu"])
        if asked["price"]:
            found["dollars"] = 24 * found["days"] * target.num_chips * asked["price"]["dollars_per_chip_hour"]
        whole = [size for size in asked["sizes"] if not size["adapters_only"]]
        fitting = (size["recipe"] for size in whole if size["parameters"] >= choice.parameters)
        found["recipe"] = next(fitting, None)
    return found


def _shape(num_parameters: float) -> int | None:
    """The blocks of the Llama-shaped model that is nearest in size, if one comes within a quarter of it."""
    low, high = 1, 2
    while parameters(llama_shaped(high)).total < num_parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(llama_shaped(middle)).total < num_parameters else (low, middle)
    sizes = {steps: parameters(llama_shaped(steps)).total for steps in (low, high)}
    nearest = min(sizes, key=lambda steps: abs(sizes[steps] - num_parameters))
    return nearest if abs(sizes[nearest] / num_parameters - 1) < 0.25 else None


def text(found: Mapping[str, Any]) -> str:
    """`answer` for people."""
    lines = []
    if "flops" in found:
        lines += [_bought(found), "", *table.lines(*_choices(found)), *_notes(found)]
    else:
        lines.append(found["target"])
    if found["sizes"]:
        lines += ["", *_held(found)]
    return "\n".join(lines)


def _bought(found: Mapping[str, Any]) -> str:
    flops = f"{found['flops']:.3g} FLOPs"
    if "target" not in found:
        return flops
    line = f"{found['target']} for {found['days']:g} days at {100 * found['mfu']:g} % MFU: {flops}"
    if found["price"] is None:
        return line
    price, dollars = found["price"], found["choices"][0]["dollars"]
    return f"{line}\n${dollars:,.0f} at ${price['dollars_per_chip_hour']:g} an hour and chip ({price['source']})"


def _held(found: Mapping[str, Any]) -> list[str]:
    copies = f" in {found['data']} copies" if found["data"] > 1 else ""
    rows = [
        (
            size["recipe"],
            f"{size['bytes_per_parameter']}",
            figures.count(size["parameters"]) if size["parameters"] else "none",
            f"{size['num_layers']} x {size['d_model']:,}" if size["parameters"] else "",
        )
        for size in found["sizes"]
    ]
    return [
        f"The largest Llama-shaped model that they train{copies}, a device on one sequence of "
        f"{found['sequence_length']:,} tokens, in {100 * found['usable']:g} % of its "
        f"{found['memory_per_device'] / 1e9:,.0f} GB",
        "",
        *table.lines(("trained with", "bytes a parameter", "parameters", "blocks x d_model"), rows),
    ]


def _choices(found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    head = ("", "parameters", "tokens", "a parameter", *(f"loss, {law.name}" for law in LAWS), "blocks x d_model")
    rows = []
    timed = "target" in found
    for one in found["choices"]:
        row = (
            one["rule"],
            figures.count(one["parameters"]),
            figures.count(one["tokens"]),
            figures.three_digits(one["tokens"] / one["parameters"]),
            *(f"{one['loss'][law.name]:.3f}" for law in LAWS),
            f"{one['num_layers']} x {one['d_model']:,}" if one["num_layers"] else "",
        )
        rows.append((*row, f"{figures.three_digits(one['days'])}", one["recipe"] or "nothing") if timed else row)
    return ((*head, "days", "fits with") if timed else head), rows


def _notes(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        "Losses are in nats a token on the data of the fits, by each of them; another corpus has another scale.",
    ]
    if found["extrapolated"]:
        lines.append(f"The fits saw {FITTED_FLOPS[0]:.0e} to {FITTED_FLOPS[1]:.0e} FLOPs: this is extrapolated.")
    if found["served_tokens"]:
        best, cheap = found["choices"][1], found["choices"][len(LAWS) + 1]
        lines.append(
            f"With {figures.count(found['served_tokens'])} tokens served, the smaller model reaches the same loss with "
            f"{100 * (cheap['training_flops'] / best['training_flops'] - 1):+.1f} % of training and "
            f"{100 * (cheap['lifetime_flops'] / best['lifetime_flops'] - 1):+.1f} % of all FLOPs."
        )
    return lines
