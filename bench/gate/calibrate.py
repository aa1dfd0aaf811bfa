"""How noisy is this suite here? The code against itself, and what that says of the gate's thresholds.

A threshold below what a machine can resolve never fires or, worse, fires at random. So the same code is
measured as base and as head, side by side as the gate does it, and the scatter of the pairs gives the
smallest change that the gate would find.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.errors import UserError
from bench.gate.against import measure, side_of
from bench.gate.commits import toplevel
from bench.gate.match import Match, Side, match
from bench.gate.pairs import PairSession, Tree
from bench.gate.rule import MOST_PAIRS, Rule, detectable
from bench.gate.scope import Asked
from bench.gate.verdict import EXIT_NOTHING, EXIT_PASS
from bench.results.folder import locked, name_after
from bench.results.record import Record, Status
from bench.results.store import write_atomic
from bench.run.interrupt import Interrupts
from bench.suite.request import Options, prepare
from bench.text import MISSING, clean, number, scale_for
from bench.workload import Metric

POWER = 0.8
FILE = "calibration.json"


@dataclass(frozen=True)
class MeasuredNoise:
    """What identical code yields for one metric. Relative figures for noisy metrics, absolute for others."""

    metric: str
    label: str
    unit: str
    klass: str
    cells: int
    pairs: int
    noise: float  # noisy: median over cells of the spread of the log-ratio; else the largest difference
    worst_cell: str
    worst: float
    detectable: float | None  # smallest effect found with 80 % probability, in the worst cell
    threshold: float
    pairs_needed: int | None  # for the threshold, in the worst cell
    warning: str = ""


def noise(
    base: Side, head: Side, metrics: Sequence[Metric], tolerances: Mapping[str, float], rule: Rule
) -> list[MeasuredNoise]:
    """Noise of every metric that the gate would compare; pure. Sides are two measurements of one code."""
    cells = match(base, head, accept=("*",))
    compared = [m for m in metrics if m.direction != "none" or m.klass == "exact"]
    values = {m.name: _pairs(cells, m.name) for m in compared}
    family = sum(len(values[m.name]) for m in compared if m.klass == "noisy")
    found = []
    for metric in compared:
        tolerance = tolerances.get(metric.name, metric.tolerance)
        if metric.klass == "noisy":
            one = _noisy(metric, tolerance or rule.effect, values[metric.name], family, rule)
        else:
            one = _still(metric, tolerance, values[metric.name])
        found += [one] if one else []
    return found


def calibrate(options: Options, pairs: int, console: Console, alpha: float = Rule.alpha) -> int:
    """Measure the suite against itself, print and keep what was found; the exit code."""
    rule = Rule.asked(alpha)
    request = prepare(options)
    try:
        tree: Tree = Tree("this code", toplevel(Path.cwd()))
    except UserError:  # not a checkout: what is installed
        tree = Tree("this code")
    place = options.results / request.suite.suite
    parent = place / "calibrations"
    folder = parent / name_after(max(parent.glob("*"), default=None))
    asked = Asked.of(request, options, repeats=pairs)
    with (
        Interrupts(),
        locked(place, wait=options.wait),
        PairSession.start(tree, tree, asked, folder) as session,
    ):
        measure(session, pairs, None, console)
        sides = side_of(session.base), side_of(session.head)
        environment = session.head.ready["fingerprint"]
    found = noise(*sides, request.workload.metrics, request.suite.tolerances, rule)
    data = {"suite": request.suite.suite, "pairs": pairs, "alpha": alpha, "power": POWER}
    data |= {"environment": environment}
    text = json.dumps(data | {"metrics": [asdict(one) for one in found]}, indent=1, allow_nan=False)
    write_atomic(folder / FILE, text + "\n")
    show(found, pairs, console)
    console.print(f"calibration, for gate --noise: [bold]{escape(str(folder / FILE))}[/]", soft_wrap=True)
    return EXIT_PASS if found else EXIT_NOTHING


def show(found: Sequence[MeasuredNoise], pairs: int, console: Console) -> None:
    """Print the noise of every metric, and warnings about thresholds below it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ("metric", "class", "cells", "noise", "worst cell", f"detectable with {pairs} pairs", "threshold")
    for name in (*names, "pairs needed"):
        table.add_column(name, justify="left" if name in ("metric", "class", "worst cell") else "right")
    for one in found:
        needed = MISSING if one.klass != "noisy" else str(one.pairs_needed or f"> {MOST_PAIRS}")
        texts = (one.label, one.klass, str(one.cells), _amount(one, one.noise))
        worst = f"{clean(one.worst_cell, 40)}: {_amount(one, one.worst)}"
        reach = MISSING if one.detectable is None else _percent(one.detectable)
        row = (*texts, worst, reach, _amount(one, one.threshold), needed)
        table.add_row(*(escape(text) for text in row))
    console.print(table)
    for one in found:
        if one.warning:
            console.print(f"[yellow]warning:[/] {escape(one.warning)}", soft_wrap=True, highlight=False)
    if not found:
        console.print("[yellow]nothing was measured[/]")


