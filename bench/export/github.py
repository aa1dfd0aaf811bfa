"""GitHub Actions: annotations as workflow commands, the summary as Markdown of the job.

Names come from suites and may contain anything; a workflow command that was smuggled into one must stay
text. The runner shows ten annotations of a kind and step, so the last one says how many there are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench.gate.rule import Verdict
from bench.gate.show import change, counts, evidence, outcome
from bench.gate.verdict import EXIT_PASS, GateReport, Judgement
from bench.results.store import clear_errors
from bench.text import clean

SHOWN = 9  # of a kind, and one that counts the rest
SUMMARY_BYTES = 1_000_000  # the runner takes 1 MiB per step


def render(report: GateReport) -> str:
    """``::error`` for regressions, ``::warning`` for what was not decided, one ``::notice`` in the end."""
    lines = _some("error", report.of(Verdict.REGRESSED), report)
    lines += _some("warning", report.of(Verdict.INCONCLUSIVE, Verdict.INCOMPARABLE), report)
    kind = "notice" if report.exit_code == EXIT_PASS else "error"
    lines.append(command(kind, f"bench gate {report.suite}", f"{outcome(report)} ({counts(report)})"))
    return "".join(f"{line}\n" for line in lines)


def write(report: GateReport, summary: str) -> None:
    """Print the annotations, and append ``summary`` to the job's page if there is one."""
    sys.stdout.write(render(report))
    sys.stdout.flush()
    if target := os.environ.get("GITHUB_STEP_SUMMARY"):
        text = summary.encode()
        if len(text) > SUMMARY_BYTES:
            cut = text[:SUMMARY_BYTES].decode(errors="ignore").rpartition("\n")[0]
            text = f"{cut}\n\n… cut; the whole summary is in summary.md\n".encode()
        with clear_errors(f"cannot write {target}"), open(Path(target), "ab") as file:
            file.write(text)


def command(kind: str, title: str, message: str) -> str:
    """One workflow command, its property and its message escaped."""
    name = _data(clean(title, 200)).replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={name}::{_data(clean(message, 1000))}"


def _some(kind: str, found: list[Judgement], report: GateReport) -> list[str]:
    lines = []
    for one in found[:SHOWN]:
        text = " · ".join(filter(None, (change(one), evidence(one), one.reason)))
        title = f"{one.verdict}: {one.label} of {one.cell}"
        lines.append(command(kind, title, text))
    if len(found) > SHOWN:
        left = len(found) - SHOWN
        lines.append(command(kind, f"bench gate {report.suite}", f"and {left} more; see the summary"))
    return lines


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
