"""One side of a gate as a process of its own: measures passes on request with the code of its tree.

Started as a script, so that the driver is the same on both sides whatever their trees contain; all it
imports comes from the tree that PYTHONPATH names. It speaks JSON lines: a request on standard input, an
answer on standard output, and the end of the input is its end, also in the middle of a pass: a gate that is
killed leaves no driver behind. Everything else goes to the log.
"""

from __future__ import annotations

import _thread
import importlib
import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

Say = Callable[..., None]
LEAVE_SECONDS = 1.0, 10.0  # after the input's end: until what is being measured is interrupted, and cut off

# Where a tree keeps what is asked of it: today, and up to version 0.1, since a base may be older than head.
HOMES = {
    "environment": ("bench.results.environment", "bench.env"),
    "store": ("bench.results.store", "bench.store"),
    "launch": ("bench.run.launch", "bench.launch"),
    "loop": ("bench.run.loop", "bench.run"),
    "plan": ("bench.suite.plan", "bench.plan"),
    "model": ("bench.suite.model", "bench.suite"),
    "grid": ("bench.suite.grid", "bench.grid"),
}


def part(name: str) -> Any:
    """The module of this tree that goes by a name of `HOMES`.

    Which it is, is told by its file: Python would take a module that is missing from another tree that is
    installed, too.
    """
    import bench

    today, before = HOMES[name]
    here = Path(bench.__file__).parent.joinpath(*today.split(".")[1:]).with_suffix(".py").exists()
    return importlib.import_module(today if here else before)