def _noisy(
    metric: Metric, effect: float, values: Mapping[str, list[tuple[float, float]]], family: int, rule: Rule
) -> MeasuredNoise | None:
    spreads = {}
    for name, pairs in values.items():
        if len(pairs) > 1 and min(min(pair) for pair in pairs) > 0:
            spreads[name] = float(np.std([math.log(b / a) for a, b in pairs], ddof=1))
    if not spreads:
        return None
    worst = max(spreads, key=lambda name: spreads[name])
    count = len(values[worst])
    reach = detectable(spreads[worst], count, family, rule, POWER)
    needed = _needed(spreads[worst], effect, family, rule)
    warning = ""
    if reach > effect:
        many = f"{needed} pairs would do" if needed else f"not even {MOST_PAIRS} pairs would do"
        warning = (
            f"{metric.label}: the threshold of {_percent(effect)} is below the {_percent(reach)} that "
            f"{count} pairs can find in {clean(worst, 60)!r}; {many}, or raise {metric.name} in tolerances"
        )
    return MeasuredNoise(
        metric.name,
        metric.label,
        metric.unit,
        metric.klass,
        len(spreads),
        count,
        float(np.median(list(spreads.values()))),
        worst,
        spreads[worst],
        reach,
        effect,
        needed,
        warning,
    )


def _still(
    metric: Metric, tolerance: float, values: Mapping[str, list[tuple[float, float]]]
) -> MeasuredNoise | None:
    """Exact and near metrics: how far identical code was from itself."""
    gaps = {name: max(abs(b - a) for a, b in pairs) for name, pairs in values.items() if pairs}
    if not gaps:
        return None
    worst = max(gaps, key=lambda name: gaps[name])
    warning = ""
    if gaps[worst] > tolerance:
        told = "is declared exact" if metric.klass == "exact" else f"may differ by {number(tolerance)}"
        warning = (
            f"{metric.label} {told}, but identical code differed by {number(gaps[worst])} "
            f"in {clean(worst, 60)!r}: raise {metric.name} in tolerances"
        )
    counts = (len(gaps), max(map(len, values.values())))
    middle = float(np.median(list(gaps.values())))
    names = (metric.name, metric.label, metric.unit, metric.klass)
    return MeasuredNoise(*names, *counts, middle, worst, gaps[worst], None, tolerance, None, warning)


def _needed(spread: float, effect: float, family: int, rule: Rule) -> int | None:
    """Fewest pairs that find an effect."""
    few, many = rule.least_pairs, MOST_PAIRS
    if detectable(spread, many, family, rule, POWER) > effect:
        return None
    while few < many:  # the more pairs, the smaller the effect they find
        middle = (few + many) // 2
        if detectable(spread, middle, family, rule, POWER) <= effect:
            many = middle
        else:
            few = middle + 1
    return few


def _pairs(cells: Sequence[Match], name: str) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        for pair in cell.pairs:
            values = [_value(record, name) for record in pair]
            if values[0] is not None and values[1] is not None:
                found.setdefault(cell.name, []).append((values[0], values[1]))
    return found


def _value(record: Record, name: str) -> float | None:
    value = record.metrics.get(name)
    return value.value if value is not None and record.status is Status.OK else None


def _amount(one: MeasuredNoise, amount: float) -> str:
    if one.klass == "noisy":
        return _percent(amount)
    scale = scale_for(one.unit, [amount])
    return f"{number(amount / scale.divisor)} {scale.unit}".rstrip()


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %" if share < 10 else "> 1000 %"
