"""Ranks every way to run an experiment on a target by the predicted time of a step.

A mesh is tried with each kind of recomputation and each number of micro-batches that divides its rows. Without a
pipeline more micro-batches only cost time (weights are gathered once more for each), so of these the fewest that fit
count; through a pipeline more of them idle less, and are tried until that is outweighed.
"""

import bisect
import dataclasses
import functools
import math
from collections.abc import Sequence

import msgspec

from jaxllm.config import Experiment, MeshConfig, PhaseConfig
from jaxllm.plan import efficiency as efficiencies
from jaxllm.plan.answer import USABLE, Misfit, Option, Plan
from jaxllm.plan.candidates import REMATS, Candidate, Mesh, Remat, configured, meshes, micro_batches, refuse
from jaxllm.plan.computed import AGAIN, Work
from jaxllm.plan.placement import Placement, place
from jaxllm.plan.predict import SUMS, step_time
from jaxllm.plan.prices import PRICES, Price
from jaxllm.plan.target import Target, parse
from jaxllm.roofline.ceilings import load as load_ceilings
from jaxllm.roofline.communication import transfers
from jaxllm.roofline.hardware import Chip
from jaxllm.roofline.memory import (
    BYTES,
    ActivationBytes,
    StateBytes,
    activation_bytes,
    shards,
    state_bytes,
)
from jaxllm.roofline.step_memory import COMPONENTS, step_bytes

CHUNK = 1024
"""`train.loss.chunk` that a plan suggests: smaller ones save little more."""


