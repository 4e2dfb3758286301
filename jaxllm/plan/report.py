"""A plan as a table that reads like an answer, and as plain data for programs."""

import math
from collections.abc import Iterator
from typing import Any

from jaxllm.plan.answer import Misfit, Option, Plan
from jaxllm.plan.candidates import Candidate
from jaxllm.plan.efficiency import peak_flops
from jaxllm.roofline.conventions import Convention, formula

GIB = 2**30
PART_NAMES = ("products", "attention", "traffic", "unhidden", "waited", "head", "update")
"""What a step's time is spent on, in the order of the page's bars."""


def parts(option: Option) -> dict[str, float]:
    """Seconds of a step by what they are spent on; they add up to it."""
    time = option.time
    waited = sum(time.waited.values())
    values = (time.products, time.attention, time.traffic, time.unhidden, waited, time.head, time.update)
    return dict(zip(PART_NAMES, values, strict=True))


def as_data(plan: Plan, limit: int) -> dict[str, Any]:
    """What JSON can hold; at most so many options.

    Seconds, bytes, tokens, US dollars; `mfu` by convention.
    """
    asked = plan.configured
    return {
        "target": {
            "name": plan.target.name,
            "chip": plan.target.chip.name,
            "chips": plan.target.num_chips,
            "devices": plan.target.num_devices,
            "shape": list(plan.target.shape),
            "slices": plan.target.num_slices,
            "memory_bytes": plan.target.memory,
            "memory_limit_bytes": plan.memory_limit,
        },
        "ceilings": {
            "source": plan.chip.source,
            "flops_per_second": peak_flops(plan.chip, plan.experiment.train.precision.compute),
            "memory_bytes_per_second": plan.chip.hbm_bytes_per_second / plan.chip.devices_per_chip,
        },
        "batch_tokens": plan.batch_tokens,
        "sequence_length": plan.phase.sequence_length,
        "tokens": plan.tokens,
        "price": None
        if plan.price is None
        else {"dollars_per_chip_hour": plan.price.dollars_per_hour, "source": plan.price.source},
        "meshes_tried": plan.num_meshes,
        "candidates_tried": plan.num_candidates,
        "options": [_option(plan, one) for one in plan.options[:limit]],
        "do_not_fit": [{**_option(plan, one.option), "change": one.change} for one in plan.misfits[:limit]],
        "configured": {"refused": asked}
        if isinstance(asked, str)
        else {**_option(plan, asked), "fits": _fits(plan, asked)},
    }


def _option(plan: Plan, option: Option) -> dict[str, Any]:
    candidate, time = option.candidate, option.time
    return {
        "mesh": dict(candidate.mesh.sizes),
        "sequence_parallel": candidate.mesh.sequence_parallel,
        "remat": candidate.remat,
        "accumulate": candidate.accumulate,
        "overrides": candidate.overrides(),
        "placement": {axis: option.placement.describe(axis) for axis, size in candidate.mesh.sizes.items() if size > 1},
        "step_seconds": time.total,
        "bound_seconds": time.bound,
        "binds": time.binds,
        "parts_seconds": parts(option),
        "communication_seconds": {"beside": dict(time.moved), "waited": dict(time.waited)},
        "idle_seconds": time.idle,
        "memory_bytes": {**option.memory, "total": option.total_memory},
        "tokens_per_second": plan.tokens_per_second(option),
        "mfu": {str(one): plan.mfu(option, one) for one in (Convention.PALM, Convention.CAUSAL)},
        "critical_batch_tokens": plan.critical_batch(option),
        "days": plan.days(option),
        "dollars": plan.dollars(option),
    }


def _fits(plan: Plan, option: Option) -> bool:
    return option.total_memory <= plan.memory_limit


def text(plan: Plan, limit: int) -> str:
    """For people: the answer, then the table, then what does not fit."""
    return "\n".join(line.rstrip() for line in _lines(plan, limit))


def _lines(plan: Plan, limit: int) -> Iterator[str]:
    name = plan.experiment.run.name or "model"
    yield f"{name} on {plan.target.describe()}: {plan.batch_tokens:,} tokens a step, {count(plan.tokens)} tokens in all"
    yield ""
    if plan.least is not None:
        yield from _nothing_fits(plan, plan.least)
        return
    best = plan.options[0]
    yield from _answer(plan, best)
    yield ""
    yield from _table(plan, plan.options[:limit])
    asked = plan.configured
    yield ""
    if isinstance(asked, str):
        yield f"The config as it stands cannot run there: {asked}"
    else:
        yield _configured(plan, asked, best)
    if plan.misfits:
        yield ""
        yield f"Faster, but more than {_gib(plan.memory_limit)} GiB a device:"
        yield from (_misfit(one) for one in plan.misfits[:3])
    yield ""
    if plan.chip is not plan.target.chip:
        yield _ceilings(plan)
    yield (
        f"{plan.num_candidates:,} ways on {plan.num_meshes:,} meshes; predicted, not measured: "
        "`jaxllm bench plan` compares such predictions with published steps"
    )


def _ceilings(plan: Plan) -> str:
    compute, num = plan.experiment.train.precision.compute, plan.chip.devices_per_chip
    was, now = (peak_flops(chip, compute) / 1e12 for chip in (plan.target.chip, plan.chip))
    before, after = (chip.hbm_bytes_per_second / num / 1e9 for chip in (plan.target.chip, plan.chip))
    return (
        f"Measured ceilings: {now:,.0f} TFLOP/s ({compute}) and {after:,.0f} GB/s a device, "
        f"where the datasheet says {was:,.0f} and {before:,.0f}; MFU is of the datasheet's"
    )


