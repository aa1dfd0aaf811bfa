"""Window: only the most recent tokens are kept. Flat memory; collapses when the first tokens leave."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from ddposink.caches.base import Policy


@dataclass(frozen=True)
class Window(Policy):
    """The last ``window`` tokens (a query sees them and itself)."""

    kind: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks:
            raise ValueError("a window keeps no sinks; use the sink policy")
        if self.window < 1:
            raise ValueError(f"window must be at least 1 token, got {self.window}")

    @property
    def label(self) -> str:
        """``window 1024``."""
        return self._options(f"window {self.window}")

    @classmethod
    def from_text(cls, size: str, **options: object) -> Window:
        """``1024`` → a window of 1,024 tokens."""
        if not re.fullmatch(r"-?\d+", size):
            raise ValueError(f"a window is written 'window 1024', got 'window {size}'".rstrip())
        return cls(window=int(size), **options)  # type: ignore[arg-type]
