"""The page of a run: what was asked, what came of it, on what machine, and how to do it again.

Written as Markdown so that it is readable where it lies, in a repository or a terminal. Every value is
escaped by default; only text that is Markdown by type (``Md``) goes through as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.errors import UserError
from bench.gate.compare import Comparison
from bench.report import about, comparisons, positions, published, side_by_side, tables
from bench.report.beyond import beyond_control
from bench.report.figure import save
from bench.report.frames import RunData, workload_name
from bench.report.large.failures import all_failures
from bench.report.large.load import load_only, load_run, refuse_large
from bench.report.large.run import LargeRun
from bench.report.matrix import matrix_table
from bench.report.plots import DrawnView, draw
from bench.report.relative import relative
from bench.report.tables import Table
from bench.report.texts import all_texts
from bench.report.web.page import write_page
from bench.results.record import Status
from bench.results.store import PLAN, RECORDS, SUITE, write_atomic
from bench.text import Md, md, plural, slug
from bench.workload import Workload

_SHOWN_ROWS = 40  # of a table on the page; files have all rows
COMPARISON = "comparison.md"


def write(
    run_dir: Path, workload: Workload | None, baseline: Path | None = None, *, vectors: bool = True
) -> Path:
    """Render everything of a run folder; see ``bench.report.render``."""
    if baseline is not None:
        refuse_large([run_dir, baseline])
    data = read(run_dir, workload)
    return draw_run(data, None if baseline is None else read(baseline, workload), vectors=vectors)


def write_only(run_dir: Path, wanted: str, *, vectors: bool = True) -> Path:
    """Render the cells of a run folder that ``wanted`` names, in a folder of their own below it."""
    return draw_run(read_only(run_dir, wanted), vectors=vectors)


def read_only(run_dir: Path, wanted: str) -> RunData:
    """The cells of a run folder that ``wanted`` names, as a run of their own."""
    return read(run_dir, loaded_by=partial(load_only, wanted=wanted))


def draw_run(data: RunData, baseline: RunData | None = None, *, vectors: bool = True) -> Path:
    """As `write`, of a run (and a baseline) that has been read."""
    run_dir, runs = data.pages, [data] if baseline is None else [data, baseline]
    comparison = side_by_side.compare_runs(runs) if len(runs) > 1 else None
    page = run_dir / "README.md"
    with _clear_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        pictures = _pictures(data, ("png", "svg") if vectors else ("png",))
        found = _tables(data) | (side_by_side.tables(comparison) if comparison else {})
        _write_tables(data, found)
        write_atomic(page, _page(data, pictures, found, "svg" if vectors else "png"))
        _write_comparison(run_dir, comparison)
        write_page(run_dir, runs, found, side_by_side.page_section(comparison) if comparison else None)
    return page


def write_several(folders: Sequence[Path], baseline: Path, out: Path) -> Path:
    """One page of several runs, each held against the baseline, in a folder of its own; returns its path."""
    refuse_large([*folders, baseline])
    runs = [read(folder) for folder in (*folders, baseline)]
    comparison = side_by_side.compare_runs(runs)
    found = side_by_side.tables(comparison)
    title = f"{', '.join(comparison.runs)} against {comparison.baseline}"
    legend = tables.legend(runs[0])
    with _clear_errors(out):
        (out / "tables").mkdir(parents=True, exist_ok=True)
        for name, table in found.items():
            write_atomic(out / "tables" / f"{name}.csv", table.csv())
        _write_comparison(out, comparison)
        return write_page(
            out, runs, found | {"metrics": legend}, side_by_side.page_section(comparison, title)
        )


def _write_comparison(folder: Path, comparison: Comparison | None) -> None:
    """The comparison as Markdown; without one, none that an earlier rendering left."""
    if comparison is None:
        (folder / COMPARISON).unlink(missing_ok=True)
    else:
        write_atomic(folder / COMPARISON, side_by_side.markdown(comparison, files=True))


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the report to {folder}: {error.strerror or error}",
            hint="check free space and permissions; the records are not touched",
        ) from error


def read(
    run_dir: Path, workload: Workload | None = None, *, loaded_by: Callable[..., RunData] = load_run
) -> RunData:
    """A run folder as data; its workload is looked up by name if not given. Raises UserError.

    ``loaded_by`` is `load_run`, or `load_to_compare` where nothing is drawn.
    """
    if not any((run_dir / name).exists() for name in (RECORDS, PLAN, SUITE)):
        raise UserError(
            f"{run_dir} is not a run folder: it has no {RECORDS}",
            hint="give the folder of one run, e.g. results/SUITE/RUN",
        )
    problem = None
    if workload is None:
        workload, problem = _look_up(run_dir)
    data = loaded_by(run_dir, workload=workload)
    if not data.records and not data.planned and "workload" not in data.suite:  # files of the same names
        raise UserError(
            f"{run_dir} holds no record, no plan and no suite of ours: nothing was written there",
            hint="give the folder of one run, e.g. results/SUITE/RUN",
        )
    if problem:
        data.note(problem)
    return data


def _look_up(run_dir: Path) -> tuple[Workload | None, str | None]:
    """The workload that a run's own suite (or its first record) names, or a note on why it is unknown."""
    name = workload_name(run_dir)
    if name is None:
        return None, None
    from bench import registry

    try:
        return registry.load(name), None
    except UserError as error:
        return None, f"The workload {name} is unknown here ({error.message}): no pictures, no declared labels"


