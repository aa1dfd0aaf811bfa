"""The commands `report` and `compare`: which runs, held against which, and where the page goes."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.errors import UserError, inert
from bench.gate.compare import Comparison
from bench.gate.verdict import EXIT_FAILED_CELLS, EXIT_NOTHING, EXIT_PASS
from bench.report import tables as report_tables
from bench.results.digest import Integrity
from bench.results.index import open_index
from bench.results.outline import DAMAGED_LINE
from bench.results.record import Status
from bench.results.store import RECORDS, edited_at
from bench.suite.request import find_run
from bench.text import clean, plural

_MOST_ROWS = 40  # printed; the page has all
_LONGEST = 120  # name of a folder of a page
_MOST_NAMED = 5  # edited records


def report(
    runs: Sequence[str],
    baseline: str | None,
    out: Path | None,
    results: Path,
    console: Console,
    *,
    vectors: bool = True,
    only: str | None = None,
) -> int:
    """Draw one run (beside a baseline), or several on a page of their own; returns the exit code."""
    from bench.report import render, render_several

    folders, base = find(runs, baseline, results)
    if only is not None and (len(folders) > 1 or base is not None):
        raise UserError("--only draws cells of one run", hint="name one RUN, and no --baseline")
    for folder in folders:
        warn(folder, console)
    if len(folders) == 1:
        if out is not None:
            raise UserError("--out is for several runs: the page of one run lies in its own folder")
        if only is None:
            page = render(folders[0], baseline=base, vectors=vectors)
        else:
            return _report_only(folders[0], only, console, vectors=vectors)
    else:
        first, *rest = folders
        heads, against = (rest, first) if base is None else (folders, base)
        place = out or results / "compare" / _together([*heads, against])
        if (place / RECORDS).exists():
            raise UserError(
                f"--out {place} is a run folder, and its own page would be replaced",
                hint="give the page of several runs a folder of its own",
            )
        page = render_several(heads, against, place)
    console.print(f"report: {escape(str(page))}", soft_wrap=True, highlight=False)
    return EXIT_PASS if _measured(folders, console) else EXIT_FAILED_CELLS


def _together(folders: Sequence[Path]) -> str:
    """A folder's name for the page of several runs; what is too long for one is told apart by a digest."""
    name = "-".join(folder.name for folder in folders)
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{sha256(name.encode()).hexdigest()[:6]}"


def _report_only(folder: Path, wanted: str, console: Console, *, vectors: bool) -> int:
    """Draw the cells that ``wanted`` names; the exit code is of these alone."""
    from bench.report.page import draw_run, read_only

    data = read_only(folder, wanted)
    page = draw_run(data, vectors=vectors)
    console.print(f"report: {escape(str(page))}", soft_wrap=True, highlight=False)
    if data.whole.statuses.get(Status.OK):
        return EXIT_PASS
    console.print(f"[yellow]nothing was measured[/] of {escape(repr(wanted))}", soft_wrap=True)
    return EXIT_FAILED_CELLS


def _measured(folders: Sequence[Path], console: Console) -> bool:
    """Whether every run has a number to show; a page without any is drawn, and is no success."""
    empty = [
        folder
        for folder in folders
        if not (folder / RECORDS).exists()
        or Status.OK not in open_index(folder / RECORDS, ("status",)).columns["status"]
    ]
    for folder in empty:
        console.print(f"[yellow]nothing was measured[/] in {escape(str(folder))}", soft_wrap=True)
    return not empty


def show(
    runs: Sequence[str], baseline: str | None, results: Path, console: Console, *, as_markdown: bool
) -> int:
    """Print how runs differ from the baseline; the exit code says whether anything could be compared."""
    from bench.report import page, side_by_side
    from bench.report.frames import load_to_compare

    folders, base = find(runs, baseline, results)
    if base is None:
        base, *folders = folders
    if not folders:
        raise UserError("one run alone cannot be compared", hint="give a second run, or --baseline RUN")
    read = [page.read(folder, loaded_by=load_to_compare) for folder in (*folders, base)]
    comparison = side_by_side.compare_runs(read)
    if as_markdown:
        console.file.write(side_by_side.markdown(comparison, files=False))
    else:
        _print(comparison, console)
    return EXIT_PASS if comparison.decided else EXIT_NOTHING


