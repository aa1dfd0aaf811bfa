"""Dense: every key is kept. Memory grows with the text; past the training length it breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ddposink.caches.base import Policy


@dataclass(frozen=True)
class Dense(Policy):
    """Keep everything; the model's own positions, measured as it is."""

    kind: ClassVar[str] = "dense"

    @property
    def bounded(self) -> bool:
        """False: the cache grows with every token."""
        return False

    @property
    def budget(self) -> int | None:
        """None: there is no limit."""
        return None

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Dense has nothing to choose."""
        return ()

    @classmethod
    def from_text(cls, size: str, **options: object) -> Dense:
        """``dense`` takes no size."""
        if size:
            raise ValueError(f"dense takes no size, got '{size}'")
        return cls()
