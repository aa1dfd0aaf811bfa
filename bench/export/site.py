"""Publishing: a folder of runs that any web server can serve, and tables as a dataset on the hub.

The site is plain files: ``SUITE/RUN/`` holds a run's page, tables, pictures and records, and ``index.html``
says of every suite what its newest run came to, and how that compares with the run published before it.
Everything is made again from what lies in the folder, so publishing a run twice changes nothing, and a
run is put in place whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bench.errors import UserError, parse_json
from bench.export.index import INDEX, render_index
from bench.gate.compare import Comparison
from bench.report import page
from bench.report.frames import RunData
from bench.report.large.load import refuse_large
from bench.report.page import COMPARISON
from bench.report.session import warn
from bench.results.record import Record
from bench.results.segment import INDEX as RECORDS_INDEX
from bench.results.store import ENV, PLAN, RECORDS, SUITE, newest_records, write_atomic
from bench.suite.request import find_run
from bench.text import clean, slug

CARD = "published.json"  # what the index knows of a run
_STAGING = ".staging"
_FOR_DRAWING = ("artifacts", RECORDS_INDEX)  # large, and not published
_COPIED = (RECORDS, ENV, PLAN, SUITE, *_FOR_DRAWING)


def publish(
    run: str, site: Path | None, repo: str | None, private: bool, results: Path, console: Console
) -> None:
    """Add a run to a site, upload its tables, or both; see the commands' help."""
    if site is None and repo is None:
        raise UserError("nowhere to publish to", hint="give a folder, or --to-hub ORG/NAME")
    if private and repo is None:
        raise UserError("--private is of the dataset that --to-hub makes", hint="leave --private out")
    folder = find_run(run, results)
    warn(folder, console)
    if site is not None:
        written, note = add(folder, site)
        if note:
            console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True, highlight=False)
        console.print(f"published: {escape(str(written))}", soft_wrap=True, highlight=False)
    if repo is not None:
        from bench.export.hub import upload

        console.print(f"uploaded: {upload(folder, repo, private=private)}", soft_wrap=True, highlight=False)


def add(folder: Path, site: Path) -> tuple[Path, str]:
    """Put a run on a site and renew the index. Returns its page, and why it was compared with nothing.

    Raises UserError for a folder that holds no record, a site folder with another's index or unpublished
    runs in it, or a disk that does not take the files; the site is then as it was.
    """
    records = newest_records(folder)
    suite, name = slug(records[0].suite), slug(records[0].run)
    target = site / suite / name
    _check_ours(site, target)
    with _clear_errors(site):
        site.mkdir(parents=True, exist_ok=True)
        with _staged(site) as staging:
            made = staging / suite / name
            made.mkdir(parents=True)
            for part in _COPIED:
                _copy(folder / part, made / part)
            before = _before(site, suite, name, min(r.started for r in records))
            _write_parquet(made, records)  # before the page, which offers it
            data, comparison, note = _draw(made, before)
            write_atomic(made / CARD, json.dumps(_card(data, records, comparison, before), indent=1) + "\n")
            for part in _FOR_DRAWING:
                shutil.rmtree(made / part, ignore_errors=True)
            _swap(made, target)
        (site / ".nojekyll").touch()
        write_atomic(site / INDEX, render_index(cards(site)))
    return target / "index.html", note


def cards(site: Path) -> list[dict[str, Any]]:
    """What is known of every published run, suites by name, their runs newest first."""
    found = []
    for path in site.glob(f"*/*/{CARD}"):
        try:
            card = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # not one of ours, or cut short: it is named again when its run is published again
        if isinstance(card, dict) and {"suite", "started"} <= card.keys():
            found.append(card | {"path": f"{path.parent.parent.name}/{path.parent.name}"})
    found.sort(key=lambda card: (str(card["started"]), card["path"]), reverse=True)
    return sorted(found, key=lambda card: str(card["suite"]))


