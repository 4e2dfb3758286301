"""Pieces of a step timed alone: each in a loop on the device, in turns with the others.

A product of a few microseconds is shorter than its dispatch, so a piece is compiled as a loop of so many rounds that a
call takes `LEAST_SECONDS`, and its time is the call's over the rounds. One value of each round's result is written
into the next round's input: rounds depend on each other, so no compiler may do them once, or drop some. All pieces run
once before any runs again, so that a machine that slows down slows all of them; medians are over these repeats.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LEAST_SECONDS = 0.02
"""Of one timed call: a thousand times what dispatching and waiting for it take."""

_MOST_ROUNDS = 4096


@dataclass(frozen=True)
class Piece:
    """Work to time.

    Attributes:
        name: of it.
        compute: the work; a function of arrays, or trees of them, that returns a tree of arrays.
        inputs: what it is called with; the first is an array of the same dtype as the result's first leaf.
    """

    name: str
    compute: Callable[..., Any]
    inputs: tuple[Any, ...]


@dataclass(frozen=True)
class Spread:
    """Seconds of one round.

    Attributes:
        median: of the repeats.
        quartiles: the lower and the upper one.
        rounds: of a timed call.
    """

    median: float
    quartiles: tuple[float, float]
    rounds: int

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return {"seconds": self.median, "seconds_quartiles": list(self.quartiles), "rounds": self.rounds}


class Timed:
    """A compiled piece. Make and call it inside `jax.set_mesh`."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self.rounds = 1
        self._build()
        self.run()
        once = min(self.run(), self.run())
        if once < LEAST_SECONDS:
            self.rounds = min(_MOST_ROUNDS, math.ceil(LEAST_SECONDS / once))
            self._build()
            self.run()

    def _build(self) -> None:
        compute, rounds = self._piece.compute, self.rounds

        def one(carried: tuple[jax.Array, Any], *rest: Any) -> tuple[jax.Array, Any]:
            x, _ = carried
            result = compute(x, *rest)
            return _link(x, jax.tree.leaves(result)[0]), result

        def loop(carried: tuple[jax.Array, Any], *rest: Any) -> tuple[jax.Array, Any]:
            return jax.lax.fori_loop(0, rounds, lambda _, one_more: one(one_more, *rest), carried)

        x, *self._rest = self._piece.inputs
        result = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(compute, x, *self._rest))
        # copied: the loop takes it over, and another piece may read the same array
        self._carried = jnp.array(x), result
        self._loop = jax.jit(loop, donate_argnums=0).lower(self._carried, *self._rest).compile()

    def run(self) -> float:
        """Seconds of one round, by one call."""
        began = time.perf_counter()
        self._carried = jax.block_until_ready(self._loop(self._carried, *self._rest))
        return (time.perf_counter() - began) / self.rounds


def random(shape: tuple[int, ...], dtype: str, std: float = 1.0) -> jax.Array:
    """Normally distributed values on the device, the same 65536 again and again.

    Not zeros, on which chips run cooler and faster than on what models multiply. Drawn on the host, as XLA's generators
    take longer to compile than the work that is timed.
    """
    drawn = std * np.random.default_rng(0).standard_normal(2**16, np.float32)
    return jnp.asarray(np.resize(drawn.astype(jnp.dtype(dtype)), shape))


def _link(x: jax.Array, result: jax.Array) -> jax.Array:
    """x with its first value taken from a result: in place, and the price of one value."""
    value = result[(0,) * result.ndim].astype(x.dtype)
    return x.at[(0,) * x.ndim].set(value)


def take_turns(timed: Sequence[Timed], repeats: int) -> list[Spread]:
    """Run all pieces so often, one after the other."""
    seconds = np.array([[one.run() for one in timed] for _ in range(repeats)])
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75), axis=0).tolist()
    return [
        Spread(*values)
        for values in zip(median, zip(low, high, strict=True), (one.rounds for one in timed), strict=True)
    ]
