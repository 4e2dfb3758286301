"""Loss spikes, made on purpose, with the guard and without it: `jaxllm bench spikes`.

A small model is trained on the running Python's sources, byte by byte, by the same `train` that users run. In the midst
of a run something goes wrong (see bench/trouble for the eight kinds), and the run goes on in one of four modes:

    unguarded   updates that are not finite are dropped, nothing else
    skip        outliers' updates are dropped too
    clip        as unguarded, with gradients clipped at a quarter of the usual norm
    guard       outliers' updates are dropped, and spikes rolled back by a policy

Every seed has a twin: the unguarded run without trouble. A run has recovered if its held-out loss at the end is within
1 % of its twin's, or lower:

    excess    held-out loss of the run / of its twin - 1, over the same text after as many steps
    delay     steps from the first disturbed one to the alarm that a policy acts on
    lost      tokens that were trained on in vain: steps that were rolled back, and updates that were dropped
    skipped   tokens that no step read

Undisturbed runs in the modes clip and guard say what these cost; every alarm and every dropped update there is false.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllm.bench.disturbed import CLEAN, MAX_ROLLBACKS, Outcome, Policy, Runs, Size
from jaxllm.bench.trouble import KINDS
from jaxllm.train import programs

MODES = ("unguarded", "skip", "clip", "guard")

Say = Callable[[str], None]


class Plan(NamedTuple):
    """What is measured unless something else is asked for.

    Attributes:
        size: of the runs.
        kinds: of trouble.
        modes: unguarded and guard among them.
        num_seeds: of weights, of the order of the data and of the trouble, from 0.
    """

    size: Size = Size()
    kinds: Sequence[str] = tuple(KINDS)
    modes: Sequence[str] = MODES
    num_seeds: int = 5


FULL = Plan()

QUICK = Plan(
    Size(
        steps=96,
        first=52,
        batch_size=8,
        sequence_length=64,
        d_model=32,
        num_layers=1,
        learning_rate=1e-2,
        patience=3,
        interval=16,
        skip_batches=32,
        shrink=4,
    ),
    kinds=("random",),
    modes=("unguarded", "guard"),
    num_seeds=1,
)
"""Seconds a run: long enough for one spike, one way back, and a recovery."""


def measure(
    plan: Plan = FULL,
    kinds: Sequence[str] | None = None,
    num_seeds: int | None = None,
    policy: Policy = "ladder",
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Disturb runs, and compare what becomes of them.

    Args:
        plan: FULL or QUICK.
        kinds: others than the plan's.
        num_seeds: another number than the plan's.
        policy: of the guard.
        say: is told of each run when it has ended.

    Returns:
        Plain data that JSON can hold: policy, seeds, size; summary, one row a kind and mode; claims, what must hold,
        each with claim, held, and of how many runs; runs, as `disturbed.Runs.run` returns them but for the losses.
        What is not finite is None.

    Raises:
        ValueError: a kind that is none, or no seed.
    """
    size, modes = plan.size, plan.modes
    kinds, num_seeds = plan.kinds if kinds is None else kinds, plan.num_seeds if num_seeds is None else num_seeds
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"--kinds {wrong[0]}: the kinds of trouble are {', '.join(KINDS)}")
    if num_seeds < 1:
        raise ValueError(f"--seeds {num_seeds}: measure at least one")
    # what drops updates is the same with the policy and without it while nothing happens
    jobs = [(CLEAN, mode) for mode in modes if mode != "skip"] + [(kind, mode) for kind in kinds for mode in modes]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as place, programs.kept(str(Path(place) / "compiled")):
        runs = Runs(Path(place), size, policy)
        for seed in range(num_seeds):
            twin = None
            for kind, mode in jobs:
                outcome = runs.run(kind, mode, seed, twin)
                twin = twin or outcome
                outcomes.append(outcome)
                say(f"{len(outcomes)}/{num_seeds * len(jobs)}  seed {seed}  {kind:<14}{mode:<10}{_line(outcome)}")
    return {
        "policy": policy,
        "seeds": num_seeds,
        "size": size._asdict(),
        "summary": [_summary([one for one in outcomes if (one["kind"], one["mode"]) == job]) for job in jobs],
        "claims": claims(outcomes),
        "runs": [{name: _finite(value) for name, value in outcome.items() if name != "losses"} for outcome in outcomes],
    }


