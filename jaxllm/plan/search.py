"""Ranks every way to run an experiment on a target by the predicted time of a step.

A mesh is tried with each kind of recomputation and each number of micro-batches that divides its rows. Without a
pipeline more micro-batches only cost time (weights are gathered once more for each), so of these the fewest that fit
count; through a pipeline more of them idle less, and are tried until that is outweighed.
"""

import bisect
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from jaxllm.config import Experiment, MeshConfig, PhaseConfig
from jaxllm.plan import efficiency as efficiencies
from jaxllm.plan.candidates import REMATS, Candidate, Mesh, Remat, configured, meshes, micro_batches
from jaxllm.plan.placement import Placement, place
from jaxllm.plan.predict import AGAIN, StepTime, Work, peak_flops, step_time
from jaxllm.plan.prices import PRICES, Price
from jaxllm.plan.target import Target, parse
from jaxllm.roofline.communication import transfers
from jaxllm.roofline.conventions import Convention, flops_per_token
from jaxllm.roofline.memory import (
    BYTES,
    ActivationBytes,
    StateBytes,
    activation_bytes,
    shards,
    state_bytes,
)
from jaxllm.roofline.step_memory import COMPONENTS, step_bytes

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
        """Model FLOPs utilisation under a convention."""
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


def plan(experiment: Experiment, *, target: str, tokens: int = 0, batch: int = 0, price: float | None = None) -> Plan:
    """Rank the ways to run an experiment on a target.

    Args:
        experiment: what to train; its first phase's step is planned.
        target: chips, as `v5p-256`, `v6e-256 x 4`, `h100x64`.
        tokens: to train on; 0 means those of the experiment's phases.
        batch: tokens of a step, a multiple of the sequence length; 0 means the phase's.
        price: US dollars an hour and chip, instead of the price list's.

    Raises:
        ValueError: one sentence: no such target, a batch too small for the devices, a dtype that the chips do not have,
            or something that cannot be planned.
    """
    chips = parse(target)
    phase = _phase(experiment, batch)
    if experiment.tune.lora is not None:
        raise ValueError("tune.lora: a plan is of training all parameters; leave the section out")
    if experiment.model.vocab_size == 0:
        raise ValueError(
            "model.vocab_size = 0: the plan reads no tokenizer; give a number, as in --model.vocab_size 32000"
        )
    total = tokens or sum(one.num_steps * one.sequence_length * one.batch_size for one in experiment.data.phases)
    if total < phase.batch_size * phase.sequence_length:
        step = phase.batch_size * phase.sequence_length
        raise ValueError(
            f"--tokens {total}: that is less than one step of {step:,} tokens; give more, or lower --batch"
        )
    search = _Search(experiment, phase, chips)
    options, misfits = search.run()
    asked = configured(experiment, phase, chips)
    return Plan(
        experiment=experiment,
        target=chips,
        phase=phase,
        tokens=total,
        options=options,
        least=None if options else search.least(),
        misfits=misfits,
        configured=asked if isinstance(asked, str) else search.option(asked),
        num_meshes=len(search.meshes),
        num_candidates=search.num_tried,
        price=Price(dollars_per_hour=price, source="--price") if price is not None else PRICES.get(chips.chip.name),
    )


