"""Pictures: the artists hold the data, words do not cover each other, files are reproducible."""

from __future__ import annotations

import dataclasses
import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.report import figure as paper
from bench.report.buckets import bucket_means, fine_edges, octave_edges
from bench.report.curves import curve_panels
from bench.report.frames import RunData, load
from bench.report.layout import spread
from bench.report.panels import NothingToDraw, line_panels
from bench.report.plots import draw
from bench.workload import View
from helpers.synthetic import (
    VIEWS,
    Synthetic,
    measured,
    nll_series,
    record,
    sinks_run,
    value,
    write_run,
)

VIEW = {view.name: view for view in VIEWS}
MAIN = {"sinks": (0, 4)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    folder = tmp_path_factory.mktemp("plots") / "synthetic" / "run"
    return load(sinks_run(folder, (1024, 4096, 16384, 32768)), Synthetic())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """Five models with long names, two seeds each."""
    records, series = [], {}
    for model, seed, policy in itertools.product(range(5), (0, 1), ("dense", "window 1024", "sink 4+1020")):
        changes: dict[str, Any] = {"params": {"model": f"organisation/a-model-with-a-long-name-{model}"}}
        values = nll_series(policy, 8192, seed)
        for length in (1024, 8192):
            made = measured(policy, length, values, seed=seed, **changes)
            records.append(made | {"columns": made["columns"] | {"train_length": 4096, "kept": 1024}})
            changes = {"params": {"model": f"organisation/a-model-with-a-long-name-{model}"}}
            series[made["pass_id"]] = {"nll": values}
    folder = tmp_path_factory.mktemp("models") / "synthetic" / "run"
    return load(write_run(folder, records, series=series), Synthetic())


def drawn(view: View, data: RunData) -> Figure:
    picture = draw(view, data)
    assert picture.figure is not None, picture.why
    return picture.figure


def lines_of(axes: Axes) -> dict[str, Any]:
    return {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def words(figure: Figure) -> list[tuple[str, Any]]:
    """Every visible text with its box in pixels."""
    figure.canvas.draw()
    found, unseen = [], set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        unseen |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    for text in figure.findobj(Text):
        box = text.get_window_extent()
        if text not in unseen and text.get_visible() and text.get_text().strip() and box.width > 0:
            found.append((text.get_text(), box))
    return found


def assert_words_apart(figure: Figure) -> None:
    """No text covers another or leaves the sheet."""
    found = words(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in found:
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text  # noqa: PT018
    for (text, a), (other, b) in itertools.combinations(found, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or down <= 3, f"{text!r} covers {other!r}"


def test_a_curve_holds_the_bucketed_means(whole: RunData) -> None:
    axes = drawn(VIEW["perplexity"], whole).axes[0]
    series = nll_series("sink 4+1020", 32768).astype(float)
    expected = bucket_means(series, fine_edges(len(series)))
    line = lines_of(axes)["sink 4+1020"]
    np.testing.assert_allclose(line.get_ydata(), np.exp(expected.mean))
    np.testing.assert_allclose(line.get_xdata(), (expected.first + expected.last) / 2)
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_ylabel() == "perplexity"


def test_a_mark_is_a_labelled_vertical_line(whole: RunData) -> None:
    figure = drawn(VIEW["perplexity"], whole)
    marks = [line for line in figure.axes[0].lines if line.get_label() == "_mark"]
    assert [list(line.get_xdata()) for line in marks] == [[8192, 8192]]
    assert "train length 8,192" in texts_of(figure)
    far = dataclasses.replace(VIEW["perplexity"], marks=("seed",))
    assert not [line for line in drawn(far, whole).axes[0].lines if line.get_label() == "_mark"]


def test_a_mark_of_some_lines_says_whose_it_is(whole: RunData) -> None:
    view = dataclasses.replace(VIEW["latency"], where=MAIN, marks=("budget", "train_length"))
    named = [note for note in line_panels(whole, view).notes if note.startswith(("Budget", "Train"))]
    assert named == [
        "Budget: window 1024 at 1,024, window 512 at 512, sink 4+1020 at 1,024, sink 4+508 at 512."
    ]


def test_a_failed_cell_ends_its_line_and_is_named(whole: RunData) -> None:
    figure = drawn(VIEW["memory"], whole)
    line = lines_of(figure.axes[0])["dense"]
    assert list(line.get_xdata()) == [1024, 4096, 16384]
    np.testing.assert_allclose(line.get_ydata(), [22.5, 90.0, 360.0])
    assert figure.axes[0].get_ylabel() == "cache (MiB)"
    assert "Not measured: dense: oom at length 32,768." in texts_of(figure)


def test_samples_become_bars(whole: RunData) -> None:
    view = dataclasses.replace(VIEW["latency"], where=MAIN)
    line = line_panels(whole, view).panels[0].lines["window 512"]
    assert np.all((line.low < line.y) & (line.y < line.high))
    figure = drawn(view, whole)
    assert figure.axes[0].get_ylabel() == "latency per token (ms)"
    assert any("bootstrap interval of the median" in text for text in texts_of(figure))


def test_an_ablation_compares_equal_lengths_only(whole: RunData) -> None:
    figure = drawn(VIEW["sinks"], whole)
    (line,) = lines_of(figure.axes[0]).values()
    assert list(line.get_xdata()) == [0, 1, 2, 4, 8]  # at 4,096, though two policies reach further
    assert any(text.startswith("length 4,096") for text in texts_of(figure))


def test_a_runaway_is_cut_off_and_says_so(whole: RunData) -> None:
    figure = drawn(VIEW["sinks"], whole)
    axes = figure.axes[0]
    assert axes.get_ylim()[1] < 100
    assert any("Off the scale: budget 512, up to" in text for text in texts_of(figure))
    logarithmic = drawn(dataclasses.replace(VIEW["sinks"], log_y=True), whole).axes[0]
    assert logarithmic.get_ylim()[1] > 500


def test_an_axis_that_log_cannot_show_becomes_steps(whole: RunData) -> None:
    axes = drawn(dataclasses.replace(VIEW["sinks"], log_x=True), whole).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "4", "8"]


def test_a_heatmap_holds_values_and_statuses(whole: RunData) -> None:
    axes = drawn(VIEW["overview"], whole).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert "oom" in texts
    shown = float(whole.records[0].metrics["perplexity"].value or 0)
    assert f"{shown:.2f}" in texts
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["dense", "window 1024"]


@pytest.mark.filterwarnings("error")
def test_a_panel_of_a_heatmap_without_any_value_is_no_warning(tmp_path: Path) -> None:
    null = {"perplexity": {"value": None, "unit": "", "reason": "not asked for"}}
    records = [
        measured(
            policy, 1024, params={"batch": batch}, columns={"batch": batch}, metrics=null if batch > 1 else {}
        )
        | {"cell": f"{policy}-{batch}"}
        for policy in ("dense", "window 512")
        for batch in (1, 2)
    ]
    figure = drawn(VIEW["overview"], load(write_run(tmp_path / "s" / "run", records), Synthetic()))
    assert len(figure.axes) == 2


def test_a_heatmap_too_fine_for_numbers_says_what_its_colours_mean(tmp_path: Path) -> None:
    text, lengths = nll_series("dense", 1024), [1024 * n for n in range(1, 41)]
    records = [
        measured(policy, 1024, text * (1 + n / 1e5), params={"length": n}, columns={"length": n})
        | {"cell": f"{policy}-{n}"}
        for policy in ("sink 4+508", "sink 4+1020")
        for n in lengths
    ]
    figure = drawn(VIEW["overview"], load(write_run(tmp_path / "s" / "run", records), Synthetic()))
    axes = figure.axes[0]
    assert len(axes.texts) == 0
    assert any(re.match(r"Colour: perplexity, from [\d.]+ \(light\) to", text) for text in texts_of(figure))
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert len(boxes) >= 5
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_colours_belong_to_values_for_the_whole_run(whole: RunData) -> None:
    curve = lines_of(drawn(VIEW["perplexity"], whole).axes[0])
    few = lines_of(drawn(dataclasses.replace(VIEW["latency"], where=MAIN), whole).axes[0])
    assert len(few) < len(curve)
    assert all(few[name].get_color() == curve[name].get_color() for name in few)
    looks = [
        (str(p.colour), p.marker, str(p.dash)) for p in paper.pens([str(i) for i in range(24)], "0").values()
    ]
    assert len(set(looks)) == 24
    assert curve["dense"].get_color() == paper.INK


def test_names_stand_at_the_ends_of_lines_that_end_together(whole: RunData) -> None:
    view = dataclasses.replace(
        VIEW["perplexity"], where={"sinks": (0, 4), "policy": ("window 512", "sink 4+508")}
    )
    direct = drawn(view, whole)
    assert not direct.legends
    assert {"window 512", "sink 4+508"} <= {text.get_text() for text in direct.axes[0].texts}
    assert_words_apart(direct)
    together = dataclasses.replace(
        VIEW["memory"], where={"policy": ("window 512", "window 1024", "sink 4+508")}
    )
    assert_words_apart(drawn(together, whole))  # two of these lines are one
    assert drawn(VIEW["perplexity"], whole).legends  # dense stops early


@pytest.mark.parametrize("name", ["perplexity", "memory", "latency", "overview", "sinks"])
def test_no_words_overlap_or_leave_the_sheet(name: str, whole: RunData) -> None:
    marks = ("train_length", "budget") if name == "perplexity" else ()
    assert_words_apart(drawn(dataclasses.replace(VIEW[name], marks=marks), whole))


@pytest.mark.parametrize("name", ["perplexity", "memory", "latency", "overview"])
def test_no_words_overlap_between_panels(name: str, models: RunData) -> None:
    marks = ("train_length", "kept") if name == "perplexity" else ()
    assert_words_apart(drawn(dataclasses.replace(VIEW[name], marks=marks), models))


def test_panels_and_seeds(models: RunData) -> None:
    content = curve_panels(models, VIEW["perplexity"])
    assert len(content.panels) == 5
    line = content.panels[0].lines["window 1024"]
    both = [
        bucket_means(nll_series("window 1024", 8192, s).astype(float), fine_edges(8192)).mean for s in (0, 1)
    ]
    np.testing.assert_allclose(line.y, np.exp(np.mean(both, axis=0)))
    np.testing.assert_allclose(line.high, np.exp(np.max(both, axis=0)))
    assert any("range over seeds" in note for note in content.notes)
    latency = line_panels(models, VIEW["latency"]).panels[0].lines["dense"]
    model = models.records[0].params["model"]
    records = [
        r for r in models.records if r.params == models.records[0].params | {"length": 8192, "model": model}
    ]
    times = [float(record.metrics["latency"].value or 0) for record in records]
    assert len(times) == 2
    assert (latency.y[-1], latency.low[-1], latency.high[-1]) == pytest.approx(
        (np.mean(times), min(times), max(times))
    )


def test_values_that_stop_or_overflow(tmp_path: Path) -> None:
    stops, overflows = nll_series("dense", 2048).copy(), nll_series("window 512", 2048).copy()
    stops[1000:], overflows[1000:] = np.nan, 800.0
    records = [record(p, 2048) | {"metrics": {"nll": value(1.0, "nats")}} for p in ("dense", "window 512")]
    arrays = dict(zip((r["pass_id"] for r in records), ({"nll": stops}, {"nll": overflows}), strict=True))
    data = load(write_run(tmp_path / "s" / "run", records, series=arrays), Synthetic())
    with np.errstate(over="raise"):
        figure = drawn(VIEW["perplexity"], data)
        figure.canvas.draw()
    notes = " ".join(texts_of(figure))
    assert "dense: no values after position 1,024" in notes
    assert "window 512, up to ∞" in notes
    assert np.isfinite(figure.axes[0].get_ylim()).all()


def test_nothing_to_draw_has_a_reason(whole: RunData, tmp_path: Path) -> None:
    assert "no GPU" in str(draw(VIEW["vram"], whole).why)
    assert "kind = none" in str(draw(dataclasses.replace(VIEW["memory"], where={"kind": "none"}), whole).why)
    assert "series other" in str(draw(dataclasses.replace(VIEW["perplexity"], series="other"), whole).why)
    assert "column colour" in str(draw(dataclasses.replace(VIEW["memory"], hue="colour"), whole).why)
    with pytest.raises(NothingToDraw):
        line_panels(load(write_run(tmp_path / "s" / "run", []), Synthetic()), VIEW["memory"])


def test_too_many_hues_are_cut_and_counted(tmp_path: Path) -> None:
    records = [measured(f"sink {i}+{1024 - i}", 512) for i in range(1, 31)]
    data = load(write_run(tmp_path / "s" / "run", records), Synthetic())
    content = line_panels(data, VIEW["memory"])
    assert len(content.hues) == 12
    assert any("The first 12 of 30" in note for note in content.notes)


def test_files_are_reproducible_and_keep_text(whole: RunData, tmp_path: Path) -> None:
    picture = drawn(VIEW["perplexity"], whole)
    first = [path.read_bytes() for path in paper.save(picture, tmp_path / "a")]
    again = [path.read_bytes() for path in paper.save(drawn(VIEW["perplexity"], whole), tmp_path / "b")]
    assert first == again
    root = ElementTree.fromstring(first[1])
    texts = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Perplexity along the text", "train length 8,192"} <= texts
    assert b"date" not in first[1].lower()


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(0.01, 1))
def test_spread_keeps_order_and_distance(wanted: list[float], gap: float) -> None:
    wanted = sorted(wanted)
    places = spread(wanted, gap)
    assert len(places) == len(wanted)
    assert all(b - a >= gap * (1 - 1e-9) - 1e-9 for a, b in itertools.pairwise(places))
    assert np.mean(places) == pytest.approx(np.mean(wanted), abs=1e-6)
    bounded = spread(wanted, gap, -2, gap * len(wanted))
    assert all(b - a >= gap * (1 - 1e-9) - 1e-9 for a, b in itertools.pairwise(bounded))
    assert -2 <= bounded[0] <= bounded[-1] <= gap * len(wanted) + 1e-9


@given(st.integers(1, 5_000_000))
def test_bucket_edges_cover_everything_once(n: int) -> None:
    for ends in (fine_edges(n), octave_edges(n)):
        assert ends[-1] == n
        assert all(a < b for a, b in itertools.pairwise(ends))
        assert len(ends) <= 100


def test_bucket_means_leave_out_what_was_not_scored() -> None:
    series = np.arange(100.0)
    series[[0, 70]] = np.nan
    found = bucket_means(series, [64, 128], intervals=True)
    assert list(found.count) == [63, 35]
    assert list(found.last) == [64, 100]
    np.testing.assert_allclose(found.mean, [32.0, np.nanmean(series[64:])])
    assert np.all((found.low <= found.mean) & (found.mean <= found.high))