def _pictures(data: RunData, drawn_as: Sequence[str]) -> list[tuple[DrawnView, str]]:
    """Draw and save every view; headline views first. Returns pictures with the stems of their files."""
    folder = data.pages / "plots"
    drawn = (view for view in data.words.views if view.kind != "texts")
    views = sorted(drawn, key=lambda view: (not view.headline, view.kind != "pictures"))
    stems, written, found = set[str](), set[str](), []
    for view in views:
        stem = slug(view.name)
        while stem in stems:
            stem += "-2"
        stems.add(stem)
        picture = draw(view, data)
        if picture.figure is not None:
            folder.mkdir(exist_ok=True)
            kinds = ("webp",) if view.kind == "pictures" else drawn_as  # no vectors around a bitmap
            written |= {path.name for path in save(picture.figure, folder / stem, kinds)}
        found.append((picture, stem))
    _remove_stale(folder, written)
    return found


def _tables(data: RunData) -> dict[str, Table]:
    """Every table that has rows, by file name; names of those for the page alone begin with ``_``."""
    found: dict[str, Table | None] = {"headline": tables.headline(data), "full": tables.full(data)}
    for series in comparisons.series_views(data):
        found[f"_differences-{slug(series)}"] = comparisons.differences(data, series, furthest=True)
        found[f"differences-{slug(series)}"] = comparisons.differences(data, series)
    found |= {"relative": relative(data), "control": beyond_control(data)}
    for view in data.words.views:
        if view.kind == "curve":
            found[f"positions-{slug(view.name)}"] = positions.position_buckets(data, view)
        if view.kind == "matrix":
            found[f"matrix-{slug(view.name)}"] = matrix_table(data, view)
    found["published"] = published.beside(data)
    for table in filter(None, found.values()) if data.chosen else ():
        table.notes.append(f"Not all cells: {data.chosen}.")
    found["failures"] = all_failures(data) if isinstance(data, LargeRun) else tables.failures(data)
    found["metrics"] = tables.legend(data)
    return {name: table for name, table in found.items() if table is not None and table.rows}


def _write_tables(data: RunData, found: Mapping[str, Table]) -> None:
    folder = data.pages / "tables"
    folder.mkdir(exist_ok=True)
    written = set()
    for name, table in found.items():
        if name.startswith("_"):
            continue
        write_atomic(folder / f"{name}.md", f"# {md(table.title)}\n\n{table.markdown()}")
        if name == "full" and isinstance(data, LargeRun):
            data.every.write(folder / f"{name}.csv", data.all_plain())
        else:
            write_atomic(folder / f"{name}.csv", table.csv())
        written |= {f"{name}.md", f"{name}.csv"}
    _remove_stale(folder, written)


def _remove_stale(folder: Path, written: set[str]) -> None:
    """Remove what an earlier rendering left behind: it would contradict the page."""
    for path in folder.glob("*"):
        if path.suffix in (".md", ".csv", ".png", ".svg", ".webp") and path.name not in written:
            path.unlink()


def _page(
    data: RunData, pictures: list[tuple[DrawnView, str]], found: Mapping[str, Table], large: str
) -> str:
    environment = Environment(
        loader=PackageLoader("bench.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # HTML escaping is not Markdown escaping: ``finalize`` does the latter
        finalize=lambda value: md(value, limit=4000),
    )
    text = environment.get_template("README.md.j2").render(
        data=data,
        measured=data.whole.statuses.get(str(Status.OK), 0),
        status=about.status_line(data),
        chosen=data.chosen,
        all_of_them=about.all_of_them(data),
        up="../../" if data.out else "",
        edited=about.edited_line(data),
        when=about.when_line(data),
        pictures=[(picture, Md(stem)) for picture, stem in pictures if picture.figure is not None],
        undrawn=[picture for picture, _ in pictures if picture.figure is None],
        tables=found,
        texts=all_texts(data),
        rows=_SHOWN_ROWS,
        large=large,
        compared=[(table, Md(name[1:])) for name, table in found.items() if name.startswith("_")],
        detailed=[t for name, t in found.items() if name.startswith(("positions-", "matrix-"))],
        unpaired=comparisons.missing_reference(data),
        of_drawn=Md(" (of the cells drawn)" if data.chosen else ""),
        machine=[(about.topic(key), value) for key, value in about.machine(data.env)],
        environments=data.whole.environments,
        command=Md(about.command(data)),
        open=data.whole.unanswered,
        retry=bool(data.whole.statuses.keys() - {str(Status.OK), str(Status.NAN)}),
        plural=plural,
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
