"""What stands where on the page: cards at the top, sections of tables, runs and their machines."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report.about import command, edited_line, status_line, topics, when_line
from bench.report.frames import RunData
from bench.report.tables import Table
from bench.report.texts import KeptText, all_texts
from bench.report.web.compared import Compared
from bench.report.web.sheets import png_uri
from bench.results.record import Status
from bench.results.store import SUITE
from bench.text import clean, plural, slug

_FILES = ("README.md", "comparison.md", "records.jsonl", "records.parquet", "env.json", "suite.yaml")
_INLINE_PARQUET = 50_000  # bytes; a larger one is left beside the page
STATIC = 200_000  # bytes of static pictures inside one page; the charts themselves are drawn from data


def names(runs: Sequence[RunData]) -> list[str]:
    """What the runs are called on the page: their folders, told apart by a number where these are equal."""
    found: list[str] = []
    for run in runs:
        name, count = clean(run.folder.name or run.name, 80), 2
        while name in found:
            name, count = f"{clean(run.folder.name, 80)} ({count})", count + 1
        found.append(name)
    return found


def groups(tables: Mapping[str, Table]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Sections of tables: id, heading, and (name, title) of each."""
    headings = [
        ("results", "Results", ("headline",)),
        ("failures", "Not measured", ("failures",)),
        ("differences", "Against reference", ("differences", "relative", "control")),
        ("positions", "In detail", ("positions", "matrix")),
        ("published", "Published", ("published",)),
        ("memory", "Memory", ("memory",)),
        ("metrics", "Meaning", ("metrics",)),
    ]
    found = []
    for id_, heading, starts in headings:
        inside = [(name, table.title) for name, table in tables.items() if name.startswith(starts)]
        if inside:
            found.append((id_, heading, inside))
    return found


def contents(
    there: Mapping[str, Any], tables: Sequence[tuple[str, str, Any]], cells: str
) -> list[tuple[str, str]]:
    """Id and heading of every section of the page, in order; ``cells`` is the heading of the cells."""
    first = [("comparison", "Comparison"), ("pictures", "Before and after"), ("charts", "Pictures")]
    first.append(("texts", "Texts"))
    last = [("cells", cells), ("notes", "Notes")]
    found = [one for one in first if there[one[0]]]
    found += [(id_, heading) for id_, heading, _ in tables]
    found += [one for one in last if there[one[0]]]
    return [*found, ("asked", "Suite and machine"), ("downloads", "Downloads")]


def cards(runs: Sequence[RunData], comparison: Compared | None) -> list[dict[str, str]]:
    """The verdict at a glance: how many cells came to what, and how the comparison went."""
    run, whole = runs[0], runs[0].whole
    counts = dict(whole.statuses)
    measured = counts.pop(str(Status.OK), 0)
    look = "ok" if measured and measured == whole.total else ""
    found = [{"count": f"{measured:,} of {whole.total:,}", "text": "cells measured", "look": look}]
    found += [
        {"count": f"{n:,}", "text": f"{plural(n, 'cell').split()[1]} {s}", "look": s}
        for s, n in counts.items()
    ]
    if whole.total > whole.answered:
        left = f"{whole.total - whole.answered:,}"
        found.append({"count": left, "text": "not yet answered", "look": "skipped"})
    if whole.edited:
        found.append({"count": f"{whole.edited:,}", "text": "edited after measuring", "look": "error"})
    for verdict, n, words in comparison.counts if comparison else ():
        found.append({"count": f"{n:,}", "text": f"numbers {words}", "look": verdict})
    if not comparison and run.records:
        text = "pass" if whole.passes == 1 else "passes"
        found.append({"count": f"{whole.passes:,}", "text": text, "look": ""})
    return found


def environments(run: RunData) -> dict[str, list[list[str]]]:
    """Every environment that a record of this run may name, without what names a person or a host."""
    earlier = run.env.get("earlier")
    known = [run.env, *(earlier.values() if isinstance(earlier, dict) else ())]
    return {
        str(env["id"]): [[key.replace("_", " "), clean(text, 600)] for key, text in topics(env)]
        for env in known
        if isinstance(env, dict) and env.get("id")
    }


def run_json(run: RunData, name: str) -> dict[str, Any]:
    """What the script needs of a run: its name and the commit to check out."""
    git = run.env.get("git")
    commit, dirty = (git.get("commit"), git.get("dirty")) if isinstance(git, dict) else (None, None)
    sound = isinstance(commit, str) and commit.isalnum()
    return {"name": name, "checkout": clean(commit, 64) if sound else None, "dirty": bool(dirty)}


