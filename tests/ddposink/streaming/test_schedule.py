"""When tokens leave by turns: room is made before a turn, and nothing but the text decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddposink.caches import Schedule, parse_policy
from ddposink.streaming import ReferenceStream, ScheduledStream, evaluate, inspect
from helpers.families import build


@given(
    ends=st.lists(st.booleans(), min_size=1, max_size=80),
    sinks=st.integers(0, 5),
    window=st.integers(1, 12),
    beyond=st.integers(0, 30),
)
@settings(max_examples=150, deadline=None)
def test_the_budget_is_never_exceeded_and_room_is_made_before_a_turn(
    ends: list[bool], sinks: int, window: int, beyond: int
) -> None:
    schedule = Schedule(parse_policy(f"sink {sinks}+{window} evict=turn"), np.array(ends))
    held = 0
    for seen in range(len(ends) + beyond):
        before = held
        held = schedule.kept_before(seen, held)
        if held < before:  # only a turn, or a window of one, makes room
            assert (
                seen == 0 or seen >= len(ends) or ends[seen - 1] or (seen - schedule.piece_start(seen)) == 0
            )
        held += 1
        assert held <= sinks + window
        assert held == schedule.held(seen + 1)
        assert schedule.kept_after(seen + 1, held) == held
        assert schedule.piece_start(seen) <= seen < schedule.piece_end(seen)


def test_what_is_kept_is_what_streamingllm_keeps_for_a_turn() -> None:
    """Its `evict_for_space`: sinks, and as many recent tokens as leave room for the coming turn."""
    ends = np.zeros(40, dtype=bool)
    ends[[19, 25, 39]] = True
    schedule = Schedule(parse_policy("sink 4+16 evict=turn"), ends)
    assert schedule.held(20) == 20  # full
    assert schedule.kept_before(20, 20) == 4 + 16 - 6
    assert schedule.held(26) == 20
    assert schedule.kept_before(26, 20) == 4 + 16 - 14
    assert schedule.held(40) == 20
    after = Schedule(parse_policy("sink 4+16 evict=after-turn"), ends)
    assert (after.held(25), after.held(26)) == (25, 20)  # outgrows the budget while a turn is read


@pytest.mark.parametrize(
    "policy", ["sink 3+6 evict=turn", "window 7 evict=turn", "sink 4+20 evict=after-turn"]
)
def test_turns_longer_than_the_window_equal_the_reference(policy: str) -> None:
    model, parsed = build("llama"), parse_policy(policy)
    ids = torch.randint(0, 131, (90,), generator=torch.Generator().manual_seed(3))
    ends = torch.zeros(90, dtype=torch.bool)
    ends[[2, 3, 30, 41, 80]] = True
    layout = inspect(model).positions
    reference = evaluate(ReferenceStream(model, parsed, layout, ends), ids)
    for chunk in (1, 5, 64):
        stream = ScheduledStream(model, parsed, layout, chunk, ends)
        assert np.abs(evaluate(stream, ids) - reference).max() < 1e-4
        assert stream.held == stream.kept()
        if parsed.evict.per == "turn":
            assert stream.largest_position < parsed.budget


def test_sinks_may_outnumber_the_window() -> None:
    """A pinned prompt."""
    from ddposink.streaming import DecodeStream, ExactStream

    model, parsed = build("llama"), parse_policy("sink 24+9")
    ids = torch.randint(0, 131, (100,), generator=torch.Generator().manual_seed(3))
    layout = inspect(model).positions
    reference = evaluate(ReferenceStream(model, parsed, layout), ids)
    for chunk in (5, 19, 64):
        assert np.abs(evaluate(ExactStream(model, parsed, layout, chunk), ids) - reference).max() < 1e-4
    assert np.abs(evaluate(DecodeStream(model, parsed, layout), ids) - reference).max() < 1e-4
