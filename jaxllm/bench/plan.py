"""Predicted steps beside published ones: `jaxllm bench plan`.

Five numbers are fitted to the published steps (`plan.efficiency.Calibration`). To see what a prediction is worth, each
family of models is left out in turn: the numbers are fitted to the others, and the family's steps predicted with them.
Beside it stands what anybody can do without a model: the one MFU for each kind of chip that fits all of its rows best;
and the one that fits its rows of other families best (where it has none, the other rows of all chips).

    error      (predicted - published seconds) / published seconds; their mean is of absolute values
    bound      seconds that no program beats: FLOPs at the peak, transfers beside them at full bandwidth
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.bench.published import ROWS, UNUSABLE, Row
from jaxllm.config import AXES, AdamW, MeshConfig, PrecisionConfig, TrainConfig
from jaxllm.plan import efficiency, predict
from jaxllm.plan.computed import Work
from jaxllm.plan.efficiency import CALIBRATION, Calibration
from jaxllm.plan.placement import Placement, place
from jaxllm.plan.predict import StepTime
from jaxllm.plan.target import parse
from jaxllm.roofline.communication import Transfer, transfers
from jaxllm.roofline.conventions import Convention, flops_per_token
from jaxllm.roofline.memory import shards, state_bytes

GRID: Mapping[str, Sequence[float]] = {
    "gpu_products": [x / 100 for x in range(60, 101, 2)],
    "tpu_products": [x / 100 for x in range(60, 101, 2)],
    "attention": [x / 100 for x in range(50, 101, 5)],
    "memory": [x / 100 for x in range(30, 91, 5)],
    "exposed": [x / 100 for x in range(0, 101, 10)],
}
"""What a calibration is chosen from."""

START = Calibration(gpu_products=0.86, tpu_products=0.86, attention=0.8, memory=0.6, exposed=0.3)
"""Where a fit begins, and what it stays at where rows do not say otherwise."""

_STAY = 0.05
_HBM2E = 2.4 / 3.35  # torchtitan's H100: HBM bandwidth against the usual kind's


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
    """A row with what does not depend on a calibration."""

    row: Row
    placement: Placement
    transfers: tuple[Transfer, ...]
    work: Work

    def time(self, calibration: Calibration) -> StepTime:
        """Predict it."""
        share = efficiency.of(self.placement.target.chip, calibration, self.row.kernel)
        if self.row.power < 1:
            # a chip's clock follows about the cube root of its power
            clock = self.row.power ** (1 / 3)
            share = dataclasses.replace(
                share,
                products=share.products * clock,
                attention=share.attention * clock,
                memory=share.memory * _HBM2E,
            )
        return predict.step_time(self.work, self.transfers, self.placement, share, (*predict.SUMS, *self.row.hidden))

    def error(self, calibration: Calibration) -> float:
        return self.time(calibration).total / self.row.seconds - 1


def _step(row: Row) -> _Step:
    target, sizes = parse(row.target), {axis: row.sizes.get(axis, 1) for axis in AXES}
    slices = {axis: target.num_slices if axis == "data" else 1 for axis in AXES}
    precision = PrecisionConfig(parameters="bfloat16" if row.parameters == "bfloat16" else "float32")
    # what is sent again in the backward pass follows what is computed again
    train = TrainConfig(accumulate=row.accumulate, remat="block" if row.again.gate_up else "none", precision=precision)
    mesh = MeshConfig(zero=row.zero, sequence_parallel=row.sequence_parallel, **sizes)
    state = state_bytes(row.shape, PrecisionConfig(), AdamW(), shards(sizes, row.zero))
    num_tokens = row.batch_size // (row.accumulate * sizes["data"] * sizes["fsdp"]) * row.sequence_length
    work = Work(
        model=row.shape,
        sequence_length=row.sequence_length,
        num_tokens=num_tokens,
        num_micro=row.accumulate,
        ticks=row.accumulate,
        stages=1,
        tensor=sizes["tensor"],
        context=1,
        experts=1,
        stream_shares=sizes["tensor"] if row.sequence_parallel else 1,
        again=row.again,
        backward=2.5 if row.fused else 3.5,
        compute="bfloat16",
        state_bytes=2 * (state.parameters + state.optimizer) + 4 * state.gradients,
    )
    moved = transfers(row.shape, train, mesh, sizes, row.batch_size, row.sequence_length)
    return _Step(row=row, placement=place(target, sizes, slices), transfers=moved, work=work)


def fit(steps: Sequence[_Step]) -> Calibration:
    """The calibration with the least squares of log(predicted / published): number after number, three rounds."""
    found = START
    for _ in range(3):
        for name, values in GRID.items():

            def loss(value: float, name: str = name) -> float:
                tried = dataclasses.replace(found, **{name: value})  # noqa: B023 (called within the round)
                away = abs(math.log((value + 0.1) / (getattr(START, name) + 0.1)))
                return sum(math.log(1 + step.error(tried)) ** 2 for step in steps) + _STAY * away

            found = dataclasses.replace(found, **{name: min(values, key=loss)})
    return found


def measure() -> dict[str, Any]:
    """Predict every usable row, with its family in the calibration and without.

    Returns:
        rows: what each is, its published and predicted seconds, errors and parts of the step; calibration and
        calibrations_without a family; mean_error of all rows, mean_held_out_error, mean_constant_mfu_error,
        mean_held_out_constant_mfu_error; by_family;
        unusable rows with reasons; faster_than_physics: rows whose published step is below the bound.
    """
    steps = [_step(row) for row in ROWS]
    families = sorted({step.row.family for step in steps})
    without = {family: fit([one for one in steps if one.row.family != family]) for family in families}
    constants = zip(_constant_mfu(steps, left_out=False), _constant_mfu(steps, left_out=True), strict=True)
    rows = [_row(step, without[step.row.family], *errors) for step, errors in zip(steps, constants, strict=True)]

    def mean(name: str, family: str = "") -> float:
        errors = [abs(row[name]) for row in rows if not family or row["family"] == family]
        return sum(errors) / len(errors)

    return {
        "rows": rows,
        "calibration": dataclasses.asdict(fit(steps)),
        "in_use": dataclasses.asdict(CALIBRATION),
        "calibrations_without": {family: dataclasses.asdict(one) for family, one in without.items()},
        "mean_error": mean("error"),
        "mean_held_out_error": mean("held_out_error"),
        "mean_constant_mfu_error": mean("constant_mfu_error"),
        "mean_held_out_constant_mfu_error": mean("held_out_constant_mfu_error"),
        "by_family": {family: mean("held_out_error", family) for family in families},
        "unusable": dict(UNUSABLE),
        "faster_than_physics": [row["model"] for row in rows if row["predicted_seconds"] < row["bound_seconds"]],
    }


def _constant_mfu(steps: Sequence[_Step], *, left_out: bool) -> list[float]:
    """Errors of the one MFU for each kind of chip that has the least mean error on its rows.

    Args:
        steps: all of them.
        left_out: whether the MFU for a row is that of other families' rows.
    """
    found: dict[tuple[str, str], float] = {}
    errors = []
    for step in steps:
        chip, family = step.placement.target.chip.name, step.row.family if left_out else ""
        if (chip, family) not in found:
            others = [one for one in steps if one.row.family != family]
            mine = [one for one in others if one.placement.target.chip.name == chip]
            found[chip, family] = _best_mfu(mine or others)
        errors.append(_ideal(step) / found[chip, family] / step.row.seconds - 1)
    return errors


def _best_mfu(steps: Sequence[_Step]) -> float:
    """To a thousandth."""
    shares = [_ideal(step) / step.row.seconds for step in steps]
    return min((x / 1000 for x in range(200, 900)), key=lambda mfu: sum(abs(share / mfu - 1) for share in shares))


def _ideal(step: _Step) -> float:
    """Seconds at a model FLOPs utilisation of one."""
    row, target = step.row, step.placement.target
    each = flops_per_token(row.shape, row.sequence_length, Convention.TORCHTITAN)
    peak = target.chip.flops_per_second["bfloat16"] * target.num_chips
    return row.batch_size * row.sequence_length * each / peak


def _row(step: _Step, without: Calibration, constant: float, left_out: float) -> dict[str, Any]:
    row, time = step.row, step.time(CALIBRATION)
    return {
        "trainer": row.trainer,
        "model": row.model,
        "family": row.family,
        "target": row.target,
        "chips": step.placement.target.num_chips,
        "sequence_length": row.sequence_length,
        "published_seconds": row.seconds,
        "published_mfu": _ideal(step) / row.seconds,
        "predicted_seconds": time.total,
        "bound_seconds": time.bound,
        "error": step.error(CALIBRATION),
        "held_out_error": step.error(without),
        "constant_mfu_error": constant,
        "held_out_constant_mfu_error": left_out,
        "source": row.source,
    }


def text(result: Mapping[str, Any]) -> str:
    """For people."""
    lines = [
        f"{'trainer':<12}{'model':<22}{'chips':<13}{'length':>6}{'published':>11}{'predicted':>11}{'error':>9}"
        f"{'left out':>10}{'one MFU':>9}{'bound':>9}"
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['trainer']:<12}{row['model']:<22}{row['target']:<13}{row['sequence_length']:>6}"
            f"{row['published_seconds']:>10.3f}s{row['predicted_seconds']:>10.3f}s{row['error']:>+9.1%}"
            f"{row['held_out_error']:>+10.1%}{row['constant_mfu_error']:>+9.1%}{row['bound_seconds']:>8.3f}s"
        )
    families = ", ".join(f"{family} {error:.1%}" for family, error in result["by_family"].items())
    lines += [
        "",
        f"mean error          {result['mean_error']:.1%}, with the calibration in use",
        f"family left out     {result['mean_held_out_error']:.1%} ({families})",
        f"one MFU a chip      {result['mean_constant_mfu_error']:.1%}, fitted to the same rows; "
        f"{result['mean_held_out_constant_mfu_error']:.1%} with the family left out",
        "",
        "Not usable:",
    ]
    lines += [f"  {what}: {why}" for what, why in result["unusable"].items()]
    return "\n".join(lines)
