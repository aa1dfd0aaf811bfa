"""Maps that cells have kept, as picture and as data for the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.report import render
from bench.report.frames import RunData, load
from bench.report.maps import maps
from bench.report.panels import NothingToDraw
from bench.report.plots import draw
from bench.report.web.charts import chart
from bench.report.web.merge import merge
from bench.workload import View
from helpers.synthetic import Synthetic, record, write_run

VIEW = View(
    "map", "map", "Where", "head", "sink", "head", "attention", hue="layer", series="kept", headline=True
)
SHAPES = {"small": (2, 3), "large": (30, 9)}


def run_of(folder: Path, labels: tuple[str, ...] = ("small", "large"), *, status: str = "ok") -> RunData:
    lines = []
    for label in labels:
        rows, columns = SHAPES[label]
        made = record(
            "dense", 8, params={"model": label}, label=label, cell=label, pass_id=label, status=status
        )
        path = folder / "artifacts" / label / "kept-8.npz"
        path.parent.mkdir(parents=True)
        places = np.indices((rows, columns)).reshape(2, -1)
        np.savez(path, layer=places[0], head=places[1], sink=np.arange(rows * columns) / (rows * columns))
        kept = {"path": f"artifacts/{label}/kept-8.npz", "sha256": "0" * 64, "bytes": 1}
        lines.append(made | {"metrics": {}, "artifacts": [kept]})
    suite = {"compare": None}
    return load(write_run(folder, lines, suite=suite), Synthetic(views=(VIEW,), prefix_axis=None))


def test_a_panel_is_a_cell_of_its_own_size(tmp_path: Path) -> None:
    data = run_of(tmp_path)
    found, notes = maps(VIEW, data)
    assert [(one.title, one.values.shape) for one in found] == [("small", (2, 3)), ("large", (30, 9))]
    assert not notes
    assert found[0].values[1, 2] == pytest.approx(5 / 6)
    drawn = draw(VIEW, data)
    assert drawn.figure is not None
    axes = drawn.figure.axes
    assert [one.get_title(loc="left") for one in axes] == ["small", "large"]
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["0", "1"]
    assert axes[1].get_yticklabels()[1].get_text() == "3"  # there is room for every third of 30
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1]  # the first layer on top
    words = " ".join(text.get_text() for text in drawn.figure.texts).replace("\n", " ")
    assert "from 0 (light) to 0.9963 (dark)" in words


def test_the_page_has_the_numbers(tmp_path: Path) -> None:
    shown = chart(VIEW, run_of(tmp_path / "a"))
    assert (len(shown["rows"]), shown["rows"][29], len(shown["columns"])) == (30, "layer 29", 9)
    small = shown["panels"][0]["fields"]
    assert small[1][:4] == [0.5, 0.666667, 0.833333, None]  # a column that this cell lacks
    both = merge([("a", shown), ("b", chart(VIEW, run_of(tmp_path / "b")))])
    assert [panel["title"] for panel in both["panels"]] == [
        "a · small",
        "a · large",
        "b · small",
        "b · large",
    ]
    json.dumps(both, allow_nan=False)


def test_a_run_without_maps_says_so(tmp_path: Path) -> None:
    data = run_of(tmp_path, status="error")
    with pytest.raises(NothingToDraw, match="no measured cell has kept kept"):
        maps(VIEW, data)
    assert draw(VIEW, data).why == chart(VIEW, data)["why"] == "no measured cell has kept kept"


def test_it_is_on_the_page_of_a_run(tmp_path: Path) -> None:
    run_of(tmp_path)
    page = render(tmp_path, Synthetic(views=(VIEW,), prefix_axis=None))
    assert "![Where: attention against head for each layer](plots/map.png)" in page.read_text()
    assert "data:image" not in (tmp_path / "plots" / "map.svg").read_text()
