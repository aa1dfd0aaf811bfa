"""What a written text is like, from its tokens alone. Pure: ids in, numbers out; no judge, no model."""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np

from ddposink.workloads.generate_rule import LEAST_PAIRS, MOST_PERPLEXITY, SPAN


def distinct(ids: np.ndarray, n: int) -> float | None:
    """Share of distinct ones among the n-grams of ``ids`` (N,); None if there is none."""
    if len(ids) < n:
        return None
    grams = np.lib.stride_tricks.sliding_window_view(ids, n)
    return len(np.unique(grams, axis=0)) / len(grams)


def longest_repeat(ids: np.ndarray) -> int:
    """Tokens of the longest stretch that stands in ``ids`` (N,) twice; the two may overlap.

    Stretches of m tokens are numbered so that equal ones have equal numbers (prefix doubling: those of 2m
    tokens from those of m). If any of m tokens repeats, so does one of every smaller length: the answer is
    put together from powers of two, the largest first. O(N log² N), exact.
    """
    ranks = [_numbers(np.asarray(ids, dtype=np.int64))]  # ranks[i]: of stretches of 2**i tokens
    if not _repeats(ranks[0]):
        return 0
    while _repeats(longer := _joined(ranks[-1], ranks[-1], 2 ** (len(ranks) - 1))):
        ranks.append(longer)
    found, length = ranks[-1], 2 ** (len(ranks) - 1)
    for power in range(len(ranks) - 2, -1, -1):
        longer = _joined(found, ranks[power], length)
        if _repeats(longer):
            found, length = longer, length + 2**power
    return length


def _numbers(values: np.ndarray) -> np.ndarray:
    """Equal values have equal numbers, 0 … n-1."""
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _joined(first: np.ndarray, second: np.ndarray, apart: int) -> np.ndarray:
    """Numbers of stretches made of one of ``first`` and the one of ``second`` that begins ``apart`` later."""
    count = min(len(first), len(second) - apart)
    if count <= 0:
        return first[:0]
    return _numbers(first[:count] * (len(second) + 1) + second[apart : apart + count])


def _repeats(numbers: np.ndarray) -> bool:
    """Whether two are equal; no two of none are."""
    return len(numbers) > 0 and int(numbers.max()) + 1 < len(numbers)


def compression(text: str) -> float | None:
    """UTF-8 bytes of ``text`` over those that zlib makes of them at its best; None of an empty text."""
    raw = text.encode("utf-8", "replace")
    return len(raw) / len(zlib.compress(raw, 9)) if raw else None


def collapse(ids: np.ndarray, nll: np.ndarray) -> tuple[int, str] | None:
    """Where the text collapses by the rule, and what is wrong with the `SPAN` tokens from there on, or None.

    ``ids`` (N,) written tokens, ``nll`` (N,) nats each in fresh windows; NaN counts as 80.
    """
    starts = len(ids) - SPAN + 1
    if starts < 1:
        return None
    pairs, limit = distinct_pairs(ids), np.log(MOST_PERPLEXITY)
    cost = np.where(np.isfinite(nll), nll.astype(np.float64), 80.0)
    total = np.concatenate([[0.0], np.cumsum(cost)])
    mean = (total[SPAN:] - total[:-SPAN]) / SPAN
    bad = np.flatnonzero((pairs < LEAST_PAIRS) | (mean > limit))
    if not len(bad):
        return None
    at = int(bad[0])
    if pairs[at] < LEAST_PAIRS:
        return at, f"only {pairs[at]:.1%} of their pairs are distinct"
    return at, f"their fresh perplexity is {np.exp(mean[at]):,.1f}"


def distinct_pairs(ids: np.ndarray, span: int = SPAN) -> np.ndarray:
    """(N-span+1,) share of distinct ones among the pairs of the ``span`` tokens from each token on."""
    pairs = list(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))
    inside, found = Counter(pairs[: span - 1]), []
    for start in range(len(ids) - span + 1):
        found.append(len(inside) / (span - 1))
        if start + span - 1 < len(pairs):
            inside[pairs[start + span - 1]] += 1
        inside[pairs[start]] -= 1
        if not inside[pairs[start]]:
            del inside[pairs[start]]
    return np.array(found)
