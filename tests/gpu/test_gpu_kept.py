"""Policies that choose what stays keep the same tokens on CUDA as on the CPU, and give the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ddposink.caches import parse_policy
from ddposink.streaming import KeptStream, evaluate, open_stream
from helpers.families import VOCAB, build

LENGTH = 90
RANKED = (
    "h2o 12", "tova 12", "snapkv 12 recent=4 kernel=3", "pyramidkv 12 recent=4 kernel=3 beta=4",
    "adakv 12 recent=4 kernel=3", "knorm 12 sinks=2 recent=3", "keydiff 12 recent=2",
    "expected-attention 12 future=9", "lagkv 16 sinks=2 lag=4 recent=4", "random 12 sinks=2",
)  # fmt: skip
# Quantised values are rounded: what sits on the edge of two steps may fall to either side.
OTHERS = {"quantized 8": 1e-2, "sink 2+6 bits=8": 1e-2, "recompute 12": 2e-4, "recompute 12 stride=5": 2e-4,
          "sink 3+9 evict=chunk:5": 2e-4, "static 90": 2e-4}  # fmt: skip


def text(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(0))


def read(model: Any, policy: str) -> tuple[np.ndarray, Any]:
    stream = open_stream(model, parse_policy(policy), chunk=32, length=LENGTH, capacity=LENGTH).stream
    return evaluate(stream, text()), stream


def kept(stream: KeptStream) -> list[Any]:
    return [one.positions.tolist() for one in stream.state.values()]


@pytest.mark.parametrize("schedule", ["", "evict=chunk:7", "evict=once:40"])
@pytest.mark.parametrize("policy", RANKED)
def test_what_is_kept_on_cuda_is_what_is_kept_on_the_cpu(policy: str, schedule: str) -> None:
    model = build("llama").double()  # so that no two scores change places by rounding
    expected, slow = read(model, f"{policy} {schedule}".strip())
    model.cuda()
    found, fast = read(model, f"{policy} {schedule}".strip())
    assert kept(fast) == kept(slow)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("policy", OTHERS)
def test_numbers_of_the_other_policies_on_cuda_equal_those_on_the_cpu(policy: str) -> None:
    model = build("llama")
    expected, _ = read(model, policy)
    model.cuda()
    found, _ = read(model, policy)
    np.testing.assert_allclose(found, expected, atol=OTHERS[policy])
    assert abs(found.mean() - expected.mean()) < 2e-4


def test_an_offloaded_cache_is_dense_and_off_the_device() -> None:
    model = build("llama").cuda()
    expected, _ = read(model, "dense")
    found, stream = read(model, "offloaded")
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert stream.nbytes() > 0
