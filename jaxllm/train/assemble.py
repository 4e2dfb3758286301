"""From a config and a mesh to the compiled functions of a run: what the loop, the benchmark and the planner share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import msgspec
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm import mesh_sizes, sharding
from jaxllm.config import Experiment, ModelConfig, RulesConfig
from jaxllm.layers.attention import ALIBI, choose
from jaxllm.layers.param import Recipe, Tree
from jaxllm.models.decoder import Decoder
from jaxllm.train.guard.rules import forget
from jaxllm.train.objectives import Batch
from jaxllm.train.optim import make_optimizer
from jaxllm.train.qk_clip import make_qk_clip
from jaxllm.train.schedule import schedule
from jaxllm.train.state import Trained, TrainState, everything, init_state
from jaxllm.train.step import make_eval_step, make_train_step
from jaxllm.train.watch import make_watch
from jaxllm.tune.lora import adapters

FIELDS: Mapping[str, str] = {
    "tokens": "int32",
    "targets": "int32",
    "weights": "float32",
    "positions": "int32",
    "segments": "int32",
}
"""The arrays of a batch that are [B, T], and their dtypes."""

_RARE_OPTIONS = {"xla_backend_optimization_level": 2}
"""Of what runs once, or rarely: at LLVM's highest level a CPU takes two to five times as long to compile it."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a run on one mesh. Call them inside `jax.set_mesh(program.mesh)`.

    Attributes:
        mesh: the devices.
        decoder: the model's declarations.
        optimizer: the update rule.
        trained: what of the model is trained.
        init: key -> TrainState.
        init_base: key -> a base of initial values, for measuring without a trained one.
        step: (TrainState, batch, base) -> (TrainState, metrics); the state is donated. The base may be left out where
            all parameters are trained.
        evaluate: (the decoder's parameters, batch) -> sums.
        rules: of the guard.
        watch: (parameters that are trained, batch, base) -> what `train.watch.make_watch` tells.
        qk_clip: (TrainState, logits that `watch` tells) -> (TrainState, metrics), the state donated; None where
            `optim.qk_clip` does not ask for it.
    """

    mesh: Mesh
    decoder: Decoder
    optimizer: optax.GradientTransformation
    trained: Trained
    init: Callable[[jax.Array], TrainState]
    init_base: Callable[[jax.Array], Tree]
    step: Any
    evaluate: Callable[[Any, Batch], dict[str, jax.Array]]
    rules: RulesConfig
    watch: Any
    qk_clip: Any

    @property
    def batch_sharding(self) -> NamedSharding:
        """How an array [B, T] of a batch lies."""
        return NamedSharding(self.mesh, self.decoder.recipe.rules.activation("batch", "sequence"))

    @property
    def row_sharding(self) -> NamedSharding:
        """How an array [B] of a batch lies."""
        return NamedSharding(self.mesh, self.decoder.recipe.rules.activation("batch"))

    def rows(self, num_rows: int) -> slice:
        """The rows of a batch that this process's devices hold."""
        indices = self.row_sharding.addressable_devices_indices_map((num_rows,)).values()
        held = [index[0].indices(num_rows) for index in indices if index is not None]
        return slice(min(start for start, *_ in held), max(stop for _, stop, _ in held))

    def put(self, rows: Mapping[str, np.ndarray], num_rows: int = 0) -> Batch:
        """A batch on the devices.

        Args:
            rows: this process's rows of it, as `rows` says.
            num_rows: of the whole batch; 0 where all its rows are given.
        """
        num_rows = num_rows or len(rows["tokens"])
        first = self.rows(num_rows).start

        def place(value: np.ndarray) -> jax.Array:
            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                start, stop, _ = index[0].indices(num_rows)
                return value[start - first : stop - first, *index[1:]]

            sharding = self.row_sharding if value.ndim == 1 else self.batch_sharding
            return jax.make_array_from_callback((num_rows, *value.shape[1:]), sharding, part)

        return {name: place(value) for name, value in rows.items()}

    def scalar(self, value: np.generic) -> jax.Array:
        """A number on all devices, the same in all processes."""
        return jax.make_array_from_callback((), NamedSharding(self.mesh, PartitionSpec()), lambda _: np.asarray(value))

    def begin_phase(self, state: TrainState) -> TrainState:
        """The state with nothing remembered of the losses before: another phase's have another level."""
        fresh = jax.tree.map(lambda x: np.asarray(x), forget(self.rules))
        place = NamedSharding(self.mesh, PartitionSpec())
        memory = jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, place, lambda index: x[index]), fresh)
        return dataclasses.replace(state, guard=memory)

    def abstract_batch(self, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch, for compiling without one."""
        batch = {
            name: jax.ShapeDtypeStruct((rows, length), dtype, sharding=self.batch_sharding)
            for name, dtype in FIELDS.items()
        }
        return batch | {"sources": jax.ShapeDtypeStruct((rows,), "int32", sharding=self.row_sharding)}

    def abstract_state(self) -> TrainState:
        """The shapes and shardings of a state, without making one."""
        return self._abstract(self.init)

    def abstract_base(self) -> Tree:
        """The shapes and shardings of the base that a step takes beside it."""
        return self._abstract(self.init_base)

    def _abstract(self, init: Callable[[jax.Array], Any]) -> Any:
        # Shapes need no device, and the devices of an absent machine could not hold a key.
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))

        def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            spec = PartitionSpec() if x.sharding is None else x.sharding.spec
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec))

        return jax.tree.map(place, shapes)


def resolve_vocabulary(model: ModelConfig, tokenizer_size: int) -> ModelConfig:
    """The model with its vocabulary's size known.

    Raises:
        ValueError: when the tokenizer has more tokens than the model.
    """
    if model.vocab_size == 0:
        return msgspec.structs.replace(model, vocab_size=-(-tokenizer_size // 128) * 128)
    if tokenizer_size > model.vocab_size:
        raise ValueError(
            f"model.vocab_size = {model.vocab_size}: the tokenizer has {tokenizer_size} tokens; "
            f"use {-(-tokenizer_size // 128) * 128}, or 0 for the tokenizer's size"
        )
    return model


def assemble(experiment: Experiment, model: ModelConfig, devices: Sequence[sharding.Device] | None = None) -> Program:
    """The functions of an experiment on its mesh.

    Args:
        experiment: everything but the vocabulary's size.
        model: the experiment's model, vocabulary known.
        devices: present or absent ones; all of this run's by default.

    Raises:
        ValueError: when the mesh fits neither the devices, the model nor the batch, a kernel not the platform, or the
            schedule not the run.
    """
    mesh = sharding.make_mesh(experiment.mesh, devices)
    sizes = dict(mesh.shape)
    mesh_sizes.check_model(model, sizes)
    train, platform = experiment.train, sharding.platform(mesh.abstract_mesh)
    for index, phase in enumerate(experiment.data.phases):
        length = phase.sequence_length
        sequence_parallel = experiment.mesh.sequence_parallel
        mesh_sizes.check_batch(phase.batch_size, train.accumulate, length, sizes, sequence_parallel, index)
        for block in model.blocks:
            attention, dtype = block.attention, train.precision.compute
            head_dim, context = model.head_dim(attention), sizes["context"]
            choose(
                attention.kernel,
                platform,
                length,
                head_dim,
                dtype,
                context,
                attention.soft_cap,
                attention.window,
                attention.positions in ALIBI,
            )
    rules = sharding.make_rules(experiment.mesh, sizes)
    precision = train.precision
    recipe = Recipe(rules, precision.parameters, precision.compute, precision.reduction)
    decoder = Decoder(model, recipe, train.remat, train.unroll)
    lora = experiment.tune.lora
    if lora and rules.staged:
        raise ValueError(
            f"mesh.pipe = {sizes['pipe']}: adapters (tune.lora) are not trained in a pipeline; set mesh.pipe = 1"
        )
    trained = adapters(lora, decoder) if lora else everything(decoder)
    optimizer = make_optimizer(experiment.optim, trained.declared, rules, precision.compute)
    rate = schedule(experiment.optim, experiment.data.num_steps)
    loss_scale, clip = experiment.optim.loss_scale, experiment.optim.qk_clip
    step = make_train_step(
        decoder,
        optimizer,
        rate,
        train,
        experiment.optim,
        len(experiment.data.sources),
        trained,
        experiment.guard,
        watched=bool(experiment.watch.interval),
    )
    return Program(
        mesh=mesh,
        decoder=decoder,
        optimizer=optimizer,
        trained=trained,
        init=jax.jit(
            lambda key: init_state(decoder, optimizer, loss_scale, key, trained, experiment.guard.rules),
            compiler_options=_RARE_OPTIONS,
        ),
        init_base=jax.jit(trained.init_base, compiler_options=_RARE_OPTIONS),
        step=jax.jit(step, donate_argnums=0),
        evaluate=jax.jit(make_eval_step(decoder, train)),
        rules=experiment.guard.rules,
        watch=jax.jit(make_watch(decoder, train, trained), compiler_options=_RARE_OPTIONS),
        qk_clip=jax.jit(make_qk_clip(clip, model), donate_argnums=0) if clip else None,
    )
