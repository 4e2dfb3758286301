"""What the present device reaches in matrix products, and in moving bytes: `jaxllm bench matmul`.

Products of the model's own shapes, as one device of the config's mesh has them in the forward pass, through the model's
own contraction (layers/linear) in the compute dtype; and products of square matrices, doubling in size. Beside them a
streaming copy of `COPY_BYTES`, larger than any cache, for the bandwidth of the memory: read and written bytes count.
How they are timed: `pieces`.

    intensity        FLOPs over the bytes of both operands and the result, each moved once
    roof             min(peak, intensity x bandwidth)
    share of peak    FLOP/s over the peak: the datasheet's where roofline/hardware knows the device, else that of the
                     fastest product here

Source: the book, chapter 1; Williams et al. 2009 (Roofline).
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import msgspec

from jaxllm import sharding
from jaxllm.bench.pieces import Piece, Spread, Timed, random, take_turns
from jaxllm.bench.roofline_plot import Point, plot
from jaxllm.bench.share import Share, share
from jaxllm.config import Experiment, MeshConfig
from jaxllm.layers.linear import contract
from jaxllm.layers.param import Recipe
from jaxllm.roofline.block import Product, attention_products, mlp_products
from jaxllm.roofline.ceilings import Ceilings, Measured
from jaxllm.roofline.hardware import Chip, find_chip
from jaxllm.roofline.intensity import attainable
from jaxllm.roofline.memory import BYTES
from jaxllm.train import figures

SQUARES = (256, 512, 1024, 2048, 4096, 8192)
COPY_BYTES = 2**28
"""Of the array that is copied."""

REPEATS = 10

_LONG_SECONDS = 1.0
"""A square that takes longer ends the sweep: a larger one would tell nothing new."""


@dataclass(frozen=True)
class Roof:
    """What a device is measured against.

    Attributes:
        peak: FLOP/s.
        bandwidth: bytes/s of its memory.
        chip: whose datasheet says so; empty where both are measured.
    """

    peak: float
    bandwidth: float
    chip: str = ""


def measure(experiment: Experiment, repeats: int = REPEATS, squares: Sequence[int] = SQUARES) -> dict[str, Any]:
    """Time a model's products, squares and a copy on the first device.

    Args:
        experiment: whose shapes; of its data only the vocabulary and the batch's shape count.
        repeats: timed calls of each.
        squares: sides of the square products, ascending; those behind one that takes a second are left out.

    Returns:
        Plain data that JSON can hold. name, device_kind, dtype, tokens, repeats; roof, with peak, bandwidth and chip;
        copy, with bytes moved, seconds, bytes_per_second and share_of_roof; products and squares, each with name, rows,
        contraction, columns, seconds, flops_per_second, intensity, share_of_peak and share_of_roof; ceilings, the
        content of the file that roofline/ceilings reads.

    Raises:
        ValueError: the mesh divides neither model nor batch, or a number is too small.
    """
    if repeats < 1:
        raise ValueError(f"--repeats {repeats}: time each product at least once")
    if min(squares, default=1) < 1:
        raise ValueError(f"--squares {min(squares)}: use sides of 1 or more, such as 1024 4096")
    part = share(experiment)
    width = BYTES[part.compute]
    with one_device() as device:
        wanted = distinct(products(part))
        timed = [product(one, part.compute) for one in wanted]
        for side in sorted(squares):
            wanted.append(Product(name="square", rows=side, contraction=side, columns=side))
            timed.append(product(wanted[-1], part.compute))
            if timed[-1].run() > _LONG_SECONDS:
                break
        *spreads, copied = take_turns([*timed, copy()], repeats)
    moved = copied_per_second(copied)
    rates = [one.flops / spread.median for one, spread in zip(wanted, spreads, strict=True)]
    roof = roof_of(device, part.compute, max(rates), moved)
    rows = [_row(*found, roof, width) for found in zip(wanted, spreads, strict=True)]
    return {
        "name": experiment.run.name,
        "device_kind": device.device_kind,
        "dtype": part.compute,
        "tokens": part.describe(),
        "repeats": repeats,
        "roof": {"flops_per_second": roof.peak, "memory_bytes_per_second": roof.bandwidth, "chip": roof.chip},
        "copy": {
            "bytes": 2 * COPY_BYTES,
            **copied.data(),
            "bytes_per_second": moved,
            "share_of_roof": moved / roof.bandwidth,
        },
        "products": [row for row in rows if row["name"] != "square"],
        "squares": [row for row in rows if row["name"] == "square"],
        "ceilings": msgspec.to_builtins(_ceilings(device, part.compute, max(rates), moved, rows)),
    }


def text(result: Mapping[str, Any]) -> str:
    """A measurement as a table and a plot for people."""
    roof, copied = result["roof"], result["copy"]
    where = (
        f"the datasheet's of {roof['chip']}" if roof["chip"] else "the fastest product here, as no datasheet is known"
    )
    low, high = (copied["bytes"] / seconds / 1e9 for seconds in reversed(copied["seconds_quartiles"]))
    rows = [*result["products"], *result["squares"]]
    names = max(len(row["name"]) for row in rows)
    lines = [
        f"{result['name']}: {result['tokens']}, {result['dtype']}, on {result['device_kind']}",
        f"peak      {roof['flops_per_second'] / 1e12:.4g} TFLOP/s, {where}",
        f"memory    {copied['bytes_per_second'] / 1e9:.4g} GB/s copied, quartiles {low:.4g} to {high:.4g}"
        + (f"; {figures.percent(copied['share_of_roof'])} of the datasheet's" if roof["chip"] else ""),
        f"ridge     {roof['flops_per_second'] / roof['memory_bytes_per_second']:.0f} FLOPs a byte: "
        "what does fewer is bound by memory",
        "",
        f"{'':{names}}  {'rows x contraction x columns':<30}{'FLOPs/byte':>11}{'TFLOP/s':>10}  {'quartiles':<16}"
        f"{'of peak':>8}{'of roof':>9}",
        *(_line(row, names) for row in rows),
        "",
        plot([_point(row) for row in rows], peak=roof["flops_per_second"], bandwidth=roof["memory_bytes_per_second"]),
        f"medians of {result['repeats']} turns",
    ]
    return "\n".join(lines)


def _line(row: Mapping[str, Any], names: int) -> str:
    shape = f"{row['rows']} x {row['contraction']} x {row['columns']}"
    flops = row["seconds"] * row["flops_per_second"]
    low, high = (flops / seconds / 1e12 for seconds in reversed(row["seconds_quartiles"]))
    return (
        f"{row['name']:{names}}  {shape:<30}{row['intensity']:>11.0f}{row['flops_per_second'] / 1e12:>10.4g}  "
        f"{f'{low:.4g} to {high:.4g}':<16}{figures.percent(row['share_of_peak']):>8}"
        f"{figures.percent(row['share_of_roof']):>9}"
    )


def _point(row: Mapping[str, Any]) -> Point:
    mark = "+" if row["name"] == "square" else "o"
    return Point(intensity=row["intensity"], flops_per_second=row["flops_per_second"], mark=mark)


def products(part: Share) -> list[Product]:
    """The forward products of a device's share, the head's of one chunk of the loss."""
    found = [
        one
        for block in part.blocks
        for some in (attention_products, mlp_products)
        for one in some(part.model, block, part.tokens)
    ]
    head = Product(name="head", rows=part.head_rows, contraction=part.model.d_model, columns=part.vocab_size)
    return [*found, head]


def distinct(some: Iterable[Product]) -> list[Product]:
    """Each shape once, under the names of all that have it."""
    names: dict[tuple[int, int, int], dict[str, None]] = {}
    for one in some:
        names.setdefault((one.rows, one.contraction, one.columns), {})[one.name] = None
    return [
        Product(name=", ".join(found), rows=rows, contraction=contraction, columns=columns)
        for (rows, contraction, columns), found in names.items()
    ]


@contextmanager
def one_device() -> Iterator[sharding.Device]:
    """The first device, as the ambient mesh."""
    device = jax.devices()[0]
    with jax.set_mesh(sharding.make_mesh(MeshConfig(fsdp=1), [device])):
        yield device


def product(one: Product, dtype: str) -> Timed:
    """A product, compiled."""
    x_BTD = random((1, one.rows, one.contraction), dtype)
    w_DF = random((one.contraction, one.columns), dtype, one.contraction**-0.5)
    recipe = Recipe(parameters=dtype, compute=dtype)
    return Timed(Piece(one.name, lambda x, w: contract(x, w, (None,), recipe), (x_BTD, w_DF)))


def copy() -> Timed:
    """An array of `COPY_BYTES`, read and written elsewhere with its signs turned; compiled."""
    return Timed(Piece("copy", jnp.negative, (jnp.ones(COPY_BYTES // 4, "float32"),)))


def copied_per_second(spread: Spread) -> float:
    """Bytes a second that `copy` reads and writes."""
    return 2 * COPY_BYTES / spread.median


def roof_of(device: sharding.Device, dtype: str, rate: float, moved: float) -> Roof:
    """The datasheet's of one device, or what was measured: the fastest product's rate and a copy's bytes/s."""
    chip = find_chip(device.device_kind)
    peak = chip and datasheet_peak(chip, dtype)
    if not chip or not peak:
        return Roof(rate, moved)
    return Roof(peak, chip.hbm_bytes_per_second / chip.devices_per_chip, chip.name)