def _answer(plan: Plan, best: Option) -> Iterator[str]:
    candidate, time = best.candidate, best.time
    yield f"{'best':<12}{_way(candidate)}"
    on = [f"{axis}: {best.placement.describe(axis)}" for axis, size in candidate.mesh.sizes.items() if size > 1]
    if on:
        yield f"{'lies on':<12}{'; '.join(on)}"
    rate = plan.tokens_per_second(best)
    each = f"{rate / plan.target.num_chips:,.0f} a chip"
    yield f"{'step':<12}{seconds(time.total)}, bound by {_binds(time.binds)}; {rate:,.0f} tokens/s, {each}"
    spent = [f"{part} {100 * one / time.total:.0f} %" for part, one in parts(best).items() if one >= 0.005 * time.total]
    idle = f"; of it idle {100 * time.idle / time.total:.0f} %" if time.idle else ""
    yield f"{'spent on':<12}{', '.join(spent)}{idle}"
    yield (
        f"{'MFU':<12}{100 * plan.mfu(best):.1f} % ({formula(Convention.PALM)}); "
        f"{100 * plan.mfu(best, Convention.CAUSAL):.1f} % (causal)"
    )
    held = ", ".join(f"{part} {_gib(size)}" for part, size in best.memory.items())
    yield f"{'memory':<12}{_gib(best.total_memory)} of {_gib(plan.memory_limit)} GiB a device: {held}"
    moved = max(time.moved, key=lambda axes: time.moved[axes], default="")
    if moved:
        least = count(plan.critical_batch(best))
        yield f"{'batch':<12}from {least} tokens a step on, the blocks outlast {moved}'s transfers"
    yield f"{'run':<12}{_run(plan, best)}"
    yield f"{'use it with':<12}{' '.join(f'--{key} {_value(value)}' for key, value in asked_for(best).items())}"


def asked_for(option: Option) -> dict[str, Any]:
    """The fields that ask for an option, without those at their defaults."""
    defaults = {f"mesh.{axis}": 1 for axis in option.candidate.mesh.sizes if axis != "fsdp"}
    defaults |= {"mesh.slices": 1, "mesh.sequence_parallel": False}
    return {key: value for key, value in option.candidate.overrides().items() if defaults.get(key) != value}


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _run(plan: Plan, option: Option) -> str:
    days = plan.days(option)
    time = f"{days:,.1f} days" if days >= 1 else f"{24 * days:,.1f} hours"
    dollars = plan.dollars(option)
    if dollars is None or plan.price is None:
        return f"{time}; no price is known for {plan.target.chip.name}: give --price DOLLARS an hour and chip"
    return f"{time}, ${dollars:,.0f} at ${plan.price.dollars_per_hour:g} an hour and chip ({plan.price.source})"


def _table(plan: Plan, options: tuple[Option, ...]) -> Iterator[str]:
    rows = [("", "mesh", "remat", "micro", "step", "MFU", "GiB", "bound by", "days")]
    for number, option in enumerate(options, 1):
        candidate = option.candidate
        rows.append(
            (
                str(number),
                candidate.mesh.describe(),
                candidate.remat,
                str(candidate.accumulate),
                seconds(option.time.total),
                f"{100 * plan.mfu(option):.1f} %",
                _gib(option.total_memory),
                _binds(option.time.binds),
                f"{plan.days(option):,.1f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = {0, 3, 4, 5, 6, 8}
    for row in rows:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells)


def _configured(plan: Plan, asked: Option, best: Option) -> str:
    slower = f"{seconds(asked.time.total)} a step, {asked.time.total / best.time.total:.2f} times the best"
    fits = (
        _gib(asked.total_memory) if _fits(plan, asked) else f"{_gib(asked.total_memory)} of {_gib(plan.memory_limit)}"
    )
    needs = f", {fits} GiB a device" if _fits(plan, asked) else f"; but it needs {fits} GiB a device"
    return f"The config as it stands: {_way(asked.candidate)}: {slower}{needs}"


def _misfit(one: Misfit) -> str:
    change = f"with {one.change} it fits" if one.change else "no recomputation or number of micro-batches makes it fit"
    time, held = seconds(one.option.time.total), _gib(one.option.total_memory)
    return f"  {_way(one.option.candidate)}: {time}, {held} GiB; {change}"


def _nothing_fits(plan: Plan, least: Option) -> Iterator[str]:
    held = ", ".join(f"{part} {_gib(size)}" for part, size in least.memory.items())
    meshes, one = f"{plan.num_meshes:,} mesh{'es' * (plan.num_meshes > 1)}", least.candidate
    yield f"Nothing fits into {_gib(plan.memory_limit)} GiB a device, on any of {meshes}."
    yield f"The least is {_gib(least.total_memory)} GiB, with {_way(one)}: {held}"
    yield "Use more chips, chips with more memory, or a smaller train.loss.chunk where logits are large."


def _way(one: Candidate) -> str:
    return f"{one.mesh.describe()}; remat {one.remat}; accumulate {one.accumulate}"


def _binds(what: str) -> str:
    return what if what in ("compute", "memory") else f"{what}'s links"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}"


def seconds(value: float) -> str:
    """Three digits: 12.3 s, 456 ms."""
    if value >= 1:
        return f"{value:.{max(0, 2 - int(math.log10(value)))}f} s"
    return f"{1000 * value:.3g} ms"


def count(value: float) -> str:
    """Three digits with a word: 4.19 million."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"
