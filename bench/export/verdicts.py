"""A gate's verdicts in the formats of other tools, by name. Nothing here judges anything.

Other packages add formats by entry points of ``bench.exports``: functions from a `GateReport` to text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from bench.errors import UserError, did_you_mean
from bench.export import bencher, benchmark_action, github, junit
from bench.gate.show import markdown
from bench.gate.verdict import GateReport
from bench.results.store import write_atomic

GROUP = "bench.exports"
FORMATS: Mapping[str, Callable[[GateReport], str]] = {
    "junit": junit.render,
    "bencher": bencher.render,
    "benchmark-action-smaller": benchmark_action.render_smaller,
    "benchmark-action-bigger": benchmark_action.render_bigger,
    "github": github.render,
    "markdown": markdown,
    "json": GateReport.json_text,
}


def parse(texts: Iterable[str]) -> dict[str, Path]:
    """``["junit=out/gate.xml"]`` as formats and files. Raises UserError."""
    exports: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise UserError(
                f"--export {text}: not of the form FORMAT=FILE", hint=f"formats: {', '.join(names())}"
            )
        if name in exports:
            raise UserError(f"--export {name} was given twice", hint="a format has one file")
        if taken := next((n for n, one in exports.items() if one.resolve() == Path(path).resolve()), None):
            raise UserError(f"--export {text}: {path} is the file of {taken}, too", hint="name another file")
        exports[name] = Path(path)
    check(exports)
    return exports


def check(exports: Iterable[str]) -> None:
    """Raise UserError for a format that nobody knows."""
    for name in exports:
        if name not in names():
            raise UserError(f"--export: unknown format {name!r}", hint=did_you_mean(name, names()))


def make_room(exports: Mapping[str, Path]) -> None:
    """Make the folders that the files go to. Raises UserError where a file cannot be written."""
    for name, path in exports.items():
        problem = "is a folder" if path.is_dir() else ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"cannot make its folder: {error.strerror or error}"
        if not problem and not os.access(path.parent, os.W_OK):
            problem = "its folder cannot be written to"
        if problem:
            raise UserError(f"--export {name}={path}: {problem}", hint="name another file")


def render(name: str, report: GateReport) -> str:
    """The report in one of the formats of `names`. Raises UserError if an added one cannot be loaded."""
    if name in FORMATS:
        return FORMATS[name](report)
    try:
        written: str = _added()[name].load()(report)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--export {name}: {_added()[name].value} cannot be loaded: {error}") from error
    return written


def names() -> list[str]:
    """All formats, ours first: a name of ours stays ours."""
    return [*FORMATS, *(name for name in _added() if name not in FORMATS)]


@cache
def _added() -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def write(report: GateReport, exports: Mapping[str, Path], *, annotate: bool = False) -> None:
    """Write the files, and if asked the runner's annotations and summary (``bench.export.github``)."""
    for name, path in exports.items():
        write_atomic(path, render(name, report))
    if annotate:
        github.write(report, markdown(report))
