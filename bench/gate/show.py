"""A gate's verdicts for people: a table in the terminal, Markdown for a pull request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.gate.rule import Verdict
from bench.gate.verdict import (
    EXIT_FAILED_CELLS,
    EXIT_NOTHING,
    EXIT_PASS,
    EXIT_REGRESSION,
    GateReport,
    Judgement,
)
from bench.text import MISSING, clean, md, number, plural, scale_for

COLOURS = {
    Verdict.PASS: "green",
    Verdict.REGRESSED: "bold red",
    Verdict.IMPROVED: "cyan",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.INCOMPARABLE: "magenta",
}
MARKS = {
    Verdict.PASS: "✅",
    Verdict.REGRESSED: "❌",
    Verdict.IMPROVED: "🚀",
    Verdict.INCONCLUSIVE: "❔",
    Verdict.INCOMPARABLE: "🚫",
}
ORDER = (Verdict.REGRESSED, Verdict.IMPROVED, Verdict.INCONCLUSIVE, Verdict.INCOMPARABLE, Verdict.PASS)
MOST_ROWS = 60  # of one verdict in Markdown; comments have a limit, and nobody reads more


def outcome(report: GateReport) -> str:
    """The verdict of the whole gate in one sentence."""
    worse = report.of(Verdict.REGRESSED)
    match report.exit_code:
        case code if code == EXIT_REGRESSION:
            cells = len({found.cell for found in worse})
            return f"regressed: {plural(len(worse), 'metric')} in {plural(cells, 'cell')}"
        case code if code == EXIT_NOTHING:
            return "nothing was decided: no metric could be compared with certainty"
        case code if code == EXIT_FAILED_CELLS:
            return f"no regression, but {plural(report.head.failed_cells, 'cell')} failed"
        case code if code == EXIT_PASS and (left := _left(report)):
            return f"no regression found, {' and '.join(left)}"
        case code if code == EXIT_PASS:
            return "passed: no regression"
    return f"exit code {report.exit_code}"


def _left(report: GateReport) -> list[str]:
    """What keeps a gate without a regression from being a plain success."""
    open_ = len(report.of(Verdict.INCONCLUSIVE))
    lost = [one for one in report.of(Verdict.INCOMPARABLE) if one.base is not None and one.head is None]
    undecided = [f"{plural(open_, 'metric')} undecided"] if open_ else []
    return undecided + ([f"{plural(len(lost), 'metric')} no longer measured"] if lost else [])


def counts(report: GateReport) -> str:
    """``2 regressed, 40 pass``; verdicts that were not given are left out."""
    parts = (f"{report.counts[v]} {v}" for v in ORDER if report.counts.get(v))
    return ", ".join(parts) or "no metric"


def change(found: Judgement) -> str:
    """Difference or ratio with its interval, e.g. ``× 1.053 [1.021, 1.086]`` or ``+0.0100 (+0.33 %)``."""
    if found.ratio_low is not None and found.ratio_high is not None and found.ratio is not None:
        return f"× {found.ratio:.3f} [{found.ratio_low:.3f}, {found.ratio_high:.3f}]"
    if found.difference is None:
        return MISSING
    if found.difference == 0:
        return "equal"
    scale = scale_for(found.unit, [found.difference])
    sign = "+" if found.difference > 0 else "−"
    text = f"{sign}{number(abs(found.difference) / scale.divisor)} {scale.unit}".rstrip()
    if found.ratio is not None and abs(found.ratio - 1) >= 5e-5:
        text += f" ({(found.ratio - 1) * 100:+.2f} %)".replace("-", "−")
    return text


def value(found: Judgement, amount: float | None) -> str:
    """A value of either side with its unit."""
    if amount is None:
        return MISSING
    scale = scale_for(found.unit, [v for v in (found.base, found.head) if v is not None])
    return f"{number(_plain(amount / scale.divisor))} {scale.unit}".rstrip()


def evidence(found: Judgement) -> str:
    """What the verdict rests on: tolerance, p-value, pairs, and how many more would settle it."""
    if found.klass == "status":
        return ""
    amount = found.tolerance
    parts = [f"≥ {amount * 100:g} %" if found.klass == "noisy" else f"± {amount:g}"]
    if found.p_adjusted is not None:
        parts.append("p < 0.0001" if found.p_adjusted < 1e-4 else f"p = {found.p_adjusted:.2g}")
    if found.pairs > 1:
        parts.append(f"n = {found.pairs}")
    if found.verdict is Verdict.INCONCLUSIVE and found.more_pairs:
        parts.append(f"about {plural(found.more_pairs, 'more pair')} would settle it")
    return ", ".join(parts)


def show(report: GateReport, console: Console) -> None:
    """Print what is not plain ``pass``, then the sentence that counts."""
    open_ = [found for verdict in ORDER[:-1] for found in report.of(verdict)]
    shown = [group[0] for group in _alike(open_)]
    if shown:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("verdict", "cell", "metric", "base", "head", "change", "evidence"):
            table.add_column(name, justify="right" if name in ("base", "head") else "left", overflow="fold")
        for group in _alike(open_):
            found = group[0]
            verdict = f"[{COLOURS[found.verdict]}]{found.verdict}[/]"
            more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
            values = [value(found, found.base), value(found, found.head), change(found)]
            reason = " · ".join(filter(None, (evidence(found), clean(found.reason))))
            names = [found.cell, found.label + more]
            table.add_row(verdict, *(escape(clean(text)) for text in (*names, *values, reason)))
        console.print(table)
    for note in report.notes:
        console.print(f"[yellow]note:[/] {escape(clean(note, 600))}", soft_wrap=True, highlight=False)
    colour = {EXIT_PASS: "green", EXIT_REGRESSION: "bold red"}.get(report.exit_code, "yellow")
    sides = f"{clean(report.head.name, 60)} against {clean(report.base.name, 60)}"
    console.print(
        f"[{colour}]{outcome(report)}[/] · {counts(report)} · {escape(sides)}",
        soft_wrap=True,
        highlight=False,
    )


def markdown(report: GateReport) -> str:
    """The summary for a pull request or a job's page."""
    mark = {EXIT_PASS: "✅", EXIT_REGRESSION: "❌"}.get(report.exit_code, "⚠️")
    if report.exit_code == EXIT_PASS and _left(report):
        mark = MARKS[Verdict.INCONCLUSIVE]
    lines = [
        f"### {mark} {md(report.suite)}: {outcome(report)}",
        "",
        f"{counts(report)} · **{md(report.head.name, 80)}** against **{md(report.base.name, 80)}**",
        "",
        *(f"- {md(note, 600)}" for note in report.notes),
    ]
    for verdict in ORDER:
        found = report.of(verdict)
        if not found:
            continue
        folded = verdict in (Verdict.PASS, Verdict.INCOMPARABLE)
        title = f"{MARKS[verdict]} {verdict} ({len(found)})"
        lines += ["", f"<details><summary>{title}</summary>", ""] if folded else ["", f"#### {title}", ""]
        lines += _rows(found)
        lines += ["", "</details>"] if folded else []
    return "\n".join([*lines, "", *_terms(report)]) + "\n"