def claims(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """What the guard must do, and whether it did.

    Returns:
        claim, held, num_held and num, of each that any of the runs is about.
    """
    by_key = {(one["kind"], one["mode"], one["seed"]): one for one in outcomes}
    pairs = [(one, by_key[kind, "unguarded", seed]) for (kind, mode, seed), one in by_key.items() if mode == "guard"]
    found = []
    for claim, is_about, holds in _CLAIMS:
        held = [holds(*pair) for pair in pairs if is_about(*pair)]
        if held:
            found.append({"claim": claim, "held": all(held), "num_held": sum(held), "num": len(held)})
    return found


def _recovers(guarded: Outcome, unguarded: Outcome) -> bool:
    del unguarded
    return guarded["recovered"]


def _survives(guarded: Outcome, unguarded: Outcome) -> bool:
    del unguarded
    return math.isfinite(guarded["loss"])


def _ends(guarded: Outcome, unguarded: Outcome) -> bool:
    del unguarded
    reported = guarded["stopped"] != "" and guarded["reported"]
    return (guarded["recovered"] or reported) and guarded["rollbacks"] <= MAX_ROLLBACKS


def _is_quiet(guarded: Outcome, unguarded: Outcome) -> bool:
    del unguarded
    return not guarded["alarms"] and not guarded["dropped"]


def _is_same(guarded: Outcome, unguarded: Outcome) -> bool:
    return guarded["losses"] == unguarded["losses"]


def _cause(outcome: Outcome) -> str:
    return "" if outcome["kind"] == CLEAN else KINDS[outcome["kind"]].cause


_CLAIMS: Sequence[tuple[str, Callable[[Outcome, Outcome], bool], Callable[[Outcome, Outcome], bool]]] = (
    (
        "what data does, and no unguarded run gets over, guarded ones get over",
        lambda one, other: _cause(one) == "data" and not other["recovered"],
        _recovers,
    ),
    (
        "the same of what happens once",
        lambda one, other: _cause(one) == "once" and not other["recovered"],
        _recovers,
    ),
    (
        "where the unguarded run recovers, the guarded one does",
        lambda one, other: _cause(one) in ("data", "once") and other["recovered"],
        _recovers,
    ),
    ("what is not finite is survived", lambda one, _: one["kind"] == "nan", _survives),
    (
        "structural trouble ends in recovery or in a report, within bounds",
        lambda one, _: _cause(one) == "steps",
        _ends,
    ),
    ("undisturbed runs raise no alarm and drop no update", lambda one, _: one["kind"] == CLEAN, _is_quiet),
    ("their losses are bit for bit those without the guard", lambda one, _: one["kind"] == CLEAN, _is_same),
)
"""What must hold; which pairs of a guarded and an unguarded run it is about; whether it holds of one."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(outcome: Outcome) -> str:
    """One run, for people."""
    if outcome["stopped"]:
        return f"stopped after {outcome['rollbacks']} rollbacks"
    alarm = f", alarm after {outcome['delay']} steps" if outcome["delay"] is not None else ""
    back = f", {outcome['rollbacks']} rollbacks" if outcome["rollbacks"] else ""
    return f"{outcome['loss']:.4f} nats, {100 * outcome['excess']:+.2f} %{alarm}{back}"


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All seeds of a kind and mode: sums, and medians with the least and the largest."""

    def spread(name: str) -> list[float] | None:
        values = [float(one[name]) for one in outcomes if one[name] is not None and math.isfinite(one[name])]
        return np.quantile(values, (0.5, 0.0, 1.0)).tolist() if values else None

    first = outcomes[0]
    return {
        "kind": first["kind"],
        "mode": first["mode"],
        "runs": len(outcomes),
        "recovered": sum(one["recovered"] for one in outcomes),
        "stopped": sum(bool(one["stopped"]) for one in outcomes),
        "alarmed": sum(one["delay"] is not None for one in outcomes),
        "false_alarms": sum(one["false_alarms"] for one in outcomes),
        **{name: spread(name) for name in _SPREADS},
    }


_SPREADS = ("loss", "excess", "delay", "rollbacks", "dropped", "lost_tokens", "skipped_tokens")


def text(result: Mapping[str, Any]) -> str:
    """A measurement as lines for people."""
    size, rows = result["size"], result["summary"]
    lines = [
        f"{result['seeds']} seeds; {size['steps']} steps of {size['batch_size']} x {size['sequence_length']} tokens, "
        f"trouble from step {size['first'] + 1} on; the guard's policy: {result['policy']}",
        "excess is that of the held-out loss over the undisturbed twin's: median (least to largest) of the seeds",
        "",
        f"{'':<12}{'recovered':>10}{'excess, %':>25}{'alarm after':>13}{'rollbacks':>11}{'dropped':>9}"
        f"{'lost':>8}{'skipped':>9}{'false':>7}",
    ]
    kind = ""
    for row in rows:
        if row["kind"] != kind:
            kind = row["kind"]
            lines.append("undisturbed" if kind == CLEAN else f"{kind}: {KINDS[kind].text}")
        lines.append(_row(row))
    lines.append("")
    for claim in result["claims"]:
        held = "yes" if claim["held"] else "NO"
        lines.append(f"{held:<4}{claim['claim']}: {claim['num_held']} of {claim['num']}")
    return "\n".join(lines)


def _row(row: Mapping[str, Any]) -> str:
    """One kind and mode."""

    def number(name: str, form: str, scale: float = 1.0) -> str:
        return form.format(row[name][0] * scale) if row[name] else "-"

    excess = "-"
    if row["excess"]:
        middle, low, high = (100 * value for value in row["excess"])
        excess = f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"
    stopped = f" stopped {row['stopped']}" if row["stopped"] else ""
    lost, skipped = (number(f"{name}_tokens", "{:.0f} k", 1e-3) for name in ("lost", "skipped"))
    return (
        f"  {row['mode']:<10}{row['recovered']:>7}/{row['runs']}{excess:>26}{number('delay', '{:.0f} steps'):>13}"
        f"{number('rollbacks', '{:.0f}'):>11}{number('dropped', '{:.0f}'):>9}{lost:>8}{skipped:>9}"
        f"{row['false_alarms']:>7}{stopped}"
    )
