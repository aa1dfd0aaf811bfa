"""Exact = decode = reference, on every family, before, at and long after eviction starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddposink.caches import parse_policy
from ddposink.streaming import (
    DecodeStream,
    DenseStream,
    ExactStream,
    LibraryStream,
    ReferenceStream,
    ScheduledStream,
    UnsupportedPolicyError,
    evaluate,
    inspect,
    open_stream,
    stream_nll,
)
from ddposink.streaming.head import Head
from ddposink.streaming.verify import compare
from helpers.families import FAMILIES, LEARNED, VOCAB, build

LENGTH = 230
TOLERANCE = 1e-4  # nats, on every single token


def tokens(length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def worst(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


POLICIES = [
    "sink 4+28",  # the ordinary case
    "window 32",  # 0 sinks
    "sink 1+7",  # 1 sink, a window far smaller than the chunk
    "sink 4+300",  # budget larger than the stream: nothing is ever evicted
    "sink 4+28 positions=absolute",
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_exact_and_decode_equal_the_reference_on_every_token(family: str, policy: str) -> None:
    model, ids, parsed = build(family), tokens(), parse_policy(policy)
    positions = inspect(model).positions
    assert positions is not None
    reference = evaluate(ReferenceStream(model, parsed, positions), ids)
    assert reference.std() > 0.5, "a model that predicts everything alike would hide mistakes"
    for chunk in (19, 64, 1000):  # part of a block, several blocks at once, not dividing the length
        exact = evaluate(ExactStream(model, parsed, positions, chunk), ids)
        assert worst(exact, reference) <= TOLERANCE, f"chunk {chunk}"
    decoded = evaluate(DecodeStream(model, parsed, positions), ids)
    assert worst(decoded, reference) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_equals_one_long_forward_of_the_library(family: str) -> None:
    model, ids = build(family), tokens()
    with torch.no_grad():
        logits = model(ids[None]).logits[0].log_softmax(-1)
    whole = -logits[:-1].gather(1, ids[1:, None])[:, 0].numpy()
    stream = open_stream(model, parse_policy("dense"), chunk=37).stream
    assert worst(evaluate(stream, ids), whole) <= TOLERANCE
    reference = ReferenceStream(model, parse_policy("dense"), inspect(model).positions)
    assert worst(evaluate(reference, ids), whole) <= TOLERANCE


def test_a_policy_changes_nothing_before_eviction_and_something_after() -> None:
    model, ids = build("llama"), tokens()
    positions = inspect(model).positions
    dense = evaluate(DenseStream(model, positions, 64), ids)
    sink = evaluate(ExactStream(model, parse_policy("sink 4+28"), positions, 64), ids)
    # Query t sees 32 cached tokens and itself: the first token that misses one is t = 33.
    assert worst(dense[:33], sink[:33]) <= TOLERANCE
    assert abs(dense[33] - sink[33]) > 1e-3


@pytest.mark.parametrize("switch", [1, 3, 4, 31, 32, 33, 60, 61, 100])
def test_decode_goes_on_where_parallel_evaluation_stopped(switch: int) -> None:
    model, ids, policy = build("llama"), tokens(150), parse_policy("sink 4+28")
    positions = inspect(model).positions
    whole = evaluate(ExactStream(model, policy, positions, 50), ids)
    first = ExactStream(model, policy, positions, 50)
    evaluate(first, ids[:switch])
    second = DecodeStream(model, policy, positions, state=first.state.clone())
    hidden = []
    with second.attached():
        hidden = [second.feed(ids[t : t + 1]) for t in range(switch, 149)]
    with torch.no_grad():
        logp = model.get_output_embeddings()(torch.cat(hidden)).log_softmax(-1)
    tail = -logp.gather(1, ids[switch + 1 :, None])[:, 0].numpy()
    assert worst(tail, whole[switch:]) <= TOLERANCE
    third = ExactStream(model, policy, positions, 50, state=second.state)
    assert third.seen == 149


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "mpt"])
@pytest.mark.parametrize("name", ["dense", "window 32", "sink 4+28"])
def test_streams_in_step_give_what_each_gives_alone(family: str, name: str) -> None:
    """Three go on from one text with tokens of their own; afterwards the first stands where it stood."""
    model, ids = build(family), tokens(150)
    stream = open_stream(model, parse_policy(name), chunk=50).stream
    evaluate(stream, ids[:100])
    fed, decoder = ids[100:112].view(3, 4), stream.decoder()
    alone = []
    for row in fed:
        mark = stream.mark(4)
        with decoder.attached():
            alone.append(torch.cat([decoder.feed(one[None]) for one in row]))
        stream.rewind(mark)
    before, mark = stream.nbytes(), stream.mark(4)
    with decoder.widened(3), decoder.attached():
        assert decoder.nbytes() == 3 * before
        together = torch.stack([decoder.feed(column[:, None]) for column in fed.T], 1)
    stream.rewind(mark)
    assert worst(together.numpy(), torch.stack(alone).numpy()) <= TOLERANCE
    assert stream.nbytes() == before
    with decoder.attached():
        again = torch.cat([decoder.feed(one[None]) for one in fed[1]])
    assert worst(again.numpy(), alone[1].numpy()) <= TOLERANCE


def test_a_stream_of_a_kept_set_goes_alone() -> None:
    stream = open_stream(build("llama"), parse_policy("h2o 32 recent=4")).stream
    with pytest.raises(UnsupportedPolicyError, match="one stream at a time"):
        stream.widened(2)


def test_positions_above_two_million_give_the_same_numbers() -> None:
    """The carried state, moved 2^21 tokens along the text, evaluates the same text to the same NLL."""
    model, ids, policy = build("llama"), tokens(400), parse_policy("sink 4+28")
    positions = inspect(model).positions
    near = ExactStream(model, policy, positions, 56)
    evaluate(near, ids[:200])
    far_state = near.state.clone()
    far_state.seen += 28 * 75_000  # whole blocks: 2,100,000 tokens further, above 2^21
    far = ExactStream(model, policy, positions, 56, state=far_state)
    rest = ids[200:]
    results = []
    for stream in (near, far):
        with stream.attached():
            hidden = []
            while len(hidden) == 0 or sum(map(len, hidden)) < len(rest):
                done = sum(map(len, hidden))
                hidden.append(stream.feed(rest[done : done + stream.next_size(len(rest) - done)]))
        results.append(torch.cat(hidden))
    assert far.seen > 2**21
    assert torch.equal(results[0], results[1])
    assert far.largest_position == near.largest_position == 32


@pytest.mark.parametrize("evict", ["chunk:1", "chunk:10", "chunk:64", "turn", "after-turn"])
@pytest.mark.parametrize("family", ["llama", "gpt-neox", "mpt", "falcon-7b-like"])
def test_eviction_schedules_equal_the_reference(family: str, evict: str) -> None:
    model, ids = build(family), tokens()
    policy = parse_policy(f"sink 4+28 evict={evict}")
    positions = inspect(model).positions
    ends = torch.zeros(LENGTH, dtype=torch.bool)
    ends[[9, 50, 51, 120, 180, 229]] = True
    reference = evaluate(ReferenceStream(model, policy, positions, ends), ids)
    for chunk in (16, 1000):
        scheduled = evaluate(ScheduledStream(model, policy, positions, chunk, ends), ids)
        assert worst(scheduled, reference) <= TOLERANCE


def test_position_semantics_and_schedules_are_different_policies() -> None:
    model, ids = build("llama"), tokens()
    ends = torch.zeros(LENGTH, dtype=torch.bool)
    ends[::40] = True
    variants = ["", " positions=absolute", " positions=library", " evict=chunk:16", " evict=turn"]
    variants.append(" evict=after-turn")
    series = [
        evaluate(open_stream(model, parse_policy("sink 4+28" + v), turn_ends=ends).stream, ids)
        for v in variants
    ]
    for i, a in enumerate(series):
        for b in series[:i]:
            assert np.abs(a - b).mean() > 1e-3
    per_token = evaluate(open_stream(model, parse_policy("sink 4+28 evict=chunk:1")).stream, ids)
    assert worst(per_token, series[0]) <= TOLERANCE


def test_measured_bytes_equal_the_analytic_ones() -> None:
    from ddposink.caches import CacheShape

    for family in FAMILIES:
        model, ids = build(family), tokens()
        shape = CacheShape.from_config(model.config.to_dict(), itemsize=4)
        for text in ("sink 4+28", "window 32", "sink 4+300", "dense"):
            policy = parse_policy(text)
            stream = open_stream(model, policy, chunk=64).stream
            evaluate(stream, ids)
            assert stream.held == policy.cached(LENGTH)
            assert stream.nbytes() == policy.nbytes(shape, LENGTH), (family, text)


@pytest.mark.parametrize("family", LEARNED)
def test_learned_positions_are_measured_under_a_name_of_their_own(family: str) -> None:
    model, ids = build(family), tokens(120)
    with pytest.raises(UnsupportedPolicyError, match=r"learned absolute positions.*positions=library"):
        open_stream(model, parse_policy("sink 4+28"))
    assert "learned absolute positions" in inspect(model).reason
    choice = open_stream(model, parse_policy("sink 4+28 positions=library"))
    assert isinstance(choice.stream, LibraryStream)
    nll = evaluate(choice.stream, ids)
    assert np.isfinite(nll).all()
    assert choice.stream.held == 32
    assert choice.stream.largest_position == 32
    with pytest.raises(UnsupportedPolicyError, match="learned absolute positions"):
        open_stream(model, parse_policy("sink 4+28"), evaluator="exact")


def test_length_dependent_rotary_scaling_is_refused_beyond_its_limit() -> None:
    model = build("llama-dynamic")
    with pytest.raises(UnsupportedPolicyError, match="512"):
        open_stream(model, parse_policy("sink 4+600"))


def test_a_model_is_left_as_it_was_found() -> None:
    for family in ("llama", "mpt", "falcon-7b-like"):
        model, ids = build(family), tokens(60)
        with torch.no_grad():
            before = model(ids[None]).logits
        evaluate(open_stream(model, parse_policy("sink 4+28")).stream, ids)
        with torch.no_grad():
            assert torch.equal(model(ids[None]).logits, before)


@pytest.mark.parametrize("own", [5, 28, 29, 30, 32, 33, 40])
def test_a_models_own_sliding_window_composes_with_the_policy(own: int) -> None:
    """Own window below, at and above the policy's: sinks visible in none, some or all layers' reach."""
    model, ids = build("mistral-sliding"), tokens(3 * 40)
    model.config.sliding_window = own
    for text in ("sink 4+28", "window 32", "sink 4+28 positions=absolute"):
        policy, positions = parse_policy(text), inspect(model).positions
        reference = evaluate(ReferenceStream(model, policy, positions), ids)
        for chunk in (19, 64):
            assert worst(evaluate(ExactStream(model, policy, positions, chunk), ids), reference) <= TOLERANCE
        assert worst(evaluate(DecodeStream(model, policy, positions), ids), reference) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        *[
            (family, policy)
            for family in ("mistral-sliding", "llama", "mpt")
            for policy in ("dense", "sink 4+28")
        ],
        *[("gpt2", policy) for policy in ("dense", "sink 4+28 positions=library")],
    ],
)
def test_decoding_on_and_rewinding_leaves_no_trace(family: str, policy: str) -> None:
    """Every kind of stream, the library's own cache with its sliding layers included."""
    model, ids = build(family), tokens(60)
    whole = evaluate(open_stream(model, parse_policy(policy), chunk=16).stream, ids)
    stream, nll = open_stream(model, parse_policy(policy), chunk=16).stream, np.empty(59, dtype=np.float32)
    with stream.attached():
        for stop in stream_nll(stream, ids, nll, [20, 45]):
            if stop.fed in (20, 45):
                mark, decoder = stream.mark(7), stream.decoder()
                with decoder.attached():
                    for t in range(7):
                        decoder.feed(ids[t : t + 1])
                stream.rewind(mark)
    assert worst(nll, whole) <= 1e-5


