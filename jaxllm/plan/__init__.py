"""The plan: which mesh to use, what it takes, and what the real compilers say to it."""

from collections.abc import Callable
from typing import Any

from jaxllm.callable_room import make_callable


def _function() -> Callable[..., Any]:
    from jaxllm.plan.search import plan

    return plan


make_callable(__name__, _function)
