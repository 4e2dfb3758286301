"""The guard: which updates are dropped, which spikes count, and what is done about them."""

from typing import NamedTuple

from jaxllm.config.base import Choice, Section, require


class RulesConfig(Section, frozen=True, kw_only=True):
    """When a step is bad. Medians and sigmas (1.4826 times the median absolute deviation) are those of the last
    accepted steps; a value that a rule flags never becomes part of them.

    Attributes:
        window: accepted steps that a loss and a gradient norm are compared with; the rules rest until half of them are
            there.
        sigmas: robust standard deviations above the median that are too many.
        drop_floor: nats above the median below which a loss is never reason to drop an update.
        norm_floor: factor above the median below which a gradient norm is never reason to drop an update.
        max_drops: updates dropped in a row; what comes then is applied, whatever its loss, as long as it is finite.
        spike_floor: nats above the median below which a loss is no part of a spike.
        spike_steps: high losses of the last 5 steps that make a spike.
        drift_nats: the mean of 64 losses may be so far above the best mean of 64 of the run.
        broken_steps: steps in a row with a loss or gradients that are not finite.
        patience: steps that a spike has to pass by itself before the policy acts.
    """

    window: int = 128
    sigmas: float = 6.0
    drop_floor: float = 0.3
    norm_floor: float = 3.0
    max_drops: int = 5
    spike_floor: float = 0.1
    spike_steps: int = 3
    drift_nats: float = 0.2
    broken_steps: int = 5
    patience: int = 20

    def __post_init__(self) -> None:
        require(self.window >= 64, "window", self.window, "use 64 or more; 128 is usual")
        require(self.sigmas > 0, "sigmas", self.sigmas, "use a positive number such as 6")
        require(self.drop_floor >= 0, "drop_floor", self.drop_floor, "use nats, 0 or more")
        require(self.norm_floor >= 1, "norm_floor", self.norm_floor, "use a factor of 1 or more")
        require(self.max_drops >= 0, "max_drops", self.max_drops, "use 0 (drop no finite update) or more")
        require(self.spike_floor >= 0, "spike_floor", self.spike_floor, "use nats, 0 or more")
        require(1 <= self.spike_steps <= 5, "spike_steps", self.spike_steps, "use 1 to 5")
        require(self.drift_nats > 0, "drift_nats", self.drift_nats, "use a positive number of nats such as 0.2")
        require(self.broken_steps >= 1, "broken_steps", self.broken_steps, "use 1 or more")
        require(self.patience >= 0, "patience", self.patience, "use 0 or more")


class Skip(NamedTuple):
    """How much data a rollback leaves out: one of the three, the others 0.

    Attributes:
        batches: steps' worth of it.
        tokens: rounded up to whole batches.
        fraction: of the run's steps.
    """

    batches: int = 0
    tokens: int = 0
    fraction: float = 0.0


def _skip(batches: int, tokens: int, fraction: float, default: Skip) -> Skip:
    """What is asked for, or the default."""
    given = Skip(batches, tokens, fraction)
    return given if any(given) else default


def _check_skip(batches: int, tokens: int, fraction: float) -> None:
    require(batches >= 0, "skip_batches", batches, "use 1 or more")
    require(tokens >= 0, "skip_tokens", tokens, "use 1 or more")
    require(0 <= fraction < 1, "skip_fraction", fraction, "use a fraction of the run such as 0.01")
    given = (batches > 0) + (tokens > 0) + (fraction > 0)
    require(given <= 1, "skip_batches", batches, "give one of skip_batches, skip_tokens and skip_fraction")


class Off(Choice, frozen=True, kw_only=True, tag="off"):
    """Spikes are written down, and nothing more is done."""


class Palm(Choice, frozen=True, kw_only=True, tag="palm"):
    """Go back to a good checkpoint well before the spike, and skip the data around it (Chowdhery et al. 2022).

    Attributes:
        rewind_steps: the checkpoint is so many steps before the trouble began, or more.
        skip_batches: data left out from the checkpoint on, in steps, at least all that was seen from there
            to the alarm (PaLM: 200 to 500); 300 where none of the three is given.
        skip_tokens: the same in tokens, rounded up to whole batches.
        skip_fraction: the same as a fraction of the run's steps.
        max_rollbacks: of a run; the spike after them stops it.
    """

    rewind_steps: int = 100
    skip_batches: int = 0
    skip_tokens: int = 0
    skip_fraction: float = 0.0
    max_rollbacks: int = 20

    def __post_init__(self) -> None:
        _check_skip(self.skip_batches, self.skip_tokens, self.skip_fraction)
        require(self.rewind_steps >= 0, "rewind_steps", self.rewind_steps, "use 0 or more")
        require(self.max_rollbacks >= 1, "max_rollbacks", self.max_rollbacks, "use 1 or more")

    @property
    def skip(self) -> Skip:
        """What is left out."""
        return _skip(self.skip_batches, self.skip_tokens, self.skip_fraction, Skip(batches=300))


