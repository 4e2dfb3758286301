"""What a search found: the ways to run an experiment on a target, with their predictions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxllm.config import Experiment, PhaseConfig
from jaxllm.plan.candidates import Candidate
from jaxllm.plan.computed import Work
from jaxllm.plan.placement import Placement
from jaxllm.plan.predict import StepTime
from jaxllm.plan.prices import Price
from jaxllm.plan.target import Target
from jaxllm.roofline.conventions import Convention, flops_per_token
from jaxllm.roofline.hardware import Chip

USABLE = 0.92
"""Share of the datasheet's memory that a program gets: the runtime, its buffers for collectives and holes keep some."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A candidate with its prediction.

    Attributes:
        candidate: what to run.
        work: what one device computes in a step.
        time: of a step.
        placement: where the mesh's axes lie.
        held: works out `memory`.
    """

    candidate: Candidate
    work: Work
    time: StepTime
    placement: Placement
    held: Callable[[], Mapping[str, float]]

    @property
    def memory(self) -> Mapping[str, float]:
        """Bytes of a device by what they hold."""
        return self.held()

    @property
    def total_memory(self) -> float:
        """Bytes of a device."""
        return sum(self.memory.values())


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A mesh whose fastest variants do not fit, and the least that would make them.

    Attributes:
        option: the fastest that does not fit.
        change: what to change; empty where nothing of the mesh fits.
    """

    option: Option
    change: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of an experiment on a target.

    Attributes:
        experiment: with its vocabulary known.
        target: the chips.
        chip: what each of them offers: by its datasheet, or as measured.
        phase: whose step was planned.
        tokens: to train on.
        options: those that fit, fastest first: of each mesh and kind of recomputation the best number of micro-batches.
        least: what needs the least memory, where nothing fits.
        misfits: those that would be faster than the best that fits, fastest first.
        configured: the config as it stands; a sentence where it cannot run on the target.
        num_meshes: that were tried.
        num_candidates: that were tried.
        price: of a chip; None where none is known.
    """

    experiment: Experiment
    target: Target
    chip: Chip
    phase: PhaseConfig
    tokens: int
    options: tuple[Option, ...]
    least: Option | None
    misfits: tuple[Misfit, ...]
    configured: Option | str
    num_meshes: int
    num_candidates: int
    price: Price | None

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step."""
        return self.phase.batch_size * self.phase.sequence_length

    @property
    def memory_limit(self) -> float:
        """Bytes of a device that a program gets."""
        return USABLE * self.target.memory

    def tokens_per_second(self, option: Option) -> float:
        """Of all devices."""
        return self.batch_tokens / option.time.total

    def mfu(self, option: Option, convention: Convention = Convention.PALM) -> float:
        """Model FLOPs utilisation under a convention, of the datasheet's peak."""
        each = flops_per_token(self.experiment.model, self.phase.sequence_length, convention)
        peak = self.target.chip.flops_per_second[self.experiment.train.precision.compute]
        return self.tokens_per_second(option) * each / (peak * self.target.num_chips)

    def days(self, option: Option) -> float:
        """To train on all tokens, without a stop."""
        return self.tokens / self.tokens_per_second(option) / 86400

    def dollars(self, option: Option) -> float | None:
        """For all tokens; None where no price is known."""
        if self.price is None:
            return None
        return self.days(option) * 24 * self.target.num_chips * self.price.dollars_per_hour

    def critical_batch(self, option: Option) -> float:
        """Tokens of a step below which transfers outlast what hides them: those of weights do not shrink with it."""
        moved = max(option.time.moved.values(), default=0.0)
        return self.batch_tokens * moved / option.time.blocks
