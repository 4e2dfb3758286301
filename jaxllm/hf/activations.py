"""Names of activations, Hugging Face's and ours."""

from typing import Any

from jaxllm.hf.keys import Keys

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Hugging Face's names of activations, and ours."""

WRITTEN = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
"""Our names of activations, and Hugging Face's."""


def activation(keys: Keys, key: str, name: str) -> Any:
    """Our name of an activation.

    Raises:
        ValueError: jaxllm has no such activation.
    """
    if name not in ACTIVATIONS:
        raise keys.refuse(key, name, f"jaxllm knows {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
