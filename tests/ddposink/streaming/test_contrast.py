"""Key tokens against the definition written plainly: a forward of the model for every token and context."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddposink.streaming import contrasted, key_tokens
from ddposink.streaming.contrast import ALPHA, BETA
from helpers.families import VOCAB, build


def copying_text() -> torch.Tensor:
    """The same forty tokens three times: what was read before tells what comes."""
    first = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(0))
    return torch.cat([first, first, first])


def plain(model: torch.nn.Module, ids: torch.Tensor, context: int, stride: int) -> np.ndarray:
    """(2, N-1) NLL after all tokens, and after the window that ends with the token's stride."""
    nll = np.empty((2, len(ids) - 1))
    with torch.no_grad():
        for t in range(len(ids) - 1):
            begin = max(0, (t // stride + 1) * stride - context - stride)
            for row, start in enumerate((0, begin)):
                logits = model(ids[None, start : t + 1]).logits[0, -1].double()
                nll[row, t] = -logits.log_softmax(-1)[ids[t + 1]]
    return nll


def test_key_tokens_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights know no long context, so the thresholds are lowered until some tokens pass."""
    monkeypatch.setattr("ddposink.streaming.contrast.ALPHA", 0.05)
    monkeypatch.setattr("ddposink.streaming.contrast.BETA", -6.0)
    model, ids = build("llama"), copying_text()
    found, expected = contrasted(model, ids, 16, 17), plain(model, ids, context=16, stride=4)
    assert np.abs(found - expected).max() < 1e-4
    keys = key_tokens(expected)
    assert (keys == (expected[1] - expected[0] > 0.05) & (expected[0] < 6.0)).all()
    assert keys.any()
    assert not key_tokens(found)[:16].any()  # both contexts are the same there


def test_thresholds_are_the_papers() -> None:
    assert (ALPHA, BETA) == (2.0, -2.0)
    whole, short = np.array([1.9, 2.1, 1.0, 0.1]), np.array([4.0, 9.0, 2.9, 2.2])
    assert key_tokens(np.stack([whole, short])).tolist() == [True, False, False, True]
