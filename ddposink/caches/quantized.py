"""Quantized: every token is kept, with fewer bits (see `ddposink.caches.codec`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ddposink.caches.codec import CODES
from ddposink.caches.dense import Dense


@dataclass(frozen=True)
class Quantized(Dense):
    """``quantized 4``: dense attention over keys and values that are rounded as soon as they are made.

    Keys are stored before their rotation. A query sees its own key rounded too, so that the result does not
    depend on how a text is cut into forwards; the model library's quantised cache keeps the last 128 tokens
    as they are instead.
    """

    kind: ClassVar[str] = "quantized"

    @property
    def label(self) -> str:
        """``quantized 4``."""
        return f"{self.kind} {self.bits}"

    @property
    def family(self) -> str:
        """Bits are what it is; it has no other size."""
        return self.label

    @classmethod
    def from_text(cls, size: str, **options: object) -> Quantized:
        """``4`` → four bits a number."""
        if size not in CODES:
            raise ValueError(
                f"a quantized cache is written 'quantized 4', with one of {', '.join(CODES)}; got '{size}'"
            )
        return cls(bits=size)
