"""What a policy does about a spike: a function of the ledger, and of where the trouble began."""

from typing import NamedTuple

from jaxllm.config import CheckpointConfig, DataConfig, Falcon, Ladder, Off, Palm, PolicyConfig, Replay, Skip
from jaxllm.data.steps import Steps
from jaxllm.train.guard.ledger import RolledBack

LAST_RUNG = 4
"""Of a ladder, where the learning rate is lowered; the next is the end of the run."""

SAME = 4
"""Two spikes began at the same step if they began no more than so many apart."""


class Remedy(NamedTuple):
    """What is to be done.

    Attributes:
        to_step: the checkpoint to go back to has at most so many steps behind it.
        rung: of a ladder; otherwise 1.
        skip: how much data is left out from there on; None for none.
        widen: so many times as much.
        learning_rate_factor: of what it would be without any rollback.
        lowered_steps: for so many steps.
    """

    to_step: int
    rung: int = 1
    skip: Skip | None = None
    widen: float = 1.0
    learning_rate_factor: float = 1.0
    lowered_steps: int = 0


def kind(policy: PolicyConfig) -> str:
    """What the config calls it."""
    return str(policy.__struct_config__.tag)


def remedy(policy: PolicyConfig, past: list[RolledBack], onset: int, factor: float) -> Remedy | str:
    """What a policy does about a spike, or, where that is to stop, why: half a sentence.

    Args:
        policy: not `Off`.
        past: rollbacks so far.
        onset: the step where the trouble began, as metrics count.
        factor: of the learning rate there.
    """
    assert not isinstance(policy, Off)
    if len(past) >= policy.max_rollbacks:
        return f"the policy's {policy.max_rollbacks} rollbacks are used up (guard.policy.max_rollbacks)"
    before = onset - 1
    if isinstance(policy, Falcon):
        return Remedy(before, skip=policy.skip)
    before -= policy.rewind_steps
    if isinstance(policy, Palm):
        return Remedy(before, skip=policy.skip)
    if isinstance(policy, Replay):
        if past and past[-1].policy == kind(policy) and onset <= past[-1].step:
            return (
                "it came back with the same data, so that not the hardware but the data and the model's state cause it"
            )
        return Remedy(before)
    rung = past[-1].rung + 1 if past and onset <= past[-1].step + policy.calm_steps else 1
    structural = rung > 1 and is_structural(past[-1], onset)
    if rung > LAST_RUNG:
        return (
            f"it came back at step {onset} with other data and a lower learning rate: not the data but what belongs to "
            "the step causes it"
            if structural
            else "neither skipping data nor a lower learning rate has helped"
        )
    if structural:
        rung = LAST_RUNG
    if rung < LAST_RUNG:
        return Remedy(before, rung, policy.skip, policy.widen ** (rung - 1))
    return Remedy(before, rung, policy.skip, 1.0, factor * policy.learning_rate_factor, policy.lowered_steps)


def is_structural(last: RolledBack, onset: int) -> bool:
    """Whether a spike came back at the same step with other data, behind clean steps on these.

    Where data behind a skip are bad too, the next spike begins as soon as they are read.
    """
    return abs(onset - last.onset) <= SAME and onset > last.to_step + 2 * SAME


def num_skipped(skip: Skip, widen: float, steps: Steps, start: int, num_steps: int) -> int:
    """Steps' worth of data that a skip leaves out.

    Args:
        skip: how much.
        widen: so many times as much.
        steps: of the run so far.
        start: the step that it begins at.
        num_steps: of the whole run.
    """
    if skip.tokens:
        return steps.num_steps(start, round(widen * skip.tokens))
    return -(-round(1e6 * widen * (skip.batches or skip.fraction * num_steps)) // 1_000_000)


def resolve(policy: PolicyConfig | None, checkpoint: CheckpointConfig, data: DataConfig) -> PolicyConfig:
    """The policy of a run; where none is given, a ladder if it fits.

    Raises:
        ValueError: the policy that is given does not fit the checkpoints or the data.
    """
    if policy is None:
        return Off() if not checkpoint.interval or misfit(Ladder(), checkpoint, data) else Ladder()
    if trouble := misfit(policy, checkpoint, data):
        raise ValueError(trouble)
    return policy


def misfit(policy: PolicyConfig, checkpoint: CheckpointConfig, data: DataConfig) -> str:
    """Why a policy does not fit, one sentence; empty if it does."""
    if isinstance(policy, Off):
        return ""
    where = f"guard.policy.type = {kind(policy)!r}"
    if not checkpoint.interval:
        return f'{where}: it goes back to checkpoints; set checkpoint.interval, or guard.policy.type = "off"'
    # The newest good checkpoint before the trouble is good_after steps or more before it; the others follow behind.
    rewind = 0 if isinstance(policy, Falcon) else policy.rewind_steps
    reach = checkpoint.good_after + (checkpoint.keep_good - 1) * checkpoint.interval
    if rewind > reach:
        missing = -(-(rewind - checkpoint.good_after) // checkpoint.interval) + 1
        return (
            f"guard.policy.rewind_steps = {rewind}: the good checkpoints that are kept reach back {reach} steps; "
            f"set checkpoint.keep_good = {missing}, or rewind less"
        )
    if not isinstance(policy, Replay):
        skipped = num_skipped(policy.skip, 1.0, Steps(data), 0, data.num_steps)
        if skipped >= data.num_steps:
            name, value = next((name, value) for name, value in policy.skip._asdict().items() if value)
            return (
                f"guard.policy.skip_{name} = {value}: it leaves out the data of {skipped:,} steps, and the run has "
                f"{data.num_steps:,}; skip less, such as skip_batches = {max(data.num_steps // 100, 1)}"
            )
    return ""
