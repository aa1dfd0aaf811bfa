"""Pages and tables: golden files, runs that went wrong, and names that try to be markup.

``UPDATE_GOLDEN=1 pytest tests/bench/report/test_page.py`` rewrites the golden files; read the diff.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import UserError
from bench.report import comparisons, render, tables
from bench.report.frames import load
from bench.report.relative import relative
from bench.results.digest import digest
from bench.text import clean, code, interval, md, number, scale_for, slug
from helpers.synthetic import (
    METRICS,
    Synthetic,
    measured,
    nll_series,
    record,
    sinks_run,
    value,
    write_run,
)

GOLDEN = Path(__file__).parent / "golden"
RUN = "synthetic/20260101-000000-abcdef"
PUBLISHED = [
    {"policy": "sink 4+508", "length": 2048, "metric": "perplexity", "value": 9.59, "source": "Table 2"},
    {"policy": "dense", "length": 2048, "metric": "perplexity", "value": 11.0, "source": "Table 2"},
    {"policy": "sink 4+508", "model": "another", "metric": "perplexity", "value": 1.0, "source": "Table 9"},
    {"policy": "sink 4+508", "batch": 1, "metric": "perplexity", "value": 2.0, "source": "Table 9"},
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered run: three policies at three lengths, dense out of memory at the last."""
    folder = tmp_path_factory.mktemp("small") / RUN
    records, series = [], {}
    for policy in ("dense", "window 512", "sink 4+508"):
        whole = nll_series(policy, 2048)
        for length in (512, 1024, 2048):
            failed = policy == "dense" and length == 2048
            reason = "OutOfMemoryError: tried to allocate 9.1 GiB"
            made = (
                record(policy, length, status="oom", reason=reason)
                if failed
                else measured(policy, length, whole)
            )
            series[made["pass_id"]] = {"nll": whole}
            records.append(made)
    write_run(folder, records, series=series, planned=[*records, record("dense", 4096)])
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "suite": "synth')  # torn by a crash
    render(folder, Synthetic(rows=PUBLISHED))
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table_shapes(markdown: str) -> list[set[int]]:
    """For each table the numbers of cells that its rows have; one number per table if it is sound."""
    blocks = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    return [{len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()} for block in blocks]


@pytest.mark.parametrize(
    "name",
    ["README.md"]
    + [f"tables/{n}.md" for n in ("headline", "full", "differences-nll", "relative", "positions-perplexity",
                                  "published", "failures", "metrics")]
    + ["tables/full.csv"],
)  # fmt: skip
def test_golden(small: Path, name: str) -> None:
    found, golden = (small / name).read_text(), GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(found)
    assert found == golden.read_text()


def test_rendering_again_changes_no_byte(small: Path) -> None:
    before = {p: p.read_bytes() for p in small.rglob("*") if p.is_file()}
    render(small, Synthetic(rows=PUBLISHED))
    assert {p: p.read_bytes() for p in small.rglob("*") if p.is_file()} == before


def test_missing_values_are_dashes_with_a_reason_never_zero(small: Path) -> None:
    text = (small / "tables/full.md").read_text()
    dense = next(line for line in text.splitlines() if line.startswith("| dense | 2,048"))
    assert dense.count("–<sup>") == len(METRICS)
    assert "OutOfMemoryError: tried to allocate 9.1 GiB" in text
    row = next(
        r for r in rows_of(small / "tables/full.csv") if r["policy"] == "dense" and r["length"] == "2048"
    )
    assert row["perplexity"] == ""
    assert row["perplexity.reason"].startswith("oom: OutOfMemoryError")
    assert "no GPU" in rows_of(small / "tables/full.csv")[0]["vram.reason"]