def plan(
    experiment: Experiment,
    *,
    target: str,
    tokens: int = 0,
    batch: int = 0,
    price: float | None = None,
    ceilings: str = "",
) -> Plan:
    """Rank the ways to run an experiment on a target.

    Args:
        experiment: what to train; its first phase's step is planned.
        target: chips, as `v5p-256`, `v6e-256 x 4`, `h100x64`.
        tokens: to train on; 0 means those of the experiment's phases.
        batch: tokens of a step, a multiple of the sequence length; 0 means the phase's.
        price: US dollars an hour and chip, instead of the price list's.
        ceilings: a file of measured peaks (`roofline.ceilings`) to take in the place of the datasheet's.

    Raises:
        ValueError: one sentence: no such target, a batch too small for the devices, a dtype that the chips do not have,
            another chip's ceilings, or something that cannot be planned.
    """
    chips = parse(target)
    phase = _phase(experiment, batch)
    refuse(experiment)
    total = tokens or sum(one.num_steps * one.sequence_length * one.batch_size for one in experiment.data.phases)
    if total < phase.batch_size * phase.sequence_length:
        step = phase.batch_size * phase.sequence_length
        raise ValueError(
            f"--tokens {total}: that is less than one step of {step:,} tokens; give more, or lower --batch"
        )
    chip = _measured(ceilings, chips.chip, experiment.train.precision.compute) if ceilings else chips.chip
    search = _Search(experiment, phase, chips, chip)
    options, misfits = search.run()
    asked = configured(experiment, phase, chips)
    return Plan(
        experiment=experiment,
        target=chips,
        chip=chip,
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


def _measured(path: str, chip: Chip, compute: str) -> Chip:
    """The chip with measured peaks.

    Raises:
        ValueError: the file is missing, or of another chip or dtype.
    """
    found = load_ceilings(path)
    one = f"{path}: device_kind = {found.device_kind!r}"
    if found.chip().name != chip.name:
        raise ValueError(
            f"{one}, and the target is of {chip.name}; measure there: jaxllm bench matmul CONFIG --out FILE"
        )
    if found.dtype != compute:
        raise ValueError(
            f'{path}: dtype = "{found.dtype}", and train.precision.compute = "{compute}"; measure that: '
            f"jaxllm bench matmul CONFIG --out FILE --train.precision.compute {compute}"
        )
    return found.chip()


class _Search:
    """One search: what its parts share, and remembers."""

    def __init__(self, experiment: Experiment, phase: PhaseConfig, target: Target, chip: Chip) -> None:
        self.experiment, self.phase = experiment, phase
        self.target = dataclasses.replace(target, chip=chip)
        self.model, self.train = experiment.model, experiment.train
        compute = self.train.precision.compute
        if chip is target.chip:
            self.efficiency = efficiencies.of(chip)
        else:
            self.efficiency = efficiencies.of_measured(target.chip, chip, compute)
        self.limit = USABLE * target.memory
        efficiencies.peak_flops(chip, compute)
        self.num_tried = 0
        self.meshes = meshes(experiment, phase, target)
        if not self.meshes:
            raise ValueError(self._no_mesh())
        self._placements: dict[int, Placement] = {}
        self._mesh_config = functools.cache(self._mesh_config)
        self._state = functools.cache(self._state)
        self._activations = functools.cache(self._activations)
        self._memory: dict[tuple[int, Remat, int, int], dict[str, float]] = {}

    def run(self) -> tuple[tuple[Option, ...], tuple[Misfit, ...]]:
        """All options that fit, and the meshes that would be faster if they did."""
        options: list[Option] = []
        misfits: list[tuple[Option, list[Option]]] = []
        for mesh in self.meshes:
            best, faster = self._of_mesh(mesh)
            options += best
            if faster is not None:
                misfits.append((faster, best))
        options.sort(key=lambda option: option.time.total)
        limit = options[0].time.total if options else math.inf
        misfits = [one for one in misfits if one[0].time.total < limit]
        misfits.sort(key=lambda one: one[0].time.total)
        return tuple(options), tuple(Misfit(option=one, change=self._change(one, best)) for one, best in misfits)

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
        hidden = () if self.target.chip.torus else SUMS
        time = step_time(work, moved, placement, self.efficiency, hidden)
        held = functools.partial(self.memory, candidate)
        return Option(candidate=candidate, work=work, time=time, placement=placement, held=held)

    def _work(self, candidate: Candidate) -> Work:
        sizes, accumulate = candidate.mesh.sizes, candidate.accumulate
        stages, again = sizes["pipe"], AGAIN[candidate.remat]
        num_tokens, parallel = self._num_tokens(candidate), candidate.mesh.sequence_parallel
        state = self._state(sizes["pipe"], sizes["tensor"], sizes["fsdp"] * sizes["expert"])
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
            experts=sizes["expert"],
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

    def memory(self, candidate: Candidate, chunk: int | None = None) -> dict[str, float]:
        """Bytes of a device by what they hold, at the fullest moment of a step.

        Args:
            candidate: whose.
            chunk: of the loss, instead of the config's.
        """
        chunk = self.train.loss.chunk if chunk is None else chunk
        key = (id(candidate.mesh), candidate.remat, candidate.accumulate, chunk)
        if key not in self._memory:
            sizes, loss = candidate.mesh.sizes, msgspec.structs.replace(self.train.loss, chunk=chunk)
            found = step_bytes(
                self.model,
                msgspec.structs.replace(self.train, remat=candidate.remat, accumulate=candidate.accumulate, loss=loss),
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
        state = self._state(sizes["pipe"], sizes["tensor"], sizes["fsdp"] * sizes["expert"])
        if state.parameters + state.optimizer > self.limit:
            return False
        return sum(self.memory(candidate).values()) <= self.limit

    def _change(self, faster: Option, fitting: Sequence[Option]) -> str:
        """The least change that makes a variant of a mesh fit: first pieces of the loss, which cost no time."""
        was = faster.candidate
        large = not 0 < self.train.loss.chunk <= CHUNK
        if large and sum(self.memory(was, CHUNK).values()) <= self.limit:
            return f"train.loss.chunk = {CHUNK}"
        if not fitting:
            return ""

        def size(option: Option) -> tuple[int, float]:
            now = option.candidate
            return (now.remat != was.remat) + (now.accumulate != was.accumulate), option.time.total

        now = min(fitting, key=size).candidate
        changes = [f"train.accumulate = {now.accumulate}"] if now.accumulate != was.accumulate else []
        changes += [f'train.remat = "{now.remat}"'] if now.remat != was.remat else []
        return " and ".join(changes)

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
