"""LoRA: at first nothing changes, apart is merged, any mesh gives one device's gradients, the base has none."""

import functools

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
import tiny

from jaxllm.config import LoRAConfig, MeshConfig, RunConfig, TuneConfig
from jaxllm.layers.param import leaves, tree_map
from jaxllm.models.decoder import merge
from jaxllm.train.gradients import accumulate
from jaxllm.train.objectives import pretrain
from jaxllm.tune.lora import merged

RANK, ALPHA = 4, 8.0


def experiment(targets=("matrix",), **settings):
    config = tiny.experiment(**settings)
    lora = LoRAConfig(rank=RANK, alpha=ALPHA, targets=targets)
    return msgspec.structs.replace(config, tune=TuneConfig(lora=lora), run=RunConfig(init_from="base"))


def base_and_adapters(running, zero=False, seed=1):
    """Parameters laid on a program's mesh: the base as drawn everywhere, and adapters of which B is not zero."""
    random = np.random.default_rng(seed)
    rules = running.decoder.recipe.rules

    def draw(leaf):
        value = np.zeros(leaf.shape) if zero and not leaf.std else random.normal(0.0, leaf.std or 0.05, leaf.shape)
        spec = rules.storage(leaf.axes)
        return jax.device_put(np.float32(value), jax.NamedSharding(running.mesh, spec))

    base = tiny.place(running, tiny.make_params(running.decoder.config))
    return base, tree_map(draw, running.trained.declared)


@functools.cache
def logits(apart: bool, zero: bool, adapted: bool = True):
    running = tiny.program(experiment())
    with jax.set_mesh(running.mesh):
        base, params = base_and_adapters(running, zero)
        whole = running.trained.attach(params, base) if adapted else base
        whole = whole if apart else tiny.quick_jit(lambda given: merged(given, running.decoder))(whole)
        tokens = jnp.asarray(tiny.make_batch()["tokens"])
        return np.asarray(tiny.quick_jit(lambda p, t: merge(running.decoder, p)(t).logits)(whole, tokens))


def test_with_b_zero_the_logits_are_the_base_s_bit_for_bit():
    np.testing.assert_array_equal(logits(apart=True, zero=True), logits(apart=True, zero=True, adapted=False))


def test_merged_is_apart():
    apart, together = logits(apart=True, zero=False), logits(apart=False, zero=False)
    assert np.abs(apart - logits(apart=True, zero=True)).max() > 0.1
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5 * np.abs(apart).max())


@functools.cache
def loss_and_gradients(mesh: MeshConfig | None, **settings):
    config = experiment(mesh=mesh, **settings)
    running = tiny.program(config)
    decoder, trained = running.decoder, running.trained
    with jax.set_mesh(running.mesh):
        base, params = base_and_adapters(running)

        def differentiate(params, base, batch):
            def objective(given, micro):
                return pretrain(decoder, trained.attach(given, base), micro, config.train.loss)

            one = jnp.ones(())
            return accumulate(objective, params, batch, one, config.train.accumulate, trained.declared, decoder.recipe)

        gradients, sums, _ = tiny.quick_jit(differentiate)(params, base, running.put(tiny.make_batch()))
        return float(sums.loss), {name: np.asarray(value) for name, value in leaves(gradients)}


MESHES = {
    "fsdp 2 x tensor 2": (MeshConfig(fsdp=2, tensor=2), {}),
    "data 2 x fsdp 2 x tensor 2, sequence parallel": (
        MeshConfig(data=2, fsdp=2, tensor=2, sequence_parallel=True),
        {"accumulate": 2, "remat": "block"},
    ),
}


@pytest.mark.parametrize("name", MESHES)
def test_loss_and_gradients_are_those_of_one_device(name):
    mesh, settings = MESHES[name]
    (loss, gradients), (wanted, reference) = loss_and_gradients(mesh, **settings), loss_and_gradients(None)
    assert loss == pytest.approx(wanted, rel=1e-6)
    tiny.assert_close(gradients, reference, 1e-5)
