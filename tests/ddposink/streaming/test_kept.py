"""The kept-set stream: every policy against its plain reference, its invariants, and what it refuses."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddposink.caches import Dense, Held, Ranked, Sink, Window, parse_policy
from ddposink.streaming import (
    DenseStream,
    ExactStream,
    KeptStream,
    NotFiniteError,
    PolicyFaultError,
    ReferenceStream,
    ScheduledStream,
    UnsupportedPolicyError,
    evaluate,
    inspect,
    open_stream,
)
from ddposink.streaming.verify import compare
from helpers.families import build
from helpers.plain_kept import PlainKept

POLICIES = (
    "h2o 12", "h2o 12 recent=0 average=true", "tova 12", "snapkv 12 recent=4 kernel=3",
    "pyramidkv 12 recent=4 kernel=3 beta=4", "adakv 12 recent=4 kernel=3",
    "adakv 12 recent=3 floor=0 sinks=1", "knorm 12", "knorm 12 sinks=2 recent=3", "keydiff 12 recent=2",
    "expected-attention 12 future=9", "lagkv 16 sinks=2 lag=4 recent=4",
)  # fmt: skip
SCHEDULES = ("", "evict=chunk:5", "evict=once:20", "positions=absolute evict=chunk:7")


def ids_of(count: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, 131, (count,), generator=torch.Generator().manual_seed(seed))


def fed(stream: Any, ids: torch.Tensor, most: int = 1 << 30) -> torch.Tensor:
    """Hidden states (n, d), in forwards of at most ``most`` tokens."""
    out = []
    with stream.attached():
        while stream.seen < len(ids):
            size = min(most, stream.next_size(len(ids) - stream.seen))
            out.append(stream.feed(ids[stream.seen : stream.seen + size]))
    return torch.cat(out)


def kept(stream: KeptStream) -> list[list[list[int]]]:
    return [
        [[at for at in head if at >= 0] for head in one.positions.tolist()] for one in stream.state.values()
    ]


def stream_of(model: Any, text: str, chunk: int = 64) -> KeptStream:
    return KeptStream(model, parse_policy(text), inspect(model).positions, chunk)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_keeps_what_its_plain_reference_keeps(policy: str, schedule: str) -> None:
    model = build("llama").double()
    stream = stream_of(model, f"{policy} {schedule}")
    ids = ids_of(41)
    plain = PlainKept(model, stream.policy)
    expected = plain.hidden(ids)
    found = fed(stream, ids)
    heads = model.config.num_key_value_heads
    assert kept(stream) == [
        [[t.at for t in plain.heads[layer, head]] for head in range(heads)] for layer in stream.state
    ]
    assert float((found - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("family", ["llama", "mpt"])
@pytest.mark.parametrize(
    "policy", ["sink 3+9", "window 8", "sink 2+6 positions=absolute", "sink 3+9 evict=chunk:5", "dense"]
)
def test_first_and_recent_tokens_and_dense_are_what_the_fast_paths_give(family: str, policy: str) -> None:
    model, parsed, ids = build(family), parse_policy(policy), ids_of(60)
    layout = inspect(model).positions
    assert layout is not None
    if isinstance(parsed, Dense):
        fast: Any = DenseStream(model, layout, 16)
    elif parsed.evict.per == "token":
        fast = ExactStream(model, parsed, layout, 16)
    else:
        fast = ScheduledStream(model, parsed, layout, 16)
    slow = KeptStream(model, parsed, layout, 16)
    assert np.abs(evaluate(slow, ids) - evaluate(fast, ids)).max() < 1e-4
    assert (slow.held, slow.nbytes(), slow.missing_from) == (fast.held, fast.nbytes(), fast.missing_from)


@pytest.mark.parametrize("policy", [*POLICIES, "random 12 sinks=2", "quantized 4", "sink 2+6 bits=8"])
@pytest.mark.parametrize("schedule", ["evict=chunk:9", "evict=once:20"])
def test_how_a_text_is_cut_into_forwards_changes_nothing(policy: str, schedule: str) -> None:
    model, ids = build("llama").double(), ids_of(50)
    text = policy if policy.startswith("quantized") else f"{policy} {schedule}"
    whole, pieces = stream_of(model, text), stream_of(model, text)
    assert float((fed(whole, ids) - fed(pieces, ids, 2)).abs().max()) < 1e-4
    assert kept(whole) == kept(pieces)


@pytest.mark.parametrize("policy", ["knorm 24", "knorm 24 sinks=2 recent=3", "knorm 24 positions=absolute"])
def test_of_equal_keys_the_earlier_stays_however_a_text_is_cut(policy: str) -> None:
    """In the first layer a word has one key wherever it stands, and rounding must not choose among them."""
    model, ids = build("llama"), ids_of(200) % 5
    whole, pieces = (stream_of(model, f"{policy} evict=chunk:40") for _ in range(2))
    assert float((fed(whole, ids) - fed(pieces, ids, 1)).abs().max()) < 1e-3
    assert kept(whole) == kept(pieces)
    own = range(whole.policy.sinks, 200 - whole.policy.window)
    for head in kept(whole)[0]:
        chosen = [at for at in head if at in own]
        assert chosen == [at for at in own if ids[at] == ids[chosen[0]]][: len(chosen)]


def test_chunks_of_one_token_are_eviction_after_every_token() -> None:
    model, ids = build("llama").double(), ids_of(40)
    one, other = stream_of(model, "snapkv 12 recent=4 evict=chunk:1"), stream_of(model, "snapkv 12 recent=4")
    assert torch.equal(fed(one, ids), fed(other, ids))


@given(
    kind=st.sampled_from(
        ["h2o", "tova", "snapkv", "pyramidkv", "adakv", "knorm", "keydiff", "lagkv", "random"]
    ),
    size=st.integers(6, 16),
    sinks=st.integers(0, 3),
    evict=st.sampled_from(["token", "chunk:3", "chunk:8", "once:17"]),
    length=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_budgets_are_kept_and_sinks_and_recent_tokens_stay(
    kind: str, size: int, sinks: int, evict: str, length: int
) -> None:
    model = build("llama")
    stream = stream_of(model, f"{kind} {size} sinks={sinks} recent=3 evict={evict}")
    ids = ids_of(length)
    with stream.attached():
        while stream.seen < length:
            size_now = min(4, stream.next_size(length - stream.seen))
            stream.feed(ids[stream.seen : stream.seen + size_now])
            assert stream.slots() == stream.policy.slots(stream.seen, len(stream.state))
            assert stream.nbytes() == stream.predicted_bytes()
            for layer in kept(stream):
                for head in layer:
                    assert head == sorted(set(head))
                    recent = range(max(0, stream.seen - 3), stream.seen)
                    assert {*range(min(sinks, stream.seen)), *recent} <= set(head)
    start = stream.policy.evicts_from
    assert stream.missing_from == (start if start is not None and start < length else None)


def test_random_keeps_a_sample_that_does_not_depend_on_when_it_is_drawn() -> None:
    model, ids = build("llama"), ids_of(60)
    sets = []
    for evict in ("token", "chunk:15", "once:60"):
        stream = stream_of(model, f"random 12 evict={evict}")
        fed(stream, ids)
        sets.append(kept(stream))
    assert sets[0] == sets[1] == sets[2]
    places = [at for layer in sets[0] for head in layer for at in head]
    assert min(places) < 15 and max(places) >= 45  # noqa: PT018
    other = stream_of(model, "random 12 seed=1")
    fed(other, ids)
    assert kept(other) != sets[0]


def test_coming_back_to_a_point() -> None:
    model, ids = build("llama"), ids_of(50)
    stream = stream_of(model, "h2o 12 evict=chunk:4")
    fed(stream, ids[:30])
    mark = stream.mark(20)
    with stream.attached():
        first = [stream.feed(ids[i : i + 1]) for i in range(30, 50)]
        stream.rewind(mark)
        assert stream.seen == 30
        second = [stream.feed(ids[i : i + 1]) for i in range(30, 50)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# -- fewer bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "most"), [("8", 0.05), ("fp8", 0.4), ("4", 1.0), ("2", 4.0)])
def test_fewer_bits_cost_little_and_hold_less(bits: str, most: float) -> None:
    model, ids = build("llama"), ids_of(60)
    exact = evaluate(DenseStream(model, inspect(model).positions, 16), ids)
    stream = stream_of(model, f"quantized {bits}")
    difference = np.abs(evaluate(stream, ids) - exact).mean()
    assert 0 < difference < most
    assert stream.nbytes() == stream.predicted_bytes()


def test_four_bits_hold_at_most_three_tenths_of_half_precision() -> None:
    from ddposink.streaming.quantize import pack

    x = torch.randn(1, 3, 100, 64)
    assert pack(x, "4").nbytes() <= 0.3 * 2 * x.numel()


@given(st.sampled_from(["2", "4", "8", "fp8"]), st.integers(0, 1000), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_what_is_stored_is_within_half_a_step(bits: str, seed: int, size: float) -> None:
    from ddposink.streaming.quantize import pack

    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(seed)) * size
    back = pack(x, bits).unpack(torch.float32)
    spread = float(x.amax() - x.amin())
    step = spread / 16 if bits == "fp8" else spread / (2 ** int(bits) - 1) / 2 * 1.01 + spread * 2e-3
    assert float((back - x).abs().max()) <= step


# -- what is refused, and faulty policies -------------------------------------------------------------------


class Faulty(Ranked):
    """Answers whatever the test wants."""

    kind: ClassVar[str] = "faulty"
    answer: ClassVar[Any] = None
    own: ClassVar[Any] = None

    def scores(self, held: Held) -> Any:
        return type(self).answer(held)

    def keep(self, held: Held, count: int) -> Any:
        return None if type(self).own is None else type(self).own(held, count)


@pytest.mark.parametrize(
    ("answer", "own", "message"),
    [
        (lambda h: h.received, None, "gave NoneType for its scores"),
        (lambda h: h.keys[..., 0][:, 1:], None, r"gave scores of shape \(2, \d+\) for \d+ tokens"),
        (lambda h: h.positions, None, "expected floating point"),
        (lambda h: h.keys[..., 0] * float("nan"), None, "NaN scores for"),
        (None, lambda h, n: torch.zeros(len(h.keys), n, dtype=torch.long), "kept a token twice"),
        (None, lambda h, n: torch.arange(n).expand(2, -1) + h.keys.shape[1], "no such token yet"),
        (None, lambda h, n: torch.arange(n - 1).expand(2, -1), "expected integers of shape"),
        (None, lambda h, n: torch.arange(n).expand(2, -1), "dropped a token that it says it protects"),
    ],
)
def test_a_faulty_policy_is_an_error_that_names_it(answer: Any, own: Any, message: str) -> None:
    model = build("llama")
    policy = type("Faulty", (Faulty,), {"answer": staticmethod(answer), "own": own and staticmethod(own)})(
        size=8, window=2
    )
    stream = KeptStream(model, policy, inspect(model).positions, 16)
    with pytest.raises(PolicyFaultError, match=rf"'faulty 8.*' \(layer 0\) .*{message}"):
        fed(stream, ids_of(30))


def test_a_model_with_nan_in_it_is_not_the_policys_fault() -> None:
    model, ids = build("llama"), ids_of(30)
    model.model.embed_tokens.weight.data[ids[9]] = float("nan")
    with pytest.raises(NotFiniteError, match=r"cannot choose: the model's own keys or values are NaN"):
        fed(stream_of(model, "h2o 8"), ids)


def test_what_a_kept_set_cannot_be_on_a_model_is_refused_in_one_sentence() -> None:
    with pytest.raises(UnsupportedPolicyError, match="sliding layers of its own"):
        open_stream(build("mistral-sliding"), parse_policy("h2o 12"))
    with pytest.raises(UnsupportedPolicyError, match="evict=turn needs a corpus"):
        open_stream(build("llama"), parse_policy("h2o 12 recent=2 evict=turn"))
    with pytest.raises(UnsupportedPolicyError, match="no reference evaluation"):
        open_stream(build("llama"), parse_policy("h2o 12"), evaluator="reference")


@pytest.mark.parametrize("family", ["llama", "llama-dynamic", "bloom", "gpt-neox"])
def test_every_policy_opens_and_is_proven(family: str) -> None:
    model, ids = build(family), ids_of(30)
    for text in (*POLICIES, "random 8", "quantized 4", "sink 4+8 bits=4", "sink 4+8 evict=once:20"):
        stream = open_stream(model, parse_policy(text)).stream
        assert isinstance(stream, KeptStream), text
        assert np.isfinite(evaluate(stream, ids)).all()


def test_the_general_stream_is_no_reference_of_itself() -> None:
    """Sinks on a kept set against StreamingLLM as written down."""
    model, parsed, ids = build("llama"), Sink(sinks=2, window=5), ids_of(30)
    layout = inspect(model).positions
    assert layout is not None
    reference = evaluate(ReferenceStream(model, parsed, layout), ids)
    assert np.abs(evaluate(KeptStream(model, parsed, layout, 8), ids) - reference).max() < 1e-4
    assert Window(window=3).slots(10, 2) == [3, 3]


@pytest.mark.parametrize("policy", ["h2o 12", "quantized 8", "recompute 12", "sink 2+6 bits=4"])
def test_a_policy_without_a_yardstick_is_not_certified(policy: str) -> None:
    first, *_, yardstick = compare(build("llama"), parse_policy(policy), ids_of(30))
    assert first.nll is not None
    assert yardstick.nll is None
    assert yardstick.note
