"""Streaming NLL: feed a stream, score every next token, stop where somebody wants to look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddposink.streaming.base import Stream


@dataclass(frozen=True)
class Stop:
    """What is known at a point of the stream: ``nll[:fed - 1]`` is complete."""

    fed: int
    at_checkpoint: bool


def stream_nll(
    stream: Stream,
    ids: Tensor,
    nll: np.ndarray,
    checkpoints: Sequence[int] = (),
    watch: Callable[[Tensor], None] | None = None,
) -> Iterator[Stop]:
    """Feed ``ids`` (N,) and fill ``nll`` (N-1,) float32 in place; yields after every forward.

    ``nll[t]`` is -log p(ids[t+1] | what the policy lets token t see), in nats. Forwards end exactly at
    each of ``checkpoints`` (numbers of tokens fed), so that memory and latency can be looked at there.
    Non-finite values are kept as they are. ``watch`` gets the hidden states (n, d) of
    every forward. Must run inside ``with stream.attached()``.
    """
    total = len(ids)
    if len(nll) != total - 1:
        raise ValueError(f"nll must have {total - 1} entries for {total} tokens, got {len(nll)}")
    stops = [c for c in sorted({*checkpoints, total}) if stream.seen < c <= total]
    for stop in stops:
        while stream.seen < stop:
            start = stream.seen
            size = stream.next_size(stop - start)
            hidden = stream.feed(ids[start : start + size])
            if watch is not None:
                watch(hidden)
            scored = min(size, total - 1 - start)  # the last token of all has no successor
            if scored:
                targets = ids[start + 1 : start + 1 + scored]
                nll[start : start + scored] = stream.head.nll(hidden[:scored], targets).cpu().numpy()
            yield Stop(stream.seen, stream.seen == stop)


def evaluate(stream: Stream, ids: Tensor) -> np.ndarray:
    """Per-token NLL (N-1,) float32 of ``ids`` (N,), in one go."""
    nll = np.full(len(ids) - 1, np.nan, dtype=np.float32)
    with stream.attached():
        for _ in stream_nll(stream, ids.to(next(stream.model.parameters()).device, torch.long), nll):
            pass
    return nll
