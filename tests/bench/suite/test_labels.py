"""Cells that differ have labels that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bench.suite.labels import spelt, tell_apart
from bench.suite.model import Suite
from bench.suite.plan import make_plan
from bench.workload import Cell
from helpers.streamlike import Params, Streamlike, raw_suite

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=4)
values = scalars | st.lists(scalars, max_size=2)


class Advising(Streamlike):
    def notes(self, params: Params) -> Sequence[str]:
        return [f"scale {params.scale} is odd"] if params.scale != 1 else []


def labels(workload: Any = None, **keys: Any) -> list[str]:
    plan = make_plan(Suite.model_validate(raw_suite(**keys)), workload or Streamlike())
    assert {c for work in plan.passes for c in (c.label for c in work.cells)} == {c.label for c in plan.cells}
    return [cell.label for cell in plan.cells]


def test_unique_labels_stay_as_the_workload_gave_them():
    grid = {"policy": ["dense", "window 8"], "length": 16}
    assert labels(grid=grid) == ["dense @16", "window 8 @16"]
    assert labels(grid=grid, seed=[3], repeat=2) == ["dense @16"] * 2 + ["window 8 @16"] * 2


def test_cells_of_several_seeds_say_which_is_theirs():
    grid = {"policy": ["dense", "window 8"], "length": 16}
    own = [f"{name} @16 · seed {seed}" for name in ("dense", "window 8") for seed in (0, 7) for _ in range(2)]
    assert labels(grid=grid, seed=[0, 7], repeat=2) == own


def test_what_varies_is_appended_where_labels_would_be_the_same():
    grid = {"policy": "dense", "length": [16, 64], "scale": [1e-3, 2]}
    include = [{"policy": "window 8", "length": 16, "dtype": "bfloat16"}]
    assert labels(grid=grid, include=include) == [
        "dense @16 (scale=0.001)",
        "dense @16 (scale=2.0)",
        "dense @64 (scale=0.001)",
        "dense @64 (scale=2.0)",
        "window 8 @16",
    ]


def test_several_names_come_in_the_order_of_the_parameters_and_seeds_last():
    grid = {"policy": "dense", "length": 16, "layers": [None, [1, 2]], "model": ["a", "b"]}
    found = labels(grid=grid, seed=[0, 1])
    assert found[:2] == [f"dense @16 (model=a, layers=null) · seed {seed}" for seed in (0, 1)]
    assert found[-1] == "dense @16 (model=b, layers=[1,2]) · seed 1"
    assert len(set(found)) == 8


def test_identifiers_do_not_hang_on_what_else_is_planned():
    grid = {"policy": "dense", "length": 16, "scale": [1.0, 2.0]}
    both = make_plan(Suite.model_validate(raw_suite(grid=grid)), Streamlike()).cells
    alone = make_plan(Suite.model_validate(raw_suite(grid=grid | {"scale": 1.0})), Streamlike()).cells
    assert both[0].id == alone[0].id
    assert (both[0].label, alone[0].label) == ("dense @16 (scale=1.0)", "dense @16")


@given(st.lists(values, min_size=2, max_size=6))
def test_no_two_values_are_spelt_alike(found: list[Any]):
    cells = [Cell(str(i), {"a": value, "same": 1}, "x") for i, value in enumerate(found)]
    told = tell_apart(cells)
    for i, first in enumerate(found):
        for j, second in enumerate(found):
            alike = repr(first) == repr(second)
            assert (told[str(i)].label == told[str(j)].label) is alike
            assert (spelt(first) == spelt(second)) is alike


def test_what_a_workload_has_to_say_is_said_once():
    grid = {"policy": ["dense", "window 8"], "length": 16, "scale": [1, 3]}
    plan = make_plan(Suite.model_validate(raw_suite(grid=grid)), Advising())
    assert plan.notes == ("scale 3.0 is odd",)
    assert plan.to_json()["notes"] == ["scale 3.0 is odd"]
