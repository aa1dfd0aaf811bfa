"""Policies: their text form, their promises, their bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddposink.caches import CacheShape, Sink, Window, parse_policy
from ddposink.models.shapes import SHAPES


@pytest.mark.parametrize(
    "text",
    [
        "dense",
        "window 1024",
        "sink 4+1020",
        "sink 0+32",
        "sink 4+1020 positions=absolute",
        "window 8 evict=chunk:64",
        "sink 4+28 positions=absolute evict=turn",
        "sink 4+28 positions=library",
        "sink 512+256 evict=after-turn",  # a pinned prompt
    ],
)
def test_labels_read_back(text: str) -> None:
    assert parse_policy(text).label == text
    assert parse_policy(parse_policy(text).label) == parse_policy(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sinc 4+1020", "did you mean 'sink'"),
        ("windw 3", "did you mean 'window'"),
        ("sink 4", "sink 4\\+1020"),
        ("sink -1+10", "must not be negative"),
        ("window 0", "at least 1"),
        ("window", "window 1024"),
        ("dense 5", "takes no size"),
        ("dense evict=turn", "no option 'evict'"),
        ("sink 4+8 evct=turn", "did you mean 'evict'"),
        ("sink 4+8 evict=sometimes", "token, turn, after-turn, chunk:N"),
        ("sink 4+8 evict=chunk:0", "at least 1"),
        ("sink 4+8 positions=text", "cache, absolute"),
        ("", "unknown cache policy"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_policy(text)


KIB = 1024


@pytest.mark.parametrize(
    ("model", "itemsize", "per_token"),
    [
        ("llama-2-7b", 2, 512 * KIB),  # published VRAM differences agree with both
        ("mistral-7b", 2, 128 * KIB),
        ("smollm2-135m", 4, 45 * KIB),
        ("falcon-7b", 2, 2 * 64 * 32 * 2),  # one shared key-value head
        ("mpt-7b", 2, 512 * KIB),
        ("gpt-oss-20b", 2, 2 * 8 * 64 * 2 * 24),
    ],
)
def test_bytes_per_token(model: str, itemsize: int, per_token: int) -> None:
    shape = CacheShape.from_config(SHAPES[model], itemsize)
    sink = Sink(sinks=4, window=1020)
    assert sink.nbytes(shape, 100) == 100 * per_token
    sliding = sum(own is not None and own - 1 <= 1020 for own in shape.layer_windows)
    assert sliding == (12 if model == "gpt-oss-20b" else 0)
    full = shape.layers - sliding
    assert sink.nbytes(shape, 10**6) == (1024 * full + 127 * sliding) * shape.bytes_per_token_layer
    assert shape.bytes_per_token_layer * shape.layers == per_token


def test_dense_is_capped_where_the_model_slides_itself() -> None:
    dense = parse_policy("dense")
    mistral = CacheShape.from_config(SHAPES["mistral-7b"], 2)
    assert dense.nbytes(mistral, 10**6) == 4095 * 128 * KIB
    oss = CacheShape.from_config(SHAPES["gpt-oss-20b"], 2)
    assert dense.nbytes(oss, 10**6) == oss.bytes_per_token_layer * 12 * (127 + 10**6)


@given(sinks=st.integers(0, 64), window=st.integers(64, 4096), length=st.integers(0, 10**7))
def test_a_bounded_policy_never_holds_more_than_its_budget(sinks: int, window: int, length: int) -> None:
    policy = Sink(sinks=sinks, window=window)
    assert policy.cached(length) == min(length, sinks + window) <= policy.budget
    assert Window(window=window).cached(length) == min(length, window)
