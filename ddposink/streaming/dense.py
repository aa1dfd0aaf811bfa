"""Dense attention, measured as it is: every key kept at its text position.

Chunks of queries see their own chunk through a causal kernel and all earlier keys through a full
one, merged by log-sum-exp: the numbers of one long forward without its quadratic memory. Keys lie in
one buffer that grows by doubling, or to what was reserved. Models with sliding layers or learned
positions use `library`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ddposink.caches import Dense
from ddposink.streaming.base import CountedStream
from ddposink.streaming.hook import Hook
from ddposink.streaming.kernel import attend, merge
from ddposink.streaming.positions import Alibi, Layout


class DenseStream(CountedStream):
    """Unbounded cache, ``chunk`` tokens per forward; ``capacity`` avoids regrowth if known."""

    path = "exact"

    def __init__(self, model: nn.Module, layout: Layout, chunk: int, capacity: int = 0) -> None:
        super().__init__(model, layout)
        self.policy = Dense()
        self.chunk = chunk
        self.capacity = capacity

    def next_size(self, left: int) -> int:
        """A chunk."""
        return min(left, self.chunk)

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        hook.attend, rows = self._attend, torch.atleast_2d(ids)
        positions = torch.arange(self.seen, self.seen + rows.shape[1], device=ids.device)
        hidden = hook.forward(rows, positions[None])
        self.seen += rows.shape[1]
        self.held, self.largest_position = self.seen, self.seen - 1
        return hidden

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> Tensor:
        past, fresh = self.seen, k.shape[2]
        keys, values = self._room(layer, k, v, past + fresh)
        keys[:, :, past : past + fresh] = k
        values[:, :, past : past + fresh] = v
        positions, cap = self.layout[layer].positions, extra.get("softcap")
        slopes = positions.slopes if isinstance(positions, Alibi) else None
        at = torch.arange(-past, fresh, device=q.device)
        if fresh == 1:  # one query sees all there is: one kernel instead of two and a merge
            whole = keys[:, :, : past + 1], values[:, :, : past + 1]
            return merge(
                [attend(q, *whole, scale, slopes=slopes, key_positions=at, softcap=cap)], extra.get("s_aux")
            )
        parts = [attend(q, k, v, scale, causal=True, slopes=slopes, key_positions=at[past:], softcap=cap)]
        if past:
            k_past, v_past = keys[:, :, :past], values[:, :, :past]
            parts.append(
                attend(q, k_past, v_past, scale, slopes=slopes, key_positions=at[:past], softcap=cap)
            )
        return merge(parts, extra.get("s_aux"))

    def _room(self, layer: int, k: Tensor, v: Tensor, needed: int) -> tuple[Tensor, Tensor]:
        if layer in self.layers and self.layers[layer][0].shape[2] >= needed:
            return self.layers[layer]
        have = self.layers[layer][0].shape[2] if layer in self.layers else 0
        capacity = self.capacity if self.capacity >= needed else max(needed, 2 * have)
        grown = tuple(x.new_empty(*x.shape[:2], capacity, x.shape[3]) for x in (k, v))
        if have:
            for new, old in zip(grown, self.layers[layer], strict=True):
                new[:, :, :have] = old
        self.layers[layer] = (grown[0], grown[1])
        return self.layers[layer]

    def reserve(self, tokens: int) -> None:
        """The buffer's size when it next grows: so that it holds no more than is about to be needed."""
        self.capacity = tokens

    @contextmanager
    def widened(self, count: int) -> Iterator[None]:
        """See `Stream.widened`; a layer at a time, old buffers are freed."""
        for index, (k, v) in self.layers.items():
            self.layers[index] = k.repeat(count, 1, 1, 1), v.repeat(count, 1, 1, 1)
        try:
            yield
        finally:
            for index, (k, v) in self.layers.items():
                self.layers[index] = k[:1].clone(), v[:1].clone()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, keys and values lie on the host: while another stream's memory is looked at."""
        device = self.trunk.device
        self._move(torch.device("cpu"))
        try:
            yield
        finally:
            self._move(device)

    def _move(self, device: torch.device) -> None:
        for index, (k, v) in self.layers.items():
            self.layers[index] = k.to(device), v.to(device)

    def mark(self, steps: int) -> int:
        """How many tokens are held: later ones are simply forgotten."""
        return self.seen

    def rewind(self, mark: int) -> None:
        """Forget the tokens fed since ``mark``."""
        self.seen = self.held = mark

    def nbytes(self) -> int:
        """Measured bytes of the keys and values of the tokens held."""
        return sum(
            self.seen * x.shape[0] * x.shape[1] * x.shape[3] * x.element_size()
            for pair in self.layers.values()
            for x in pair
        )

    def allocated_bytes(self) -> int:
        """Measured bytes of the buffers."""
        return sum(x.numel() * x.element_size() for pair in self.layers.values() for x in pair)
