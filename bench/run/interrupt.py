"""Ctrl-C, a polite kill and a closed terminal end a run alike, and never in the middle of an answer.

Python raises KeyboardInterrupt wherever the program happens to be, also between taking an answer from
a child and having it on the disk. ``held`` marks what must not be cut: the interruption comes after it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupts:
    """As a context: the signals raise ``KeyboardInterrupt(number)``, deferred while ``held``."""

    def __init__(self) -> None:
        self._held = False
        self._number: int | None = None
        self._saved: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                self._saved[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Finish this block first; it must not take long."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._number is not None:
            raise KeyboardInterrupt(self._number)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self._held:
            raise KeyboardInterrupt(number)
        self._number = number
