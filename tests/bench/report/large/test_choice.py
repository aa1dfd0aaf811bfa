"""Which cells of a large run are drawn: whole settings, by a rule that can be said in a sentence."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.report.large.choice import choose
from bench.report.large.codes import Codes


def coded(cells: list[dict[str, Any]]) -> dict[str, Codes]:
    found = {name: Codes() for name in cells[0]}
    for cell in cells:
        for name, codes in found.items():
            codes.add(cell[name])
    return found


def product(**axes: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def chosen(cells: list[dict[str, Any]], most: int, **kept: Any) -> tuple[list[dict[str, Any]], str]:
    parameters = coded(cells)
    codes = {name: {parameters[name].values.index(value)} for name, value in kept.items()}
    found = choose(parameters, len(cells), most, codes)
    return [cells[place] for place in found.places], found.rule


def test_one_long_axis_is_thinned_evenly_and_keeps_its_ends() -> None:
    cells, rule = chosen([{"length": n, "policy": "dense"} for n in range(1000)], 10)
    assert [cell["length"] for cell in cells] == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert rule == "10 of 1,000 values of length, evenly spaced"


def test_a_grid_becomes_a_smaller_grid_of_the_same_shape() -> None:
    grid = product(a=list(range(20)), b=list(range(20)), c=["x", "y"])
    cells, rule = chosen(grid, 100)
    values = {name: sorted({cell[name] for cell in cells}) for name in "abc"}
    assert cells == product(**values)  # no hole: every line and every panel is whole
    assert 50 <= len(cells) <= 100
    assert values["c"] == ["x", "y"]
    assert "of 20 values of a" in rule
    assert "of c" not in rule


def test_what_varies_together_gives_way_together() -> None:
    cells, _ = chosen([{"window": n, "chunk": 2 * n, "twin": str(n)} for n in range(1, 501)], 50)
    assert len(cells) == 50
    assert all(cell["chunk"] == 2 * cell["window"] == 2 * int(cell["twin"]) for cell in cells)


def test_what_others_are_held_against_stays() -> None:
    grid = product(policy=[f"sink {n}" for n in range(60)] + ["dense"] + ["h2o"], length=list(range(40)))
    cells, _ = chosen(grid, 100, policy="dense")
    lengths = {p: {c["length"] for c in cells if c["policy"] == p} for p in {c["policy"] for c in cells}}
    assert "dense" in lengths
    assert len(lengths) > 1
    assert all(own == lengths["dense"] for own in lengths.values())  # a partner for each of them


def test_a_setting_with_more_cells_than_that_shows_its_first() -> None:
    cells = [{"policy": "dense"}] * 50
    found = choose(coded(cells), 50, 20, {})
    assert found.places.tolist() == list(range(20))
    assert found.rule == "the first 20 cells of 50 that are left"


values = st.one_of(st.integers(0, 6), st.sampled_from(["a", "b", True, 1.0, None]))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({"a": values, "b": values, "c": values}), min_size=1, max_size=200),
    st.integers(1, 40),
    st.integers(0, 6),
)
def test_settings_are_whole_and_never_too_many(cells: list[dict[str, Any]], most: int, kept: int) -> None:
    parameters = coded(cells)
    anchors = {"a": {kept}} if kept < len(parameters["a"]) else {}
    found = choose(parameters, len(cells), most, anchors)
    places = set(found.places.tolist())
    assert 0 < len(places) <= most
    assert found.places.tolist() == sorted(places)
    if len(cells) <= most:
        assert len(places) == len(cells)
        assert not found.rule
    if "the first" not in found.rule:
        rows = list(zip(*(codes.rows for codes in parameters.values()), strict=True))
        shown = {rows[place] for place in places}
        assert places == {place for place, row in enumerate(rows) if row in shown}


@pytest.mark.parametrize(("one", "other", "same"), [(1, True, False), (0.0, -0.0, False), ([1], [1], True)])
def test_codes_tell_values_apart_as_they_are_spelt(one: Any, other: Any, same: bool) -> None:
    codes = Codes()
    assert (codes.add(one) == codes.add(other)) is same


def test_a_table_takes_an_integer_and_its_float_for_one_value() -> None:
    codes = Codes()
    for value in (1, 1.0, True, None, "1"):
        codes.add(value)
    assert codes.alike().tolist() == [0, 0, 1, 2, 3]