def _phase(experiment: Experiment, batch: int) -> PhaseConfig:
    phase = experiment.data.phases[0]
    if not batch:
        return phase
    length = phase.sequence_length
    if batch < length or batch % length:
        below = batch // length * length
        options = " or ".join(f"{size:,}" for size in (below, below + length) if size)
        raise ValueError(f"--batch {batch}: a step is whole sequences of {length:,} tokens; use {options}")
    return msgspec.structs.replace(phase, batch_size=batch // length)


class _Search:
    """One search: what its parts share, and remembers."""

    def __init__(self, experiment: Experiment, phase: PhaseConfig, target: Target) -> None:
        self.experiment, self.phase, self.target = experiment, phase, target
        self.model, self.train = experiment.model, experiment.train
        self.efficiency = efficiencies.of(target.chip)
        self.limit = USABLE * target.memory
        peak_flops(target.chip, self.train.precision.compute)
        self.num_tried = 0
        self.meshes = meshes(experiment, phase, target)
        if not self.meshes:
            raise ValueError(self._no_mesh())
        self._placements: dict[int, Placement] = {}
        self._mesh_config = functools.cache(self._mesh_config)
        self._state = functools.cache(self._state)
        self._activations = functools.cache(self._activations)
        self._memory: dict[tuple[int, Remat, int], dict[str, float]] = {}

    def run(self) -> tuple[tuple[Option, ...], tuple[Misfit, ...]]:
        """All options that fit, and the meshes that would be faster if they did."""
        options: list[Option] = []
        misfits: list[Misfit] = []
        for mesh in self.meshes:
            best, faster = self._of_mesh(mesh)
            options += best
            if faster is not None:
                misfits.append(Misfit(option=faster, change=_change(faster, best)))
        options.sort(key=lambda option: option.time.total)
        limit = options[0].time.total if options else math.inf
        misfits = sorted(
            (one for one in misfits if one.option.time.total < limit), key=lambda one: one.option.time.total
        )
        return tuple(options), tuple(misfits)

    def _of_mesh(self, mesh: Mesh) -> tuple[list[Option], Option | None]:
        """For each kind of recomputation the best number of micro-batches that fits; the fastest that does not."""
        found: list[Option] = []
        misfit: Candidate | None = None
        counts = micro_batches(mesh, self.phase)
        self.num_tried += len(counts) * len(REMATS)
        first = len(counts)
        for remat in REMATS:
            tried = [Candidate(mesh=mesh, remat=remat, accumulate=count) for count in counts]
            # Each kind needs less than the one before, and beyond the second the more micro-batches, the less memory; a
            # first alone has no sums of gradients.
            if first and not self._fits(tried[0]):
                first = bisect.bisect_left(tried, True, lo=1, hi=max(first, 1), key=self._fits)
            else:
                first = 0
            if misfit is None and first > 0:
                misfit = tried[0]
            if first < len(tried):
                found.append(self._fastest(tried[first:]))
        return found, None if misfit is None else self.option(misfit)

    def _fastest(self, tried: Sequence[Candidate]) -> Option:
        """Of rising numbers of micro-batches the best: the first, or with stages the one before times rise again."""
        best = self.option(tried[0])
        if best.candidate.mesh.sizes["pipe"] == 1:
            return best
        for one in tried[1:]:
            option = self.option(one)
            if option.time.total >= best.time.total:
                break
            best = option
        return best

    def option(self, candidate: Candidate) -> Option:
        """Predict a candidate."""
        mesh, sizes = candidate.mesh, candidate.mesh.sizes
        placement = self._place(mesh)
        work, train = (
            self._work(candidate),
            msgspec.structs.replace(self.train, accumulate=candidate.accumulate, remat=candidate.remat),
        )
        config = self._mesh_config(mesh.sequence_parallel)
        moved = transfers(self.model, train, config, sizes, self.phase.batch_size, self.phase.sequence_length)
        time = step_time(work, moved, placement, self.efficiency)
        held = functools.partial(self.memory, candidate)
        return Option(candidate=candidate, work=work, time=time, placement=placement, held=held)

    def _work(self, candidate: Candidate) -> Work:
        sizes, accumulate = candidate.mesh.sizes, candidate.accumulate
        stages, again = sizes["pipe"], AGAIN[candidate.remat]
        num_tokens, parallel = self._num_tokens(candidate), candidate.mesh.sequence_parallel
        state = self._state(sizes["pipe"], sizes["tensor"], sizes["fsdp"])
        kept = self._activations(stages, num_tokens, candidate.remat, sizes["tensor"], parallel)
        return Work(
            model=self.model,
            sequence_length=self.phase.sequence_length,
            num_tokens=num_tokens,
            num_micro=accumulate,
            ticks=accumulate + stages - 1,
            stages=stages,
            tensor=sizes["tensor"],
            context=sizes["context"],
            stream_shares=sizes["tensor"] if parallel else 1,
            # to differentiate a stage, its forward pass is computed once more
            again=again.plus(1) if stages > 1 else again,
            # flash attention's backward pass is five products to the forward pass' two; splash's two kernels do seven
            backward=3.5 if self.target.chip.torus else 2.5,
            compute=self.train.precision.compute,
            # parameters and moments are read and written; gradients written, and read for their norm and the update
            state_bytes=2 * (state.parameters + state.optimizer) + 4 * state.gradients,
            host_bytes=2 * kept.host * accumulate,
        )

    def _place(self, mesh: Mesh) -> Placement:
        """The mesh on the target; all candidates of a mesh share it."""
        if id(mesh) not in self._placements:
            self._placements = {id(mesh): place(self.target, mesh.sizes, mesh.slices)}
        return self._placements[id(mesh)]

    def _mesh_config(self, parallel: bool) -> MeshConfig:
        """What transfers read of the config: not the sizes."""
        zero = self.experiment.mesh.zero
        return MeshConfig(zero=zero, sequence_parallel=parallel, fsdp=1, tensor=-1 if parallel else 1)

    def _num_tokens(self, candidate: Candidate) -> int:
        rows = self.phase.batch_size // candidate.mesh.rows // candidate.accumulate
        return rows * (self.phase.sequence_length // candidate.mesh.sizes["context"])

    def memory(self, candidate: Candidate) -> dict[str, float]:
        """Bytes of a device by what they hold, at the fullest moment of a step."""
        key = (id(candidate.mesh), candidate.remat, candidate.accumulate)
        if key not in self._memory:
            sizes = candidate.mesh.sizes
            found = step_bytes(
                self.model,
                msgspec.structs.replace(self.train, remat=candidate.remat, accumulate=candidate.accumulate),
                self.experiment.optim.optimizer,
                self._mesh_config(candidate.mesh.sequence_parallel),
                sizes,
                self.phase.batch_size,
                self.phase.sequence_length,
                "tpu" if self.target.chip.torus else "gpu",
                slice_sum=sizes["fsdp"] == self.target.num_devices // self.target.num_slices >= 16,
            )
            self._memory[key] = {name: getattr(found, name) for name in COMPONENTS}
        return self._memory[key]

    def _fits(self, candidate: Candidate) -> bool:
        sizes = candidate.mesh.sizes
        state = self._state(sizes["pipe"], sizes["tensor"], sizes["fsdp"])
        if state.parameters + state.optimizer > self.limit:
            return False
        return sum(self.memory(candidate).values()) <= self.limit

    def _state(self, pipe: int, tensor: int, fsdp: int) -> StateBytes:
        split = shards({"pipe": pipe, "tensor": tensor, "fsdp": fsdp}, self.experiment.mesh.zero)
        return state_bytes(self.model, self.train.precision, self.experiment.optim.optimizer, split)

    def _activations(self, pipe: int, num_tokens: int, remat: Remat, tensor: int, parallel: bool) -> ActivationBytes:
        stage = msgspec.structs.replace(self.model, num_layers=self.model.num_layers // pipe)
        width = BYTES[self.train.precision.compute]
        return activation_bytes(stage, num_tokens, remat, width, tensor, parallel)

    def least(self) -> Option:
        """What needs the least memory."""
        tried = (
            Candidate(mesh=mesh, remat=REMATS[-1], accumulate=count)
            for mesh in self.meshes
            for count in {micro_batches(mesh, self.phase)[end] for end in (0, -1)}
        )
        return self.option(min(tried, key=lambda one: sum(self.memory(one).values())))

    def _no_mesh(self) -> str:
        """Why no mesh is possible: a batch without enough rows, or devices with a factor that nothing has."""
        devices, rows = self.target.num_devices, self.phase.batch_size
        odd = devices // (devices & -devices)
        more = (rows // odd * odd + odd, rows // devices * devices + devices)
        replaced = (msgspec.structs.replace(self.phase, batch_size=size) for size in more)
        found = next((one.batch_size for one in replaced if meshes(self.experiment, one, self.target)), devices)
        length = self.phase.sequence_length
        return (
            f"data.phases.0.batch_size = {rows}: no mesh splits {rows:,} sequences of {length:,} tokens over "
            f"{devices:,} devices; use {found:,} sequences (--batch {found * length}), or other chips"
        )


def _change(faster: Option, fitting: list[Option]) -> str:
    """The least change that makes a variant of a mesh fit."""
    if not fitting:
        return ""
    was = faster.candidate

    def size(option: Option) -> tuple[int, float]:
        now = option.candidate
        return (now.remat != was.remat) + (now.accumulate != was.accumulate), option.time.total

    now = min(fitting, key=size).candidate
    changes = [f"train.accumulate = {now.accumulate}"] if now.accumulate != was.accumulate else []
    changes += [f'train.remat = "{now.remat}"'] if now.remat != was.remat else []
    return " and ".join(changes)