def _rows(found: Sequence[Judgement]) -> list[str]:
    lines = [
        "| cell | metric | base | head | change | evidence |",
        "| --- | --- | ---: | ---: | --- | --- |",
    ]
    groups = _alike(found)
    for group in groups[:MOST_ROWS]:
        one = group[0]
        more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
        texts = (
            md(one.cell, 120),
            md(one.label + more, 80),
            md(value(one, one.base)),
            md(value(one, one.head)),
            md(change(one)),
            md(" · ".join(filter(None, (evidence(one), one.reason))), 240),
        )
        lines.append(f"| {' | '.join(texts)} |")
    left = sum(map(len, groups[MOST_ROWS:]))
    return [*lines, "", f"… and {left} more"] if left else lines


def _terms(report: GateReport) -> Iterable[str]:
    terms = report.terms
    if terms.mode == "interleaved":
        how = f"base and head measured in turn, {terms.pairs} pairs of processes"
    else:
        how = (
            f"against a stored run; noisy metrics may differ by {terms.allowance * 100:g} % between sessions"
        )
    yield (
        f"<sub>{how}; noisy metrics: paired t-test (Holm, α = {terms.alpha:g}) and bootstrap, and a minimum "
        "effect; ± is an absolute tolerance, ≥ a relative minimum effect.</sub>"
    )


def _alike(found: Iterable[Judgement]) -> list[list[Judgement]]:
    """Incomparable metrics of a cell that share their reason are one row, all others their own."""
    groups: dict[object, list[Judgement]] = defaultdict(list)
    for place, one in enumerate(found):
        foreign = one.verdict is Verdict.INCOMPARABLE
        groups[(one.cell, one.reason) if foreign else place].append(one)
    return list(groups.values())


def _plain(amount: float) -> float | int:
    return int(amount) if float(amount).is_integer() and abs(amount) < 1e15 else amount
