"""How far a policy's predictions are from dense attention's: against the whole logits of both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddposink.caches import Dense, parse_policy
from ddposink.streaming import Divergence, open_stream, stream_nll
from helpers.families import build

IDS = torch.randint(0, 131, (70,), generator=torch.Generator().manual_seed(3))


def watched(model: torch.nn.Module, text: str, chunk: int) -> tuple[Divergence, np.ndarray]:
    stream = open_stream(model, parse_policy(text), chunk=chunk).stream
    beside = Divergence(open_stream(model, Dense(), chunk=16).stream, IDS)
    nll = np.full(len(IDS) - 1, np.nan, np.float32)
    with stream.attached():
        for _ in stream_nll(stream, IDS, nll, [33], beside.watch):
            pass
    beside.catch_up()
    return beside, nll


@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("text", ["sink 2+6", "h2o 12 evict=chunk:8", "recompute 9 stride=3"])
@torch.no_grad()
def test_the_numbers_are_those_of_the_whole_logits(text: str, chunk: int) -> None:
    model = build("llama")
    beside, nll = watched(model, text, chunk)
    stream = open_stream(model, parse_policy(text), chunk=chunk).stream
    rows = []
    with stream.attached():
        while stream.seen < len(IDS):
            size = stream.next_size(len(IDS) - stream.seen)
            rows.append(stream.head.logits(stream.feed(IDS[stream.seen : stream.seen + size])))
    q = torch.cat(rows)[:-1].double().log_softmax(-1)
    p = model(IDS[None]).logits[0, :-1].double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).numpy()
    lost = (p - q).gather(1, IDS[1:, None])[:, 0].numpy()
    assert np.abs(beside.kl - kl).max() < 1e-4
    assert np.abs(beside.lost - lost).max() < 1e-3
    assert (beside.agree == (p.argmax(-1) == q.argmax(-1)).numpy()).mean() > 0.98
    assert np.abs(nll + q.gather(1, IDS[1:, None])[:, 0].numpy()).max() < 1e-3
    assert kl[30:].mean() > 0.1 > beside.kl[:8].max()


def test_dense_beside_itself_is_no_distance() -> None:
    beside, _ = watched(build("llama"), "dense", 7)
    assert np.abs(beside.kl).max() < 1e-6
    assert beside.agree.min() == 1
