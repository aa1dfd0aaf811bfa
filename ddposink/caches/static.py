"""Static: dense attention in a buffer that is allocated at once, the model library's `StaticCache`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ddposink.caches.dense import Dense


@dataclass(frozen=True)
class Static(Dense):
    """``static 4096``: room for 4,096 tokens from the first one on; more cannot be fed."""

    kind: ClassVar[str] = "static"
    size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"a static cache needs room for at least 1 token, got {self.size}")

    @property
    def label(self) -> str:
        """``static 4096``."""
        return f"{self.kind} {self.size}"

    @classmethod
    def from_text(cls, size: str, **options: object) -> Static:
        """``4096`` → a buffer for 4,096 tokens."""
        if not size.isdecimal():
            raise ValueError(f"a static cache is written 'static 4096', got 'static {size}'".rstrip())
        return cls(size=int(size))