class Falcon(Choice, frozen=True, kw_only=True, tag="falcon"):
    """Go back to the newest good checkpoint, and skip much (Almazrouei et al. 2023).

    Attributes:
        skip_batches: data left out from the checkpoint on, in steps, at least all that was seen from there
            to the alarm.
        skip_tokens: the same in tokens, rounded up to whole batches; 1e9 where none of the three is given.
        skip_fraction: the same as a fraction of the run's steps.
        max_rollbacks: of a run; the spike after them stops it.
    """

    skip_batches: int = 0
    skip_tokens: int = 0
    skip_fraction: float = 0.0
    max_rollbacks: int = 20

    def __post_init__(self) -> None:
        _check_skip(self.skip_batches, self.skip_tokens, self.skip_fraction)
        require(self.max_rollbacks >= 1, "max_rollbacks", self.max_rollbacks, "use 1 or more")

    @property
    def skip(self) -> Skip:
        """What is left out."""
        return _skip(self.skip_batches, self.skip_tokens, self.skip_fraction, Skip(tokens=1_000_000_000))


class Replay(Choice, frozen=True, kw_only=True, tag="replay"):
    """Go back and train on the same data again: a spike that does not return points at the hardware.

    One that returns at the same data stops the run.

    Attributes:
        rewind_steps: the checkpoint is so many steps before the trouble began, or more.
        max_rollbacks: of a run; the spike after them stops it.
    """

    rewind_steps: int = 100
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        require(self.rewind_steps >= 0, "rewind_steps", self.rewind_steps, "use 0 or more")
        require(self.max_rollbacks >= 1, "max_rollbacks", self.max_rollbacks, "use 1 or more")


class Ladder(Choice, frozen=True, kw_only=True, tag="ladder"):
    """From the mildest remedy to the end of the run, a rung up with each spike that follows soon on another:

    skip the data around the spike; skip more; skip yet more; skip at a lower learning rate; stop with a report.

    A spike that comes back at the same step, though the data there are others by then, is not the data's: the learning
    rate is lowered at once.

    Attributes:
        rewind_steps: the checkpoint is so many steps before the trouble began, or more.
        skip_batches: data left out on the first rung, in steps, at least all that was seen from the checkpoint
            to the alarm; 200 where none of the three is given.
        skip_tokens: the same in tokens, rounded up to whole batches.
        skip_fraction: the same as a fraction of the run's steps.
        widen: the second rung skips so many times as much as the first, the third as the second.
        learning_rate_factor: of the fourth rung.
        lowered_steps: steps that the learning rate stays lower.
        calm_steps: steps beyond a spike after which the next one is met on the first rung again.
        max_rollbacks: of a run; the spike after them stops it.
    """

    rewind_steps: int = 100
    skip_batches: int = 0
    skip_tokens: int = 0
    skip_fraction: float = 0.0
    widen: float = 3.0
    learning_rate_factor: float = 0.7
    lowered_steps: int = 2000
    calm_steps: int = 1000
    max_rollbacks: int = 20

    def __post_init__(self) -> None:
        _check_skip(self.skip_batches, self.skip_tokens, self.skip_fraction)
        require(self.rewind_steps >= 0, "rewind_steps", self.rewind_steps, "use 0 or more")
        require(self.widen >= 1, "widen", self.widen, "use a factor of 1 or more")
        factor = self.learning_rate_factor
        require(0 < factor <= 1, "learning_rate_factor", factor, "use a fraction from 0 to 1, 0 excluded")
        require(self.lowered_steps >= 1, "lowered_steps", self.lowered_steps, "use 1 or more")
        require(self.calm_steps >= 1, "calm_steps", self.calm_steps, "use 1 or more")
        require(self.max_rollbacks >= 1, "max_rollbacks", self.max_rollbacks, "use 1 or more")

    @property
    def skip(self) -> Skip:
        """What is left out."""
        return _skip(self.skip_batches, self.skip_tokens, self.skip_fraction, Skip(batches=200))


PolicyConfig = Off | Palm | Falcon | Replay | Ladder


class GuardConfig(Section, frozen=True, kw_only=True):
    """What is done about loss spikes.

    Attributes:
        drop: whether outliers' updates are dropped; those that are not finite always are.
        policy: of rollbacks; unset, it is a ladder where checkpoints are kept as a ladder needs them, otherwise off.
        rules: when a step is bad.
        follow: another run's directory: take its dropped updates, skipped data and lowered learning rates, and so its
            path; with `drop = false` and the policy off.
    """

    drop: bool = True
    policy: PolicyConfig | None = None
    rules: RulesConfig = RulesConfig()
    follow: str = ""

    def __post_init__(self) -> None:
        alone = not self.drop and isinstance(self.policy, Off)
        require(
            not self.follow or alone,
            "follow",
            self.follow,
            'what another run did is followed with drop = false and policy.type = "off"; set both, or leave it empty',
        )
