"""Recompute: a sliding window whose tokens are read again for every token (Xiao et al. 2023, figure 1 c)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from ddposink.caches.base import Policy


@dataclass(frozen=True)
class Recompute(Policy):
    """The last ``window`` tokens, the one being fed included, read from scratch: nothing older has left a
    trace in their keys, as it has in a window's. ``stride`` 1 is exact and costs a forward of a window per
    token; ``stride=N`` reads a window once for N tokens, which so see window - N + 1 to window tokens.
    """

    kind: ClassVar[str] = "recompute"
    stride: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window must be at least 1 token, got {self.window}")
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"stride must be between 1 and the window of {self.window}, got {self.stride}")

    def begin(self, token: int) -> int:
        """Index of the first token that the forward of ``token`` reads."""
        return max(0, (token // self.stride + 1) * self.stride - self.window)

    @property
    def evicts_from(self) -> int | None:
        """Index of the first query that misses a token: its own place counts as one of the window."""
        return self.window // self.stride * self.stride

    def cached(self, length: int) -> int:
        """Tokens whose keys and values the last forward made."""
        return length - self.begin(length - 1) if length else 0

    def resized(self, tokens: int) -> Recompute:
        """The same with a window that shows every token at least ``tokens`` tokens, itself included."""
        return replace(self, window=tokens + self.stride - 1)

    @property
    def label(self) -> str:
        """``recompute 512 stride=64``."""
        return f"{self.kind} {self.window}" + (f" stride={self.stride}" if self.stride != 1 else "")

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """The stride."""
        return ("stride",)

    @classmethod
    def from_text(cls, size: str, **options: object) -> Recompute:
        """``512`` → a window of 512 tokens."""
        stride = str(options.get("stride", 1))
        if not size.isdecimal() or not re.fullmatch(r"\d+", stride):
            raise ValueError(
                f"recomputation is written 'recompute 512 stride=64', got 'recompute {size}'".rstrip()
            )
        return cls(window=int(size), stride=int(stride))
