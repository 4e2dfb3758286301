"""Training: objectives, gradients, the step and the loop around it."""

from collections.abc import Callable
from typing import Any

from jaxllm.callable_room import make_callable


def _function() -> Callable[..., Any]:
    from jaxllm.train.loop import train

    return train


make_callable(__name__, _function)
