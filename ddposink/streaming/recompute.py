"""Sliding window with recomputation: no cache is carried, every forward is the untouched model's own.

A forward reads the window that ends with the last token of a stride and gives the hidden states of the tokens
fed. Several strides are one batch. The bytes of keys and values are those of one window, alive while it is
read; between forwards only token ids are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ddposink.caches.recompute import Recompute
from ddposink.streaming.library import LibraryStream, held_bytes

BATCH_TOKENS = 4096  # of all windows in one forward


class RecomputeStream(LibraryStream):
    """``chunk`` bounds the tokens fed at once; the ids of the last window are all that is carried."""

    path = "recompute"
    policy: Recompute

    def __init__(self, model: nn.Module, policy: Recompute, chunk: int) -> None:
        super().__init__(model, policy, chunk)
        self.chunk = chunk
        self.ids = torch.zeros(0, dtype=torch.long, device=self.trunk.device)
        self._alive = 0  # bytes of keys and values of the last window read

    def _check_policy(self) -> None:
        """Every model that runs at all can read a window."""

    def next_size(self, left: int) -> int:
        """As many strides as make a batch, ending where a stride ends."""
        stride = self.policy.stride
        strides = max(1, min(BATCH_TOKENS // self.policy.window, self.chunk // stride))
        return min(left, strides * stride - self.seen % stride)

    def feed(self, ids: Tensor) -> Tensor:
        """Hidden states (n, d) of the next ``ids`` (n,)."""
        known = torch.cat([self.ids, ids])
        offset = self.seen - len(self.ids)  # text position of the first id known
        out = []
        for _, alike in groupby(self._strides(len(ids)), key=lambda one: one[1] - one[2]):
            group = list(alike)  # windows of one length are one batch
            hidden = self._read(torch.stack([known[b - offset : end - offset] for _, end, b in group]))
            out += [hidden[i, first - end :] for i, (first, end, _) in enumerate(group)]
        self.seen += len(ids)
        self.ids = known[-self.policy.window :]
        self.held = self.policy.cached(self.seen)
        self.calls_per_layer = self.counter.calls
        return torch.cat(out)

    def _strides(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Of the next ``count`` tokens: first one of a stride, its end, and where its window begins."""
        at, end = self.seen, self.seen + count
        while at < end:
            stop = min(end, (at // self.policy.stride + 1) * self.policy.stride)
            yield at, stop, self.policy.begin(at)
            at = stop

    @torch.no_grad()
    def _read(self, windows: Tensor) -> Tensor:
        """Hidden states (B, L, d) of ``windows`` (B, L), positions from 0; the cache is forgotten."""
        cache = DynamicCache(config=self.model.config)
        hidden = self.trunk.hidden(windows, None, cache)
        self._alive = held_bytes(cache) // len(windows)
        self.largest_position = max(self.largest_position, windows.shape[1] - 1)
        return hidden

    def nbytes(self) -> int:
        """Measured bytes of the keys and values of one window, the last one read."""
        return self._alive

    def mark(self, steps: int) -> tuple[Any, ...]:
        """The ids, which are replaced and never written to."""
        return self.seen, self.held, self.largest_position, self.ids, self.counter.calls, self._alive

    def rewind(self, mark: tuple[Any, ...]) -> None:
        """Undo the tokens fed since ``mark``."""
        self.seen, self.held, self.largest_position, self.ids, self.counter.calls, self._alive = mark
        self.calls_per_layer = self.counter.calls
