"""The fall-back: the model library's own cache, with whole tokens evicted from it.

For models whose keys cannot be re-based (learned absolute positions, unknown families). Keys stay as
the model made them. Under a bounded policy a new token is given position min(t, S+R): with learned
positions that is the last one the cache has room for (semantics named ``stuck``); nothing else can be
expressed, and it is recorded as what it is. Dense is simply the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ddposink.caches import Policy
from ddposink.streaming.base import CountedStream, Stream
from ddposink.streaming.families import UnsupportedPolicyError, own_windows
from ddposink.streaming.hook import Hook


class LibraryStream(CountedStream):
    """Dense in chunks, or a bounded policy one token at a time, on ``DynamicCache``."""

    path = "library"

    def __init__(self, model: nn.Module, policy: Policy, chunk: int) -> None:
        super().__init__(model)
        if policy.bounded and any(own is not None for own in own_windows(model)):
            raise UnsupportedPolicyError(
                "this model has sliding layers of its own and is not in the table of verified families: "
                "a bounded policy on top of them would not be the policy it is called"
            )
        if policy.bounded and (policy.positions != "cache" or policy.evict.per != "token"):
            raise UnsupportedPolicyError(
                f"'{policy}' needs keys that can be re-based; on this model only 'evict=token' with the "
                f"default positions can be measured (by decode)"
            )
        self.policy = policy
        self.chunk = 1 if policy.bounded else chunk
        self.cache = DynamicCache(config=model.config)

    def next_size(self, left: int) -> int:
        """One token, or a chunk when dense."""
        return min(left, self.chunk)

    @contextmanager
    def attached(self) -> Iterator[Stream]:
        """Nothing to hook: the model runs as it is."""
        with torch.no_grad():
            yield self

    def feed(self, ids: Tensor) -> Tensor:
        """Hidden states (n, d); the attention hook is not used here, the cache itself is checked."""
        start = min(self.seen, self.policy.sinks + self.policy.window) if self.policy.bounded else self.seen
        positions = torch.arange(start, start + len(ids), device=ids.device)[None]
        with torch.no_grad():
            output = self.model.base_model(
                input_ids=ids[None], past_key_values=self.cache, use_cache=True, **self._position(positions)
            )
        self.seen += len(ids)
        self.held += len(ids)
        self.largest_position = int(positions[0, -1])
        self._evict()
        held = {layer.keys.shape[2] for layer in self.cache.layers} if self.policy.bounded else {self.held}
        if held != {self.held}:
            raise RuntimeError(
                f"the cache holds {sorted(held)} tokens per layer, the policy says {self.held}"
            )
        self.calls_per_layer += 1
        return output.last_hidden_state[0]

    def _position(self, positions: Tensor) -> dict[str, Tensor]:
        # MPT and BLOOM count by themselves; OPT counts from a mask unless told.
        return {} if self.model.config.model_type in ("mpt", "bloom") else {"position_ids": positions}

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        raise RuntimeError("LibraryStream feeds the model directly")

    def _evict(self) -> None:
        sinks, window = self.policy.sinks, self.policy.window
        if not self.policy.bounded or self.held <= sinks + window:
            return
        for layer in self.cache.layers:
            lo = layer.keys.shape[2] - window
            layer.keys = torch.cat([layer.keys[:, :, :sinks], layer.keys[:, :, lo:]], 2)
            layer.values = torch.cat([layer.values[:, :, :sinks], layer.values[:, :, lo:]], 2)
        self.held = sinks + window

    def mark(self, steps: int) -> tuple[Any, ...]:
        """References suffice: the library replaces tensors when it appends."""
        layers = [dict(vars(layer)) for layer in self.cache.layers]
        return self.seen, self.held, self.largest_position, layers

    def rewind(self, mark: tuple[Any, ...]) -> None:
        """Undo the tokens fed since ``mark``."""
        self.seen, self.held, self.largest_position, layers = mark
        for layer, attributes in zip(self.cache.layers, layers, strict=True):
            vars(layer).update(attributes)

    def nbytes(self) -> int:
        """Measured bytes of the cached keys and values."""
        return sum(
            x.numel() * x.element_size()
            for layer in self.cache.layers
            if layer.keys is not None
            for x in (layer.keys, layer.values)
        )
