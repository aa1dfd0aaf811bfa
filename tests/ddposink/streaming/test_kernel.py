"""The attention parts and their merge against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddposink.streaming.kernel import attend, attend_masked, merge
from ddposink.streaming.positions import Rope


def tensors(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (6, 2, 17), (5, 1, 64)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("alibi", [True, False])
def test_attend_equals_the_masked_plain_form(
    heads: int, kv_heads: int, dim: int, causal: bool, alibi: bool
) -> None:
    q, k, v = tensors((2, heads, 33, dim), (2, kv_heads, 33, dim), (2, kv_heads, 33, dim))
    visible = torch.ones(33, 33, dtype=torch.bool).tril() if causal else None
    slopes = torch.linspace(0.05, 0.8, heads) if alibi else None
    at = torch.arange(33) - 40
    bias = None if slopes is None else slopes.view(-1, 1, 1) * at
    expected = attend_masked(q, k, v, 0.3, visible, bias)
    part = attend(q, k, v, 0.3, causal=causal, slopes=slopes, key_positions=at)
    torch.testing.assert_close(part.out, expected.out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(part.lse, expected.lse, atol=1e-5, rtol=1e-5)


def test_plain_form_equals_softmax() -> None:
    q, k, v = tensors((1, 2, 5, 8), (1, 2, 7, 8), (1, 2, 7, 8))
    expected = ((q @ k.transpose(-1, -2)) * 0.5).softmax(-1) @ v
    torch.testing.assert_close(attend_masked(q, k, v, 0.5).out, expected)


@given(cuts=st.lists(st.integers(1, 29), max_size=3, unique=True), logit=st.booleans())
@settings(max_examples=25, deadline=None)
def test_merged_parts_equal_one_softmax(cuts: list[int], logit: bool) -> None:
    q, k, v = tensors((1, 3, 4, 8), (1, 3, 30, 8), (1, 3, 30, 8))
    sink = torch.tensor([0.5, -1.0, 3.0]) if logit else None
    bounds = [0, *sorted(cuts), 30]
    parts = [attend_masked(q, k[:, :, a:b], v[:, :, a:b], 1.0) for a, b in itertools.pairwise(bounds)]
    scores = q @ k.transpose(-1, -2)
    if sink is not None:
        scores = torch.cat([scores, sink.view(1, 3, 1, 1).expand(1, 3, 4, 1)], -1)
    expected = scores.softmax(-1)[..., :30] @ v
    torch.testing.assert_close(merge(parts, sink), expected, atol=1e-6, rtol=1e-5)


def test_a_row_that_sees_nothing_is_zero_not_nan() -> None:
    q, k, v = tensors((1, 1, 2, 4), (1, 1, 3, 4), (1, 1, 3, 4))
    part = attend_masked(q, k, v, 1.0, torch.tensor([[False] * 3, [True] * 3]))
    assert part.lse[0, 0, 0] == -torch.inf
    assert (part.out[0, 0, 0] == 0).all()


def test_turns_compose_and_leave_the_rest_alone() -> None:
    rope = Rope(1.0 / 10000 ** (torch.arange(0, 8, 2) / 8))
    (x,) = tensors((1, 2, 5, 12))  # only 8 of 12 dimensions turn
    positions = torch.arange(5)
    once = rope.turn(x, rope.table(positions + 1000, x.dtype))
    twice = rope.turn(rope.turn(x, rope.table(positions, x.dtype)), rope.table(torch.tensor([1000]), x.dtype))
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=1e-5)
    assert torch.equal(once[..., 8:], x[..., 8:])


def test_angles_stay_exact_at_four_million() -> None:
    rope = Rope(1.0 / 10000 ** (torch.arange(0, 64, 2) / 64))
    cos, _ = rope.table(torch.tensor([4_000_000]), torch.float32)
    exact = torch.cos(4_000_000 * rope.inv_freq.double())
    assert (cos[0].double() - exact).abs().max() < 1e-7
