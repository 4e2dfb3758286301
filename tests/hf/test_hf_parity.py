"""Logits and gradients equal transformers', of every family, past windows and stretched ropes, with left padding."""

import jax
import numpy as np
import pytest
from parity import GOLDEN, NAMES, expected, loaded, logits, loss

from jaxllm.hf.names import entries
from jaxllm.hf.save import gathered

LOGITS = 2e-5
"""Absolute; the logits are between 1 and 20."""

WITH_GRADIENTS = [name for name in NAMES if any(key.startswith("grad.") for key in expected(name))]


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name):
    mesh, decoder, params = loaded(GOLDEN / name)
    golden = expected(name)
    plain = logits(mesh, decoder, params, golden["tokens"])
    np.testing.assert_allclose(plain, golden["logits"], rtol=0, atol=LOGITS)
    mask_BT = golden["padded_mask"]
    padded = logits(mesh, decoder, params, golden["padded_tokens"], mask_BT)
    real = mask_BT.astype(bool)
    np.testing.assert_allclose(padded[real], golden["padded_logits"][real], rtol=0, atol=LOGITS)


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients_equal_those_of_transformers(name):
    mesh, decoder, params = loaded(GOLDEN / name)
    golden = expected(name)
    with jax.set_mesh(mesh):
        gradients = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)(decoder, params, golden["tokens"])
        found = {entry.name: gathered(entry, gradients, np.dtype(np.float32)) for entry in entries(decoder.config)}
    assert {f"grad.{name}" for name in found} == {name for name in golden if name.startswith("grad.")}
    for name, gradient in found.items():
        wanted = golden[f"grad.{name}"]
        assert np.linalg.norm(gradient - wanted) <= 1e-4 * np.linalg.norm(wanted), name