def datasheet_peak(chip: Chip, dtype: str) -> float | None:
    """A device's peak in products of a dtype; of float32 on GPUs that of their tensor cores, which XLA uses there."""
    tensor_cores = chip.device_flops_per_second("tensorfloat32") if dtype == "float32" else None
    return tensor_cores or chip.device_flops_per_second(dtype)


def _row(one: Product, spread: Spread, roof: Roof, width: int) -> dict[str, Any]:
    rate, intensity = one.flops / spread.median, one.flops / one.size(width)
    return {
        "name": one.name,
        "rows": one.rows,
        "contraction": one.contraction,
        "columns": one.columns,
        **spread.data(),
        "flops_per_second": rate,
        "intensity": intensity,
        "share_of_peak": rate / roof.peak,
        "share_of_roof": rate / attainable(intensity, peak=roof.peak, bandwidth=roof.bandwidth),
    }


def _ceilings(
    device: sharding.Device, dtype: str, rate: float, moved: float, rows: Sequence[Mapping[str, Any]]
) -> Ceilings:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return Ceilings(
        device_kind=device.device_kind,
        dtype=cast(Any, dtype),
        flops_per_second=rate,
        memory_bytes_per_second=moved,
        memory_bytes=limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        products=tuple(Measured(**{name: row[name] for name in Measured.__struct_fields__}) for row in rows),
    )
