"""Rooms that can be called: `jaxllm.train` and `jaxllm.plan` are functions, and packages of the same names.

Once something of a package is imported, it takes the function's place in `jaxllm`; so the package can be called too.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(name: str, load: Callable[[], Callable[..., Any]]) -> None:
    """Let a module be called.

    Args:
        name: of the module, imported or just being imported.
        load: imports the function and returns it; called with each call.
    """

    class Room(ModuleType):
        def __call__(self, *arguments: Any, **named: Any) -> Any:
            return load()(*arguments, **named)

    sys.modules[name].__class__ = Room
