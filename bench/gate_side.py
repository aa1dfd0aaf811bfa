"""One side of a gate as a process of its own: measures passes on request with the code of its tree.

Started as a script, so that the driver is the same on both sides whatever their trees contain; all it
imports comes from the tree that PYTHONPATH names. It speaks JSON lines: a request on standard input, an
answer on standard output, and the end of the input is its end. Everything else goes to the log.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

Say = Callable[..., None]


class Quiet:
    """An observer that only passes messages on."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def message(self, text: str) -> None:
        """See ``bench.run_pass.Observer``."""
        self._say(event="message", text=text)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


class Driver:
    """The suite planned by this tree for many repetitions, with a fork server of its own."""

    def __init__(self, request: dict[str, Any], say: Say) -> None:
        from bench import env
        from bench.launch import LocalLauncher
        from bench.store import ENV, SUITE, Store, write_atomic

        _check_tree(request["tree"])
        self.say, self.folder = say, Path(request["folder"])
        self.asked, self.plan, self.overrides = _plan(request)
        self.passes = _by_repetition(self.plan, {cell.label for cell in self.asked.cells})
        self.fingerprint = env.fingerprint()
        for name in ("artifacts", "logs"):
            (self.folder / name).mkdir(parents=True)
        write_atomic(self.folder / ENV, json.dumps(self.fingerprint, indent=2) + "\n")
        write_atomic(self.folder / SUITE, Path(request["suite"]).read_text(encoding="utf-8"))
        self.store = Store(self.folder)
        self.measured: set[str] = set()  # passes
        self.session = self._session()
        preload = tuple(self.asked.workload.preload)
        self.launcher = LocalLauncher(preload, self.folder / "logs" / "server.log")
        self.launcher.await_ready()
        labels = [[cell.label for cell in work.cells] for work in self.passes[0]]
        say(event="ready", passes=labels, version=self.plan.version, fingerprint=self.fingerprint)

    def measure(self, number: int, repeat: int) -> None:
        """Measure one pass in a fresh child and answer with its records."""
        from bench.run import measure

        work = self.passes[repeat][number]
        measure([work], self.session, self.launcher, self.store, Quiet(self.say))
        self.measured.add(work.id)
        self._write_plan()
        records = [self.store.records[cell.id].model_dump_json() for cell in work.cells]
        self.say(event="measured", records=records)

    def _session(self) -> Any:
        from bench import registry
        from bench.run import Session

        suite = self.asked.suite
        return Session(
            suite=suite.suite,
            workload=self.asked.workload,
            target=registry.targets()[suite.workload],
            folder=self.folder,
            env=self.fingerprint["id"],
            timeout=suite.timeout,
            memory_limit=suite.memory_limit,
        )

    def _write_plan(self) -> None:
        """Keep the plan as far as it has been asked for: what was never asked for is not missing."""
        from bench.store import PLAN, write_atomic

        plan = self.plan.to_json()
        passes = [work for work in plan["passes"] if work["id"] in self.measured]
        plan |= {"overrides": self.overrides, "passes": passes}
        write_atomic(self.folder / PLAN, json.dumps(plan, indent=1) + "\n")


def _plan(request: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The suite as asked for, its plan with as many repetitions as may be wanted, and the overrides."""
    from bench.plan import make_plan
    from bench.request import Options, prepare

    overrides = dict(request["overrides"])
    asked = prepare(Options(suite=Path(request["suite"]), only=request["only"], overrides=overrides))
    changes = {"repeat": request["repeats"], "defaults": asked.suite.defaults | overrides}
    return asked, make_plan(asked.suite.model_copy(update=changes), asked.workload), overrides


def _by_repetition(plan: Any, wanted: set[str]) -> dict[int, list[Any]]:
    """Passes that have a cell of a wanted label, cut down to such cells."""
    passes: dict[int, list[Any]] = {}
    for work in plan.passes:
        cells = tuple(cell for cell in work.cells if cell.label in wanted)
        if cells:
            passes.setdefault(cells[0].repeat, []).append(replace(work, cells=cells))
    return passes


def _check_tree(tree: str | None) -> None:
    """Refuse to measure other code than that of the tree, e.g. a package installed in its place."""
    import bench

    if tree and (Path(tree) / "bench").is_dir() and not Path(bench.__file__).resolve().is_relative_to(tree):
        raise RuntimeError(f"bench was imported from {Path(bench.__file__).parent}, not from {tree}")


def main() -> None:
    """Serve one gate."""
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
