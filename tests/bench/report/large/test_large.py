"""A report of more cells than it draws, held against the report that draws them all."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench import registry
from bench.errors import UserError
from bench.export import site
from bench.report import frames, page, render, render_only, session
from bench.report.about import status_line, when_line
from bench.report.contents import contents
from bench.report.large import CHOSEN_CELLS, MOST_CELLS, failures, load
from bench.report.large.load import load_run
from bench.report.large.planned import walk
from bench.report.large.run import LargeRun
from bench.report.select import requested_seeds
from bench.report.tables import failures as plain_failures
from bench.report.tables import full
from bench.results.digest import with_digest
from bench.results.index import Index
from bench.results.record import Record, canonical
from bench.results.store import DAMAGED, PLAN, RECORDS
from helpers import grids
from helpers.large import PUBLISHED, large_run
from helpers.synthetic import Synthetic, measured, record, write_run

RUNS = ["sinks", "policies", "learned-sinks", "ddpo", "gpu-headline", "book10146"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are large from six cells on, of which four are drawn."""
    monkeypatch.setattr(load, "MOST_CELLS", 5)
    monkeypatch.setattr(load, "CHOSEN_CELLS", 4)
    monkeypatch.setattr(failures, "CHOSEN_CELLS", 4)


def large(folder: Path, workload: Any = None) -> LargeRun:
    found = load_run(folder, workload)
    assert isinstance(found, LargeRun)
    return found


def every(data: LargeRun, folder: Path) -> str:
    data.every.write(folder / "every.csv", data.all_plain())
    return (folder / "every.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_the_table_of_all_cells_is_the_same_byte_for_byte(small: None, name: str, tmp_path: Path) -> None:
    folder = PUBLISHED / name
    workload = registry.load(str(frames.workload_name(folder)))
    data, plain = large(folder, workload), frames.load(folder, workload)
    assert every(data, tmp_path) == full(plain).csv()
    assert len(data.records) <= 4 < len(plain.records)
    assert (status_line(data), when_line(data)) == (status_line(plain), when_line(plain))
    assert {**vars(data.whole), "chosen": ""} == vars(plain.whole)


def test_a_parameter_called_like_a_field_or_a_metric_is_in_the_table_of_all_cells(
    small: None, tmp_path: Path
) -> None:
    """Also where a column of its name tells it: that column is not in the table."""
    made = [
        measured("dense", 512, params={"repeat": 10 * n, "loss": n, "x": 1}, columns={"repeat": n, "loss": n})
        for n in range(7)
    ]
    folder = write_run(tmp_path / "run", [one | {"cell": f"c{n}"} for n, one in enumerate(made)])
    text = every(large(folder, Synthetic()), tmp_path)
    assert text == full(frames.load(folder, Synthetic())).csv()
    assert "repeat (parameter)" in text.partition("\n")[0].split(",")


axes = st.lists(st.sampled_from([*grids.VALUES]), max_size=4, unique=True)


@settings(max_examples=25, deadline=None)
@given(axes, st.integers(1, 3), st.sets(st.integers(0, 30), max_size=4))
def test_any_grid_has_the_same_table_and_pools_nothing(names: list[str], seeds: int, lost: set[int]) -> None:
    """The parameters of these grids are told by their columns, by others, by none, or by the same for two."""
    limits = load.MOST_CELLS, load.CHOSEN_CELLS
    load.MOST_CELLS, load.CHOSEN_CELLS = 0, 12
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            plain = grids.run(folder, {axis: grids.VALUES[axis] for axis in names}, seeds, lost)
            data = large(folder, grids.Tuning())
            assert every(data, folder) == full(plain).csv()
            for kind in ("line", "scatter"):
                for panel in contents(grids.view(kind, x="steps" if kind == "line" else "own"), data).panels:
                    for line in panel.lines.values():
                        assert all(math.log2(y).is_integer() for y in line.y)
    finally:
        load.MOST_CELLS, load.CHOSEN_CELLS = limits


def grid_run(folder: Path, **changes: Any) -> Path:
    """Five policies by twelve lengths; those of one policy fail from the fourth length on."""
    records = []
    for policy in ("dense", "window 512", "sink 4+508", "sink 4+1020", "window 1024"):
        for n in range(1, 13):
            if policy == "sink 4+1020" and n > 3:
                reason = "out of memory" if n == 4 else "not reached: out of memory"
                records.append(record(policy, 512 * n, status="oom", reason=reason))
            else:
                records.append(measured(policy, 512 * n))
    return write_run(folder, records, **{"planned": records, **changes})


def test_causes_of_failures_are_counted_over_all_cells(small: None, tmp_path: Path) -> None:
    folder = grid_run(tmp_path / "run")
    table = failures.all_failures(large(folder, Synthetic()))
    plain = plain_failures(frames.load(folder, Synthetic()))
    assert [row["lost"].value for row in table.rows] == [row["lost"].value for row in plain.rows] == [8]
    assert [row["reason"].value for row in table.rows] == ["out of memory"]


def test_page_tables_and_pictures_say_what_they_leave_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load, "MOST_CELLS", 50)
    monkeypatch.setattr(load, "CHOSEN_CELLS", 20)
    folder = grid_run(tmp_path / "run")
    readme = render(folder, Synthetic()).read_text()  # type: ignore[arg-type]
    said = "20 of 60 cells are drawn (4 of 12 values of length, evenly spaced)"
    assert f"**{said}.** All 60 cells are counted here" in readme
    assert "**51 of 60 cells measured; 9 oom.**" in readme
    shown = (folder / "index.html").read_text()
    assert shown.count(said) > 5  # on top, over the cells, below tables and pictures
    assert "51 of 60</strong> cells measured" in shown
    assert ">Cells drawn</h2>" in shown
    assert "All cells</h2>" not in shown
    assert len(list(csv.reader(io.StringIO((folder / "tables" / "full.csv").read_text())))) == 61
    for name in ("headline", "full", "relative"):
        assert f"Not all cells: {said}." in (folder / "tables" / f"{name}.md").read_text()
    drawings = [path.read_text() for path in (folder / "plots").glob("*.svg")]
    assert drawings
    assert all("Not all cells: 20 of 60 cells are drawn" in text for text in drawings)
    assert render(folder, Synthetic()).read_text() == readme  # type: ignore[arg-type]