class Quiet:
    """An observer that only passes messages on."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def message(self, text: str) -> None:
        """See ``bench.run.one_pass.Observer``."""
        self._say(event="message", text=text)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


class Driver:
    """The suite planned by this tree for many repetitions, with a fork server of its own."""

    def __init__(self, request: dict[str, Any], say: Say) -> None:
        _check_tree(request["tree"])
        store = part("store")
        self.say, self.folder = say, Path(request["folder"])
        self.suite, self.workload, self.plan, lacking = _plan(request)
        self.settings = request["settings"]
        self.passes = _by_repetition(self.plan, _asked_for(request, self.workload))
        if not self.passes:
            raise RuntimeError(lacking or "it plans none of the cells that were asked for")
        self.fingerprint = part("environment").fingerprint()
        for name in ("artifacts", "logs"):
            (self.folder / name).mkdir(parents=True)
        store.write_atomic(self.folder / store.ENV, json.dumps(self.fingerprint, indent=2) + "\n")
        store.write_atomic(self.folder / store.SUITE, Path(request["suite"]).read_text(encoding="utf-8"))
        self.store = store.Store(self.folder)
        self.measured: set[str] = set()  # passes
        self.session = self._session()
        preload = tuple(self.workload.preload)
        self.launcher = part("launch").LocalLauncher(preload, self.folder / "logs" / "server.log")
        self.launcher.await_ready()
        labels = [[cell.label for cell in work.cells] for work in self.passes[0]]
        cells = [[(dict(cell.params), cell.seed) for cell in work.cells] for work in self.passes[0]]
        known = {"version": self.plan.version, "fingerprint": self.fingerprint, "lacking": lacking}
        say(event="ready", passes=labels, cells=cells, **known)

    def measure(self, number: int, repeat: int) -> None:
        """Measure one pass in a fresh child and answer with its records."""
        work = self.passes[repeat][number]
        part("loop").measure([work], self.session, self.launcher, self.store, Quiet(self.say))
        self.measured.add(work.id)
        self._write_plan()
        records = [self.store.records[cell.id].model_dump_json() for cell in work.cells]
        self.say(event="measured", records=records)

    def _session(self) -> Any:
        from bench import registry

        suite = self.suite
        loop = part("loop")
        kind = getattr(loop, "RunSession", None) or loop.Session  # its name up to version 0.1
        return kind(
            suite=suite.suite,
            workload=self.workload,
            target=registry.targets()[suite.workload],
            folder=self.folder,
            env=self.fingerprint["id"],
            timeout=suite.timeout,
            memory_limit=suite.memory_limit,
        )

    def _write_plan(self) -> None:
        """Keep the plan as far as it has been asked for: what was never asked for is not missing."""
        plan = self.plan.to_json()
        passes = [work for work in plan["passes"] if work["id"] in self.measured]
        plan |= {"overrides": self.settings, "passes": passes}
        store = part("store")
        store.write_atomic(self.folder / store.PLAN, json.dumps(plan, indent=1) + "\n")


def _plan(request: dict[str, Any]) -> tuple[Any, Any, Any, str]:
    """Suite, workload, a plan of as many repetitions as may be wanted, and why it lacks cells, if it does."""
    from bench import registry
    from bench.errors import UserError

    make_plan = part("plan").make_plan
    changes = {**request["changed"], "repeat": request["repeats"]}
    suite = part("model").load_suite(Path(request["suite"])).model_copy(update=changes)
    workload = registry.load(suite.workload, suite.where(("workload",)))
    try:
        return suite, workload, make_plan(suite, workload), ""
    except UserError as error:
        known = _known_part(suite, workload, request["defaults"]) if request["lenient"] else None
        if known is None:
            raise
        first = getattr(error, "errors", (error,))[0]
        where = f"{first.where}: " if first.where else ""
        return known, workload, make_plan(known, workload), where + first.message


def _known_part(suite: Any, workload: Any, defaults: dict[str, Any]) -> Any:
    """The suite without the cells that this tree refuses, being older than they are; None if it has none.

    A parameter that it does not know may be given all the same if it has its default.
    """
    fields = workload.Params.model_fields
    supposed = {name: value for name, value in defaults.items() if name not in fields}
    cells, names = [], {"seed", "repeat"}
    for draft in part("grid").expand(suite):
        given = {name: one.value for name, one in draft.given.items()}
        values = {k: v for k, v in given.items() if k not in supposed or supposed[k] != v}
        if not values.keys() <= fields.keys():
            continue
        try:
            params = workload.Params.model_validate(values)
        except ValueError:  # pydantic's, for a value that is not known here
            continue
        names |= {*params.model_dump(), *workload.columns(params)}
        cells.append({name: [value] for name, value in values.items()})
    if not cells:
        return None
    exclude = [rule for rule in suite.exclude if rule.keys() <= names]
    empty: dict[str, Any] = {"defaults": {}, "grid": {}, "zip": [], "compare": None, "tolerances": {}}
    return suite.model_copy(update={**empty, "include": cells, "exclude": exclude})


def _asked_for(request: dict[str, Any], workload: Any) -> Callable[[Any], bool]:
    """Whether head asks for a cell. Parameters that this tree does not know must have their defaults."""
    if request["cells"] is None:
        return lambda cell: True
    known, defaults = workload.Params.model_fields.keys(), request["defaults"]

    def key(params: Any, seed: int) -> str:
        return json.dumps([{name: params[name] for name in known & params.keys()}, seed], sort_keys=True)

    wanted: set[str] = set()
    names: set[str] = set()
    for params, seed in request["cells"]:
        names |= params.keys()
        if all(name in known or value == defaults.get(name) for name, value in params.items()):
            wanted.add(key(params, seed))
    return lambda cell: key({k: v for k, v in cell.params.items() if k in names}, cell.seed) in wanted


def _by_repetition(plan: Any, wanted: Callable[[Any], bool]) -> dict[int, list[Any]]:
    """Passes that have a cell that is wanted, cut down to such cells."""
    passes: dict[int, list[Any]] = {}
    for work in plan.passes:
        cells = tuple(cell for cell in work.cells if wanted(cell))
        if cells:
            passes.setdefault(cells[0].repeat, []).append(replace(work, cells=cells))
    return passes


def _check_tree(tree: str | None) -> None:
    """Refuse to measure other code than that of the tree, e.g. a package installed in its place."""
    import bench

    if tree and (Path(tree) / "bench").is_dir() and not Path(bench.__file__).resolve().is_relative_to(tree):
        raise RuntimeError(f"bench was imported from {Path(bench.__file__).parent}, not from {tree}")


def _end_with_input() -> None:
    """Wait until nobody can write to standard input any more, and end this process if it does not itself."""
    watch = select.poll()
    watch.register(0, 0)  # what is always reported: the other end is gone
    watch.poll()
    time.sleep(LEAVE_SECONDS[0])
    _thread.interrupt_main()
    time.sleep(LEAVE_SECONDS[1])
    os._exit(1)  # children die with this process


def main() -> None:
    """Serve one gate."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints goes to the log

    def say(**event: Any) -> None:
        answers.write(json.dumps(event) + "\n")
        answers.flush()

    try:
        driver = Driver(json.loads(sys.stdin.readline()), say)
        for line in sys.stdin:
            command = json.loads(line)
            driver.measure(command["number"], command["repeat"])
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        where = getattr(error, "where", None)
        text = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        say(event="failed", reason=f"{where}: {text}" if where else text, hint=getattr(error, "hint", None))
        sys.exit(1)


if __name__ == "__main__":
    main()