def _check_ours(site: Path, target: Path) -> None:
    """Raises UserError where something would be lost that this command has not made."""
    index = site / INDEX
    if site.exists() and not site.is_dir():
        raise UserError(f"{site} is not a folder", hint="give the folder of a site, or one to be made")
    if (
        index.exists()
        and 'content="ddposink"' not in index.read_text(encoding="utf-8", errors="replace")[:2000]
    ):
        raise UserError(
            f"{index} was not made by this command, and would be lost", hint="give a folder of its own"
        )
    if target.exists() and not (target / CARD).exists():  # e.g. the results, where the run itself lies
        raise UserError(
            f"{target} was not made by this command, and would be replaced by a copy without its artifacts",
            hint="give the site a folder of its own",
        )


def _draw(made: Path, before: Path | None) -> tuple[RunData, Comparison | None, str]:
    """Render the copied run beside the one published before it, if these can be compared."""
    from bench.report import side_by_side

    data = page.read(made)
    if before is not None:
        try:
            refuse_large([made, before])
            baseline = page.read(before)
            page.draw_run(data, baseline)
            return data, side_by_side.compare_runs([data, baseline]), ""
        except UserError as error:
            said = error.message.replace(str(made), made.name).replace(str(before), before.name)
            why = f"not compared with {before.name}: {said}"
            (made / COMPARISON).unlink(missing_ok=True)
            data = data if data.chosen else page.read(made)  # without what the attempt has noted
            page.draw_run(data)
            return data, None, why
        finally:
            shutil.rmtree(before / RECORDS_INDEX, ignore_errors=True)  # not published, and made by reading
    page.draw_run(data)
    return data, None, ""


def _before(site: Path, suite: str, name: str, started: str) -> Path | None:
    """The newest published run of a suite that began before this one."""
    earlier = [c for c in cards(site) if c["path"].startswith(f"{suite}/") and str(c["started"]) < started]
    return next((site / card["path"] for card in earlier if card["path"] != f"{suite}/{name}"), None)


def _card(
    data: RunData, records: Sequence[Record], comparison: Comparison | None, before: Path | None
) -> dict[str, Any]:
    whole = data.whole
    headline = next((v for v in data.words.views if v.headline), None)
    kind = "webp" if headline and headline.kind == "pictures" else "png"
    plot = f"plots/{slug(headline.name)}.{kind}" if headline else ""
    return {
        "suite": clean(data.name, 200),
        "description": clean(data.suite.get("description") or "", 600),
        "run": records[0].run,
        "started": min(record.started for record in records),
        "finished": whole.end or max(record.finished for record in records),
        "cells": whole.total,
        "statuses": dict(sorted(whole.statuses.items())),
        "edited": whole.edited,
        "baseline": before.name if before and comparison else None,
        "verdicts": {str(v): n for v, n in comparison.counts.items()} if comparison else {},
        "picture": plot if plot and (data.folder / plot).is_file() else None,
    }


def _write_parquet(made: Path, records: list[Record]) -> None:
    from bench.export.parquet import write_parquet

    write_parquet(records, made / "records.parquet")


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder without links: they may lead anywhere, and nothing of a run is one."""
    if source.is_file():
        shutil.copyfile(source, target)
    for folder, _, names in os.walk(source):
        made = target / Path(folder).relative_to(source)
        made.mkdir()
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                shutil.copyfile(os.path.join(folder, name), made / name)


@contextmanager
def _staged(site: Path) -> Iterator[Path]:
    staging = site / f"{_STAGING}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(made: Path, target: Path) -> None:
    """Put a finished folder in place of an old one; if that fails, the old one comes back."""
    target.parent.mkdir(exist_ok=True)
    aside = made.with_name(f"{made.name}.old")
    if target.exists():
        target.rename(aside)
    try:
        made.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise


@contextmanager
def _clear_errors(site: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot publish to {site}: {error.strerror or error}",
            hint="check free space and permissions; what was published before is still there",
        ) from error
