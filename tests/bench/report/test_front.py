"""The front of a picture: the best to be had for at most so much."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.report.comparisons import series_views
from bench.report.front import front
from bench.report.panels import Line
from bench.workload import View


def line(points: list[tuple[float, float]]) -> Line:
    x, y = np.array(points, float).reshape(-1, 2).T
    nothing = np.full(len(x), np.nan)
    return Line(x, y, nothing, nothing)


def test_a_staircase_over_all_lines() -> None:
    found = front([line([(1, 5), (3, 2)]), line([(2, 6), (4, 2)])], higher=False)
    assert found is not None
    assert list(zip(found.x, found.y, strict=True)) == [(1, 5), (3, 5), (3, 2), (4, 2)]
    up = front([line([(1, 5), (3, 2), (2, 6)])], higher=True)
    assert up is not None
    assert list(zip(up.x, up.y, strict=True)) == [(1, 5), (2, 5), (2, 6), (3, 6)]
    assert front([line([(1, 5)])], higher=False) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=20), st.booleans())
def test_no_point_beats_the_front_and_its_corners_are_points(
    points: list[tuple[int, int]], higher: bool
) -> None:
    found = front([line([(float(x), float(y)) for x, y in points])], higher=higher)
    assert found is not None
    sign = -1 if higher else 1
    for x, y in points:
        reached = [b for a, b in zip(found.x, found.y, strict=True) if a <= x]
        assert min(sign * b for b in reached) <= sign * y
    assert set(found.y) <= {float(y) for _, y in points}


def test_series_whose_entries_do_not_pair_are_not_compared() -> None:
    """Position 100 of one written text has nothing to do with position 100 of another."""
    curve = View("text", "curve", "Text", "position", "fresh", "tokens", "fresh", series="nll")
    for paired in (True, False):
        data: Any = SimpleNamespace(words=SimpleNamespace(views=(replace(curve, paired=paired),)))
        assert bool(series_views(data)) is paired
