"""What the command line asks for, made precise: which suite, which run, which cells.

Starts nothing and writes nothing; whatever is wrong with a request is found here.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import registry
from bench.errors import UserError, did_you_mean, there
from bench.results.folder import leads_out, run_folders
from bench.results.store import PLAN, RECORDS
from bench.suite.choice import choose
from bench.suite.model import Suite, load_suite
from bench.suite.plan import Plan, make_plan
from bench.suite.settings import as_setting, changes
from bench.workload import ALLOW_CODE, Cell, Pass, Workload


@dataclass(frozen=True)
class Options:
    """What the command line may ask of a run."""

    suite: Path
    results: Path = Path("results")
    new: bool = False
    wait: bool = False
    only: tuple[str, ...] = ()
    retry_failed: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    plain: bool = False
    jobs: int | None = None  # None: as the suite says
    allow_code: bool = False
    launcher: str = "local"
    address: str | None = None  # of a cluster
    log_with: str | None = None  # see bench.run.tracked

    @property
    def part(self) -> str:
        """What is to be said of cells that are not all of the suite."""
        return " (" + ", ".join(f"--only {wanted}" for wanted in self.only) + ")" if self.only else ""

    def command(self, *more: str) -> str:
        """The command line that goes on where this run stopped."""
        words = ["python", "-m", "bench", str(self.suite)]
        if self.results != Path("results"):
            words += ["--results", str(self.results)]
        for wanted in self.only:
            words += ["--only", wanted]
        for name, value in self.overrides.items():
            words += ["--set", as_setting(name, value)]
        if self.jobs is not None:
            words += ["--jobs", str(self.jobs)]
        if self.launcher != "local":
            words += ["--launcher", self.launcher]
        if self.address is not None:
            words += ["--address", self.address]
        if self.log_with is not None:
            words += ["--log-with", self.log_with]
        if self.allow_code:
            words.append("--allow-code")
        return shlex.join([*words, *more])


@dataclass(frozen=True)
class Request:
    """A suite that has been read, planned and narrowed to what was asked for."""

    suite: Suite  # as changed by --set
    workload: Workload
    plan: Plan
    passes: tuple[Pass, ...]
    changed: Mapping[str, Any] = field(default_factory=dict)  # keys of the suite that --set has changed

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells asked for, in the order of the passes."""
        return tuple(cell for work in self.passes for cell in work.cells)


def allow_code(allowed: bool) -> None:
    """Whether parameters of a suite may name code; only the command line says so, children inherit it."""
    os.environ[ALLOW_CODE] = "1" if allowed else "0"


def find_suite(text: str) -> Path:
    """A suite file, or the name of one in ``suites/``; a path that is neither comes back as it is."""
    named = Path("suites") / f"{text}.yaml"
    return named if not there(text) and there(named) else Path(text)


def find_run(text: str, results: Path) -> Path:
    """A run folder, or the newest run of a suite given by file, name or results folder."""
    path = Path(text)
    if any(there(path / name) for name in (RECORDS, PLAN)):
        return path
    folder = there(path) and path.is_dir()
    if folder and not any(path.iterdir()):
        raise UserError(
            f"{path} is empty: it is not a run folder",
            hint="give the folder of one run, e.g. results/SUITE/RUN",
        )
    suite = find_suite(text)
    name = load_suite(suite).suite if there(suite) and suite.is_file() else path.name
    where = path.parent if folder else results
    runs = run_folders(where, name)
    if runs and (target := leads_out(runs[0])):
        raise UserError(
            f"the newest run {runs[0]} is a link that leads out of {where}, to {target}",
            hint=f"to use that folder, name it: {target}",
        )
    if not runs and folder:
        raise UserError(
            f"{path} is not a run folder: there is no {RECORDS} in it, and no run of {name!r} in {where}",
            hint="give the folder of one run, e.g. results/SUITE/RUN",
        )
    if not runs:
        known = sorted(found.name for found in results.glob("*") if run_folders(results, found.name))
        hint = did_you_mean(name, known) if known else "measure the suite first: python -m bench SUITE"
        raise UserError(f"no run of {name!r} in {results}", hint=hint)
    return runs[0]


def prepare(options: Options) -> Request:
    """Read and plan the suite. Starts nothing and writes nothing; raises UserError for anything wrong."""
    suite = load_suite(options.suite)
    workload = registry.load(suite.workload, suite.where(("workload",)))
    plan = make_plan(suite, workload)  # what is wrong without --set is the file's own fault
    changed = changes(suite, workload, options.overrides)
    if changed:
        suite = suite.model_copy(update=changed)
        plan = _planned_anew(suite, workload)
    return Request(suite, workload, plan, choose(plan.passes, options.only), changed)


def _planned_anew(suite: Suite, workload: Workload) -> Plan:
    try:
        return make_plan(suite, workload)
    except UserError as error:
        raise UserError(error.message, error.hint, where="--set") from error
