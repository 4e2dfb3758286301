"""The plan: which mesh to use, what it takes, and what the real compilers say to it.

`jaxllm.plan` is a function and the name of this room, which takes the function's place in the package once it is
imported. So the room can be called too, as the function.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """As `search.plan`."""
        from jaxllm.plan.search import plan

        return plan(*arguments, **named)


sys.modules[__name__].__class__ = _Room
