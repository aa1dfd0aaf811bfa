"""Recomputation, static and quantised caches of the library: against the model itself, window by window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddposink.caches import parse_policy
from ddposink.streaming import PolicyNotAppliedError, UnsupportedPolicyError, evaluate, open_stream
from helpers.families import build

IDS = torch.randint(0, 131, (60,), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def by_hand(model: torch.nn.Module, window: int, stride: int) -> np.ndarray:
    """One plain forward of the window of every token."""
    nll = []
    for token in range(len(IDS) - 1):
        begin = max(0, (token // stride + 1) * stride - window)
        logits = model(IDS[None, begin : token + 1]).logits[0, -1].log_softmax(-1)
        nll.append(-float(logits[IDS[token + 1]]))
    return np.array(nll)


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gpt2"])
@pytest.mark.parametrize(("window", "stride"), [(12, 1), (12, 5), (16, 16), (7, 3)])
@pytest.mark.parametrize("chunk", [1024, 3])
def test_every_token_sees_its_window_read_anew(family: str, window: int, stride: int, chunk: int) -> None:
    model, policy = build(family), parse_policy(f"recompute {window} stride={stride}")
    stream = open_stream(model, policy, chunk=chunk).stream
    assert np.abs(evaluate(stream, IDS) - by_hand(model, window, stride)).max() < 1e-4
    assert stream.held == policy.cached(60) <= window
    assert stream.nbytes() == stream.predicted_bytes()
    assert stream.missing_from == policy.evicts_from == window // stride * stride
    assert stream.largest_position < window


def test_recomputation_can_be_decoded_and_undone() -> None:
    model = build("llama")
    stream = open_stream(model, parse_policy("recompute 8 stride=4")).stream
    with stream.attached():
        stream.feed(IDS[:30])
        mark = stream.mark(9)
        first = [stream.feed(IDS[i : i + 1]) for i in range(30, 39)]
        stream.rewind(mark)
        again = stream.feed(IDS[30:39])
    assert torch.allclose(torch.cat(first), again, atol=1e-5)


def test_a_static_cache_is_dense_in_a_fixed_buffer() -> None:
    model = build("llama")
    static, dense = (open_stream(model, parse_policy(text)).stream for text in ("static 80", "dense"))
    assert np.abs(evaluate(static, IDS) - evaluate(dense, IDS)).max() < 1e-5
    assert static.nbytes() == dense.nbytes() == static.predicted_bytes()
    assert static.allocated_bytes() == static.nbytes() * 80 // 60
    with static.attached():
        mark = static.mark(10)
        first = static.feed(IDS[:10])
        static.rewind(mark)
        assert torch.equal(first, static.feed(IDS[:10]))
        with pytest.raises(PolicyNotAppliedError, match="'static 80' is full: 81 tokens do not fit"):
            static.feed(IDS[:11])


def test_offloading_needs_a_device_to_offload_from() -> None:
    with pytest.raises(UnsupportedPolicyError, match="no device memory to offload from"):
        open_stream(build("llama"), parse_policy("offloaded"))