def test_every_cell_drawn_has_the_partner_that_it_has_among_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load, "MOST_CELLS", 50)
    monkeypatch.setattr(load, "CHOSEN_CELLS", 8)
    folder = grid_run(tmp_path / "run")
    data = large(folder, Synthetic())
    assert {record.params["policy"] for record in data.records} > {"dense"}
    lengths = {r.params["length"] for r in data.records if r.params["policy"] == "dense"}
    assert {r.params["length"] for r in data.records} == lengths


def test_notes_are_of_all_cells(small: None, tmp_path: Path) -> None:
    folder = grid_run(tmp_path / "run")
    lines = (folder / RECORDS).read_text().splitlines()
    for number, text in enumerate(lines):
        one = json.loads(text)
        one["conformance"] = {"note": "read with care"}
        record = with_digest(Record.model_validate(one | {"schema_version": 2}))
        lines[number] = record.model_dump_json()
    lines[40] = lines[40].replace('"seed":0', '"seed":0 ').replace('"repeat":0', '"repeat":1')
    (folder / RECORDS).write_text("\n".join([*lines[:30], "no record", *lines[30:]]) + "\n")
    (folder / DAMAGED).write_text("one\n\ntwo\n")
    data, plain = large(folder, Synthetic()), frames.load(folder, Synthetic())
    assert data.whole.edited == len(plain.edited) == 1
    assert data.notes[:3] == plain.notes[:3]
    assert data.notes[0].startswith("1 line of records.jsonl could not be read")
    assert data.notes[2].startswith("records.jsonl line 42: ")
    assert data.notes[3].endswith(" and 55 more cells: read with care")
    assert "edited" in every(data, tmp_path).partition("\n")[0].split(",")
    assert every(data, tmp_path) == full(plain).csv()


def test_cells_of_the_plan_that_were_not_answered_are_counted_and_seeds_are_those_asked_for(
    small: None, tmp_path: Path
) -> None:
    folder = grid_run(tmp_path / "run")
    lines = (folder / RECORDS).read_text().splitlines(keepends=True)
    cells = [json.loads(line) for line in lines]
    cells = [{"id": c["cell"], **{k: c[k] for k in ("label", "params", "seed", "repeat")}} for c in cells]
    more = [{**cell, "id": f"{cell['id']}-seed-1", "seed": 1} for cell in cells]
    (folder / PLAN).write_text(json.dumps({"passes": [{"id": "p", "cells": [*cells, *more]}]}))
    (folder / RECORDS).write_text("".join(lines[:50]))
    data, plain = large(folder, Synthetic()), frames.load(folder, Synthetic())
    assert (data.whole.planned, data.whole.unanswered) == (120, 70)
    assert status_line(data) == status_line(plain)
    everywhere = requested_seeds(plain)
    assert requested_seeds(data) == {canonical(r.params): {(0, 0), (1, 0)} for r in data.records}
    assert requested_seeds(data).items() <= everywhere.items()


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["sinks", "policies", "gpu-headline"])
def test_a_plan_is_walked_as_it_is_read(name: str, indent: int | None, tmp_path: Path) -> None:
    plan = json.loads((PUBLISHED / name / PLAN).read_text())
    (tmp_path / PLAN).write_text(json.dumps(plan, indent=indent) + "\n")
    rest: dict[str, Any] = {}
    assert list(walk(tmp_path / PLAN, rest)) == frames.planned_cells(plan)
    assert rest == {key: value for key, value in plan.items() if key != "passes"}


