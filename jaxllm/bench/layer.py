"""A decoder block on the present device beside its roofline: `jaxllm bench layer`.

The model's first block, as one device of the config's mesh has it, and its parts: the attention kernel, attention with
its projections, the feed-forward layer, one norm. Each forward, and forward and backward with all that the forward pass
made kept. Weights are in the compute dtype: their cast, a step's once a layer, is not in here, and nothing is sharded
or gathered. How they are timed: `pieces`.

The roofline says the least time of each from its FLOPs and bytes (`roofline.block`), under the datasheet's peaks where
roofline/hardware knows the device, else under a measured file's, else under those of a copy and of the block's fastest
product, measured in the same turns. A share above 100 % comes of a cache that holds what the roofline takes from
memory, or of a product that found no roof as fast as itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.bench.matmul import (
    REPEATS,
    Roof,
    copied_per_second,
    copy,
    distinct,
    one_device,
    product,
    products,
    roof_of,
)
from jaxllm.bench.pieces import Piece, Spread, Timed, random, take_turns
from jaxllm.bench.share import Share, share
from jaxllm.config import Experiment
from jaxllm.layers.attention import attend
from jaxllm.layers.kernels import Scoring
from jaxllm.layers.param import Recipe, tree_map
from jaxllm.models.decoder import Block, declarations, merge
from jaxllm.roofline import block as roofline
from jaxllm.roofline.ceilings import Ceilings
from jaxllm.roofline.intensity import times
from jaxllm.roofline.memory import BYTES
from jaxllm.train import figures

PARTS = {
    "kernel": "attention kernel",
    "attention": "attention, with projections",
    "mlp": "feed-forward layer",
    "norm": "norm",
    "block": "block",
}
"""What is measured, and how people call it."""


def measure(
    experiment: Experiment,
    repeats: int = REPEATS,
    ceilings: Ceilings | None = None,
) -> dict[str, Any]:
    """Time a model's first block and its parts on the first device.

    Args:
        experiment: whose block; of its data only the vocabulary and the batch's shape count.
        repeats: timed calls of each.
        ceilings: what to measure against instead of the datasheet.

    Returns:
        Plain data that JSON can hold. name, device_kind, dtype, tokens, repeats; roof, with flops_per_second,
        memory_bytes_per_second and source; parts, each with name, training, seconds, flops, bytes, least_seconds (the
        roofline's), binds (compute or memory), share_of_roof (least over measured) and flops_per_second.

    Raises:
        ValueError: the mesh divides neither model nor batch, shares sequences, or the ceilings are another device's.
    """
    if repeats < 1:
        raise ValueError(f"--repeats {repeats}: time each part at least once")
    if experiment.mesh.context != 1:
        raise ValueError(
            f"mesh.context = {experiment.mesh.context}: attention over a shared sequence needs all its devices; "
            "add --mesh.context 1"
        )
    part = share(experiment)
    with one_device() as device:
        _check(ceilings, device.device_kind, part.compute)
        wanted = [(name, training) for name in PARTS for training in (False, True)]
        functions = _functions(part)
        timed = [_timed(*functions[name], training) for name, training in wanted]
        roofs = [] if ceilings else distinct(products(part))
        beside = [product(one, part.compute) for one in roofs] + ([] if ceilings else [copy()])
        spreads = take_turns([*timed, *beside], repeats)
    if ceilings:
        roof = Roof(ceilings.flops_per_second, ceilings.memory_bytes_per_second)
    else:
        *rates, copied = spreads[len(timed) :]
        rate = max(one.flops / spread.median for one, spread in zip(roofs, rates, strict=True))
        roof = roof_of(device, part.compute, rate, copied_per_second(copied))
    return {
        "name": experiment.run.name,
        "device_kind": device.device_kind,
        "dtype": part.compute,
        "tokens": part.describe(),
        "repeats": repeats,
        "roof": {
            "flops_per_second": roof.peak,
            "memory_bytes_per_second": roof.bandwidth,
            "source": "file" if ceilings else roof.chip or "measured",
        },
        "parts": [
            _row(part, name, training, spread, roof)
            for (name, training), spread in zip(wanted, spreads[: len(timed)], strict=True)
        ],
    }


def text(result: Mapping[str, Any]) -> str:
    """A measurement as a table for people."""
    roof, rows = result["roof"], result["parts"]
    source = {"measured": "the block's fastest product and a copy, measured beside", "file": "as measured before"}
    names = max(map(len, PARTS.values()))
    lines = [
        f"{result['name']}: a block of {result['tokens']}, {result['dtype']}, on {result['device_kind']}",
        f"roof      {roof['flops_per_second'] / 1e12:.4g} TFLOP/s, {roof['memory_bytes_per_second'] / 1e9:.4g} GB/s: "
        + source.get(roof["source"], f"the datasheet's of {roof['source']}"),
    ]
    for training, title in ((False, "forward"), (True, "forward and backward")):
        head = f"{'measured':>11}{'quartiles':>19}{'least':>11}{'of roof':>9}{'TFLOP/s':>10}  bound by"
        lines += ["", f"{title:{names}}{head}"]
        lines += [_line(row, names) for row in rows if row["training"] is training]
    return "\n".join([*lines, "", f"milliseconds; medians of {result['repeats']} turns"])


def _line(row: Mapping[str, Any], names: int) -> str:
    low, high = row["seconds_quartiles"]
    rate = f"{row['flops_per_second'] / 1e12:.4g}" if row["flops"] else "-"
    return (
        f"{PARTS[row['name']]:{names}}{1e3 * row['seconds']:>11.4g}{f'{1e3 * low:.4g} to {1e3 * high:.4g}':>19}"
        f"{1e3 * row['least_seconds']:>11.4g}{figures.percent(row['share_of_roof']):>9}{rate:>10}  {row['binds']}"
    )


def _check(ceilings: Ceilings | None, device_kind: str, dtype: str) -> None:
    """Refuse another device's ceilings.

    Raises:
        ValueError: they are.
    """
    for field, theirs, ours in (
        ("device_kind", ceilings and ceilings.device_kind, device_kind),
        ("dtype", ceilings and ceilings.dtype, dtype),
    ):
        if ceilings and theirs != ours:
            raise ValueError(f'--ceilings: {field} = "{theirs}", and here it is "{ours}"; measure them here')


def _functions(part: Share) -> dict[str, tuple[Callable[..., jax.Array], tuple[Any, ...]]]:
    """Of each part: a function of its input, what it reads, positions and segments; and these inputs."""
    model, block, dtype = part.model, part.blocks[0], part.compute
    recipe = Recipe(parameters=dtype, compute=dtype, reduction=dtype)
    declared: Any = Block(model, block, recipe)  # the decoder's functions work on any of its modules
    rows, length, attention = part.rows, part.length, block.attention
    params = tree_map(
        lambda leaf: random(leaf.shape, dtype, leaf.std) if leaf.std else jnp.full(leaf.shape, leaf.fill, dtype),
        declarations(declared),
    )
    x_BTD = random((rows, length, model.d_model), dtype)
    q, k, v = (
        random((rows, length, heads, model.head_dim(attention)), dtype)
        for heads in (attention.num_heads, attention.kv_heads, attention.kv_heads)
    )
    positions_BT = jnp.asarray(np.tile(np.arange(length, dtype=np.int32), (rows, 1)))
    batch = (positions_BT, jnp.ones((rows, length), "int32"))

    def of(
        names: tuple[str, ...], run: Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
    ) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
        some = {name: params[name] for name in names}  # no gradient of what a part does not read
        return lambda x, read, *batch: run(merge(declared, read), x, *batch), (x_BTD, some, *batch)

    def kernel(q: jax.Array, others: tuple[jax.Array, jax.Array], _: jax.Array, segments_BT: jax.Array) -> jax.Array:
        scoring = Scoring(declared.attention.scale, attention.soft_cap, attention.window)
        return attend(q, *others, segments_BT, attention.kernel, recipe, scoring)

    norm = next(name for name in params if name.endswith("norm"))
    return {
        "kernel": (kernel, (q, (k, v), *batch)),
        "attention": of(("attention",), lambda one, x, positions, segments: one.attention(x, positions, segments)[0]),
        "mlp": of(("mlp",), lambda one, x, *_: one.mlp(x)),
        "norm": of((norm,), lambda one, x, *_: getattr(one, norm)(x)),
        "block": of(tuple(params), lambda one, x, positions, segments: one(x, positions, segments)[0]),
    }


def _timed(function: Callable[..., jax.Array], inputs: tuple[Any, ...], training: bool) -> Timed:
    """A part, compiled: its result, or that and the gradients of its input and of what it reads.

    Positions and segments are inputs too, as they are a step's: of constants a compiler would compute what comes of
    them beforehand.
    """
    if not training:
        return Timed(Piece("", function, inputs))

    def both(x: jax.Array, read: Any, *batch: jax.Array) -> Any:
        result, pull = jax.vjp(lambda x, read: function(x, read, *batch), x, read)
        return result, pull(result)

    return Timed(Piece("", both, inputs))


def _row(part: Share, name: str, training: bool, spread: Spread, roof: Roof) -> dict[str, Any]:
    operations = roofline.parts(
        part.model, part.blocks[0], part.rows, part.length, width=BYTES[part.compute], training=training
    )[name]
    least = roofline.seconds(operations, peak=roof.peak, bandwidth=roof.bandwidth)
    flops, size = sum(one.flops for one in operations), sum(one.size for one in operations)
    return {
        "name": name,
        "training": training,
        **spread.data(),
        "flops": flops,
        "bytes": size,
        "binds": "compute" if times(flops, size, peak=roof.peak, bandwidth=roof.bandwidth).compute_bound else "memory",
        "least_seconds": least,
        "share_of_roof": least / spread.median,
        "flops_per_second": flops / spread.median,
    }
