"""Names of lines, panels and rows are never the same for two values: one would hide the other."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bench.report.matrix import matrix_rows
from bench.report.names import names_of, panel_titles
from bench.report.panels import line_panels
from bench.report.plots import draw
from bench.report.positions import position_buckets
from bench.report.select import token
from bench.report.web.grids import grid
from bench.text import shortened
from helpers.grids import run, view
from helpers.synthetic import POLICIES, VIEWS, Synthetic, measured, nll_series, write_run

LONG = [f"weighted:1*jpeg_compressibility+1*brisque+{i}*alignment" for i in (1, 2)]
scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=4)


@given(st.lists(scalars | st.sampled_from(LONG)))
def test_no_two_values_have_one_name(values):
    names = names_of(values)
    assert len(set(names.values())) == len({token(value) for value in values})


@given(st.lists(st.text(), unique=True))
def test_cut_names_stay_apart(names):
    assert len(set(shortened(names, 8))) == len(names)


def test_names_are_cut_where_they_part():
    first, second = shortened(LONG, 40)
    assert first == "weighted:1…que+1*alignment"
    assert second == "weighted:1…que+2*alignment"
    assert names_of([0.00100001, 0.001]) == {0.00100001: "0.00100001", 0.001: "0.001"}
    assert panel_titles([{"a": "x, y", "b": "z"}, {"a": "x", "b": "y, z"}]) == ["x, y, z #1", "x, y, z #2"]


def test_lines_of_long_names_are_all_drawn(tmp_path: Path):
    data = run(tmp_path, {"reward": LONG}, 1, set())
    (panel,) = line_panels(data, view("line")).panels
    assert len(panel.lines) == 2
    assert len(matrix_rows(data, view("matrix"), data.frame)) == 2
    assert len(set(grid(view("matrix"), data)["rows"])) == 2
    assert draw(view("line"), data).figure is not None


def test_panels_whose_titles_are_cut_are_numbered(tmp_path: Path):
    targets = [["attn1.to_q", "attn1.to_k", last] for last in ("to_v", "to_out", "linear_1", "linear_2")]
    data = run(tmp_path, {"targets": targets}, 1, set())
    figure = draw(view("line"), data).figure
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(set(titles)) == 4
    words = " ".join(text.get_text() for text in figure.texts)
    assert all(last in words + " ".join(titles) for last in ("to_v", "to_out", "linear_1", "linear_2"))


def test_columns_of_positions_are_no_means_over_settings_that_read_alike(tmp_path: Path):
    from bench.report.frames import load

    records, series = [], {}
    for scale in (0.00100001, 0.001):
        whole = nll_series("dense", 512) * (1000 * scale) ** 4000
        made = measured(POLICIES[0], 512, whole, params={"scale": scale})
        records.append(made)
        series[made["pass_id"]] = {"nll": whole}
    data = load(write_run(tmp_path / "run", records, series=series), Synthetic())
    table = position_buckets(data, next(one for one in VIEWS if one.kind == "curve"))
    assert table is not None
    assert len(table.columns) == 4
