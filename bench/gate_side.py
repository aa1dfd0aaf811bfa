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
from pathlib import Path
from typing import Any

Say = Callable[..., None]


class Quiet:
    """An observer that only passes messages on."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def message(self, text: str) -> None:
        """See ``bench.run.Observer``."""
        self._say(event="message", text=text)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


class Driver:
    """The suite planned by this tree, with a fork server of its own."""

    def __init__(self, request: dict[str, Any], say: Say) -> None:
        from bench import env, registry
        from bench.launch import LocalLauncher
        from bench.plan import make_plan
        from bench.request import Options, prepare
        from bench.run import Session
        from bench.store import ENV, PLAN, SUITE, Store, write_atomic

        _check_tree(request["tree"])
        folder = Path(request["folder"])
        options = Options(
            suite=Path(request["suite"]), only=request["only"], overrides=dict(request["overrides"])
        )
        asked = prepare(options)
        wanted = {cell.label for cell in asked.cells}
        defaults = asked.suite.defaults | options.overrides
        many = asked.suite.model_copy(update={"repeat": request["repeats"], "defaults": defaults})
        plan = make_plan(many, asked.workload)
        self.passes: dict[int, list[Any]] = {}  # by repetition
        for work in plan.passes:
            if any(cell.label in wanted for cell in work.cells):
                self.passes.setdefault(work.cells[0].repeat, []).append(_narrowed(work, wanted))
        fingerprint = env.fingerprint()
        for name in ("artifacts", "logs"):
            (folder / name).mkdir(parents=True)
        write_atomic(folder / ENV, json.dumps(fingerprint, indent=2) + "\n")
        write_atomic(folder / SUITE, options.suite.read_text(encoding="utf-8"))
        self._plan = plan.to_json() | {"overrides": options.overrides}
        self._write = lambda measured: write_atomic(
            folder / PLAN, json.dumps(self._planned(measured), indent=1) + "\n"
        )
        self.store = Store(folder)
        target = registry.targets()[asked.suite.workload]
        self.session = Session(
            suite=asked.suite.suite,
            workload=asked.workload,
            target=target,
            folder=folder,
            env=fingerprint["id"],
            timeout=asked.suite.timeout,
            memory_limit=asked.suite.memory_limit,
        )
        self.launcher = LocalLauncher(tuple(asked.workload.preload), folder / "logs" / "server.log")
        self.launcher.await_ready()
        self.say = say
        first = self.passes[0]
        say(
            event="ready",
            passes=[[cell.label for cell in work.cells] for work in first],
            version=plan.version,
            fingerprint=fingerprint,
            python=sys.version.split()[0],
        )

    def measure(self, number: int, repeat: int) -> None:
        """Measure one pass in a fresh child and answer with its records."""
        from bench.run import measure

        work = self.passes[repeat][number]
        measure([work], self.session, self.launcher, self.store, Quiet(self.say))
        self._write(repeat)
        records = [self.store.records[cell.id].model_dump_json() for cell in work.cells]
        self.say(event="measured", records=records)

    def _planned(self, repeat: int) -> dict[str, Any]:
        """The plan as far as it has been asked for: repetitions not reached are not missing."""
        ids = {work.id for reached in range(repeat + 1) for work in self.passes[reached]}
        return self._plan | {"passes": [work for work in self._plan["passes"] if work["id"] in ids]}


def _narrowed(work: Any, wanted: set[str]) -> Any:
    from dataclasses import replace

    return replace(work, cells=tuple(cell for cell in work.cells if cell.label in wanted))


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
