"""Golden models of transformers (see make_goldens.py), and what this decoder computes of them."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jaxllm.config import MeshConfig
from jaxllm.hf.load import load, read_config
from jaxllm.layers.param import Recipe
from jaxllm.models.decoder import Decoder, merge
from jaxllm.sharding import make_mesh, make_rules

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(str(path.parent.relative_to(GOLDEN)) for path in GOLDEN.glob("*/*/config.json"))


@functools.cache
def expected(name):
    return load_file(GOLDEN / name / "expected.safetensors")


def on(mesh=None, devices=None):
    """A mesh, the first device alone by default, and the recipe of float32 on it."""
    config = mesh or MeshConfig(fsdp=1)
    made = make_mesh(config, devices or jax.devices()[:1])
    return made, Recipe(make_rules(config, dict(made.shape)))


def loaded(directory):
    """The model of a directory on one device, and its parameters."""
    mesh, recipe = on()
    with jax.set_mesh(mesh):
        config = read_config(directory)
        return mesh, Decoder(config, recipe), load(directory, recipe, config)


def logits(mesh, decoder, params, tokens_BT, mask_BT=None):
    """float32[B, T, V]; positions count what the mask does not hide, and padding is a document of its own."""
    mask_BT = np.ones_like(tokens_BT) if mask_BT is None else mask_BT
    positions_BT = np.maximum(np.cumsum(mask_BT, axis=1) - 1, 0).astype(np.int32)
    with jax.set_mesh(mesh):
        return np.asarray(_forward(decoder, params, tokens_BT, positions_BT, mask_BT))


@functools.partial(jax.jit, static_argnums=0)
def _forward(decoder, params, tokens_BT, positions_BT, segments_BT):
    return merge(decoder, params)(tokens_BT, positions_BT, segments_BT).logits


def loss(decoder, params, tokens_BT):
    """Mean cross-entropy of each next token."""
    logits_BTV = merge(decoder, params)(tokens_BT).logits[:, :-1]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), tokens_BT[:, 1:, None], axis=-1)
    return -jnp.mean(chosen)