def _print(comparison: Comparison, console: Console) -> None:
    from bench.gate import show as gate_show
    from bench.gate.rule import Verdict
    from bench.report import side_by_side

    open_ = [row for row in side_by_side.table(comparison).rows if row["verdict"].value != Verdict.PASS]
    if open_:
        table = Table(box=None, pad_edge=False, header_style="bold")
        names = [*(["run"] if len(comparison.runs) > 1 else []), "verdict", "cell", "metric"]
        names += ["baseline", "value", "change", "interval", "reason"]
        for name in names:
            table.add_column(
                name, justify="right" if name in ("baseline", "value") else "left", overflow="fold"
            )
        for row in open_[:_MOST_ROWS]:
            said = (str(row[name].text or row[name].value) if name in row else "" for name in names)
            texts = [escape(inert(text)) for text in said]
            colour = gate_show.COLOURS[Verdict(row["verdict"].value)]
            table.add_row(
                *(f"[{colour}]{t}[/]" if n == "verdict" else t for n, t in zip(names, texts, strict=True))
            )
        console.print(table)
    _say_more(len(open_), console)
    if comparison.over_seeds:
        _print_seeds(side_by_side.seeds_table(comparison), console)
    for line in side_by_side.sentences(comparison):
        console.print(escape(line), soft_wrap=True, highlight=False)


def _print_seeds(found: report_tables.Table, console: Console) -> None:
    """Differences over all seeds of a setting."""
    table = Table(title="over seeds", title_justify="left", box=None, pad_edge=False, header_style="bold")
    shown = [column for column in found.columns if not column.csv_only]
    for column in shown:
        table.add_column(column.header, overflow="fold")
    for row in found.rows[:_MOST_ROWS]:
        entries = [row[column.key] for column in shown]
        texts = [
            str(e.value if e.text is None else e.text) + (f" {e.note}" if e.note else "") for e in entries
        ]
        table.add_row(*(escape(inert(text)) for text in texts))
    console.print(table)
    _say_more(len(found.rows), console)


def _say_more(rows: int, console: Console) -> None:
    if rows > _MOST_ROWS:
        console.print(f"… and {rows - _MOST_ROWS:,} more; `report` draws a page with all of them")


def find(runs: Sequence[str], baseline: str | None, results: Path) -> tuple[list[Path], Path | None]:
    """The folders of the runs, each once, and that of the baseline. Raises UserError for what is none."""
    folders = list(dict.fromkeys(find_run(run, results) for run in runs))
    base = None if baseline is None else find_run(baseline, results)
    if base is not None and base.resolve() in {folder.resolve() for folder in folders}:
        folders = [folder for folder in folders if folder.resolve() != base.resolve()]
        if not folders:
            raise UserError(f"{base} is both the run and its baseline", hint="name another run as --baseline")
    return folders, base


def warn(folder: Path, console: Console) -> None:
    """Say which lines of a run are no records, and which records are no longer what was measured."""
    if not (folder / RECORDS).exists():
        return
    index = open_index(folder / RECORDS)
    if damaged := sum(1 for _ in index.rows(DAMAGED_LINE)):
        lines = "line is" if damaged == 1 else "lines are"
        text = f"{damaged} {lines} damaged in {RECORDS} and left out"
        console.print(f"[yellow]warning:[/] {text}", highlight=False)
    edited = [*index.rows(Integrity.BROKEN)]
    for row in edited[:_MOST_NAMED]:
        one = edited_at(index, row)
        text = escape(f"{one.where}: {clean(one)}")
        console.print(f"[yellow]warning:[/] {text}", soft_wrap=True, highlight=False)
    if (more := len(edited) - _MOST_NAMED) > 0:
        console.print(f"[yellow]warning:[/] and {plural(more, 'more edited record')}", highlight=False)
