"""The page as a text: what is in it, what cannot be in it, and what happens when things go wrong.

How it behaves in a browser is tested in tests/e2e.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.errors import UserError
from bench.report import page as markdown_page
from bench.report.frames import RunData, load
from bench.report.web import cells, memory
from bench.report.web.charts import chart, published_lines
from bench.report.web.grids import grid
from bench.report.web.merge import merge
from bench.report.web.page import asset, embedded, html, write_page
from bench.report.web.sheets import SCALES, _uri, sheets
from bench.results import store
from bench.suite.choice import choose
from bench.workload import Cell, Cost, Pass
from helpers.synthetic import ENV, Synthetic, measured, nll_series, record, write_run
from helpers.tuned import STEPS, Tuned, tuned_run


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of style and script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw.append((self._inside, data))
            self._inside = ""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """Three policies at two lengths with their series; dense out of memory at the second."""
    folder = tmp_path_factory.mktemp("page") / "run"
    records, series = [], {}
    for policy in ("dense", "window 512", "sink 4+508"):
        for length in (1024, 2048):
            made = measured(policy, length)
            if policy == "dense" and length == 2048:
                made = record(policy, length, status="oom", reason="OutOfMemoryError: 9 GiB")
            records.append(made)
            series[made["pass_id"]] = {"nll": nll_series(policy, 2048)}
    write_run(folder, records, series=series, planned=records)
    return load(folder, Synthetic())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return load(tuned_run(tmp_path_factory.mktemp("page") / "tuned"), Tuned())  # type: ignore[arg-type]


def test_the_policy_allows_exactly_what_is_inside(data: RunData) -> None:
    parsed = Parsed(html(data.folder, [data], {}))
    metas = [a for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a]
    policy = metas[0]["content"] or ""
    assert "default-src 'none'" in policy
    (style,) = (text for tag, text in parsed.raw if tag == "style")
    _, script = (text for tag, text in parsed.raw if tag == "script")
    for text in (style, script):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_nothing_points_outside_and_nothing_runs_inline(data: RunData) -> None:
    for tag, attributes in Parsed(html(data.folder, [data], {})).tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href", "action", "srcset"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")) or re.fullmatch(r"[\w./-]+", target), target


def test_the_script_builds_text_never_markup() -> None:
    for path in (Path(markdown_page.__file__).parent / "templates").glob("*.js"):
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch("):
            assert word not in path.read_text(), path


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["</script>", "<!--", "\u2028&"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(_json)
def test_embedded_json_is_safe_and_says_the_same(value: Any) -> None:
    text = embedded(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_drawing_again_changes_no_byte(data: RunData) -> None:
    again = load(data.folder, Synthetic())  # type: ignore[arg-type]
    assert html(data.folder, [data], {}) == html(data.folder, [again], {})


def test_machine_and_command_are_there_and_no_host(data: RunData) -> None:
    text = html(data.folder, [data], {})
    assert "Synthetic CPU @ 2 GHz" in text
    assert "python -m bench suites/synthetic.yaml" in text
    assert ENV["hostname"] not in text


@pytest.mark.parametrize("failed", [False, True])
def test_a_run_without_numbers_says_so(tmp_path: Path, failed: bool) -> None:
    records = [record("dense", 512, status="error", reason="RuntimeError: <b>no</b>")] if failed else []
    folder = write_run(tmp_path / "run", records, planned=records)
    text = html(folder, [load(folder, Synthetic())], {})  # type: ignore[arg-type]
    assert ("No cell was measured" if failed else "There are no records yet") in text
    assert "<b>no</b>" not in text


def test_records_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [measured("dense", 512) | {"schema_version": 99, "new": 1}])
    with pytest.raises(UserError, match="newer version"):
        markdown_page.read(folder)


def test_a_folder_of_another_project_is_refused(tmp_path: Path) -> None:
    (tmp_path / "records.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="not a run folder"):
        markdown_page.read(tmp_path)


def test_a_full_disk_leaves_the_old_page(data: RunData, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_page(data.folder, [data], {})
    before = page.read_bytes()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_page(data.folder, [data], {})
    assert page.read_bytes() == before
    assert not list(data.folder.glob(".*html*"))


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [r":root", r':root\[data-theme="dark"\]'])
def test_colours_have_the_contrast_that_aa_asks_for(theme: str) -> None:
    block = re.search(rf"^{theme} \{{(.*?)\}}", asset("page.css"), re.S | re.M)
    assert block
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block[1]))
    for back in ("bg", "panel"):
        for text in ("ink", "soft", "link", "ok", "bad", "warn"):
            assert _contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for shape in ("edge", *(f"s{i}" for i in range(7))):
        assert _contrast(colours[shape], colours["bg"]) >= 3, shape


def test_cells_are_packed_without_loss(data: RunData) -> None:
    packed = cells.pack([data])
    names = [metric["name"] for metric in packed["metrics"]]
    for record_, row in zip(data.records, packed["cells"], strict=True):
        assert packed["words"][row[2]] == record_.label
        for name, field in zip(names, row[15], strict=True):
            value = record_.metrics.get(name)
            if value is None:
                assert field is None
            elif value.value is None:
                assert packed["words"][field[1]] == value.reason
            else:
                kept = field[0] if isinstance(field, list) else field
                assert kept == pytest.approx(value.value, rel=1e-6)
        for name, field in zip(packed["params"], row[12], strict=True):
            shown = packed["words"][field[0]] if isinstance(field, list) else field
            assert shown == record_.params.get(name)


def test_the_command_finds_exactly_its_cell(data: RunData) -> None:
    labels = [
        "plain",
        "with [brackets] and *",
        "with [brackets] and more",
        "café ∞ *",
        "x" * 200,
        "' $HOME `id`",
    ]
    known = tuple(Cell(str(i), {}, label, 0, 0) for i, label in enumerate(labels))
    for label in labels:
        (work,) = choose([Pass("p", "toy", known, Cost(1, ""))], [cells._named(label)])
        assert [cell.label for cell in work.cells] == [label]


def test_memory_stands_side_by_side_with_its_ratio_and_reasons(tuned: RunData) -> None:
    table = memory.reconciliation(tuned)
    assert table is not None
    assert len(table.rows) == 2
    assert table.rows[0]["state_bytes/ratio"].value == 1
    assert {c.key for c in table.columns} >= {"state_bytes", "state_bytes_analytic", "rss_peak_bytes"}
    assert any("VRAM" in note and "no GPU" in note for note in table.notes)


def test_published_values_are_lines_that_name_their_source(data: RunData) -> None:
    rows = [
        {
            "model": "other",
            "policy": "dense",
            "length": n,
            "metric": "latency",
            "value": n / 100,
            "source": "T1",
        }
        for n in (2048, 1024)
    ]
    rows += [{"policy": "dense", "length": 1024, "metric": "latency", "value": 9.0, "source": "T2"}]
    rows += [{"policy": "dense", "length": 1024, "metric": "nll", "value": 3.0, "source": "T2"}]
    told = load(data.folder, Synthetic(rows=rows))  # type: ignore[arg-type]
    view = next(v for v in told.words.views if v.y == "latency")
    first, second = published_lines(view, told)
    assert (first["name"], first["source"]) == ("other · dense", "T1")
    assert (first["x"], first["y"]) == ([1024.0, 2048.0], [10.24, 20.48])
    assert not first["matches"]
    assert second["matches"]


def test_a_heat_map_of_too_many_columns_is_refused(tmp_path: Path) -> None:
    records = [
        measured("dense", 512, params={"length": n}, columns={"length": n}) | {"cell": f"c{n}"}
        for n in range(1, 80)
    ]
    data = load(write_run(tmp_path / "run", records), Synthetic())  # type: ignore[arg-type]
    view = next(v for v in data.words.views if v.kind == "heatmap")
    assert "too many for a heat map" in chart(view, data)["why"]


def test_a_matrix_has_a_row_per_hue_at_its_end(tuned: RunData) -> None:
    view = next(v for v in tuned.words.views if v.kind == "matrix")
    found = grid(view, tuned)
    assert found["rows"] == ["red", "blue"]
    assert found["panels"][0]["fields"] == [[2.0, -1.25], [-1.25, 2.0]]
    assert found["signed"]


def test_runs_share_a_chart_and_keep_their_names(data: RunData) -> None:
    view = next(v for v in data.words.views if v.y == "latency")
    one = chart(view, data)
    both = merge([("new", one), ("old", one)])
    names = [line["name"] for line in both["panels"][0]["lines"]]
    assert len(names) == len(set(names)) == 6
    assert {name.rpartition(" · ")[2] for name in names} == {"new", "old"}


def test_frames_of_a_sheet_are_in_order(tuned: RunData) -> None:
    view = next(v for v in tuned.words.views if v.kind == "pictures")
    found = sheets(view, tuned)
    assert [row["name"] for row in found["rows"]] == ["red", "blue"]
    assert [frame["x"] for frame in found["rows"][0]["frames"]] == list(STEPS)
    place = found["rows"][1]["frames"][2]["picture"]
    raw = base64.b64decode(found["pictures"][place].partition(",")[2])
    shown, kept = Image.open(io.BytesIO(raw)), Image.open(tuned.folder / "artifacts/pass1/pictures-50.png")
    assert shown.size == kept.size
    assert np.abs(np.asarray(shown, float) - np.asarray(kept, float)).mean() < 6


def test_a_page_does_not_grow_beyond_its_budget(tuned: RunData) -> None:
    view = next(v for v in tuned.words.views if v.kind == "pictures")
    whole = sum(map(len, sheets(view, tuned, budget=10**9)["pictures"]))
    smaller = sheets(view, tuned, budget=whole * 3 // 4)  # by scale, as long as they can be made out
    assert sum(map(len, smaller["pictures"])) <= whole * 3 // 4
    assert sum(len(row["frames"]) for row in smaller["rows"]) == 8
    least = sum(len(_uri(picture(tuned, view, i), SCALES[-1])) for i in range(8))
    found = sheets(view, tuned, budget=least // 2)
    kept = sum(len(row["frames"]) for row in found["rows"])
    assert 0 < kept < 8
    assert f"{8 - kept} pictures left out" in found["notes"][0]


def picture(data: RunData, view: Any, index: int) -> Image.Image:
    path = data.picture(index, str(view.series))
    assert path is not None
    return Image.open(path).convert("RGB")


def test_equal_pictures_travel_once(tmp_path: Path) -> None:
    data = load(tuned_run(tmp_path / "run"), Tuned())  # type: ignore[arg-type]
    base = data.folder / "artifacts/pass0/pictures-0.png"
    (data.folder / "artifacts/pass1/pictures-0.png").write_bytes(base.read_bytes())
    view = next(v for v in data.words.views if v.kind == "pictures")
    found = sheets(view, data)
    first = [row["frames"][0]["picture"] for row in found["rows"]]
    assert first == [first[0]] * 2
    assert len(found["pictures"]) == 7


def test_what_is_no_picture_is_not_shown(tmp_path: Path) -> None:
    data = load(tuned_run(tmp_path / "run"), Tuned())  # type: ignore[arg-type]
    (data.folder / "artifacts/pass0/pictures-25.png").write_text("<svg onload='alert(1)'></svg>")
    view = next(v for v in data.words.views if v.kind == "pictures")
    found = sheets(view, data)
    assert len(found["rows"][0]["frames"]) == 3
    assert any("is no picture that can be shown" in note for note in data.notes)
