"""One ``bench run`` from the suite file to the report: what to measure, where, and what to say of it.

The order matters: everything that can be wrong with the request is found before the folder is
locked, everything that can be wrong with the folder before a child is started, and what has been
measured is on the disk before anything is drawn from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bench import registry
from bench.errors import inert
from bench.results.folder import choose_run, locked, remove_partial
from bench.results.record import Status
from bench.results.store import DAMAGED, PLAN, SUITE, Store, write_atomic
from bench.run import live, site, terminal, tracked
from bench.run.interrupt import Interrupts
from bench.run.kept import gather
from bench.run.loop import RunSession, exit_code, found_no_room, measure, remaining, tally
from bench.run.one_pass import NOT_REACHED, RETRIED
from bench.suite.request import Options, Request, prepare
from bench.temporary import tidy
from bench.text import plural
from bench.workload import Pass, Workload

README = "README.md"
Draw = Callable[[Store, Workload], Path]  # from records to what people read; where that begins
_MOST_NAMED = 5  # edited records


def run(options: Options, console: Console, draw: Draw) -> int:
    """Measure what has no answer yet, ``draw`` the report, and return the exit code (0 or 3).

    Raises UserError, and KeyboardInterrupt after having said how to go on.
    """
    request = prepare(options)
    tracked.check_installed(options.log_with)
    with site.open_site(request, options, lambda text: _say(console, escape(text))) as place:
        return _run(request, options, console, draw, place)


def _run(request: Request, options: Options, console: Console, draw: Draw, place: site.Site) -> int:
    folder = options.results / request.suite.suite

    def waiting(who: str) -> None:
        console.print(f"waiting for {escape(who)} to finish in {escape(str(folder))}", highlight=False)

    with locked(folder, wait=options.wait, on_wait=waiting):
        fingerprint = place.fingerprint
        choice = choose_run(
            options.results,
            request.suite.suite,
            fingerprint,
            options.overrides,
            request.plan.version,
            new=options.new,
        )
        if choice.why:
            _say(console, f"starting a new run: {escape(choice.why)}")
        tidy("run")
        remove_partial(choice.folder)
        gather(choice.folder)
        store = Store(choice.folder)
        try:
            changed = _write_plan(choice.folder, request, options)
            _say_what_was_found(console, store, request)
            todo = remaining(request.passes, store, retry_failed=options.retry_failed)
            if todo:
                _measure(todo, request, options, store, place, console)
            _sum_up(console, store, request, options, measured=bool(todo))
            readme = store.folder / README
            # What was measured is drawn whatever the clock says: set back, it makes a page look newer.
            if todo or changed or not readme.exists() or readme.stat().st_mtime < store.path.stat().st_mtime:
                readme = draw(store, request.workload)
            _conclude(console, store, request, options)
            _say(console, f"report: [bold]{escape(str(readme))}[/]")
            return exit_code(tally(request.cells, store))
        finally:
            store.close()


def _write_plan(folder: Path, request: Request, options: Options) -> bool:
    """Keep suite and plan beside the records; whether they differ from what lay there."""
    file = options.suite.resolve()
    here = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else Path(file.name)
    content = request.plan.to_json() | {"file": here.as_posix(), "overrides": options.overrides}
    plan = json.dumps(content, separators=(",", ":")) + "\n"  # `bench plan` is for people; this weighs
    texts = {SUITE: options.suite.read_text(encoding="utf-8"), PLAN: plan}
    changed = False
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != text.encode():
            write_atomic(path, text)
            changed = True
    return changed


def _say_what_was_found(console: Console, store: Store, request: Request) -> None:
    for note in request.plan.notes:
        _say(console, escape(inert(note)))
    if store.damaged:
        lines = plural(store.damaged, "damaged line")
        _say(console, f"[yellow]warning:[/] {lines} set aside in {DAMAGED}; those cells are measured again")
    for one in store.edited[:_MOST_NAMED]:
        _say(console, f"[yellow]warning:[/] {escape(one.where)}: {escape(str(one))}")
    if store.edited:
        records = plural(len(store.edited), "edited record")
        _say(console, f"[yellow]warning:[/] {records} set aside in {DAMAGED}; those cells are measured again")
    stale = store.records.keys() - {cell.id for cell in request.plan.cells}
    if stale:
        known = plural(len(stale), "record")
        _say(console, f"{known} kept of cells that the suite (or its code) no longer has")


def _measure(
    todo: list[Pass], request: Request, options: Options, store: Store, place: site.Site, console: Console
) -> None:
    count = sum(len(work.cells) for work in todo)
    kept = len(request.cells) - count
    resumed = f" ({kept} answered before)" if kept else ""
    work = f"{plural(count, 'cell')} in {plural(len(todo), 'pass')}{resumed}"
    _say(console, f"[bold]{request.suite.suite}[/]: {work} → {escape(str(store.folder))}")
    session = RunSession(
        suite=request.suite.suite,
        workload=request.workload,
        target=registry.targets()[request.suite.workload],
        folder=store.folder,
        env=place.fingerprint["id"],
        timeout=request.suite.timeout,
        memory_limit=request.suite.memory_limit,
        jobs=place.jobs,
    )
    watcher = live.observer(console, request.workload.metrics, plain=options.plain)
    if options.log_with is not None:
        watcher = tracked.Tracked(watcher, options.log_with, store.folder, request.workload.prefix_axis)
    try:
        with Interrupts() as interrupts, place.launcher(store.folder, watcher.message) as launcher:
            watcher.run_started(todo, kept)
            measure(todo, session, launcher, store, watcher, interrupts.held)
    except KeyboardInterrupt:
        watcher.run_ended()
        done = sum(tally(request.cells, store).values())
        _say(
            console, f"\ninterrupted; {done} of {len(request.cells)} cells are answered and kept. Go on with:"
        )
        _say(console, f"  [bold]{escape(options.command())}[/]")
        raise
    finally:
        watcher.run_ended()


def _sum_up(console: Console, store: Store, request: Request, options: Options, *, measured: bool) -> None:
    if measured:
        terminal.summary(store.records.values(), request.workload.metrics, request.cells, console)
    else:
        _say(console, f"[bold]{request.suite.suite}[/]{escape(options.part)} is finished: nothing to do")


def _conclude(console: Console, store: Store, request: Request, options: Options) -> None:
    counts = tally(request.cells, store)
    ended = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
    _say(console, f"{plural(len(request.cells), 'cell')}{escape(options.part)}: {ended}")
    if not counts[Status.OK]:
        reasons = {store.records[cell.id].reason or "" for cell in request.cells}
        first = sorted(reason for reason in reasons if not reason.startswith(NOT_REACHED))[:3]
        _say(console, f"[yellow]nothing was measured:[/] {escape('; '.join(first))}")
    full = sum(found_no_room(store.records[cell.id]) for cell in request.cells if cell.id in store.records)
    if full:
        told = f"{plural(full, 'cell')} found the disk full; with room again the same command measures"
        _say(console, f"[yellow]{told} {'it' if full == 1 else 'them'}[/]")
    again = sum(counts[status] for status in RETRIED) - full
    if again:
        _say(console, f"{again} of them can be measured again: {escape(options.command('--retry-failed'))}")


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)
