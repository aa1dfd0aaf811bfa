"""A moving average of the trained weights, which is evaluated and exported while the weights learn.

After every update average ← d·average + (1 − d)·weights, with d = min(decay, (1 + n)/(10 + n)) after n
updates, so that it does not begin as an average of the first weights (as TensorFlow's and diffusers' do).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class MovingAverage:
    """Of ``weights`` by name, which stay where they are."""

    def __init__(self, weights: dict[str, Tensor], decay: float) -> None:
        self._weights, self._decay = weights, decay
        self._values = {name: value.detach().clone() for name, value in weights.items()}
        self._updates, self._active = 0, False

    @torch.no_grad()
    def update(self) -> None:
        """The weights have been updated once."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        values, weights = list(self._values.values()), list(self._weights.values())
        torch._foreach_lerp_(values, weights, 1 - decay)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the average stands in the weights' place; within itself it changes nothing."""
        if self._active:
            yield
            return
        kept = {name: value.detach().clone() for name, value in self._weights.items()}
        self._put(self._values)
        self._active = True
        try:
            yield
        finally:
            self._active = False
            self._put(kept)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, exactly; for a checkpoint."""
        return {f"ema.{n}": v for n, v in self._values.items()} | {"ema": torch.tensor(self._updates)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of `tensors`, of which others may be among them."""
        self._updates = int(tensors["ema"])
        for name, value in self._values.items():
            value.copy_(tensors[f"ema.{name}"])

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])
