"""Adapters folded into the parameters that they adapt: W + s A B in W's place, as an ordinary run's checkpoint."""

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
from jax.sharding import Mesh, NamedSharding

from jaxllm.config import Experiment, MeshConfig, ModelConfig, RulesConfig, TuneConfig, dump, resolved
from jaxllm.layers.param import Recipe, Tree, tree_map
from jaxllm.models.decoder import Decoder
from jaxllm.sharding import make_mesh, make_rules
from jaxllm.storage import Place, Storage, open_storage
from jaxllm.train.catalogue import Meta
from jaxllm.train.checkpoints import Checkpoints
from jaxllm.train.directory import CARRIED, CHECKPOINTS, CONFIG, TOKENIZER, carried
from jaxllm.train.guard.rules import forget
from jaxllm.train.initial import INIT_FROM, Origin, find_origin
from jaxllm.train.loss_scale import LossScale
from jaxllm.train.state import Trained, TrainState
from jaxllm.tune.lora import adapters, merged


def merge(run: Place, out: Place, say: Callable[[str], None] = print) -> Meta:
    """Write a run's newest adapters, folded into its base, as a run whose parameters `run.init_from` can name.

    Uses as many devices as divide the model's width. The new run has no optimizer state: it starts others, and cannot
    be gone on with.

    Args:
        run: directory of a run with tune.lora; its base must still be where run.init_from says.
        out: directory of the new run.
        say: is told which checkpoints are left out.

    Returns:
        What the checkpoint that was merged says of itself.

    Raises:
        ValueError: the run has no adapters, its base is gone, or `out` holds something.
        OSError: the merged parameters could not be written.
    """
    storage = open_storage(out)
    if Path(out).is_file() or storage.list():
        raise ValueError(f"{out} is not empty; name a new directory")
    tuned = find_origin(str(run), run, say)
    lora, experiment = tuned.experiment.tune.lora, tuned.experiment
    if lora is None:
        raise ValueError(f"{run}: it trains all parameters, so there is nothing to merge; name a run with tune.lora")
    base = find_origin(f"{run}: run.init_from = {experiment.run.init_from!r}", experiment.run.init_from, say)
    model = base.model
    num_devices = math.gcd(jax.device_count(), model.d_model)
    mesh = make_mesh(MeshConfig(fsdp=num_devices), jax.devices()[:num_devices])
    dtype = base.experiment.train.precision.parameters
    decoder = Decoder(model, Recipe(make_rules(MeshConfig(), dict(mesh.shape)), parameters=dtype))
    trained = adapters(lora, decoder)
    with jax.set_mesh(mesh):
        params, meta = _adapters(tuned, decoder, mesh, trained)
        whole = trained.attach(params, base.read_again(decoder, mesh, dtype, meta.extra[INIT_FROM]))
        state = jax.jit(lambda given: begun(merged(given, decoder), meta.step, meta.optimizer_step))(whole)
        for name in tuned.storage.list(f"{TOKENIZER}/"):
            storage.write(name, tuned.storage.read(name))
        for name, content in carried(base.storage, base.experiment).items():
            storage.write(f"{CARRIED}/{name}", content)
        extra = {name: value for name, value in meta.extra.items() if name != INIT_FROM}
        write(storage, _plain(experiment, model, dtype, str(out)), state, meta.data_cursor, extra, say)
    return meta


def _adapters(tuned: Origin, decoder: Decoder, mesh: Mesh, trained: Trained) -> tuple[Tree, Meta]:
    """A run's newest adapters on a mesh."""
    rules, dtype = decoder.recipe.rules, tuned.experiment.train.precision.parameters
    abstract = tree_map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=NamedSharding(mesh, rules.storage(leaf.axes))),
        trained.declared,
    )
    found = tuned.checkpoints(decoder.config).restore_params(abstract)
    assert found is not None, "a checkpoint was there when the run was opened"
    return found


def begun(params: Tree, step: int, optimizer_step: int) -> TrainState:
    """Parameters and the counters behind them, as a state that others start from."""
    return TrainState(
        params=params,
        optimizer={},
        step=jnp.int32(step),
        optimizer_step=jnp.int32(optimizer_step),
        learning_rate_scale=jnp.ones((), jnp.float32),
        loss_scale=LossScale(jnp.ones(()), jnp.zeros((), jnp.int32)),
        guard=forget(RulesConfig()),
    )


def _plain(experiment: Experiment, model: ModelConfig, dtype: str, out: str) -> Experiment:
    """The experiment of a run without adapters."""
    replace, train = msgspec.structs.replace, experiment.train
    return replace(
        experiment,
        run=replace(experiment.run, name=Path(out).resolve().name, directory=out, init_from=""),
        model=model,
        train=replace(train, precision=replace(train.precision, parameters=dtype)),
        tune=TuneConfig(),
    )


def write(
    out: Storage,
    experiment: Experiment,
    state: TrainState,
    data_cursor: int,
    extra: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Write a run of one checkpoint, its config last.

    Args:
        out: of the new run.
        experiment: its config.
        state: of the checkpoint.
        data_cursor: as of `Checkpoints.save`.
        extra: as of `Checkpoints.save`.
        say: is told what fails.

    Raises:
        OSError: it could not be written.
    """
    checkpoints = Checkpoints(out.below(CHECKPOINTS), experiment.model, experiment.checkpoint, say)
    checkpoints.save(state, int(state.step), 0, data_cursor, extra)
    checkpoints.wait()
    for outcome in checkpoints.poll():
        if outcome.error:
            raise OSError(errno.EIO, outcome.error, str(out))
    out.write(CONFIG, dump(resolved(experiment)).encode())
