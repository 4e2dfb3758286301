"""The state that a start of a run begins with: of its own newest checkpoint, of another run's, or of the seed.

`run.init_from` names another run, on whatever mesh it was trained. A run that trains all parameters begins with those
of the other's newest checkpoint; a run that trains adapters reads them at each start as its base. Its checkpoints name
the base by step and by a digest of all digests, so that no other one can slip under the adapters.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import msgspec
from jax.sharding import Mesh, NamedSharding

from jaxllm.config import Experiment, ModelConfig, differences
from jaxllm.layers.param import Tree, leaves, nest
from jaxllm.models.decoder import Decoder, declarations
from jaxllm.storage import Place, Storage, open_storage
from jaxllm.train.assemble import Program
from jaxllm.train.catalogue import Catalogue, Meta
from jaxllm.train.checkpoints import PARAMS, Checkpoints
from jaxllm.train.directory import CHECKPOINTS, CONFIG, read_config
from jaxllm.train.state import TrainState

INIT_FROM = "init_from"
"""What a checkpoint's `extra` and the first event call where the parameters came from."""

MAY_DIFFER = ("model.vocab_size", "model.initializer_std")
"""Fields of the model that say nothing of its parameters once they are trained; `vocab_size` is compared by itself."""

STRETCHES = ".rope."
"""Fields with it in their name may differ where all parameters are trained: so contexts are made longer."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with, or goes on from.

    Attributes:
        state: on the devices.
        base: parameters that are not trained, as `Program.step` takes them.
        step: attempts behind the state.
        extra: what the run's checkpoints are to hold beside the state.
    """

    state: TrainState
    base: Tree
    step: int
    extra: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Origin:
    """A run whose parameters another one starts from.

    Attributes:
        directory: of the run.
        storage: the same.
        experiment: what it trained.
        newest: what its newest checkpoint says of itself.
        say: is told what is left out of its checkpoints.
    """

    directory: Place
    storage: Storage
    experiment: Experiment
    newest: Meta
    say: Callable[[str], None]

    @property
    def model(self) -> ModelConfig:
        """What was trained, its vocabulary known."""
        size = self.newest.leaves[f"{PARAMS}.embedding.table"].shape[0]
        return msgspec.structs.replace(self.experiment.model, vocab_size=size)

    def checkpoints(self, model: ModelConfig) -> Checkpoints:
        """Its checkpoints, to be read."""
        return Checkpoints(self.storage.below(CHECKPOINTS), model, self.experiment.checkpoint, self.say)

    def read(self, decoder: Decoder, mesh: Mesh, dtype: str, step: int | None = None) -> tuple[Tree, Meta]:
        """The parameters of the newest checkpoint whose every array is what was saved.

        Args:
            decoder: whose parameters they become.
            mesh: they are laid over it as the storage table says.
            dtype: they are cast to.
            step: the last that may be behind the checkpoint; any by default.

        Raises:
            ValueError: none can be restored.
        """
        rules, saved = decoder.recipe.rules, self.experiment.train.precision.parameters
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, saved, sharding=NamedSharding(mesh, rules.storage(leaf.axes)))
            for name, leaf in leaves(declarations(decoder))
        }
        found = self.checkpoints(decoder.config).restore_params(nest(abstract), step)
        assert found is not None, "a checkpoint was there when the run was opened"
        values, meta = dict(leaves(found[0])), found[1]
        return nest({name: values.pop(name).astype(dtype) for name in list(values)}), meta

    def read_again(self, decoder: Decoder, mesh: Mesh, dtype: str, known: Mapping[str, Any]) -> Tree:
        """The parameters that another run began to adapt.

        Args:
            decoder: as of `read`.
            mesh: as of `read`.
            dtype: as of `read`.
            known: what the other run's checkpoints say of them, as `facts` put it.

        Raises:
            ValueError: they are not there any more.
        """
        params, meta = self.read(decoder, mesh, dtype, known["step"])
        if facts(meta) != known:
            raise ValueError(
                f"run.init_from = {str(self.directory)!r}: it no longer holds the parameters that were adapted, of its "
                f"step {known['step']} with digest {known['digest']}; bring them back, or adapt those that it holds "
                "under a new run.name"
            )
        return params