@pytest.mark.parametrize(
    "text",
    ['{"cells": [{"id": "a"}, {"id": "b"}]}', '{"passes": [], "cells": [{"id": "a"}]}', "{}",
     '{"passes": null, "cells": [{"id": "a"}, 3]}',
     '{"passes": [{"cells": null}, {"cells": [{"id": "a"}]}]}',
     ' { "x" : 1 , "passes" : [ { "cells" : [ {"id": 1} ] } ] }'],
)  # fmt: skip
def test_other_plans_are_walked_as_they_are_read(text: str, tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text(text)
    assert list(walk(tmp_path / PLAN, {})) == frames.planned_cells(json.loads(text))


def test_a_plan_with_a_number_that_is_none_is_said_to_be_unreadable(small: None, tmp_path: Path) -> None:
    """Of a run of any size."""
    folder = grid_run(tmp_path / "run")
    (folder / PLAN).write_text('{"passes": [{"cells": [{"id": "a", "params": {"x": NaN}}]}]}')
    said = "plan.json could not be read: NaN is no number of JSON"
    assert said in large(folder, Synthetic()).notes
    assert said in frames.load(folder, Synthetic()).notes


def test_a_plan_that_is_nested_too_deep_is_said_to_be(small: None, tmp_path: Path) -> None:
    folder = grid_run(tmp_path / "run")
    (folder / PLAN).write_text('{"passes":' + "[" * 200_000)
    assert "plan.json could not be read: nested too deep" in large(folder, Synthetic()).notes


@pytest.mark.parametrize("text", ["", "[]", '{"cells": [{"id": "a"}', '{"a" 1}', '{"a": 1 "b": 2}', "{"])
def test_a_plan_that_is_cut_short_is_said_to_be(text: str, small: None, tmp_path: Path) -> None:
    folder = grid_run(tmp_path / "run")
    (folder / PLAN).write_text(text)
    assert any("plan.json could not be read" in note for note in large(folder, Synthetic()).notes)


def test_a_large_run_has_no_page_beside_another(small: None, tmp_path: Path) -> None:
    folder = grid_run(tmp_path / "run")
    shutil.copytree(folder, tmp_path / "other")
    for draw in (
        lambda: page.write(folder, Synthetic(), tmp_path / "other"),  # type: ignore[arg-type]
        lambda: page.write_several([folder], tmp_path / "other", tmp_path / "out"),
    ):
        with pytest.raises(UserError, match="has 60 cells: a page of several runs is drawn of"):
            draw()
    assert not (tmp_path / "out").exists()


def test_cells_that_are_asked_for_have_a_report_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run of any size, and the report of the run stays as it is."""
    monkeypatch.setitem(registry._registered, "synthetic", f"{__name__}:PLAIN")
    folder = grid_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    written = render_only(folder, "SINK 4+508 @ *")
    assert {path: path.read_bytes() for path in before} == before
    assert written.parent.parent == folder / "only"
    text = written.read_text()
    assert "**12 of 12 cells measured.**" in text
    assert "12 of 60 cells are looked at, those called 'SINK 4+508" in text
    assert "so nothing is compared with it (of the cells drawn)." in text
    assert (written.parent / re.findall(r"suite as it was run is in \[\S+\]\((\S+)\)", text)[0]).is_file()
    with open(written.parent / "tables" / "full.csv") as file:
        assert [row["policy"] for row in csv.DictReader(file)] == ["sink 4+508"] * 12
    assert "those called &#39;SINK 4+508 @ *&#39;" in (written.parent / "index.html").read_text()
    assert render_only(folder, "sink 4+508 @ 512").parent != written.parent
    with pytest.raises(UserError, match="--only 'nothing' matches no cell"):
        render_only(folder, "nothing")


def test_what_is_asked_for_may_hold_bytes_that_are_no_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [measured("dense", 512, label="a")])
    assert load.load_only(folder, "[a\udcff]").pages.parent == folder / "only"


def report_only(folder: Path, wanted: str) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = session.report([str(folder)], None, None, folder.parent, console, vectors=False, only=wanted)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def test_the_exit_code_is_of_the_cells_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._registered, "synthetic", f"{__name__}:PLAIN")
    made = [measured("dense", 512), record("window 512", 512, status="oom", reason="out of memory")]
    folder = write_run(tmp_path / "run", made, planned=made)
    assert report_only(folder, "dense *")[0] == 0
    code, said = report_only(folder, "window *")
    assert code == 3
    assert "nothing was measured of 'window *'" in said


def test_cells_that_the_plan_no_longer_has_cannot_be_asked_for(tmp_path: Path) -> None:
    made = [measured("dense", 512), measured("window 512", 512)]
    folder = write_run(tmp_path / "run", made, planned=made[:1])
    assert [one.label for one in load.load_only(folder, "*").records] == [made[0]["label"]]
    with pytest.raises(UserError, match=r"--only 'window .*' matches no cell"):
        load.load_only(folder, "window *")


def test_what_the_workload_holds_others_against_stays_though_it_is_no_parameter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A column that one parameter tells, and one that two do."""
    monkeypatch.setattr(load, "MOST_CELLS", 50)
    monkeypatch.setattr(load, "CHOSEN_CELLS", 20)
    made = []
    for policy in range(20):
        for n in range(1, 13):
            kind = {3: "random", 4: "random"}.get(policy, "sink")
            both = "odd" if (policy, n) == (7, 5) else "even"
            columns = {"kind": kind, "both": both}
            made.append(measured("dense", n, params={"number": policy}, columns=columns))
    made = [one | {"cell": f"c{n}"} for n, one in enumerate(made)]
    folder = write_run(tmp_path / "run", made)
    held = [("kind", "random")]
    monkeypatch.setattr(load, "_anchors", lambda *rest: held)
    data = large(folder, Synthetic())
    assert {one.params["number"] for one in data.records} >= {3, 4}
    assert len({one.params["length"] for one in data.records}) < 12
    held[:] = [("both", "odd")]
    assert "odd" in {one.columns["both"] for one in large(folder, Synthetic()).records}
    held[:] = [("kind", "absent")]
    assert len(large(folder, Synthetic()).records) <= 20


def test_a_large_run_is_published_with_its_table_of_all_cells(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._registered, "synthetic", f"{__name__}:PLAIN")
    written, note = site.add(grid_run(tmp_path / "run"), tmp_path / "site")
    assert not note
    assert (written.parent / "tables" / "full.csv").read_text().count("\n") == 61
    (card,) = site.cards(tmp_path / "site")
    assert (card["cells"], card["statuses"]) == (60, {"ok": 51, "oom": 9})


PLAIN = Synthetic(views=())


@pytest.fixture(scope="module")
def twenty_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_run(tmp_path_factory.mktemp("large") / "sinks" / "20260101-000000-aaaaaa", 20_000)


def test_twenty_thousand_records(twenty_thousand: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cell is parsed more than twice after the index is there, but for those drawn; the page is small."""
    assert CHOSEN_CELLS * 2 < MOST_CELLS < 20_000
    indexes, drawn = [], []
    remember, draw = Index.__init__, page.draw

    def remembered(self: Index, *arguments: Any) -> None:
        indexes.append(self)
        remember(self, *arguments)

    def counted(*arguments: Any) -> Any:
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(Index, "__init__", remembered)
    monkeypatch.setattr(page, "draw", counted)
    readme = render(twenty_thousand)
    assert sum(one.parsed for one in indexes) <= 2 * 20_000 + CHOSEN_CELLS
    assert (twenty_thousand / "index.html").stat().st_size < 1_500_000
    assert readme.stat().st_size < 50_000
    assert "**1,000 of 20,000 cells are drawn (1,000 of 20,000 values of length, evenly spaced).**" in (
        readme.read_text()
    )
    with open(twenty_thousand / "tables" / "full.csv") as file:
        rows = csv.reader(file)
        place = next(rows).index("cell")
        assert [row[place] for row in rows] == [f"{n:016x}" for n in range(20_000)]
    axes = [axes for one in drawn if one.figure for axes in one.figure.axes]
    assert axes
    assert all(len(line.get_xdata()) <= CHOSEN_CELLS for one in axes for line in one.lines)
    assert sum(len(one.lines) + len(one.collections) for one in axes) < 200
    assert (twenty_thousand / "tables" / "full.md").stat().st_size < 1_000_000


def test_the_table_shows_as_many_cells_as_a_page_has_room_for(twenty_thousand: Path) -> None:
    from bench.report.web import cells

    run = page.read(twenty_thousand)
    assert len(cells.within([run], 1)["cells"]) == 1  # of no room at all one cell is shown
    found = cells.within([run], 100_000)
    size = len(json.dumps(found, ensure_ascii=False, separators=(",", ":")))
    assert 50_000 < size <= 100_100
    assert len(found["cells"]) + found["left_out"] == len(run.records) == CHOSEN_CELLS
