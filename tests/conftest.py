"""What all tests share: eight simulated CPU devices, a quick compiler, strict broadcasting.

Runs before anything imports jax.
"""

import os

from tests import quick

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {quick.FLAGS}"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
