"""The page: one HTML file that needs nothing but a browser.

Everything is inside the file (data as JSON, pictures as data URIs, style and script inline and named by
their hash in a content security policy that allows nothing else), so that it can be mailed, attached to
a build or opened from a disk, and cannot ask anybody for anything. Text from records reaches the
document as text only: through Jinja's escaping here, through ``textContent`` in the script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bench.record import Status
from bench.report.frames import RunData
from bench.report.about import command, status_line, topics, when_line
from bench.report.plots import Picture
from bench.report.tables import Table
from bench.report.text import clean, plural
from bench.report.web import cells, memory
from bench.report.web.charts import chart
from bench.report.web.compared import Compared
from bench.report.web.merge import merge
from bench.report.web.sheets import png_uri, sheets
from bench.report.web.tables import packed
from bench.store import SUITE, write_atomic

PAGE = "index.html"
_SCRIPTS = ("base", "table", "cells", "sheets", "scale", "grid", "chart", "panel", "main")
_FILES = ("README.md", "records.jsonl", "records.parquet", "env.json", "suite.yaml", "comparison.md")
_INLINE_PARQUET = 2 * 2**20  # bytes; a larger one is left beside the page


def write_page(
    folder: Path,
    runs: Sequence[RunData],
    tables: Mapping[str, Table],
    pictures: Sequence[tuple[Picture, str]] = (),
    comparison: Compared | None = None,
) -> Path:
    """Write ``index.html`` into ``folder`` and return its path; an old page stays until the new one is whole.

    ``runs``: the run shown first, then those beside it. ``tables`` are those of the first run.
    Raises UserError if the file cannot be written.
    """
    target = folder / PAGE
    write_atomic(target, html(folder, runs, tables, pictures, comparison))
    return target


def html(
    folder: Path,
    runs: Sequence[RunData],
    tables: Mapping[str, Table],
    pictures: Sequence[tuple[Picture, str]] = (),
    comparison: Compared | None = None,
) -> str:
    """The page as text; see ``write_page``."""
    charts, undrawn = _charts(runs)
    found = _sheets(runs)
    undrawn += [(s["title"], s["why"]) for s in found if "why" in s]
    shown_sheets = [s for s in found if "why" not in s]
    all_tables = {name.lstrip("_"): table for name, table in _wanted(runs, tables).items()}
    if comparison:
        all_tables |= {"comparison": comparison.table, "machines": comparison.machines}
    groups = _groups(all_tables)
    payload = {
        "runs": [_run_json(run, name) for run, name in zip(runs, names(runs), strict=True)],
        "envs": {key: text for run in runs for key, text in _environments(run).items()},
        "cells": cells.pack(runs),
        "charts": charts,
        "sheets": shown_sheets,
        "tables": {name: packed(table) for name, table in all_tables.items()},
    }
    style, script = _asset("page.css"), "\n".join(_asset(f"page_{name}.js") for name in _SCRIPTS)
    sections = _sections(
        charts, shown_sheets, groups, comparison, any(run.records for run in runs), _notes(runs)
    )
    environment = Environment(
        loader=PackageLoader("bench.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    return environment.get_template("page.html.j2").render(
        policy=_policy(style, script),
        css=Markup(style),
        script=Markup(script),
        payload=Markup(embedded(payload)),
        title=comparison.title if comparison and comparison.title else clean(runs[0].name, 300),
        description=clean(runs[0].suite.get("description") or "", 4000),
        cards=_cards(runs, comparison),
        runs=[_run_html(run, name) for run, name in zip(runs, names(runs), strict=True)],
        sections=sections,
        measured=any(len(run.ok) for run in runs),
        records=any(run.records for run in runs),
        comparison=comparison,
        charts=[_chart_html(c, pictures, runs) for c in charts],
        undrawn=undrawn,
        sheets=shown_sheets,
        groups=groups,
        notes=_notes(runs),
        parquet=_parquet(runs),
        files=_files_beside(folder, all_tables),
    )


def names(runs: Sequence[RunData]) -> list[str]:
    """What the runs are called on the page: their folders, told apart by a number where these are equal."""
    found: list[str] = []
    for run in runs:
        name, count = clean(run.folder.name or run.name, 80), 2
        while name in found:
            name, count = f"{clean(run.folder.name, 80)} ({count})", count + 1
        found.append(name)
    return found


def embedded(data: Any) -> str:
    """JSON that is safe inside a ``<script>`` element: no ``<``, ``>`` or ``&``, no line separators."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=str)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace").decode()  # a lone surrogate is no text


def _policy(style: str, script: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (files("bench.report") / "templates" / name).read_text(encoding="utf-8")


def _charts(runs: Sequence[RunData]) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Charts of all views, headline views first, and what could not be drawn."""
    views = sorted(
        (v for v in runs[0].words.views if v.kind != "pictures"), key=lambda view: not view.headline
    )
    drawn, undrawn = [], []
    for view in views:
        found = [chart(view, run) for run in runs]
        if all("why" in one for one in found):
            undrawn.append((view.title, str(found[0]["why"])))
        else:
            drawn.append(merge([c for c in zip(names(runs), found, strict=True) if "why" not in c[1]]))
    return drawn, undrawn


def _sheets(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    views = [v for v in runs[0].words.views if v.kind == "pictures"]
    made = [(name, sheets(view, run)) for view in views for name, run in zip(names(runs), runs, strict=True)]
    if len(runs) > 1:
        made = [(name, sheet | {"title": f"{sheet['title']}: {name}"}) for name, sheet in made]
    return [sheet for _, sheet in made]


def _wanted(runs: Sequence[RunData], tables: Mapping[str, Table]) -> dict[str, Table]:
    """Tables worth showing: those of the report (the full one is the table of cells), and memory."""
    found = {
        name: table
        for name, table in tables.items()
        if name != "full" and not (name.startswith("differences-") and f"_{name}" in tables)
    }
    reconciled = memory.reconciliation(runs[0])
    return found | ({"memory": reconciled} if reconciled and reconciled.rows else {})
