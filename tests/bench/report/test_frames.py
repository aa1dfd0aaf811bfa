"""What a report makes of records whose metrics nobody declares any more, and of a plan's notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.report import render
from bench.report.frames import load
from bench.report.tables import full, headline
from helpers.synthetic import Synthetic, measured, value, write_run
from helpers.tuning import REWARDS, tuning_run, workload


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """As measured before two metrics were renamed, one of which had the name of a parameter."""
    folder = tuning_run(tmp_path / "synthetic" / "run")
    file = folder / "records.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        record["metrics"] |= {"reward": value(1.5, "SD"), "bygone": value(2.5, "kB")}
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.mark.parametrize("known", [True, False], ids=["declared", "no workload"])
def test_a_parameter_stays_what_it_is_beside_an_old_metric_of_its_name(run, known):
    data = load(run, workload() if known else None)
    assert set(data.frame["reward"]) == set(REWARDS)
    assert "reward" in data.parameters
    assert "reward" not in data.words.metrics
    assert set(data.frame["bygone"]) == {2.5}
    assert "left out: reward, measured under the name of a column and declared no longer" in data.notes


def test_the_page_of_such_a_run_is_drawn_and_says_so(run):
    page = render(run, workload())
    assert "left out: reward, measured under" in page.read_text()


def test_the_notes_of_a_plan_are_on_the_page_whatever_they_hold(run):
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"notes": ["not held out: 3 of 4", 7]}))
    assert "not held out: 3 of 4" in load(run, workload()).notes
    (run / "plan.json").write_text(json.dumps(plan | {"notes": "text"}))
    assert "text" not in load(run, workload()).notes


SAID = {"warning": "collapse: nearly one picture", "note": "of its variance a 1 %"}


def test_what_a_workload_says_of_cells_is_on_the_page(tmp_path):
    records = [measured(policy, 512, conformance=SAID) for policy in ("dense", "window 512")]
    notes = load(write_run(tmp_path / "run", records), Synthetic()).notes
    assert "dense @ 512, window 512 @ 512: collapse: nearly one picture" in notes
    assert "dense @ 512, window 512 @ 512: of its variance a 1 %" in notes


def test_a_cell_that_failed_before_the_furthest_one_is_a_gap_and_not_the_end(tmp_path):
    """A row of length 4,096 said: length 2,048 and beyond: oom."""
    records = [measured("dense", length) for length in (1024, 2048, 4096)]
    records[1] |= {"status": "oom", "reason": "no room", "metrics": {}}
    data = load(write_run(tmp_path / "synthetic" / "gap", records), Synthetic())  # measured by --only later
    assert "<sup>1</sup> length 2,048: oom: no room" in headline(data).markdown()
    data = load(write_run(tmp_path / "synthetic" / "end", records[:2]), Synthetic())
    assert "<sup>1</sup> length 2,048 and beyond: oom: no room" in headline(data).markdown()


@pytest.mark.parametrize("rates", [(1.00001, 1.00002), (1234.5, 1234.6), (1.23456e-9, 1.23457e-9)])
def test_settings_are_written_as_they_were_given(tmp_path, rates):
    """Rows of two settings read alike where these differed in their fifth digit."""
    records = [measured("dense", 1024, params={"rate": rate}) for rate in rates]
    data = load(write_run(tmp_path / "synthetic" / "run", records), Synthetic())
    for table in (headline(data), full(data)):
        rows = table.markdown().splitlines()[2:4]
        assert all(f"| {rate} |" in row for rate, row in zip(rates, rows, strict=True)), rows
