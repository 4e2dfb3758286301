"""What differs between the experiment that a run was started with and the one that is to go on with it."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from jaxllm.config.data import DataConfig, PhaseConfig
from jaxllm.config.dump import resolved
from jaxllm.config.errors import ConfigError, show
from jaxllm.config.experiment import Experiment
from jaxllm.config.schema import TAG

MAX_LISTED = 8
"""Differences that a sentence lists."""


class Freedom(NamedTuple):
    """Fields that may change between two attempts of one run.

    Attributes:
        pattern: a dotted name, `*` for any one part of it; a section's stands for all below it.
        reason: why the run stays the same run.
    """

    pattern: str
    reason: str


MAY_CHANGE: tuple[Freedom, ...] = (
    Freedom("run.name", "a name computes nothing"),
    Freedom("run.directory", "a run may be moved"),
    Freedom("run.compilation_cache", "a program computes the same wherever it was kept"),
    Freedom("log", "what is written down is not what is computed"),
    Freedom("watch", "watching changes no parameter"),
    Freedom("profile", "a trace is not what is computed"),
    Freedom("evaluation", "evaluation changes no parameter"),
    Freedom("checkpoint", "what is kept is not what is computed"),
    Freedom("mesh", "checkpoints and batches depend on no mesh"),
    Freedom("data.prefetch", "batches do not depend on when they are prepared"),
    Freedom("data.store", "a store may be moved; its manifest says whether it is the same"),
    Freedom("data.phases", "what is still to come: only what the run has seen must stay; the schedule follows"),
    Freedom("guard.policy", "what was done is in the ledger; what is to be done may change"),
    Freedom("guard.rules.patience", "how long the policy waits is a part of it"),
    Freedom("train.accumulate", "the same sums in another order"),
    Freedom("train.pipeline", "the same sums in another order"),
    Freedom("train.unroll", "the same sums, compiled another way"),
    Freedom("train.remat", "the same values, computed once or twice"),
    Freedom("train.loss.chunk", "the same loss, in pieces of another size"),
    Freedom("model.preset", "a name; the values that it stands for are compared one by one"),
    Freedom("model.attention.kernel", "the same attention by another kernel"),
    Freedom("model.prefix.*.attention.kernel", "the same attention by another kernel"),
    Freedom("model.period.*.attention.kernel", "the same attention by another kernel"),
)
"""Everything that a resumed run may change; all else decides what the run computes."""


class Difference(NamedTuple):
    """One field that two experiments disagree on.

    Attributes:
        key: dotted name; a list's where the lengths differ, and only the `type` of a section whose kinds differ.
        old: its value in the old experiment, as TOML holds it.
        new: its value in the new experiment, likewise.
        may_change: whether a run may go on with the new value.
    """

    key: str
    old: object
    new: object
    may_change: bool


def differences(old: Experiment, new: Experiment, step: int | None = None) -> list[Difference]:
    """All fields that two experiments disagree on, defaults included, in the schema's order.

    Args:
        old, new: the experiments.
        step: how many steps the run has made; None allows for all of the shorter experiment.
    """
    seen = min(old.data.num_steps, new.data.num_steps) if step is None else step
    seen_stays = same_steps(old.data, new.data) >= seen

    def may_change(key: str) -> bool:
        return _may_change(key) and (seen_stays or not key.startswith("data.phases"))

    return [Difference(*found, may_change(found[0])) for found in _compare(resolved(old), resolved(new), "")]


def same_steps(old: DataConfig, new: DataConfig) -> int:
    """The number of steps, from the first on, that see the same samples by the phases of both."""
    if old.unit != new.unit:
        return 0
    steps = 0
    for before, after in zip(old.phases, new.phases, strict=False):
        if _without_length(before) != _without_length(after):
            break
        steps += min(before.num_steps, after.num_steps)
        if before.num_steps != after.num_steps:
            break
    return steps


def _without_length(phase: PhaseConfig) -> PhaseConfig:
    return msgspec.structs.replace(phase, steps=1, tokens=0)


def refuse_changes(old: Experiment, new: Experiment, where: str, step: int | None = None) -> None:
    """Let a run go on only with what may change in it.

    Args:
        old: what the run was started with.
        new: what it is to go on with.
        where: the run, for the sentence.
        step: as of `differences`.

    Raises:
        ConfigError: a field differs that may not; the sentence names these, and those that may.
    """
    found = differences(old, new, step)
    before, after = old.data.unit, new.data.unit
    refused = []
    for one in found:
        if one.may_change:
            continue
        if one.key != "data.phases":
            refused.append(f"{one.key} = {show(one.new)} (was {show(one.old)})")
        elif before == after:
            refused.append(f"the phases of the steps up to {step}" if step is not None else "the phases of its steps")
    if before != after and any(not one.may_change for one in found):
        refused.append(f"the least common multiple of all sequence_length = {after} (was {before})")
    allowed = [one.key for one in found if one.may_change]
    if refused:
        also = f", while {_listed(allowed)} may" if allowed else ""
        raise ConfigError(
            f"{where}: {_listed(refused)} may not change when a run goes on{also}; "
            "take the old values back, or start another run under a new run.name"
        )


def _compare(old: object, new: object, key: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get(TAG) == new.get(TAG) and old.keys() != new.keys():  # a table of names
            yield key, old, new
            return
        for name in old if old.get(TAG) == new.get(TAG) else [TAG]:
            yield from _compare(old[name], new[name], f"{key}.{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _compare(before, after, f"{key}.{index}")
    elif old != new:
        yield key, old, new


def _may_change(key: str) -> bool:
    parts = key.split(".")
    return any(
        all(own in ("*", part) for own, part in zip(pattern, parts, strict=False)) and len(pattern) <= len(parts)
        for pattern in (freedom.pattern.split(".") for freedom in MAY_CHANGE)
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")