def test_differences_are_those_of_the_series(small: Path) -> None:
    rows = {(r["policy"], r["length"]): r for r in rows_of(small / "tables/differences-nll.csv")}
    assert set(rows) == {(p, n) for p in ("window 512", "sink 4+508") for n in ("512", "1024")}
    a, b = nll_series("sink 4+508", 1024).astype(float), nll_series("dense", 1024).astype(float)
    row = rows["sink 4+508", "1024"]
    assert float(row["difference"]) == pytest.approx(float((a - b).mean()))
    assert float(row["late_difference"]) == pytest.approx(float((a - b)[512:].mean()))
    assert float(row["low"]) < float(row["difference"]) < float(row["high"])
    assert int(row["from"]) == 513
    assert "the same values" in (small / "tables/differences-nll.md").read_text()  # before eviction starts


def test_two_policies_differ_from_where_the_first_of_them_does(tmp_path: Path) -> None:
    records = [measured("window 1024", 2048), measured("sink 4+508", 2048)]
    series = {made["pass_id"]: {"nll": nll_series(made["params"]["policy"], 2048)} for made in records}
    compare = {"compare": {"axis": "policy", "reference": "window 1024"}}
    data = load(write_run(tmp_path / RUN, records, series=series, suite=compare), Synthetic())
    table = comparisons.differences(data, "nll")
    assert table is not None
    assert table.rows[0]["from"].value == 513


def test_positions_are_means_of_the_series(small: Path) -> None:
    rows = rows_of(small / "tables/positions-perplexity.csv")
    whole = nll_series("window 512", 2048).astype(float)
    assert [int(r["last"]) for r in rows] == [64, 128, 256, 512, 1024, 2048]
    assert float(rows[-1]["window 512"]) == pytest.approx(whole[1024:].mean())
    assert rows[-1]["dense"] == ""
    assert rows[-1]["dense.reason"] == "the series ends before"


def test_published_values_stand_only_beside_equal_cells(small: Path) -> None:
    rows = rows_of(small / "tables/published.csv")
    assert [(r["policy"], r["published"]) for r in rows] == [("sink 4+508", "9.59"), ("dense", "11.0")]
    assert float(rows[0]["ratio"]) == pytest.approx(float(rows[0]["measured"]) / 9.59)
    assert rows[1]["measured"] == ""
    assert "2 published values" in (small / "tables/published.md").read_text()


def test_replicates_become_an_interval(tmp_path: Path) -> None:
    times = {"dense": (10.0, 11.0, 10.5), "window 512": (5.0, 5.6, 5.2)}
    records = [
        measured(policy, 512, repeat=i, metrics={"latency": value(t, "ms")})
        for policy, found in times.items()
        for i, t in enumerate(found)
    ]
    data = load(write_run(tmp_path / RUN, records), Synthetic())
    table = relative(data)
    assert table is not None
    (row,) = table.rows
    assert row["latency"].value == pytest.approx(np.exp(np.mean(np.log([0.5, 5.6 / 11, 5.2 / 10.5]))))
    assert re.fullmatch(r"× 0\.50\d+ \[0\.\d+, 0\.\d+\] \(3 of 3 repeats\)", str(row["latency"].text))


def test_pairs_share_everything_but_the_axis(tmp_path: Path) -> None:
    records = [
        measured(policy, length, params={"model": model}, seed=seed)
        for policy in ("dense", "window 512")
        for model in ("a", "b")
        for seed in (0, 1)
        for length in (512, 1024)
        if (policy, model, seed) != ("dense", "b", 1)
    ]
    data = load(write_run(tmp_path / RUN, records), Synthetic())
    found = comparisons.pairs(data, "policy", "dense", data.ok)
    assert len(found) == 6
    for pair in found:
        ours, theirs = data.records[pair.cell], data.records[pair.reference]
        assert (ours.params | {"policy": "dense"}, ours.seed) == (theirs.params, theirs.seed)
    assert "2 measured cells" in str(comparisons.missing_reference(data))


@pytest.mark.parametrize("reference", [512, "512", 512.0])
def test_a_reference_is_found_however_it_is_written(tmp_path: Path, reference: Any) -> None:
    suite = {"compare": {"axis": "length", "reference": reference}}
    records = [measured("dense", length) for length in (512, 1024)]
    data = load(write_run(tmp_path / RUN, records, suite=suite), Synthetic())
    assert comparisons.missing_reference(data) is None
    assert len(comparisons.pairs(data, "length", reference, data.ok)) == 1