def run_html(run: RunData, name: str) -> dict[str, Any]:
    """What stands about a run in the page itself."""
    machine = {key: clean(text, 300) for key, text in topics(run.env)}
    gpus = run.env.get("gpus")
    cards = (
        ", ".join(clean(g.get("name"), 80) for g in gpus if isinstance(g, dict))
        if isinstance(gpus, list)
        else ""
    )
    packages = run.env.get("packages")
    torch = packages.get("torch") if isinstance(packages, dict) else None
    parts = [
        cards,
        machine.get("cpu", "").partition(", flags")[0].removeprefix("model "),
        f"torch {clean(torch, 40)}" if torch else "",
    ]
    text = run.folder / SUITE
    raw = text.read_text(encoding="utf-8", errors="replace")[:200_000] if text.is_file() else ""
    again = command(run)
    return {
        "name": name,
        "role": "",
        "folder": clean(run.folder.name, 120),
        "status": status_line(run),
        "when": when_line(run),
        "edited": edited_line(run),
        "machine": ("Measured on " + "; ".join(filter(None, parts)) + ".") if any(parts) else "",
        "topics": [(key.replace("_", " "), clean(text, 600)) for key, text in topics(run.env)],
        "suite_text": raw,
        "command": f"{again} --new",
    }


def charts_html(specs: Sequence[Mapping[str, Any]], runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """The charts of a page, with static pictures of the first ones: as many as `STATIC` has room for."""
    found, used = [_chart_html(spec, runs) for spec in specs], 0
    for one in found:
        used += sum(len(picture["src"]) for picture in one["pictures"])
        if used > STATIC:
            one["pictures"] = []
    return found


def _chart_html(spec: Mapping[str, Any], runs: Sequence[RunData]) -> dict[str, Any]:
    """Title and static pictures of a chart, as far as the runs have them in their folders."""
    found = []
    for run, name in zip(runs, names(runs), strict=True):
        path = run.pages / "plots" / f"{slug(spec['name'])}.png"
        if path.is_file():
            alt = f"{spec['title']}: {spec['yLabel']} against {spec['xLabel']}"
            alt = alt if len(runs) == 1 else f"{name}: {alt}"
            found.append({"src": png_uri(path.read_bytes()), "alt": clean(alt, 1000)})
    wide = spec["wide"] or len(spec["panels"]) > 1 or len(runs) > 1
    return {"title": spec["title"], "id": slug(spec["name"]), "pictures": found, "wide": wide}


def texts(runs: Sequence[RunData]) -> list[tuple[str, list[KeptText]]]:
    """Texts that cells have kept, by the title of their view, and by run if there are several."""
    several = len(runs) > 1
    return [
        (f"{title}: {name}" if several else title, kept)
        for run, name in zip(runs, names(runs), strict=True)
        for title, kept in all_texts(run)
    ]


def notes(runs: Sequence[RunData]) -> list[str]:
    """What the reader must know of each run, with its name if there are several."""
    several = len(runs) > 1
    marked = [(f"{name}: " if several else "", run) for name, run in zip(names(runs), runs, strict=True)]
    return [clean(f"{lead}{note}", 1000) for lead, run in marked for note in run.notes]


def parquet(runs: Sequence[RunData]) -> list[dict[str, str]]:
    """Parquet files small enough to travel inside the page."""
    found = []
    for run, name in zip(runs, names(runs), strict=True):
        path = run.folder / "records.parquet"
        if path.is_file() and path.stat().st_size <= _INLINE_PARQUET:
            source = (
                "data:application/vnd.apache.parquet;base64," + base64.b64encode(path.read_bytes()).decode()
            )
            text = "Cells as parquet" + (f" ({name})" if len(runs) > 1 else "")
            found.append({"src": source, "name": f"{clean(run.name, 60)}.parquet", "text": text})
    return found


def files_beside(folder: Path, tables: Mapping[str, Table]) -> list[str]:
    """Files that lie beside the page, as relative links."""
    there = [name for name in _FILES if (folder / name).is_file()]
    stems = ["full", *(name for name in tables)]
    return there + [f"tables/{s}.csv" for s in stems if (folder / "tables" / f"{s}.csv").is_file()]
