import dataclasses
import io

import pytest
from rich.console import Console

from bench.results.record import Status
from bench.run import live, terminal
from bench.run.child import End
from bench.suite.plan import Plan
from bench.workload import Cell, Cost, Metric
from helpers.passes import make_pass, make_record
from helpers.toy import Toy


def console():
    return Console(file=io.StringIO(), width=120)


def test_the_time_left_follows_cost_and_not_the_number_of_passes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    small, large = make_pass(lengths=(10,)), make_pass(lengths=(90,), number=1)
    tracker = live.Tracker([small, large])
    tracker.begin(small)
    assert tracker.left_s is None
    now[0] += 5
    tracker.advance(small, 5, 10)
    assert tracker.left_s == pytest.approx(95.0)
    now[0] += 5
    tracker.finish(small)
    tracker.begin(large)
    assert tracker.left_s == pytest.approx(90.0)
    tracker.advance(large, 90, 90)
    assert tracker.left_s == 0.0


def test_a_pass_that_died_early_is_behind_us():
    work = make_pass(lengths=(10,))
    tracker = live.Tracker([work])
    tracker.begin(work)
    tracker.advance(work, 1, 10)
    tracker.finish(work)
    assert (tracker.amount, tracker.running) == (10, {})


def test_passes_side_by_side_add_up():
    one, other = make_pass(lengths=(10,)), make_pass(lengths=(30,), number=1)
    tracker = live.Tracker([one, other])
    tracker.begin(one)
    tracker.begin(other)
    tracker.advance(one, 1, 2)
    tracker.advance(other, 1, 3)
    assert tracker.amount == 15
    tracker.finish(other)
    assert tracker.amount == 35


def test_plain_lines_where_nobody_watches(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    out, work = console(), make_pass(lengths=(10,))
    view = live.observer(out, Toy.metrics)
    assert type(view) is live.PlainView
    view.run_started([work], 0)
    view.pass_started(work)
    view.usage(work, {"rss_bytes": 2**30})
    now[0] += 1
    view.progress(work, 1, 10, {"perplexity": 17.23456})
    assert out.file.getvalue() == ""
    now[0] += live.PLAIN_SECONDS
    view.progress(work, 4, 10, {"perplexity": 17.23456, "/for trackers/1": 1.0})
    view.cell_answered(make_record())
    view.pass_ended(work, End())
    view.run_ended()
    lines = out.file.getvalue().splitlines()
    assert lines[0] == "  …  ok 10: 4/10 · perplexity 17.23 · memory 1.0 GiB · 24 s left"
    assert lines[1] == "     ok  label c1  total 28 units"


def test_labels_and_reasons_are_never_taken_for_markup():
    out = console()
    view = live.PlainView(out, Toy.metrics)
    view.cell_answered(make_record(label="[red]x[/]", status="error", reason="list[int] [/bold]", metrics={}))
    view.message("[not markup]")
    text = out.file.getvalue()
    assert "[red]x[/]" in text
    assert "list[int] [/bold]" in text
    assert "[not markup]" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text):
    assert terminal.duration_text(seconds) == text


def test_the_summary_lists_cells_in_plan_order_with_what_failed():
    records = [make_record("b"), make_record("a", status=Status.OOM, reason="too big", metrics={})]
    cells = [Cell(name, {}, f"label {name}") for name in ("a", "b", "never measured")]
    out = console()
    terminal.summary(records, Toy.metrics, cells, out)
    head, first, second = (line.rstrip() for line in out.file.getvalue().splitlines())
    assert head.split() == ["cell", "total", "(units)", "↑"]
    assert first.split() == ["a", "–", "oom"]
    assert second.split() == ["b", "28"]


def test_a_summary_too_wide_for_the_window_says_what_it_leaves_out():
    metrics = [Metric(f"m{i}", f"metric number {i}", "bytes", headline=True) for i in range(9)]
    values = {metric.name: {"value": 3 * 2**30, "unit": "bytes"} for metric in metrics}
    out = console()
    terminal.summary([make_record("a", metrics=values)], metrics, [Cell("a", {}, "a label")], out)
    head, row, rest = (line.rstrip() for line in out.file.getvalue().splitlines())
    assert len(head) <= 120
    assert "metric number 0 (GiB) ↓" in head
    assert row.split()[:3] == ["a", "label", "3.000"]
    assert rest.startswith("the report has more: metric number")
    assert rest.endswith("metric number 8")


def test_labels_lose_what_all_of_them_share():
    assert terminal.short_labels(["m · dense · 1", "m · dense · 2"]) == ["1", "2"]
    assert terminal.short_labels(["m · dense · 1", "m · sink 4+2 · 1"]) == ["dense · 1", "sink 4+2 · 1"]
    assert terminal.short_labels(["alone"]) == ["alone"]
    assert terminal.short_labels(["same", "same"]) == ["same", "same"]
    assert terminal.short_labels(["a", "b"]) == ["a", "b"]


def test_the_plan_shows_passes_and_saving():
    passes = (make_pass(lengths=(8, 16)), make_pass("nan", (8, 16), number=1))
    cells = tuple(cell for work in passes for cell in work.cells)
    plan = Plan("s", "toy", "1", cells, passes, Cost(32, "numbers"), Cost(48, "numbers"), ("a note",))
    out = console()
    terminal.show_plan(plan, passes, out)
    text = out.file.getvalue()
    assert "ok 8, 16" in text
    assert "a note" in text
    assert (
        "s: 4 cells in 2 passes, 32 numbers; cell by cell it would be 48 numbers: sharing saves 33%" in text
    )


@pytest.mark.parametrize("text", ["\x1b[31mred", "\x9b31mred", "\u202eabc", "a\nforged row", "a\rb"])
def test_labels_and_reasons_draw_nothing_in_a_terminal(text):
    out = console()
    view = live.PlainView(out, Toy.metrics)
    view.cell_answered(make_record(label=text))
    view.cell_answered(make_record(status="error", reason=text, metrics={}))
    terminal.summary([make_record("a")], Toy.metrics, [Cell("a", {}, text)], out)
    work = make_pass(lengths=(10,))
    work = dataclasses.replace(work, cells=(dataclasses.replace(work.cells[0], label=text),))
    view.run_started([work], 0)
    cost = Cost(10, "numbers")
    terminal.show_plan(Plan("s", "toy", "1", work.cells, (work,), cost, cost, (text,)), [work], out)
    said = out.file.getvalue()
    assert said.replace("\n", "").isprintable()
    assert "\nforged row" not in said
    assert terminal.pass_name(work).isprintable()
