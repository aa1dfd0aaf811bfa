"""The model on the library's own cache: dense as it is, or with whole tokens evicted from that cache.

For models whose keys cannot be re-based, or that cache something else than keys and values (latents,
recurrent state). Dense is simply the model. A bounded policy is another matter: keys stay as the model made
them and a new token is given position min(t, S+R), so it is no StreamingLLM, and it runs only under a name
that says so: ``positions=library``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, StaticCache

from ddposink.caches import Policy
from ddposink.caches.offloaded import Offloaded
from ddposink.caches.static import Static
from ddposink.streaming.base import Stream
from ddposink.streaming.hook import Hook
from ddposink.streaming.refusals import PolicyNotAppliedError, UnsupportedPolicyError

KEYS = ("keys", "values", "indexer_keys")  # of one token each: what a cache holds per token


class LibraryStream(Stream):
    """Dense in chunks, or a bounded policy with ``positions=library`` one token at a time."""

    path = "library"
    seen: int = 0
    held: int = 0
    largest_position: int = 0

    def __init__(self, model: nn.Module, policy: Policy, chunk: int) -> None:
        super().__init__(model)
        self.policy = policy
        self.chunk = 1 if policy.bounded else chunk
        self.cache = self._empty()
        self.counter = _Counter(model)
        self.costs = self._one_token()
        if policy.bounded:
            self._check_policy()

    def _empty(self) -> Cache:
        """The library's cache that the policy's name stands for."""
        config = self.model.config
        if isinstance(self.policy, Offloaded):
            if self.trunk.device.type == "cpu":
                raise UnsupportedPolicyError(
                    "'offloaded' on a CPU: there is no device memory to offload from"
                )
            return DynamicCache(config=config, offloading=True)
        return DynamicCache(config=config)

    @torch.no_grad()
    def _one_token(self) -> list[tuple[int, int | None]]:
        """Bytes that one token takes in every layer of the cache, and the layer's own window in tokens."""
        cache, one = DynamicCache(config=self.model.config), torch.zeros(1, 1, dtype=torch.long)
        self.trunk.hidden(one.to(self.trunk.device), one.to(self.trunk.device), cache)
        return [(_token_bytes(layer), getattr(layer, "sliding_window", None)) for layer in cache.layers]

    def _check_policy(self) -> None:
        if self.policy.positions != "library" or self.policy.evict.per != "token":
            raise UnsupportedPolicyError(
                f"'{self.policy}' needs keys that can be re-based; the library's own cache is evicted under "
                f"the name 'positions=library', after every token"
            )
        if "position_ids" not in inspect.signature(self.trunk.body.forward).parameters:
            raise UnsupportedPolicyError(
                "this model counts positions by itself: it cannot be told the cache's"
            )
        odd = {type(layer).__name__ for layer in self.cache.layers} - {"DynamicLayer"}
        if odd:
            raise UnsupportedPolicyError(
                f"this model's cache has layers that are no plain keys and values "
                f"({', '.join(sorted(odd))}): a policy on top of them would be no policy it could be called"
            )

    def next_size(self, left: int) -> int:
        """One token, or a chunk when dense."""
        return min(left, self.chunk)

    @contextmanager
    def attached(self) -> Iterator[Stream]:
        """Nothing to replace: the model runs as it is, its attention modules are only counted."""
        with torch.no_grad(), self.counter:
            yield self

    def feed(self, ids: Tensor) -> Tensor:
        """Hidden states (n, d) of the next ``ids`` (n,); the cache itself is checked."""
        start = min(self.seen, self.policy.sinks + self.policy.window) if self.policy.bounded else self.seen
        positions = torch.arange(start, start + len(ids), device=ids.device)[None]
        with torch.no_grad():  # dense is the model as it is: it counts by itself
            told = positions if self.policy.bounded else None
            hidden = self.trunk.hidden(ids[None], told, self.cache)[0]
        self.seen += len(ids)
        self.held += len(ids)
        self.largest_position = max(self.largest_position, int(positions[0, -1]))
        if self.policy.bounded:
            self._evict()
        self.calls_per_layer = self.counter.calls
        return hidden

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        raise RuntimeError("LibraryStream feeds the model directly")

    def _evict(self) -> None:
        sinks, window = self.policy.sinks, self.policy.window
        for layer in self.cache.layers:
            if layer.keys.shape[2] > sinks + window:
                lo = layer.keys.shape[2] - window
                layer.keys = torch.cat([layer.keys[:, :, :sinks], layer.keys[:, :, lo:]], 2)
                layer.values = torch.cat([layer.values[:, :, :sinks], layer.values[:, :, lo:]], 2)
        self.held = min(self.held, sinks + window)
        held = {layer.keys.shape[2] for layer in self.cache.layers}
        if held != {self.held}:
            raise RuntimeError(
                f"the cache holds {sorted(held)} tokens per layer, the policy says {self.held}"
            )

    def mark(self, steps: int) -> tuple[Any, ...]:
        """Keys are replaced by the library when it appends, states are written in place: those are copied."""
        layers = [_frozen(vars(layer)) for layer in self.cache.layers]
        return self.seen, self.held, self.largest_position, layers, self.counter.calls

    def rewind(self, mark: tuple[Any, ...]) -> None:
        """Undo the tokens fed since ``mark``."""
        self.seen, self.held, self.largest_position, layers, self.counter.calls = mark
        self.calls_per_layer = self.counter.calls
        del self.cache.layers[len(layers) :]  # a cache without a configuration grows layer by layer
        for layer, attributes in zip(self.cache.layers, layers, strict=True):
            vars(layer).clear()
            vars(layer).update(_frozen(attributes))

    def nbytes(self) -> int:
        """Measured bytes of the keys and values held, or of the latents in their place."""
        return held_bytes(self.cache)

    def predicted_bytes(self) -> int:
        """What one token takes, times the tokens held; sliding layers of the library hold window - 1."""
        return sum(cost * (self.held if own is None else min(self.held, own - 1)) for cost, own in self.costs)

    def state_bytes(self) -> int:
        """Measured bytes of recurrent and convolution states, whose size does not depend on the text."""
        return sum(
            _size(state)
            for layer in self.cache.layers
            for name in ("conv_states", "recurrent_states")
            for state in getattr(layer, name, {}).values()
        )

    def allocated_bytes(self) -> int:
        """The same: the library allocates exactly what it holds."""
        return self.nbytes()


