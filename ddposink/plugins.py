"""What other packages add: cache policies and rewards, by the entry points of installed packages.

Groups are ``ddposink.policies`` (name → a `ddposink.caches.Policy`) and ``ddposink.rewards`` (name → a
`ddposink.rewards.RewardKind`). A name that is taken is an error, never an overwrite. Nothing is imported
until a name is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

POLICIES, REWARDS = "policies", "rewards"  # a group without the package, which would be a module's name


@cache
def installed(group: str) -> Mapping[str, str]:
    """Name → ``module:attribute`` of all installed packages. Raises ValueError for a name claimed twice."""
    found: dict[str, str] = {}
    for name, target in sorted(
        {(point.name, point.value) for point in entry_points(group=f"ddposink.{group}")}
    ):
        if name in found:
            raise ValueError(f"'{name}' of ddposink.{group} is claimed by both {found[name]} and {target}")
        found[name] = target
    return found


def module_of(group: str, name: str) -> str | None:
    """The module that an installed package has under a name; None if no package has that name."""
    target = installed(group).get(name)
    return None if target is None else target.partition(":")[0]


def load(group: str, name: str, kind: type) -> Any:
    """What is installed under a name. Raises ValueError if it cannot be imported or is no ``kind``."""
    target = installed(group)[name]
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"'{name}' of ddposink.{group} ({target}) cannot be imported: {error}") from error
    if not (isinstance(found, kind) or (isinstance(found, type) and issubclass(found, kind))):
        raise ValueError(f"'{name}' of ddposink.{group} ({target}) is no {kind.__name__}")
    return found
