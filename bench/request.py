"""What the command line asks for, made precise: which suite, which run, which cells.

Starts nothing and writes nothing; whatever is wrong with a request is found here.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from bench import registry
from bench.errors import UserError, did_you_mean
from bench.plan import Plan, make_plan
from bench.rundir import run_folders
from bench.store import PLAN, RECORDS
from bench.suite import Suite, load_suite
from bench.workload import ALLOW_CODE, Cell, Pass, Workload


@dataclass(frozen=True)
class Options:
    """What the command line may ask of a run."""

    suite: Path
    results: Path = Path("results")
    new: bool = False
    wait: bool = False
    only: str | None = None
    retry_failed: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    plain: bool = False
    jobs: int | None = None  # None: as the suite says
    allow_code: bool = False

    def command(self, *more: str) -> str:
        """The command line that goes on where this run stopped."""
        words = ["python", "-m", "bench", str(self.suite)]
        if self.results != Path("results"):
            words += ["--results", str(self.results)]
        if self.only:
            words += ["--only", self.only]
        for name, value in self.overrides.items():
            words += ["--set", f"{name}={json.dumps(value)}"]
        if self.jobs is not None:
            words += ["--jobs", str(self.jobs)]
        if self.allow_code:
            words.append("--allow-code")
        return shlex.join([*words, *more])


@dataclass(frozen=True)
class Request:
    """A suite that has been read, planned and narrowed to what was asked for."""

    suite: Suite
    workload: Workload
    plan: Plan
    passes: tuple[Pass, ...]

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
    return named if not Path(text).exists() and named.exists() else Path(text)


def find_run(text: str, results: Path) -> Path:
    """A run folder, or the newest run of a suite given by file, name or results folder."""
    path = Path(text)
    if any((path / name).exists() for name in (RECORDS, PLAN)):
        return path
    if path.is_dir() and not any(path.iterdir()):
        raise UserError(
            f"{path} is empty: it is not a run folder",
            hint="give the folder of one run, e.g. results/SUITE/RUN",
        )
    suite = find_suite(text)
    name = load_suite(suite).suite if suite.is_file() else path.name
    where = path.parent if path.is_dir() else results
    runs = run_folders(where, name)
    if not runs and path.is_dir():
        raise UserError(
            f"{path} is not a run folder: there is no {RECORDS} in it, and no run of {name!r} in {where}",
            hint="give the folder of one run, e.g. results/SUITE/RUN",
        )
    if not runs:
        known = sorted(found.name for found in results.glob("*") if run_folders(results, found.name))
        hint = did_you_mean(name, known) if known else "measure the suite first: python -m bench SUITE"
        raise UserError(f"no run of {name!r} in {results}", hint=hint)
    return runs[0]


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """``["dtype=bfloat16", "length=1_024"]`` as parameters; values are YAML. Raises UserError."""
    overrides = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(
                f"--set {text}: not of the form key=value", hint="for example --set dtype=float32"
            )
        try:
            overrides[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or "not a YAML value"
            raise UserError(f"--set {text}: {problem}", hint="put the value in quotes") from error
    return overrides


def prepare(options: Options) -> Request:
    """Read and plan the suite. Starts nothing and writes nothing; raises UserError for anything wrong."""
    suite = load_suite(options.suite)
    workload = registry.load(suite.workload, suite.where(("workload",)))
    plan = _plan(suite, workload, options.overrides)
    return Request(suite, workload, plan, _only(plan.passes, options.only))


def _plan(suite: Suite, workload: Workload, overrides: dict[str, Any]) -> Plan:
    if not overrides:
        return make_plan(suite, workload)
    for name in overrides:
        if name not in workload.Params.model_fields:
            raise UserError(
                f"--set {name}: workload {workload.name!r} has no such parameter",
                hint=did_you_mean(name, workload.Params.model_fields),
            )
        if name in suite.grid:
            raise UserError(
                f"--set {name}: this suite varies {name} in its grid; --set changes defaults",
                hint="measure a part of the grid with --only 'GLOB', or edit the suite",
            )
    make_plan(suite, workload)  # what is wrong without --set is the file's own fault
    try:
        return make_plan(suite.model_copy(update={"defaults": suite.defaults | overrides}), workload)
    except UserError as error:
        raise UserError(error.message, error.hint, where="--set") from error


def _only(passes: Sequence[Pass], pattern: str | None) -> tuple[Pass, ...]:
    """The passes with those cells whose label matches ``pattern``, ignoring case."""
    if pattern is None:
        return tuple(passes)

    def wanted(cell: Cell) -> bool:
        return fnmatchcase(cell.label.casefold(), pattern.casefold())

    chosen = [replace(work, cells=tuple(filter(wanted, work.cells))) for work in passes]
    if not any(work.cells for work in chosen):
        labels = list(dict.fromkeys(cell.label for work in passes for cell in work.cells))
        shown = ", ".join(labels[:5]) + (", …" if len(labels) > 5 else "")
        raise UserError(f"--only {pattern!r} matches no cell", hint=f"cells: {shown}; * stands for anything")
    return tuple(work for work in chosen if work.cells)
