"""Sink: a few initial tokens beside the window (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from ddposink.caches.base import Policy


@dataclass(frozen=True)
class Sink(Policy):
    """The first ``sinks`` tokens and the last ``window`` ones; budget = sinks + window slots.

    Many sinks make a pinned prompt: ``sink 512+256``.
    """

    kind: ClassVar[str] = "sink"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window must be at least 1 token, got {self.window}")
        if self.sinks < 0:
            raise ValueError(f"sinks must not be negative, got {self.sinks}")

    @property
    def label(self) -> str:
        """``sink 4+1020``."""
        return self._options(f"sink {self.sinks}+{self.window}")

    @property
    def family(self) -> str:
        """``sink 4+…``: the number of sinks makes another policy, that of recent tokens another size."""
        return self._options(f"sink {self.sinks}+…")

    @classmethod
    def from_text(cls, size: str, **options: object) -> Sink:
        """``4+1020`` → 4 sinks beside 1,020 recent tokens."""
        match = re.fullmatch(r"(-?\d+)\+(-?\d+)", size)
        if not match:
            raise ValueError(
                f"a sink policy is written 'sink 4+1020' (sinks+window), got 'sink {size}'".rstrip()
            )
        return cls(sinks=int(match[1]), window=int(match[2]), **options)  # type: ignore[arg-type]