class StaticStream(LibraryStream):
    """Dense in the library's static cache: a buffer of the policy's size from the first token on."""

    policy: Static

    def _empty(self) -> Cache:
        return StaticCache(config=self.model.config, max_cache_len=self.policy.size)

    def feed(self, ids: Tensor) -> Tensor:
        """Hidden states (n, d) of the next ``ids`` (n,). Raises PolicyNotAppliedError if they do not fit."""
        if self.seen + len(ids) > self.policy.size:
            raise PolicyNotAppliedError(f"'{self.policy}' is full: {self.seen + len(ids)} tokens do not fit")
        return super().feed(ids)

    def nbytes(self) -> int:
        """Measured bytes of the slots that hold a token."""
        return self.allocated_bytes() // self.policy.size * self.held

    def allocated_bytes(self) -> int:
        """Measured bytes of all slots."""
        return held_bytes(self.cache)


class _Counter:
    """Counts the calls of every attention module while open: the same number for all, or it is no number."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            module
            for name, module in model.named_modules()
            if isinstance(getattr(module, "layer_idx", None), int)
            and "attention" in type(module).__name__.lower()
        ]
        self._handles: list[Any] = []
        self._depth = 0  # a stream may be attached again inside its own context
        self._counts: dict[int, int] = {}

    @property
    def calls(self) -> int | None:
        """Calls of each attention module so far; None if there is none, or they differ."""
        counts = set(self._counts.values()) if self._counts else set()
        return counts.pop() if len(counts) == 1 else None

    @calls.setter
    def calls(self, value: int | None) -> None:
        self._counts = dict.fromkeys(self._counts, value or 0)

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._handles = [module.register_forward_hook(self._count) for module in self._modules]

    def __exit__(self, *_: Any) -> None:
        self._depth -= 1
        if not self._depth:
            while self._handles:
                self._handles.pop().remove()

    def _count(self, module: nn.Module, *_: Any) -> None:
        self._counts[module.layer_idx] = self._counts.get(module.layer_idx, 0) + 1


def _frozen(attributes: dict[str, Any]) -> dict[str, Any]:
    """A copy to come back to: tensors in dictionaries (recurrent states) and counters change in place."""

    def copy(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: _cloned(one) for key, one in value.items()}
        return value.clone() if isinstance(value, Tensor) and value.numel() == 1 else value

    return {name: copy(value) for name, value in attributes.items()}


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def held_bytes(cache: Cache) -> int:
    """Measured bytes of what a cache holds per token, in all layers."""
    return sum(_token_bytes(layer) for layer in cache.layers)


def _token_bytes(layer: Any) -> int:
    """Measured bytes of what a cache layer holds per token."""
    return sum(_size(getattr(layer, name, None)) for name in KEYS)


def _size(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
