"""What is measured of written tokens alone, against slow and plain references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddposink.workloads import generate_text as text
from ddposink.workloads.generate_rule import LEAST_PAIRS, MOST_PERPLEXITY, SPAN
from ddposink.workloads.generate_turns import LONGEST, SHORTEST, TurnSource, sentences
from ddposink.workloads.generate_writing import nucleus

tokens = st.integers(1, 4).flatmap(lambda most: st.lists(st.integers(0, most), max_size=40))


def slow_repeat(ids: list[int]) -> int:
    """All pairs of stretches, compared token by token."""
    found = 0
    for a in range(len(ids)):
        for b in range(a + 1, len(ids)):
            same = 0
            while b + same < len(ids) and ids[a + same] == ids[b + same]:
                same += 1
            found = max(found, same)
    return found


@given(tokens)
def test_the_longest_repeat_is_that_of_all_pairs(ids: list[int]) -> None:
    assert text.longest_repeat(np.array(ids, dtype=np.int64)) == slow_repeat(ids)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), st.lists(st.integers(0, 9), max_size=5))
def test_what_is_written_twice_is_found(stretch: list[int], between: list[int]) -> None:
    assert text.longest_repeat(np.array(stretch + between + stretch)) >= len(stretch)


@pytest.mark.parametrize(
    ("ids", "longest"),
    [([], 0), ([7], 0), ([7, 7], 1), ([7] * 100, 99), ([1, 2, 3], 0), ([1, 2, 3, 1, 2], 2)],
)
def test_the_longest_repeat_by_hand(ids: list[int], longest: int) -> None:
    assert text.longest_repeat(np.array(ids, dtype=np.int64)) == longest


def test_a_long_text_is_no_trouble() -> None:
    drawn = np.random.default_rng(0).integers(0, 49_152, 200_000)
    drawn[150_000:151_234] = drawn[20_000:21_234]
    assert text.longest_repeat(drawn) in (1234, 1235, 1236)  # a neighbour may be equal by chance


def test_distinct_ngrams_by_hand() -> None:
    ids = np.array([1, 2, 1, 2, 1])  # 12 21 12 21 | 121 212 121
    assert [text.distinct(ids, n) for n in (1, 2, 3)] == [2 / 5, 2 / 4, 2 / 3]
    assert text.distinct(ids, 6) is None
    assert text.distinct(np.array([], dtype=np.int64), 1) is None


@given(tokens, st.integers(1, 3))
def test_distinct_ngrams_are_those_of_a_set(ids: list[int], n: int) -> None:
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    expected = len(set(grams)) / len(grams) if grams else None
    assert text.distinct(np.array(ids, dtype=np.int64), n) == expected


@given(tokens, st.integers(2, 9))
def test_distinct_pairs_from_every_token_on(ids: list[int], span: int) -> None:
    array = np.array(ids, dtype=np.int64)
    expected = [text.distinct(array[i : i + span], 2) for i in range(len(ids) - span + 1)]
    assert text.distinct_pairs(array, span).tolist() == pytest.approx(expected)


def test_compression_by_hand() -> None:
    assert text.compression("") is None
    assert text.compression("ab" * 5000) > 100
    assert text.compression("The cat sat.") < 1.0  # too short to gain anything
    assert text.compression("\ud800") is not None  # a lone surrogate is no UTF-8


RANDOM = np.random.default_rng(1).permutation(4 * SPAN)
FINE = np.full(4 * SPAN, 1.0, dtype=np.float32)


def test_a_text_that_is_all_right_does_not_collapse() -> None:
    assert text.collapse(RANDOM, FINE) is None
    assert text.collapse(np.zeros(SPAN - 1, dtype=np.int64), FINE[: SPAN - 1]) is None  # too short to tell


def test_a_text_that_begins_to_repeat_collapses_where_a_span_has_enough_of_it() -> None:
    ids = RANDOM.copy()
    ids[2 * SPAN :] = -1
    at, why = text.collapse(ids, FINE)
    pairs = [text.distinct(ids[i : i + SPAN], 2) for i in range(len(ids) - SPAN + 1)]
    assert at == next(i for i, share in enumerate(pairs) if share < LEAST_PAIRS)
    assert 2 * SPAN - SPAN <= at <= 2 * SPAN
    assert "pairs" in why


@pytest.mark.parametrize("cost", [2 * np.log(MOST_PERPLEXITY), np.nan, np.inf])
def test_a_text_that_is_none_collapses_by_perplexity(cost: float) -> None:
    nll = FINE.copy()
    nll[2 * SPAN :] = cost
    at, why = text.collapse(RANDOM, nll)
    assert SPAN < at < 2 * SPAN
    assert "perplexity" in why


@given(st.lists(st.integers(0, 3), min_size=SPAN, max_size=SPAN + 40), st.integers(0, 40))
def test_what_is_written_later_does_not_move_a_collapse(ids: list[int], more: int) -> None:
    array = np.array(ids + [9] * more)
    nll = np.ones(len(array), dtype=np.float32)
    before = text.collapse(array[: len(ids)], nll[: len(ids)])
    assert before is None or text.collapse(array, nll) == before


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20), st.floats(0.01, 1))
def test_a_nucleus_is_the_smallest_set_with_that_much_probability(parts: list[float], top_p: float) -> None:
    chances = torch.tensor(parts, dtype=torch.float64)
    chances /= chances.sum()
    kept = nucleus(chances, top_p)
    inside = kept > 0
    assert torch.equal(kept[inside], chances[inside])
    assert float(kept.sum()) >= top_p - 1e-9
    assert float(kept.sum() - kept[inside].min()) < top_p + 1e-9  # one less would be too few
    if not inside.all():
        assert chances[~inside].max() <= kept[inside].min()


def test_questions_come_in_an_order_of_the_seed_and_come_again() -> None:
    source = TurnSource.parse("questions")
    first, again, other = (source.turns(seed) for seed in (0, 0, 1))
    drawn = [next(first) for _ in range(200)]
    assert drawn == [next(again) for _ in range(200)]
    assert drawn != [next(other) for _ in range(200)]
    count = len(set(drawn))
    assert count > 90
    assert drawn[:count] == drawn[count : 2 * count]


def test_sentences_of_a_text() -> None:
    written = (
        'It was a dark night.  "Who\nis there now, I ask?" he cried out loud! No.\n\nA title without an end'
    )
    assert list(sentences([written, "long " * LONGEST, "x" * (SHORTEST - 1)])) == [
        "It was a dark night.",
        '"Who is there now, I ask?"',
        "A title without an end",
    ]


def test_a_corpus_without_sentences_says_so(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("No. Yes.")
    with pytest.raises(ValueError, match="has no sentence of 20 to 240 characters"):
        TurnSource.parse(f"file:{tmp_path}/a.txt").turns(0)
    with pytest.raises(ValueError, match="turns may also be 'questions'"):
        TurnSource.parse("question")