HOSTILE = (
    "$\\frac{$ <script>alert(1)</script> | ![x](http://e.vil/i.png) [y](javascript:z) "
    "`` \n# h\u202e **b** www.e.vil"
)


def test_hostile_names_are_inert(tmp_path: Path) -> None:
    def renamed(made: dict[str, Any], name: str) -> dict[str, Any]:
        both = {key: made[key] | {"policy": name, "model": HOSTILE} for key in ("params", "columns")}
        return {**made, **both, "label": name}

    records = [
        renamed(measured("dense", 512), HOSTILE),
        renamed(measured("window 512", 512), "_hidden"),
        renamed(record("window 512", 1024, status="error", reason=HOSTILE), HOSTILE),
        renamed(record("sink 4+508", 512, status="error", reason="=1+1"), "=cmd|' /C calc'!A0"),
    ]
    records[0]["metrics"]["vram"] = {"value": None, "unit": "bytes", "reason": "=cmd|'x'!A0"}
    series = {made["pass_id"]: {"nll": nll_series("dense", 512)} for made in records}
    suite = {"description": HOSTILE, "compare": {"axis": "policy", "reference": HOSTILE}}
    folder = write_run(tmp_path / RUN, records, series=series, suite=suite, env={"cpu": HOSTILE})
    text = render(folder, Synthetic()).read_text()
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "<script" not in html
    assert not re.search(r'(src|href)="(?!plots/|tables/|suite\.yaml)', html)
    assert "<strong>b" not in html
    assert "\u202e" not in text
    assert len(table_shapes(text)) > 3
    assert all(len(shape) == 1 for shape in table_shapes(text))
    assert "alert(1)" in text
    assert len(list((folder / "plots").glob("*.svg"))) > 2
    for path in (folder / "plots").glob("*.svg"):
        assert "<script" not in path.read_text()
    for row in rows_of(folder / "tables/full.csv"):
        assert not any(str(field).startswith("=") for field in row.values())


@pytest.mark.parametrize(
    "text", ["a|b", "<b>", "*x*", "_x_", "`c`", "[l](u)", "~~s~~", "# h", "1. x", "- x", "&lt;", "$x$"]
)
def test_escaped_text_reads_as_it_was_written(text: str) -> None:
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(md(text))
    shown = re.sub("<[^>]+>", "", html).strip()
    assert shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == text
    assert set(re.findall("<[^>]+>", html)) == {"<p>", "</p>"}


def test_numbers_are_readable() -> None:
    shown = [
        number(v)
        for v in (0, 0.0, 5158.07, 17.2345, 0.012345, 1.2e-7, 16384, 1.5e13, None, True, float("inf"))
    ]
    assert shown == ["0", "0", "5,158", "17.23", "0.01235", "1.20e-07", "16,384", "1.5e+13", "–", "yes", "∞"]
    assert interval(0.02634, 0.014, 0.0401) == "+0.026 [+0.014, +0.040]"
    assert interval(-3.0, -3.4, -2.6) == "−3.00 [−3.40, −2.60]"
    assert interval(5e-9, 4e-9, 6e-9) == "+5e-09 [+4e-09, +6e-09]"  # not zero, which the interval excludes
    assert interval(2e15, 1e15, 3e15) == "+2e+15 [+1e+15, +3e+15]"
    assert scale_for("bytes", [2**20, 3 * 2**30, 5 * 2**30]).unit == "GiB"
    assert scale_for("ms", [1.0]) == (1.0, "ms")
    assert code("a`b") == "``a`b``"
    assert (slug("../Ünï Cødé/x"), clean("a\x00b\nc")) == ("n-c-d-x", "a b c")


def test_partial_run_says_what_is_open(small: Path) -> None:
    text = (small / "README.md").read_text()
    assert "8 of 10 cells measured; 1 oom, 1 not yet answered" in text
    assert "1 line of records.jsonl could not be read" in text
    assert "must-not-appear" not in text


