"""The index of a site of runs: per suite the newest run first, with its verdict and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from bench.gate.rule import Verdict
from bench.report.side_by_side import WORDS
from bench.report.web.page import asset, environment, policy
from bench.text import plural

INDEX = "index.html"
_RANK = (Verdict.REGRESSED, Verdict.INCOMPARABLE, Verdict.INCONCLUSIVE, Verdict.IMPROVED, Verdict.PASS)


def render_index(cards: Sequence[Mapping[str, Any]]) -> str:
    """The index as HTML; ``cards`` as ``bench.export.site.cards`` returns them."""
    style = asset("page.css")
    suites = [
        {"name": name, "runs": [_shown(card) for card in group]}
        for name, group in groupby(cards, key=lambda card: str(card["suite"]))
    ]
    return (
        environment()
        .get_template("site.html.j2")
        .render(css=Markup(style), policy=policy(style, images="'self' data:"), suites=suites)
    )


def _shown(card: Mapping[str, Any]) -> dict[str, Any]:
    statuses = card.get("statuses") or {}
    measured, cells = int(statuses.get("ok", 0)), int(card.get("cells", 0))
    failed = [f"{count} {status}" for status, count in statuses.items() if status != "ok"]
    edited = int(card.get("edited") or 0)
    failed += [f"{edited} edited after being measured"] if edited else []
    verdicts = {verdict: int((card.get("verdicts") or {}).get(verdict, 0)) for verdict in _RANK}
    found = [f"{count:,} {WORDS[verdict]}" for verdict, count in verdicts.items() if count]
    decided = verdicts[Verdict.PASS] or verdicts[Verdict.IMPROVED]
    worst = "regressed" if verdicts[Verdict.REGRESSED] else "improved" if decided else "inconclusive"
    return {
        "path": card["path"],
        "run": card.get("run", ""),
        "description": card.get("description", ""),
        "started": str(card.get("started", "")).replace("T", " ")[:16],
        "measured": f"{measured:,} of {plural(cells, 'cell')} measured"
        + (f"; {', '.join(failed)}" if failed else ""),
        "whole": "ok" if measured and measured == cells and not edited else "error",
        "verdict": ", ".join(found),
        "look": worst,
        "baseline": card.get("baseline"),
        "picture": card.get("picture"),
    }
