"""JUnit XML as Jenkins, GitLab and most viewers read it: one test case per judged metric.

A regression is a failure; what was not decided or could not be compared is skipped, with the reason, so
that it is neither green nor red. The text form of all numbers is in the case's output.
"""

from __future__ import annotations

from collections import defaultdict
from xml.etree import ElementTree

from bench.gate.rule import Verdict
from bench.gate.show import change, evidence, outcome, value
from bench.gate.verdict import GateReport, Judgement
from bench.text import clean

_SKIPPED = (Verdict.INCONCLUSIVE, Verdict.INCOMPARABLE)


def render(report: GateReport) -> str:
    """The whole gate as one ``testsuites`` document, a ``testsuite`` per cell."""
    cells: dict[str, list[Judgement]] = defaultdict(list)
    for found in report.judgements:
        cells[found.cell].append(found)
    root = ElementTree.Element("testsuites", _attributes(f"bench gate {report.suite}", report.judgements))
    for name, judgements in cells.items():
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            _attributes(f"{report.suite}: {clean(name)}", judgements)
            | {"skipped": str(_count(judgements, *_SKIPPED)), "timestamp": report.created},
        )
        for found in judgements:
            _case(suite, report, found)
    if not cells:
        empty = ElementTree.SubElement(root, "testsuite", _attributes(report.suite, []))
        case = ElementTree.SubElement(empty, "testcase", name="anything", classname=report.suite)
        ElementTree.SubElement(case, "error", message=outcome(report), type="nothing")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, report: GateReport, found: Judgement) -> None:
    # Viewers cut a class name at its dots: dots in names (versions, sizes) must not look like packages.
    place = f"{report.suite}.{clean(found.cell).replace('.', '·')}"
    case = ElementTree.SubElement(suite, "testcase", name=clean(found.label), classname=place, time="0")
    numbers = f"{value(found, found.base)} → {value(found, found.head)}: {change(found)}"
    message = clean(" · ".join(filter(None, (numbers, evidence(found), found.reason))), 1000)
    if found.verdict is Verdict.REGRESSED:
        failure = ElementTree.SubElement(case, "failure", message=message, type="regression")
        failure.text = message
    elif found.verdict in _SKIPPED:
        ElementTree.SubElement(case, "skipped", message=f"{found.verdict}: {message}")
    ElementTree.SubElement(case, "system-out").text = f"{found.verdict}: {message}"


def _attributes(name: str, judgements: list[Judgement]) -> dict[str, str]:
    empty = not judgements
    return {
        "name": clean(name),
        "tests": str(len(judgements) or 1),
        "failures": str(_count(judgements, Verdict.REGRESSED)),
        "errors": str(int(empty)),
        "time": "0",
    }


def _count(judgements: list[Judgement], *verdicts: Verdict) -> int:
    return sum(found.verdict in verdicts for found in judgements)