def test_a_run_in_which_everything_failed(tmp_path: Path) -> None:
    reason = "weights are not available offline"
    records = [
        record(p, n, status="skipped", reason=reason) for p in ("dense", "window 512") for n in (512, 1024)
    ]
    text = render(write_run(tmp_path / RUN, records, planned=records), Synthetic()).read_text()
    assert "No cell of this run was measured" in text
    assert text.count(reason) == 2  # once per pass
    assert "## Results" not in text
    assert not (tmp_path / RUN / "plots").exists()


def test_a_run_without_records(tmp_path: Path) -> None:
    folder = write_run(tmp_path / RUN, [], planned=[record("dense", 512)])
    text = render(folder, Synthetic()).read_text()
    assert "Nothing has been measured" in text
    assert "0 of 1 cell measured; 1 not yet answered" in text
    (folder / "records.jsonl").unlink()
    assert "Nothing has been measured" in render(folder, Synthetic()).read_text()


def test_no_run_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        render(tmp_path)


def test_records_of_an_earlier_suite_are_left_out(tmp_path: Path) -> None:
    old, new = measured("dense", 512), measured("dense", 1024)
    data = load(write_run(tmp_path / RUN, [old, new], planned=[new]), Synthetic())
    assert [r.columns["length"] for r in data.records] == [1024]
    assert any("1 record left out" in note for note in data.notes)


def test_the_newest_record_of_a_cell_counts(tmp_path: Path) -> None:
    failed = record("dense", 512, status="error", reason="first try")
    data = load(write_run(tmp_path / RUN, [failed, measured("dense", 512)]), Synthetic())
    assert [str(r.status) for r in data.records] == ["ok"]


def test_an_unknown_workload_still_gets_its_tables(tmp_path: Path) -> None:
    folder = write_run(tmp_path / RUN, [measured("dense", 512), measured("window 512", 512)])
    text = render(folder).read_text()
    assert "The workload synthetic is unknown here" in text
    assert "| dense |" in text
    assert "(MiB)" in text


def test_damaged_and_foreign_artifacts_are_notes(tmp_path: Path) -> None:
    records = [measured(p, 512) for p in ("dense", "window 512", "sink 4+508")]
    series = {r["pass_id"]: {"nll": nll_series("dense", 400)} for r in records}
    folder = write_run(tmp_path / RUN, records, series=series)
    (folder / "artifacts" / records[0]["pass_id"] / "series.npz").write_bytes(b"PK\x03\x04 cut")
    lines = (folder / "records.jsonl").read_text().splitlines()
    stray = json.loads(lines[1])
    stray["artifacts"][0]["path"] = "../../outside.npz"
    (folder / "records.jsonl").write_text("\n".join([lines[0], json.dumps(stray), lines[2]]))
    text = render(folder, Synthetic()).read_text()
    assert "cannot be read" in text
    assert "leads out of the run folder" in text
    assert "holds 400 values of nll, the cells promise 512" in text


def test_objects_in_an_archive_are_not_unpickled(tmp_path: Path) -> None:
    made = measured("dense", 512)
    arrays = {"nll": np.array([print, len], dtype=object)}
    data = load(write_run(tmp_path / RUN, [made], series={made["pass_id"]: arrays}), Synthetic())
    assert data.series(0, "nll") is None
    assert any("cannot be read" in note for note in data.notes)


def test_what_an_earlier_rendering_left_is_removed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / RUN, [measured("dense", 512), measured("dense", 1024)])
    render(folder, Synthetic())
    assert (folder / "plots/memory.png").exists()
    render(folder, dataclasses.replace(Synthetic(), views=()))
    assert not list((folder / "plots").glob("*"))
    assert not (folder / "tables/positions-perplexity.md").exists()