def open_origin(
    experiment: Experiment, model: ModelConfig, tokenizer: str, say: Callable[[str], None]
) -> Origin | None:
    """The run that an experiment starts from, None where it names none.

    Args:
        experiment: of the new run.
        model: its model, vocabulary known.
        tokenizer: digest of its tokenizer.
        say: is told what is left out of the other run's checkpoints.

    Raises:
        ValueError: there is no such run, it has no checkpoint, or its model or tokenizer is another.
    """
    if not experiment.run.init_from:
        return None
    where, directory = f"run.init_from = {experiment.run.init_from!r}", experiment.run.init_from
    if str(open_storage(directory, "run.init_from")) == str(open_storage(experiment.run.path)):
        raise ValueError(f"{where}: that is this run itself; give this one another run.name")
    origin = find_origin(where, directory, say)
    if origin.experiment.tune.lora:
        raise ValueError(
            f"{where}: its checkpoints hold adapters only; merge them first, with: "
            f"jaxllm merge {directory} {directory}-merged"
        )
    _compare(where, origin, experiment, model)
    known = origin.newest.extra.get("tokenizer")
    if known is None:
        say(f"{where}: its checkpoint does not say which tokenizer it knows; this run's is trusted")
    elif known != tokenizer:
        raise ValueError(
            f"{where}: it was trained with another tokenizer, so that its parameters know other tokens; use its own: "
            f"`jaxllm data build {directory}/{CONFIG}` names the store whose directory `tokenizer` holds it, "
            "for data.tokenizer.path"
        )
    return origin


def find_origin(where: str, directory: Place, say: Callable[[str], None]) -> Origin:
    """A run that has a checkpoint.

    Args:
        where: what names it, for errors.
        directory: of the run.
        say: is told what is left out of its checkpoints.

    Raises:
        ValueError: there is no such run, or it has no checkpoint.
    """
    storage = open_storage(directory)
    experiment = read_config(storage)
    if experiment is None:
        raise ValueError(f"{where}: it holds no run, for it has no {CONFIG}; name a directory such as runs/base")
    catalogue = Catalogue(storage.below(CHECKPOINTS))
    candidates = catalogue.candidates()
    if not candidates:
        raise ValueError(f"{where}: it has no finished checkpoint; train it first, or name another run")
    return Origin(directory, storage, experiment, catalogue.meta(candidates[0].place), say)


def begin(program: Program, seed: int, origin: Origin | None, extra: dict[str, Any]) -> Start:
    """A new run's first state.

    Args:
        program: of the run.
        seed: of initial values.
        origin: whose parameters take their place, or are adapted.
        extra: what the run's checkpoints are to hold beside the state.

    Raises:
        ValueError: no checkpoint of the other run can be restored.
    """
    state, recipe = program.init(jax.random.key(seed)), program.decoder.recipe
    if origin is None:
        return Start(state, {}, 0, extra)
    if not program.trained.whole:
        base, meta = origin.read(program.decoder, program.mesh, recipe.compute)
    else:
        state = dataclasses.replace(state, params={})  # first: both trees at once may be too much for the devices
        base, (params, meta) = {}, origin.read(program.decoder, program.mesh, recipe.parameters)
        state = dataclasses.replace(state, params=params)
    return Start(state, base, 0, {**extra, INIT_FROM: facts(meta)})


def go_on(
    directory: Place,
    program: Program,
    found: tuple[TrainState, Meta],
    origin: Origin | None,
    extra: dict[str, Any],
    force: bool,
) -> Start:
    """What a run goes on from.

    Args:
        directory: of the run.
        program: of the run.
        found: its newest checkpoint.
        origin: where the base is that it adapts.
        extra: what the run's checkpoints are to hold beside the state.
        force: go on even with other data than were trained on.

    Raises:
        ValueError: the data are not those that were trained on, or the base not the one that was adapted.
    """
    state, meta = found
    if meta.extra.get("data") != extra["data"] and not force:
        raise ValueError(
            f"{directory}: the data are not those that the run was trained on up to step {meta.step}; "
            "bring them back, use another run.name, or go on all the same with --force"
        )
    known = meta.extra.get(INIT_FROM)
    if known is not None:
        extra = {**extra, INIT_FROM: known}
    if origin is None or program.trained.whole:
        return Start(state, {}, meta.step, extra)
    assert known is not None, "a run that adapts says what"
    base = origin.read_again(program.decoder, program.mesh, program.decoder.recipe.compute, known)
    return Start(state, base, meta.step, extra)


def facts(meta: Meta) -> dict[str, Any]:
    """Which parameters a checkpoint holds: its step, and a digest of their digests."""
    parameters = sorted((name, leaf.digest) for name, leaf in meta.leaves.items() if name.startswith(f"{PARAMS}."))
    return {"step": meta.step, "digest": hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:16]}


def _compare(where: str, origin: Origin, experiment: Experiment, model: ModelConfig) -> None:
    """Refuse a model that is not the one that was trained.

    Raises:
        ValueError: naming the field and both values.
    """
    for field, old, new, may_change in differences(origin.experiment, experiment):
        stretched = STRETCHES in field and experiment.tune.lora is None
        if field.startswith("model.") and not may_change and field not in MAY_DIFFER and not stretched:
            raise ValueError(f"{where}: {field} = {new!r} here and {old!r} there; take the other run's [model]")
    size = origin.model.vocab_size
    if size != model.vocab_size:
        raise ValueError(
            f"{where}: model.vocab_size = {model.vocab_size} here and {size} there; take the other run's tokenizer, "
            f"or set model.vocab_size = {size}"
        )
