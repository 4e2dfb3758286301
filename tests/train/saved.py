"""A tiny state, and a directory of its checkpoints."""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxllm.config import AttentionConfig, CheckpointConfig, MLPConfig, ModelConfig, RulesConfig
from jaxllm.storage import LocalStorage, Storage
from jaxllm.train.checkpoints import Checkpoints
from jaxllm.train.guard.rules import forget
from jaxllm.train.loss_scale import LossScale
from jaxllm.train.state import TrainState

MODEL = ModelConfig(
    vocab_size=32, d_model=8, num_layers=3, attention=AttentionConfig(num_heads=2), mlp=MLPConfig(d_ff=16)
)


def mesh_of(**sizes: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes), devices=devices
    )


ONE = mesh_of(fsdp=1)


def make_state(seed: int = 0, mesh: jax.sharding.Mesh = ONE) -> TrainState:
    """A state of few leaves: stacked and not, float32 and bfloat16, scalars."""
    random = np.random.default_rng(seed)
    axis = "fsdp" if mesh.shape["fsdp"] > 1 else None

    def draw(shape: tuple[int, ...], dtype: str, *spec: str | None) -> jax.Array:
        value = random.normal(size=shape).astype(dtype)
        return jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))

    def scalar(value: float, dtype: str) -> jax.Array:
        return jax.device_put(np.asarray(value, dtype), NamedSharding(mesh, PartitionSpec()))

    def tree(dtype: str) -> dict:
        return {
            "embedding": {"weight": draw((32, 8), dtype, None, axis)},
            "period": {"0": {"mlp": {"up": draw((3, 8, 16), dtype, None, axis)}}},
        }

    return TrainState(
        params=tree("float32"),
        optimizer={"adam": {"mu": tree("bfloat16")}},
        step=scalar(seed, "int32"),
        optimizer_step=scalar(seed, "int32"),
        learning_rate_scale=scalar(1.0, "float32"),
        loss_scale=LossScale(scalar(1.0, "float32"), scalar(0, "int32")),
        guard=jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec())), forget(RulesConfig())),
    )


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


class Case:
    """A directory of checkpoints, or a storage of them, and what was said about them."""

    def __init__(self, place: Path | Storage, **config: int) -> None:
        self.path = place if isinstance(place, Path) else Path()
        self.storage = LocalStorage(place) if isinstance(place, Path) else place
        self.said = []
        self.config = CheckpointConfig(**config)
        self.checkpoints = self.open()

    def open(self, model: ModelConfig = MODEL) -> Checkpoints:
        """Another process's view."""
        return Checkpoints(self.storage, model, self.config, self.said.append)

    def save(self, seed: int, attempt: int = 0) -> None:
        self.checkpoints.save(make_state(seed), seed, attempt, data_cursor=8 * seed, extra={"loss": 1.5})
        self.checkpoints.wait()
        assert [outcome.error for outcome in self.checkpoints.poll()] == [""]

    def restored(self, **options) -> int:
        """The step that is restored, after a check of every bit."""
        found = self.open().restore(abstract(make_state()), **options)
        assert found is not None
        state, meta = found
        assert bits(state) == bits(make_state(meta.step))
        return meta.step
