"""A reward of one's own: ``python:package.module:function``, only where the command line allows it.

The function takes images (B, 3, H, W) in [0, 1] and B prompts, and returns (B,) float32, higher is better.
"""

from __future__ import annotations

import importlib
import re

from bench.version import find_module, source_hash
from ddposink.rewards.base import RewardFunction, RewardInfo, RewardKind


class Python(RewardKind):
    """Runs code that a suite names, hence the permission."""

    info = RewardInfo(
        range=(float("-inf"), float("inf")),
        unit="",
        needs="your module on the Python path",
        licence="yours",
        source="your module",
        label="own reward",
    )

    def parse(self, argument: str) -> str:
        """``package.module:function`` of a module that is there. Nothing is imported."""
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", argument):
            raise ValueError("write python:package.module:function")
        module = argument.partition(":")[0]
        if find_module(module) is None:
            raise ValueError(f"there is no module '{module}' on the Python path")
        return argument

    def runs_code(self, argument: str) -> bool:
        """It does."""
        return True

    def identity(self, argument: str) -> dict[str, str]:
        """Hash of the module's source, and of what it imports of its package and from beside it."""
        return {"sha256": source_hash(argument.partition(":")[0])}

    def load(self, argument: str, device: str) -> RewardFunction:
        """Import the function. Raises ValueError if there is none."""
        module, _, name = argument.partition(":")
        function = getattr(importlib.import_module(module), name, None)
        if not callable(function):
            raise ValueError(f"module '{module}' has no function '{name}'")
        return function


python = Python()
