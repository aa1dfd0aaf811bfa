"""No point of any picture and no row of any table stands for two settings, whatever a grid varies.

Every setting has a number of its own, a power of two, for all its seeds and steps. What is drawn of one
setting is that number; a mean over two settings is no power of two.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.report.contents import contents
from bench.report.frames import load
from bench.report.heatmap import draw_heatmap
from bench.report.matrix import matrix_rows, matrix_table
from bench.report.panels import line_panels
from bench.report.positions import position_buckets
from bench.report.relative import relative
from bench.report.select import longest
from bench.report.tables import Table, full, headline
from bench.report.web.grids import grid
from helpers.grids import VALUES, Tuning, record, run, view
from helpers.synthetic import write_run

WORDS = ("reward", "steps")

VIEWS = [
    view("line"),
    view("curve", x="position", series="y"),
    view("line", x="queries"),
    view("line", x="seconds"),
    view("scatter", x="own"),
    view("trace", series="train", y="y"),
]


def is_one_setting(number: float) -> bool:
    return math.log2(number).is_integer()


axes = st.lists(st.sampled_from([name for name in VALUES if name != "steps"]), max_size=3, unique=True)


@settings(max_examples=25, deadline=None)
@example(names=["train_learning_rate", "sample_eta"], seeds=1, lost={0}, steps=False)  # many words, low sheet
@given(axes, st.integers(1, 3), st.sets(st.integers(0, 30), max_size=4), st.booleans())
def test_no_point_stands_for_two_settings(names: list[str], seeds: int, lost: set[int], steps: bool) -> None:
    wanted = {name: VALUES[name] for name in [*names, *(["steps"] if steps else [])]}
    with tempfile.TemporaryDirectory() as folder:
        data = run(Path(folder), wanted, seeds, lost)
        for one in VIEWS:
            for panel in contents(one, data).panels:
                for line in panel.lines.values():
                    assert is_one_setting(line.y[0]), (one, panel.title)
                    assert len(set(line.y)) == 1, "a line joins two settings"
                    assert one.kind == "scatter" or len(line.x) == len(set(line.x)), "two points at one place"
        frame = longest(data, data.ok)
        for kind in ("matrix", "heatmap"):
            shown = grid(view(kind), data)
            fields = [f for panel in shown["panels"] for row in panel["fields"] for f in row if f is not None]
            assert fields
            assert all(is_one_setting(f) for f in fields)
        draw_heatmap(view("heatmap"), data)
        table = matrix_table(data, view("matrix"))
        assert table is not None
        places = position_buckets(data, VIEWS[1])
        assert places is not None
        assert len(places.columns) - 2 == len(set(data.frame["effect"]))
        assert all(is_one_setting(places.rows[0][column.key].value) for column in places.columns[2:])
        against = relative(data)  # none without a blue cell
        for found in filter(None, (table, against, full(data), headline(data))):
            assert all(is_one_setting(row["effect"].value) for row in found.rows)
            names_of = [c.key for c in found.columns if not c.csv_only and c.key not in ("effect", "own")]
            rows = [tuple(repr(row[key].value) for key in names_of if key in row) for row in found.rows]
            assert len(rows) == len(set(rows)), "two rows are called the same"
        assert sum(len(cells) for _, cells in matrix_rows(data, view("matrix"), frame)) == len(frame)


def test_a_setting_without_a_column_of_its_own_gets_one(tmp_path: Path) -> None:
    data = run(tmp_path, {name: VALUES[name] for name in ("sample_eta", "pipeline", "targets")}, 1, set())
    assert set(data.frame["pipeline"]) == {"path:/a/tiny", "path:/b/tiny"}
    assert set(data.frame["targets"]) == {'["to_q"]', '["to_q","to_k"]'}
    assert set(data.parameters) >= {"sample_eta", "pipeline", "targets"}
    titles = {panel.title for panel in line_panels(data, view("line")).panels}
    assert len(titles) == 8
    assert "sample_eta 0.5" in " ".join(titles)


def test_a_line_along_a_column_joins_no_cells_that_differ_in_more_than_what_the_column_tells(
    tmp_path: Path,
) -> None:
    """Here no two cells agree in the learning rate; eta changes with it in one of them."""
    fixed, records = {name: found[0] for name, found in VALUES.items()}, []
    for code, (rate, eta) in enumerate([(1e-3, 1.0), (1e-2, 1.0), (1e-1, 0.5)]):
        records.append(record(tmp_path, fixed | {"train_learning_rate": rate, "sample_eta": eta}, code, 0))
    data = load(write_run(tmp_path, records, suite={"workload": "tuning"}), Tuning())  # type: ignore[arg-type]
    assert data.words.follows == {"learning_rate": frozenset({"train_learning_rate"})}
    panels = line_panels(data, view("line", x="learning_rate")).panels
    assert {panel.title: list(panel.lines["red"].x) for panel in panels} == {
        "sample_eta 1.000": [1e-3, 1e-2],
        "sample_eta 0.5000": [1e-1],
    }


def test_a_parameter_named_like_a_field_of_a_record_or_a_metric_is_a_column_too(tmp_path: Path) -> None:
    fixed, records = {name: found[0] for name, found in VALUES.items()}, []
    for code, (status, own) in enumerate(itertools.product(["a", "b"], [1, 2])):
        records.append(record(tmp_path, fixed | {"status": status, "own": own}, code, 0))
    data = load(write_run(tmp_path, records, suite={"workload": "tuning"}), Tuning())  # type: ignore[arg-type]
    assert data.parameters[-2:] == ["status (parameter)", "own (parameter)"]
    assert len(line_panels(data, view("line")).panels) == 4


def test_a_point_at_a_measured_place_stands_for_all_seeds(tmp_path: Path) -> None:
    """Seeds take different times; a line through all of them would go from one training to another."""
    data = run(tmp_path, {"steps": [4, 8]}, 3, set())
    (panel,) = line_panels(data, view("line", x="seconds")).panels
    assert list(panel.lines["red"].x) == [5, 9]


def signed(
    folder: Path, metric: dict[str, list[float | None]], repeats: int = 1, noise: float | None = None
) -> Table:
    """Rewards red (the reference) and blue with these values, a seed each (None: it failed)."""
    records, rng = [], np.random.default_rng(0)
    for reward, numbers in metric.items():
        for seed, number, repeat in ((s, n, r) for s, n in enumerate(numbers) for r in range(repeats)):
            params = {**{n: v[0] for n, v in VALUES.items()}, "reward": reward}
            made = record(folder / f"{reward}{repeat}", params, 0, seed)
            made["cell"] = made["pass_id"] = f"{reward}-{seed}-{repeat}"
            made |= {"repeat": repeat, "artifacts": []}
            if number is None:
                made |= {"status": "oom", "reason": "lost", "metrics": {}}
            else:
                drawn = number + (noise or 0) * rng.normal(size=40)
                if number == 0:  # a mean far nearer to zero than its samples
                    drawn += 1e-6 - drawn.mean()
                samples = [] if noise is None else [float(f"{x:.7g}") for x in drawn]
                mean = number if noise is None else float(drawn.mean())
                made["metrics"] = {"effect": {"value": mean, "unit": "SD", "samples": samples or None}}
            records.append(made)
    suite = {"workload": "tuning", "compare": {"axis": "reward", "reference": "red"}}
    found = relative(load(write_run(folder, records, suite=suite), Tuning()))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_what_may_be_negative_is_compared_by_differences_with_all_its_seeds(tmp_path: Path) -> None:
    table = signed(tmp_path, {"red": [0.11, -0.91, 0.4], "blue": [0.61, -0.31, 0.7]})
    (row,) = table.rows
    assert row["effect"].value == pytest.approx(np.mean([0.5, 0.6, 0.3]))
    assert str(row["effect"].text).endswith("(3 of 3 seeds)")
    assert "×" not in str(row["effect"].text)
    assert any(column.header.startswith("difference in effect (SD)") for column in table.columns)
    assert table.notes[-1].startswith("Difference: that cell's value subtracted")


def test_a_summary_says_how_many_seeds_it_has(tmp_path: Path) -> None:
    table = signed(tmp_path, {"red": [1.0, 2.0, 4.0], "blue": [2.0, 4.0, None]})
    (row,) = table.rows
    assert row["effect"].value == pytest.approx(2)
    assert str(row["effect"].text).startswith("× 2.000 [")
    assert str(row["effect"].text).endswith("(2 of 3 seeds)")
    assert table.notes[-1].endswith("Brackets: 95 % interval over seeds.")


@pytest.mark.parametrize("numbers", [[1e-150, 1e150], [1e300, 1e-300]])
def test_ratios_that_no_float_holds_are_infinite_and_no_crash(tmp_path: Path, numbers: list[float]) -> None:
    """A policy that fell apart with one seed of two took the whole report with it."""
    table = signed(tmp_path, {"red": [1e150, 1e150], "blue": [*numbers]})
    assert "∞] (2 of 2 seeds)" in str(table.rows[0]["effect"].text)


def test_repeats_of_a_seed_narrow_no_interval(tmp_path: Path) -> None:
    values: dict[str, list[float | None]] = {"red": [0.1, -0.9, 0.4], "blue": [0.6, -0.3, 0.9]}
    once, often = (signed(tmp_path / str(n), values, repeats=n).rows[0]["effect"] for n in (1, 4))
    assert often.text == once.text
    alone = signed(tmp_path / "alone", {"red": [-1.0], "blue": [0.5]}, repeats=3)
    assert str(alone.rows[0]["effect"].text).endswith("(3 of 3 repeats)")
    assert alone.notes[-1].endswith("95 % interval over repeats of one training.")


def test_intervals_of_differences_cover_trainings_and_prompts(tmp_path: Path) -> None:
    values: dict[str, list[float | None]] = {"red": [0.1, -0.9, 0.4], "blue": [0.6, -0.3, 0.9]}
    several = signed(tmp_path / "several", values, noise=0.2)
    assert several.notes[-1].endswith("Brackets: 95 % interval over 3 trainings and their prompts.")
    zero = signed(tmp_path / "zero", {"red": [0.0, -0.9], "blue": [0.0, -0.3]}, noise=20)
    assert zero.notes[-1].endswith("Brackets: 95 % interval over 2 trainings and their prompts.")
    one = signed(tmp_path / "one", {"red": [-0.9], "blue": [0.6]}, noise=0.2)
    assert one.notes[-1].endswith("Brackets: 95 % interval over prompts of this training.")
