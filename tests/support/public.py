"""What is public: the callables that the tables of contracts and of bad inputs must cover."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from hypothesis import settings

import gprune as gp


def public_callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """What `gprune.__all__` names, and what its submodules export, or define, for the public."""
    for name in gp.__all__:
        thing = getattr(gp, name)
        if not isinstance(thing, ModuleType):
            yield name, thing
            continue
        for inner in getattr(thing, "__all__", None) or vars(thing):
            member = getattr(thing, inner)
            is_own = getattr(member, "__module__", "").startswith(thing.__name__)
            if not inner.startswith("_") and is_own and callable(member):
                yield f"{name}.{inner}", member


def examples_per_row() -> int:
    """Half the examples of the profile, since the tables have many rows; 5 in the quick one."""
    examples = settings().max_examples
    return 5 if examples <= 25 else examples // 2
