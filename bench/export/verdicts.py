"""A gate's verdicts in the formats of other tools, by name. Nothing here judges anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bench.errors import UserError, did_you_mean
from bench.export import bencher, benchmark_action, github, junit
from bench.gate_show import markdown
from bench.gate_verdict import GateReport

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
                f"--export {text}: not of the form FORMAT=FILE", hint=f"formats: {', '.join(FORMATS)}"
            )
        exports[name] = Path(path)
    check(exports)
    return exports


def check(exports: Iterable[str]) -> None:
    """Raise UserError for a format that nobody knows."""
    for name in exports:
        if name not in FORMATS:
            raise UserError(f"--export: unknown format {name!r}", hint=did_you_mean(name, FORMATS))


def render(name: str, report: GateReport) -> str:
    """The report in a format of ``FORMATS``."""
    return FORMATS[name](report)


def annotate(report: GateReport) -> None:
    """Annotations for the runner and the summary of the job; see ``bench.export.github``."""
    github.write(report, markdown(report))
