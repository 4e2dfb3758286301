"""What is compiled here is compiled quickly, as by `jax.jit`: what its machine code is worth does not matter."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_programs() -> Iterator[None]:
    """Generators and models take `jax.jit`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", jax.jit)
        yield
