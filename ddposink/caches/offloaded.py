"""Offloaded: dense attention whose keys and values wait in host memory, the model library's offloading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ddposink.caches.dense import Dense


@dataclass(frozen=True)
class Offloaded(Dense):
    """``offloaded``: of all layers one or two are on the device at any time. Needs a GPU to offload from."""

    kind: ClassVar[str] = "offloaded"

    @classmethod
    def from_text(cls, size: str, **options: object) -> Offloaded:
        """``offloaded`` takes no size."""
        if size:
            raise ValueError(f"offloaded takes no size, got '{size}'")
        return cls()
