"""Streaming NLL: feed a stream, score every next token, stop where somebody wants to look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddposink.streaming.base import Stream

ROWS = 256  # positions that are scored together, if forwards are smaller
FEW_ROWS = 32  # where they are of few tokens, which takes long: somebody wants to see progress
FEW = 8


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
    """Feed ``ids`` (N,) and fill ``nll`` (N-1,) float32 in place; yields after one forward or a few.

    ``nll[t]`` is -log p(ids[t+1] | what the policy lets token t see), in nats. Forwards end exactly at
    each of ``checkpoints`` (numbers of tokens fed), so that memory and latency can be looked at there.
    Non-finite values are kept as they are. ``watch`` gets the hidden states (n, d) of
    every forward. Must run inside ``with stream.attached()``.
    """
    total = len(ids)
    if len(nll) != total - 1:
        raise ValueError(f"nll must have {total - 1} entries for {total} tokens, got {len(nll)}")
    for stop in (c for c in sorted({*checkpoints, total}) if stream.seen < c <= total):
        while stream.seen < stop:
            start, hidden = stream.seen, _read(stream, ids, stop, watch)
            scored = min(len(hidden), total - 1 - start)  # the last token of all has no successor
            if scored:
                targets = ids[start + 1 : start + 1 + scored]
                nll[start : start + scored] = stream.head.nll(hidden[:scored], targets).cpu().numpy()
            yield Stop(stream.seen, stream.seen == stop)


def _read(stream: Stream, ids: Tensor, stop: int, watch: Callable[[Tensor], None] | None) -> Tensor:
    """Hidden states (n, d) of the next forwards, as many as are scored together: a head wants many rows.

    How many that are depends on no clock: another number of rows adds up in another order.
    """
    pieces, rows, most = [], 0, ROWS
    while stream.seen < stop and rows < most:
        size = stream.next_size(stop - stream.seen)
        most = min(most, ROWS if size > FEW else FEW_ROWS)
        hidden = stream.feed(ids[stream.seen : stream.seen + size])
        if watch is not None:
            watch(hidden)
        pieces.append(hidden)
        rows += size
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def evaluate(stream: Stream, ids: Tensor) -> np.ndarray:
    """Per-token NLL (N-1,) float32 of ``ids`` (N,), in one go."""
    nll = np.full(len(ids) - 1, np.nan, dtype=np.float32)
    with stream.attached():
        for _ in stream_nll(stream, ids.to(next(stream.model.parameters()).device, torch.long), nll):
            pass
    return nll
