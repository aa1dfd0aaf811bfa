"""What all evaluators share: feed tokens, get hidden states, know what is held.

A `Stream` is fed pieces of the size it asks for (`next_size`): one token for decode and for the
reference, a chunk for parallel evaluation. Loops over it (`perplexity`, `decode`) do not know which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddposink.caches import Policy
from ddposink.devices import keep_freed_pages
from ddposink.streaming.head import Head
from ddposink.streaming.hook import Hook, attention_hook
from ddposink.streaming.positions import Layout
from ddposink.streaming.refusals import UnsupportedPolicyError
from ddposink.streaming.trunk import Trunk


class Stream(ABC):
    """One endless token stream through one model under one policy."""

    policy: Policy
    path: ClassVar[str]  # "exact" | "decode" | "reference" | …: goes into the record

    def __init__(self, model: nn.Module, layout: Layout | None = None) -> None:
        self.model = model
        self.trunk = Trunk.of(model)
        self.head = Head.of(self.trunk)
        self.layout = layout or Layout({})
        self._hook: Hook | None = None
        self.calls_per_layer: int | None = 0  # attention calls of every layer; None where they are not known

    @property
    @abstractmethod
    def seen(self) -> int:
        """Tokens fed so far."""

    @property
    @abstractmethod
    def held(self) -> int:
        """Tokens whose keys are in the cache now."""

    def slots(self) -> list[int]:
        """Tokens held in every layer, where layers may differ; else one number for all."""
        return [self.held]

    @property
    @abstractmethod
    def largest_position(self) -> int:
        """Largest position any query has stood at."""

    @property
    def missing_from(self) -> int | None:
        """Index of the first query that missed an earlier token so far; None while none has."""
        start = self.policy.evicts_from
        return start if start is not None and self.seen > start else None

    @abstractmethod
    def next_size(self, left: int) -> int:
        """How many of the ``left`` remaining tokens the next `feed` must get."""

    @abstractmethod
    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        """Hidden states (n, d) of ``ids`` (n,); advances the state."""

    @abstractmethod
    def nbytes(self) -> int:
        """Measured bytes of the keys and values held, from the real tensors."""

    @abstractmethod
    def predicted_bytes(self) -> int:
        """What `nbytes` must be: bytes of a token in every layer, times the tokens the policy keeps there."""

    @abstractmethod
    def allocated_bytes(self) -> int:
        """Measured bytes of all cache buffers, empty slots included."""

    def state_bytes(self) -> int:
        """Measured bytes of what is carried besides keys and values (recurrent and convolution states)."""
        return 0

    def reserve(self, tokens: int) -> None:
        """So many tokens will be held at once, soon; streams of fixed size need not be told."""
        return

    @abstractmethod
    def mark(self, steps: int) -> Any:
        """Whatever `rewind` needs to undo up to ``steps`` tokens fed after this."""

    @abstractmethod
    def rewind(self, mark: Any) -> None:
        """Go back to where `mark` was taken."""

    def decoder(self, *, eager: bool = False) -> Stream:
        """A stream that goes on from here one token at a time, sharing this stream's cache.

        ``eager`` refuses recordings (see `captured`): every operator is started by Python and can be counted.
        """
        return self

    def widened(self, count: int) -> AbstractContextManager[None]:
        """Inside, this is ``count`` streams in step, each of which holds what this one held; feed (count, 1).

        Afterwards it is the first of them alone. Raises UnsupportedPolicyError if streams of this kind go one
        at a time.
        """
        raise UnsupportedPolicyError(
            f"'{self.policy}' on this model is read one stream at a time: use batch 1"
        )

    @contextmanager
    def attached(self) -> Iterator[Stream]:
        """Hook into the model's attention; feed only inside this context. May be nested."""
        keep_freed_pages()
        outer = self._hook, self.calls_per_layer
        with torch.no_grad(), attention_hook(self.trunk, _nothing, self.layout.layers) as hook:
            self._hook = hook
            try:
                yield self
            finally:
                if outer[0] is not None:
                    self._hook, self.calls_per_layer = outer
                else:
                    self._hook = None

    def feed(self, ids: Tensor) -> Tensor:
        """Hidden states (n, d) of the next ``ids`` (n,); decode and reference take (B, 1) too, giving (B, d).

        Raises PolicyNotAppliedError if any layer's attention did not go through the policy.
        """
        if self._hook is None:
            raise RuntimeError("feed a stream inside `with stream.attached()`")
        hidden = self._forward(self._hook, ids)
        self.calls_per_layer = self._hook.forwards
        return hidden


class CountedStream(Stream):
    """A stream that keeps its own counters and, per layer, keys and values (1, Hkv, n, D)."""

    seen: int = 0
    held: int = 0
    largest_position: int = 0

    def __init__(self, model: nn.Module, layout: Layout | None = None) -> None:
        super().__init__(model, layout)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def kept(self) -> int:
        """Tokens that the policy keeps after those fed so far."""
        return self.policy.cached(self.seen)

    def predicted_bytes(self) -> int:
        """Bytes of one token in all layers, times the tokens kept."""
        return self.kept() * sum(layer.token_bytes for layer in self.layout.layers.values())

    def nbytes(self) -> int:
        """Measured bytes of the cached keys and values."""
        return sum(x.numel() * x.element_size() for pair in self.layers.values() for x in pair)

    def allocated_bytes(self) -> int:
        """The same: `torch.cat` allocates exactly what it holds."""
        return self.nbytes()


def _nothing(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]) -> Tensor:
    raise RuntimeError("no attention was set for this forward")
