"""Recorded decode, as far as a CPU can tell: the step is a function of tensors that lie still."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from ddposink.caches import parse_policy
from ddposink.streaming import ExactStream, UnsupportedPolicyError, inspect
from ddposink.streaming import decode as decoding
from ddposink.streaming.cuda_graph import CapturedStep
from ddposink.streaming.decode import DecodeStream
from ddposink.streaming.state import StreamState
from ddposink.streaming.step import DecodeStep, Slots, StepPlan
from helpers.families import VOCAB, build

IDS = torch.randint(0, VOCAB, (80,), generator=torch.Generator().manual_seed(0))
POLICIES = ["window 7", "sink 1+6", "sink 4+9", "sink 3+5 positions=absolute"]


def decoded(stream: DecodeStream, begin: int, end: int) -> Tensor:
    """Hidden states (end - begin, d) of the tokens from ``begin`` on."""
    with stream.attached():
        return torch.cat([stream.feed(IDS[t : t + 1]) for t in range(begin, end)])


def plain_step(state: StreamState) -> DecodeStep:
    """The same, slot by slot, as one would explain it."""
    s, r, t = state.sinks, state.window, state.seen
    evicting = t - s >= r
    sink_place = r if evicting and not state.absolute else t - s
    choose, distance = [], []
    for slot in range(s + r):
        at = slot - s
        if slot < s:
            place, which = sink_place, 2
        elif evicting and at >= state.local:  # still the previous block's key
            place, which = state.local + r, 1
        else:
            place, which = state.local, 0
        choose.append(which)
        distance.append(float(place - at) if evicting or slot < t else float("inf"))
    return DecodeStep(
        torch.tensor([[state.local + s]]),
        torch.tensor([0, r, sink_place - state.local]),
        Slots(
            torch.tensor([s + state.local]),
            torch.tensor([*choose, 0]).view(1, 1, -1),
            torch.tensor([*distance, 0.0]),
        ),
    )


def plain_tail(state: StreamState, tail: int) -> Slots:
    """The slots of a layer that holds the last ``tail`` tokens, by asking for each which token it holds."""
    t, evicting = state.seen, state.seen - state.sinks >= state.window
    choose, distance = [], []
    for slot in range(tail):
        text = max((u for u in range(t) if u % tail == slot and u >= t - tail), default=None)
        distance.append(float("inf") if text is None else float(t - text))
        choose.append(int(evicting and text is not None and t - text > state.local))
    return Slots(
        torch.tensor([t % tail]),
        torch.tensor([*choose, 0]).view(1, 1, -1),
        torch.tensor([*distance, 0.0]),
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_a_planned_step_equals_the_plain_one(policy: str) -> None:
    parsed = parse_policy(policy)
    state = StreamState.for_policy(parsed, {0: None, 1: 4, 2: parsed.window + 1, 3: 2})
    assert state.tails == {1: 3, 2: parsed.window, 3: 1}
    plan = StepPlan(state, torch.device("cpu"))
    for seen in range(60):
        state.seen = seen
        found, expected = plan(torch.tensor(seen)), plain_step(state)
        assert torch.equal(found.position, expected.position), seen
        assert torch.equal(found.places, expected.places), seen
        assert_same_slots(found.ring, expected.ring, seen)
        for tail in state.tails.values():
            assert_same_slots(found.tails[tail], plain_tail(state, tail), seen)


def assert_same_slots(found: Slots, expected: Slots, seen: int) -> None:
    assert torch.equal(found.slot, expected.slot), seen
    filled = expected.distance.isfinite()  # which place scores an empty slot does not matter
    assert torch.equal(found.choose[0, 0, filled], expected.choose[0, 0, filled]), seen
    assert torch.equal(found.distance, expected.distance), seen


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "gpt-neox", "mpt"])
def test_a_step_on_tensors_that_lie_still_equals_the_eager_one(family: str, policy: str) -> None:
    """What a CUDA graph replays, run again instead: same buffers for token and count at every step."""
    model, parsed = build(family), parse_policy(policy)
    positions = inspect(model).positions
    assert positions is not None
    expected = decoded(DecodeStream(model, parsed, positions), 0, 50)
    still = DecodeStream(model, parsed, positions)
    with still.attached():
        step = CapturedStep(partial(still._advance, still._hook), IDS[None, :1], 0, lambda: None)
        buffers = step.ids.data_ptr(), step.seen.data_ptr()
        for t in range(50):
            found = step(IDS[None, t : t + 1], t)
            torch.testing.assert_close(found, expected[t : t + 1], atol=0, rtol=0)
        assert (step.ids.data_ptr(), step.seen.data_ptr()) == buffers


def test_what_a_step_returned_is_not_overwritten_by_the_next() -> None:
    model = build("llama")
    stream = DecodeStream(model, parse_policy("sink 3+9"), inspect(model).positions)
    with stream.attached():
        step = CapturedStep(partial(stream._advance, stream._hook), IDS[None, :1], 0, lambda: None)
        first = step(IDS[None, :1], 0)
        kept = first.clone()
        step(IDS[None, 1:2], 1)
    assert torch.equal(first, kept)


@pytest.fixture
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace as for a compiled step, and run what was traced as it is: compiling takes a minute here."""

    def traced(advance: decoding.Advance) -> decoding.Advance:
        torch._dynamo.reset()
        return torch.compile(advance, fullgraph=True, dynamic=False, backend="eager")

    monkeypatch.setattr(decoding, "fused", traced)


@pytest.mark.usefixtures("_traced_only")
@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gpt-neox", "mpt", "gpt-oss"])
def test_a_compiled_step_is_one_graph_with_the_eager_numbers(family: str) -> None:
    """Before, at and after the start of eviction, over two visits; traced once for all tokens."""
    model, parsed = build(family), parse_policy("sink 3+9")
    positions = inspect(model).positions
    expected = decoded(DecodeStream(model, parsed, positions), 0, 50)
    compiled = DecodeStream(model, parsed, positions, mode="compile")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for begin, end in ((0, 20), (20, 50)):
        found = decoded(compiled, begin, end)
        torch.testing.assert_close(found, expected[begin:end], atol=1e-5, rtol=1e-4)
        assert compiled.calls_per_layer == end - begin
    assert compiled.running == "compiled"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2


@pytest.mark.usefixtures("_traced_only")
def test_recording_leaves_no_trace_in_the_ring() -> None:
    """The trial steps before a recording overwrite a slot whose key the next query still sees."""
    model, parsed = build("llama"), parse_policy("sink 3+9")
    positions = inspect(model).positions
    stream, plain = (ExactStream(model, parsed, positions, 18, decode=m) for m in ("compile", "eager"))
    for one in (stream, plain):
        with one.attached():
            while one.seen < 40:
                one.feed(IDS[one.seen : one.seen + one.next_size(40 - one.seen)])
    found, expected = (decoded(one.decoder(), 40, 42) for one in (stream, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert stream.decoder() is stream.decoder()  # what it has recorded stays recorded
    assert stream.decoder(eager=True).running == "eager"


def test_a_graph_without_cuda_is_refused_and_auto_runs_eagerly() -> None:
    model = build("llama")
    policy, positions = parse_policy("sink 3+9"), inspect(model).positions
    with pytest.raises(UnsupportedPolicyError, match="decode=graph needs CUDA; the model is on cpu"):
        DecodeStream(model, policy, positions, mode="graph")
    with pytest.raises(ValueError, match=r"unknown way to decode 'grahp' .did you mean 'graph'"):
        DecodeStream(model, policy, positions, mode="grahp")
    assert DecodeStream(model, policy, positions).running == "eager"
