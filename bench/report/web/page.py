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
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bench.report.about import all_of_them
from bench.report.frames import RunData
from bench.report.tables import Table
from bench.report.web import cells, memory, sections
from bench.report.web.charts import chart
from bench.report.web.compared import Compared
from bench.report.web.merge import merge
from bench.report.web.sheets import sheets
from bench.report.web.tables import MOST_ROWS, packed
from bench.results.status import Status
from bench.results.store import write_atomic
from bench.text import clean

PAGE = "index.html"
_CELLS, _ROWS = 700_000, 200  # characters of cells, and rows of a table, where not all cells are drawn
_SCRIPTS = ("base", "table", "cells", "sheets", "scale", "grid", "chart", "panel", "main")


def write_page(
    folder: Path,
    runs: Sequence[RunData],
    tables: Mapping[str, Table],
    comparison: Compared | None = None,
) -> Path:
    """Write ``index.html`` into ``folder`` and return its path; an old page stays until the new one is whole.

    ``runs``: the run shown first, then those beside it. ``tables`` are those of the first run.
    Raises UserError if the file cannot be written.
    """
    target = folder / PAGE
    write_atomic(target, html(folder, runs, tables, comparison))
    return target


def html(
    folder: Path,
    runs: Sequence[RunData],
    tables: Mapping[str, Table],
    comparison: Compared | None = None,
) -> str:
    """The page as text; see ``write_page``."""
    charts, undrawn = _charts(runs)
    found = _sheets(runs)
    undrawn += [(s["title"], s["why"]) for s in found if "why" in s]
    shown = [s for s in found if "why" not in s]
    wanted = _wanted(runs, tables, comparison)
    groups = sections.groups(wanted)
    notes = sections.notes(runs)
    most = _ROWS if runs[0].chosen else MOST_ROWS
    heading = "Cells drawn" if runs[0].chosen else "All cells"
    payload: dict[str, Any] = {
        "runs": [sections.run_json(run, name) for run, name in zip(runs, sections.names(runs), strict=True)],
        "envs": {key: text for run in runs for key, text in sections.environments(run).items()},
        "cells": cells.within(runs, _CELLS) if runs[0].chosen else cells.pack(runs),
        "charts": charts,
        "sheets": shown,
        "tables": {name: packed(table, most) for name, table in wanted.items()},
    }
    style, script = asset("page.css"), "\n".join(asset(f"page_{name}.js") for name in _SCRIPTS)
    records = any(run.records for run in runs)
    texts = sections.texts(runs)
    there = {"comparison": comparison, "texts": texts, "charts": charts or undrawn, "pictures": shown}
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            policy=policy(style, script),
            css=Markup(style),
            script=Markup(script),
            payload=Markup(embedded(payload)),
            title=clean(comparison.title if comparison and comparison.title else runs[0].name, 300),
            description=clean(runs[0].suite.get("description") or "", 4000),
            cards=sections.cards(runs, comparison),
            runs=[sections.run_html(run, name) for run, name in zip(runs, sections.names(runs), strict=True)],
            sections=sections.contents(there | {"cells": records, "notes": notes}, groups, heading),
            heading=heading,
            chosen=runs[0].chosen,
            all_of_them=all_of_them(runs[0]),
            left_out=payload["cells"].get("left_out", 0),
            table_cells=len(payload["cells"]["cells"]),
            measured=any(run.whole.statuses.get(str(Status.OK)) for run in runs),
            records=records,
            comparison=comparison,
            charts=sections.charts_html(charts, runs),
            undrawn=undrawn,
            sheets=shown,
            texts=texts,
            groups=groups,
            notes=notes,
            parquet=sections.parquet(runs),
            files=sections.files_beside(folder, wanted),
        )
    )


def embedded(data: Any) -> str:
    """JSON that is safe inside a ``<script>`` element: no ``<``, ``>`` or ``&``, no line separators."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=str)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace").decode()  # a lone surrogate is no text


def policy(style: str, script: str = "", images: str = "data:") -> str:
    """A content security policy that allows this style, this script and such images, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (style, script)]
    scripts = f"script-src 'sha256-{hashes[1]}'; " if script else ""
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; {scripts}"
        f"img-src {images}; base-uri 'none'; form-action 'none'"
    )


def asset(name: str) -> str:
    """A file of the templates folder."""
    return (files("bench.report") / "templates" / name).read_text(encoding="utf-8")


def environment() -> Environment:
    """Jinja that escapes whatever is not marked as markup, and refuses names it does not know."""
    return Environment(
        loader=PackageLoader("bench.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )


def _charts(runs: Sequence[RunData]) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Charts of all views, headline views first, and what could not be drawn."""
    plots = (view for view in runs[0].words.views if view.kind not in ("pictures", "texts"))
    views = sorted(plots, key=lambda view: not view.headline)
    drawn, undrawn = [], []
    for view in views:
        found = [chart(view, run) for run in runs]
        if all("why" in one for one in found):
            undrawn.append((view.title, str(found[0]["why"])))
        else:
            drawn.append(
                merge([c for c in zip(sections.names(runs), found, strict=True) if "why" not in c[1]])
            )
    return drawn, undrawn


def _sheets(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    views = [v for v in runs[0].words.views if v.kind == "pictures"]
    made = [
        (name, sheets(view, run))
        for view in views
        for name, run in zip(sections.names(runs), runs, strict=True)
    ]
    if len(runs) > 1:
        made = [(name, sheet | {"title": f"{sheet['title']}: {name}"}) for name, sheet in made]
    return [sheet for _, sheet in made]


def _wanted(
    runs: Sequence[RunData], tables: Mapping[str, Table], comparison: Compared | None
) -> dict[str, Table]:
    """Tables worth showing: those of the report (the full one is the table of cells), memory, comparison."""
    found = {
        name.lstrip("_"): table
        for name, table in tables.items()
        if name != "full" and f"_{name}" not in tables  # of two extents of one table, that of the page
    }
    reconciled = memory.reconciliation(runs[0])
    if reconciled and reconciled.rows:
        found["memory"] = reconciled
    return found | ({"comparison": comparison.table, "machines": comparison.machines} if comparison else {})
