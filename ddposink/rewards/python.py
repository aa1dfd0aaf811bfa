"""A reward of one's own: ``python:package.module:function``, only where the command line allows it.

The function takes images (B, 3, H, W) in [0, 1] and B prompts, and returns (B,) float32, higher is better.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from ddposink.rewards.base import RewardFunction, RewardInfo, RewardKind


class Python(RewardKind):
    """Runs code that a suite names, hence the permission."""

    info = RewardInfo(
        range=(float("-inf"), float("inf")),
        unit="",
        needs="your module on the Python path",
        licence="yours",
        source="your module",
    )

    def parse(self, argument: str) -> str:
        """``package.module:function`` of a module that is there. Nothing is imported."""
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", argument):
            raise ValueError("write python:package.module:function")
        module = argument.partition(":")[0]
        if _file(module) is None:
            raise ValueError(f"there is no module '{module}' on the Python path")
        return argument

    def runs_code(self, argument: str) -> bool:
        """It does."""
        return True

    def identity(self, argument: str) -> dict[str, str]:
        """Hash of the module's file; what the module imports does not count."""
        file = _file(argument.partition(":")[0])
        return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()} if file else {}

    def load(self, argument: str, device: str) -> RewardFunction:
        """Import the function. Raises ValueError if there is none."""
        module, _, name = argument.partition(":")
        function = getattr(importlib.import_module(module), name, None)
        if not callable(function):
            raise ValueError(f"module '{module}' has no function '{name}'")
        return function


def _file(module: str) -> Path | None:
    """The file of ``module``, found without running any package on the way."""
    path: list[str] | None = list(sys.path)
    found = None
    for name in module.split("."):
        if path is None or (found := PathFinder.find_spec(name, path)) is None:
            return None
        path = list(found.submodule_search_locations) if found.submodule_search_locations else None
    return Path(found.origin) if found and found.origin else None


python = Python()