def test_schedules_on_models_with_sliding_layers_are_refused() -> None:
    for evict in ("chunk:16", "turn", "after-turn"):
        with pytest.raises(UnsupportedPolicyError, match="sliding layers"):
            open_stream(build("mistral-sliding"), parse_policy(f"sink 2+14 evict={evict}"))


@pytest.mark.parametrize(
    ("policy", "first"), [("sink 4+28", 33), ("sink 4+28 evict=chunk:10", 40), ("dense", None)]
)
def test_the_first_query_that_misses_a_token_is_known(policy: str, first: int | None) -> None:
    model, ids, parsed = build("llama"), tokens(100), parse_policy(policy)
    assert parsed.evicts_from == first
    dense = evaluate(DenseStream(model, inspect(model).positions, 64), ids)
    differs = np.abs(evaluate(open_stream(model, parsed).stream, ids) - dense) > 1e-4
    assert (differs.argmax() if differs.any() else None) == first
    for length in range(9, 100, 9):
        stream = open_stream(model, parsed, chunk=7).stream
        assert stream.held == 0
        evaluate(stream, ids[: length + 1])
        assert stream.held == parsed.cached(length + 1)
        assert stream.missing_from == (first if first is not None and length + 1 > first else None)


@pytest.mark.parametrize("family", ["llama", "gpt-oss", "mpt"])
def test_streams_in_step_equal_each_stream_alone(family: str) -> None:
    model, policy = build(family), parse_policy("sink 2+10")
    positions = inspect(model).positions
    ids = torch.stack([tokens(40, seed) for seed in (1, 2, 3)])
    for kind in (DecodeStream, ReferenceStream):
        together, hidden = kind(model, policy, positions), []
        with together.attached():
            hidden = [together.feed(ids[:, t : t + 1]) for t in range(40)]
        for row in range(3):
            alone = kind(model, policy, positions)
            with alone.attached():
                expected = torch.cat([alone.feed(ids[row, t : t + 1]) for t in range(40)])
            torch.testing.assert_close(torch.stack(hidden)[:, row], expected, atol=1e-4, rtol=1e-4)


def test_the_models_own_check_agrees_and_names_the_ways() -> None:
    ways = compare(build("llama"), parse_policy("sink 4+28"), tokens(90))
    assert [way.name for way in ways] == ["exact", "decode", "reference"]
    assert all(way.nll is not None and worst(way.nll, ways[0].nll) <= TOLERANCE for way in ways)


@pytest.mark.parametrize("bias", [False, True])
def test_tiling_the_vocabulary_changes_no_nll(bias: bool) -> None:
    """1,300 words are three tiles, 1,100 positions two; logits far from zero must not overflow."""
    generator = torch.Generator().manual_seed(0)
    project = torch.nn.Linear(16, 1300, bias=bias).requires_grad_(False)
    project.weight.copy_(torch.randn(1300, 16, generator=generator) * 20)
    hidden = torch.randn(1100, 16, generator=generator)
    targets = torch.randint(0, 1300, (1100,), generator=generator)
    hidden[5] = torch.nan
    expected = torch.nn.functional.cross_entropy(project(hidden).double(), targets, reduction="none").float()
    torch.testing.assert_close(
        Head(project).nll(hidden, targets), expected, atol=2e-4, rtol=1e-5, equal_nan=True
    )
