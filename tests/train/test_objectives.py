"""The chunked cross-entropy: the plain one's loss and gradients, without the plain one's logits."""

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
import tiny

from jaxllm import sharding
from jaxllm.config import LossConfig, MeshConfig
from jaxllm.layers.param import Recipe
from jaxllm.train.objectives import cross_entropy

ROWS, LENGTH, WIDTH, VOCABULARY = 4, 30, 16, 64


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
        yield


def problem(length=LENGTH, size=1.0):
    """Last hidden states, the head's weight, targets, and weights of which some are 0."""
    random = np.random.default_rng(0)
    x = random.normal(0, size, (ROWS, length, WIDTH)).astype(np.float32)
    head = random.normal(size=(WIDTH, VOCABULARY)).astype(np.float32)
    targets = random.integers(0, VOCABULARY, (ROWS, length), dtype=np.int32)
    weights = random.choice([0.0, 0.3, 1.0], (ROWS, length)).astype(np.float32)
    return x, head, targets, weights


def plain(x, head, targets, weights, z_loss):
    """Both parts of each row and the gradients of their sum, all logits at once, in float64."""
    x, head, weights = (array.astype(np.float64) for array in (x, head, weights))
    logits = x @ head
    top = logits.max(axis=-1, keepdims=True)
    log_z = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    hit = np.eye(VOCABULARY)[targets]
    probabilities = np.exp(logits - log_z[..., None])
    dlogits = weights[..., None] * (probabilities - hit + 2 * z_loss * log_z[..., None] * probabilities)
    return {
        "loss": np.sum(weights * (log_z - (logits * hit).sum(axis=-1)), axis=1),
        "z_loss": np.sum(weights * z_loss * log_z**2, axis=1),
        "dx": dlogits @ head.T,
        "dhead": np.einsum("btd,btv->dv", x, dlogits),
    }


def chunked(x, head, targets, weights, z_loss, chunk, scale=1.0):
    def total(x, head):
        config = LossConfig(chunk=chunk, z_loss=z_loss)
        value, rows = cross_entropy(x, head, jnp.asarray(targets), jnp.asarray(weights), config, Recipe())
        return scale * value, rows

    gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (value, rows), (dx, dhead) = gradient(x, head)
    assert value == pytest.approx(scale * float(rows.loss.sum() + rows.z_loss.sum()), rel=1e-6)
    arrays = {"loss": rows.loss, "z_loss": rows.z_loss, "dx": dx, "dhead": dhead}
    return {name: np.asarray(array) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("length", "chunk"),
    [(30, 0), (30, 1), (30, 24), (30, 28), (31, 40), (30, 1000)],
    ids=["whole", "one token", "6 of 30", "7 does not divide 30", "31 is prime", "more than there are"],
)
def test_chunks_add_up_to_the_plain_loss_and_gradients(length, chunk):
    given = problem(length)
    tiny.assert_close(chunked(*given, 1e-2, chunk), plain(*given, 1e-2), 2e-6)


def test_without_z_loss_its_part_is_0_and_the_gradient_is_scaled_by_what_follows():
    given = problem()
    wanted = plain(*given, 0.0)
    found = chunked(*given, 0.0, 24, scale=-3.0)
    assert not np.any(found.pop("z_loss")) and not np.any(wanted.pop("z_loss"))
    wanted |= {name: -3.0 * wanted[name] for name in ("dx", "dhead")}
    tiny.assert_close(found, wanted, 2e-6)


def test_logits_of_a_hundred_thousand_do_not_overflow():
    given = problem(size=1e4)
    assert np.abs(given[0] @ given[1]).max() > 1e5
    found, wanted = chunked(*given, 0.0, 24), plain(*given, 0.0)
    assert not np.any(found.pop("z_loss")) and not np.any(wanted.pop("z_loss"))
    tiny.assert_close(found, wanted, 1e-5)


def test_a_token_of_no_weight_changes_nothing():
    x, head, targets, weights = problem()
    before = chunked(x, head, targets, weights, 1e-2, 24)
    other = np.where(weights == 0, (targets + 1) % VOCABULARY, targets)
    after = chunked(np.where((weights == 0)[..., None], 5 * x, x), head, other, weights, 1e-2, 24)
    tiny.assert_close(after, before, 1e-6)
    assert not np.any(after["dx"][weights == 0])


def largest(jaxpr):
    """Number of values of the largest array that a program makes, with the programs inside it."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in equation.outvars]
        for value in jax.tree.leaves(equation.params, is_leaf=is_program):
            if is_program(value):
                sizes.append(largest(getattr(value, "jaxpr", value)))
    return max(sizes)


def is_program(value):
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def test_no_logits_of_a_whole_batch_exist():
    """In the program of a model's loss and gradients; the vocabulary makes them larger than anything else in it."""
    model = msgspec.structs.replace(tiny.MODEL, vocab_size=2048)

    def largest_with(chunk):
        config = tiny.experiment(model, shape=(4, tiny.LENGTH), loss=LossConfig(chunk=chunk, z_loss=1e-4))
        running = tiny.program(config)
        with jax.set_mesh(running.mesh):
            params = running.abstract_state().params
            function = tiny.differentiate(running, config)
            return largest(jax.make_jaxpr(function)(params, running.abstract_batch(4, tiny.LENGTH)).jaxpr)

    whole = 4 * tiny.LENGTH * 2048
    assert largest_with(0) >= whole, "the search finds logits where they are"
    assert largest_with(16) < whole
    assert largest_with(16) == 2048 * model.d_model, "the largest array is the embedding"