def test_long_tables_are_cut_on_the_page_only(tmp_path: Path) -> None:
    records = [measured("dense", 512, params={"model": f"m{i:03d}"}) for i in range(120)]
    folder = write_run(tmp_path / RUN, records)
    text = render(folder, dataclasses.replace(Synthetic(), views=())).read_text()
    assert "The first 40 of 120 rows" in text
    assert "m119" not in text
    assert len(rows_of(folder / "tables/headline.csv")) == 120


def test_many_reasons_do_not_bury_the_table(tmp_path: Path) -> None:
    records = [record("dense", n, status="error", reason=f"reason {n}") for n in range(512, 572)]
    records.append(measured("dense", 600))
    data = load(write_run(tmp_path / RUN, records), dataclasses.replace(Synthetic(), prefix_axis=None))
    text = tables.full(data).markdown()
    assert text.count("<br>") <= 22
    assert "more reasons are in full.csv" in text


def test_the_whole_synthetic_run_renders(tmp_path: Path) -> None:
    folder = sinks_run(tmp_path / RUN, (1024, 2048, 4096), oom_at=4096)
    text = render(folder, Synthetic()).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (folder / target).exists(), target


def test_importing_the_package_is_cheap() -> None:
    heavy = "{'pandas', 'numpy', 'matplotlib', 'seaborn', 'scipy', 'jinja2'}"
    script = f"import sys, bench.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_edited_record_is_shown_and_flagged_wherever_its_numbers_stand(tmp_path):
    whole = [made | {"schema_version": 2} for made in (measured("dense", 512), measured("dense", 1024))]
    sealed = [made | {"digest": digest(made)} for made in whole]
    sealed[1]["metrics"] = {**sealed[1]["metrics"], "perplexity": value(1.25, "")}
    folder = write_run(tmp_path / RUN, sealed)
    text = render(folder, Synthetic()).read_text()
    assert "**1 record was edited after being measured, and cannot be relied on; see the notes.**" in text
    assert "records.jsonl line 2: 'dense &#64; 1024' (cell" in text
    assert re.search(r"\| 1\.250<sup>1</sup>", text)
    assert "edited after it was measured: this number is not the one that was written" in text
    rows = list(csv.DictReader((folder / "tables" / "full.csv").open()))
    assert [row["edited"] for row in rows] == ["False", "True"]
    assert "1 record was edited" in (folder / "index.html").read_text()
    assert load(write_run(tmp_path / "whole", sealed[:1]), Synthetic()).edited == {}
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    assert (
        f"records.jsonl:2: 'dense @ 1024' (cell {sealed[1]['cell']}) was edited after it was" in done.output
    )


def test_a_folder_of_another_project_is_refused_and_left_alone(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"name": "x", "value": 3}\n')
    (tmp_path / "README.md").write_text("theirs")
    (tmp_path / "plan.json").write_text('["ours", "not yours"]')
    with pytest.raises(UserError, match="holds no record, no plan and no suite of ours"):
        render(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "plan.json", "records.jsonl"]
    assert (tmp_path / "README.md").read_text() == "theirs"


def test_a_headline_metric_without_a_value_anywhere_is_a_sentence_and_no_column(tmp_path: Path) -> None:
    lost = {"perplexity": value(None, "", reason="random weights: it says nothing")}
    records = []
    for policy in ("dense", "window 64"):
        records.append(measured(policy, 512))
        records[-1]["metrics"] |= lost
    folder = write_run(tmp_path / "synthetic" / "20260101-000000-abcdef", records)
    page = render(folder, Synthetic()).read_text(encoding="utf-8")
    (head,) = [line for line in page.splitlines() if line.startswith("| policy |")][:1]
    assert "perplexity ↓" not in head
    assert "No value in any row, so no column: perplexity (random weights: it says nothing)." in page


def test_a_page_without_vectors_links_to_bitmaps(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / small.name
    shutil.copytree(small, folder)
    page = render(folder, Synthetic(), vectors=False).read_text(encoding="utf-8")
    assert ".svg" not in page
    assert not [*folder.rglob("*.svg")]
    linked = re.findall(r"\]\((plots/[^)]+)\)", page)
    assert linked
    assert all((folder / path).is_file() for path in linked)
