"""The rotation of a layer is found from what it does: every layout, measured or given, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddposink.streaming.positions import Rope
from ddposink.streaming.rotation import find_rotation

AT = [0, 1, 3, 8, 21, 55, 144, 377, 987]


def frequencies(pairs: int, base: float = 10000.0) -> Tensor:
    return 1.0 / base ** (torch.arange(pairs) / max(pairs, 1))


def shown(rope: Rope, size: int, at: list[int] = AT, dtype: torch.dtype = torch.float32) -> Tensor:
    """(P, 12, size): random vectors, turned to every position."""
    x = torch.randn(12, size, generator=torch.Generator().manual_seed(size))
    turned = [rope.turn(x, rope.table(torch.tensor([p]), torch.float32)) for p in at]
    return torch.stack(turned).to(dtype)


def plain_turn(x: Tensor, rope: Rope, position: int) -> Tensor:
    """One pair at a time, as the papers write it."""
    out = x.clone()
    for i, frequency in enumerate(rope.inv_freq.tolist()):
        a, b = (
            (rope.start + 2 * i, rope.start + 2 * i + 1)
            if rope.interleaved
            else (rope.start + i, rope.start + len(rope.inv_freq) + i)
        )
        angle = torch.tensor(position * frequency, dtype=torch.float64)
        out[..., a] = x[..., a] * angle.cos() - x[..., b] * angle.sin()
        out[..., b] = x[..., b] * angle.cos() + x[..., a] * angle.sin()
    return out


@given(
    pairs=st.integers(0, 8),
    before=st.integers(0, 6),
    after=st.integers(0, 6),
    interleaved=st.booleans(),
    position=st.integers(-50, 5000),
)
@settings(max_examples=60, deadline=None)
def test_a_turn_equals_the_plain_one(
    pairs: int, before: int, after: int, interleaved: bool, position: int
) -> None:
    rope = Rope(frequencies(pairs), before, interleaved)
    x = torch.randn(3, before + 2 * pairs + after, generator=torch.Generator().manual_seed(pairs)).double()
    found = rope.turn(x, rope.table(torch.tensor([position]), torch.float64))
    torch.testing.assert_close(found, plain_turn(x, rope, position), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("size", "pairs", "start"), [(16, 8, 0), (24, 4, 16), (16, 3, 0), (64, 32, 0)])
@pytest.mark.parametrize("given", [True, False])
def test_every_layout_is_found(size: int, pairs: int, start: int, interleaved: bool, given: bool) -> None:
    """With the model's buffer the frequencies are its very numbers, without they are measured."""
    rope = Rope(frequencies(pairs), start, interleaved)
    buffers = [frequencies(5), rope.inv_freq] if given else []
    found = find_rotation(AT, shown(rope, size), buffers, torch.float32)
    assert found is not None
    assert (found.start, found.interleaved) == (start, interleaved)
    torch.testing.assert_close(found.inv_freq, rope.inv_freq, atol=0 if given else 1e-6, rtol=0)


def test_of_several_frequencies_a_layer_gets_its_own() -> None:
    """As in models whose sliding layers have another base than their full ones."""
    local, far = frequencies(8), frequencies(8, 1e6)
    for one in (local, far):
        found = find_rotation(AT, shown(Rope(one), 16), [local, far], torch.float32)
        assert found is not None
        assert found.inv_freq is one


def test_bfloat16_is_enough_to_tell() -> None:
    local, far = frequencies(8), frequencies(8, 1e6)
    seen = shown(Rope(far, 8), 24, dtype=torch.bfloat16)
    found = find_rotation(AT, seen, [local, far], torch.bfloat16)
    assert found is not None
    assert (found.inv_freq is far, found.start, found.interleaved) == (True, 8, False)


def test_what_does_not_move_has_no_rotation() -> None:
    found = find_rotation(AT, shown(Rope(torch.zeros(0)), 16), [frequencies(8)], torch.float32)
    assert found is not None
    assert len(found.inv_freq) == 0


def test_what_is_no_rotation_is_not_called_one() -> None:
    seen = shown(Rope(frequencies(8)), 16)
    grows = seen * (1 + 0.1 * torch.tensor(AT).float().log1p())[:, None, None]
    moved = seen + 0.05 * torch.tensor(AT).float()[:, None, None].sqrt()
    changes = torch.stack([shown(Rope(frequencies(8, 1e4 * (1 + p))), 16, [p])[0] for p in AT])
    for odd in (grows, moved, changes):
        assert find_rotation(AT, odd, [frequencies(8)], torch.float32) is None
