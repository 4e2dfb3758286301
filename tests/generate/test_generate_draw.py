"""Which token is drawn: how often, from which, and that other rows do not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.generate.draw import Sampling, draw

LOGITS = np.log(np.array([0.4, 0.05, 0.3, 0.15, 0.1], np.float32))


def shares(sampling: Sampling, num: int = 4000) -> np.ndarray:
    drawn = draw(jnp.asarray(np.tile(LOGITS, (num, 1))), sampling, jax.random.key(0))
    return np.bincount(np.asarray(drawn), minlength=5) / num


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(), [1, 0, 0, 0, 0]),
        (Sampling(temperature=1.0), [0.4, 0.05, 0.3, 0.15, 0.1]),
        (Sampling(temperature=0.5), [0.16, 0.0025, 0.09, 0.0225, 0.01]),
        (Sampling(temperature=1.0, top_k=2), [0.4, 0, 0.3, 0, 0]),
        (Sampling(temperature=1.0, top_k=9), [0.4, 0.05, 0.3, 0.15, 0.1]),
        (Sampling(temperature=1.0, top_p=0.69), [0.4, 0, 0.3, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.71), [0.4, 0, 0.3, 0.15, 0]),
        (Sampling(temperature=1.0, top_p=1e-6), [1, 0, 0, 0, 0]),
        (Sampling(temperature=1.0, top_k=3, top_p=0.5), [0.4, 0, 0.3, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_they_should(sampling, wanted):
    found, wanted = shares(sampling), np.array(wanted) / np.sum(wanted)
    np.testing.assert_allclose(found, wanted, atol=4 * 0.5 / 4000**0.5)
    assert np.all(found[wanted == 0] == 0)


def test_a_row_draws_the_same_whatever_the_others_are():
    sampling, key, logits_BV = Sampling(temperature=1.0), jax.random.key(3), np.tile(LOGITS, (4000, 1))
    alike = np.asarray(draw(jnp.asarray(logits_BV), sampling, key))
    logits_BV[2:] = 0
    np.testing.assert_array_equal(np.asarray(draw(jnp.asarray(logits_BV), sampling, key))[:2], alike[:2])


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_what_cannot_be_drawn_from_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} = "):
        Sampling(**wrong)
