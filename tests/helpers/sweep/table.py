"""The table of all architectures in the documentation: written from rows, and read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import transformers

from helpers.sweep.cells import BAD, EXACT, LIBRARY, NOT_BUILT, POLICIES, REFUSED, TOKENS, TOLERANCE, Row

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "architectures.md"
BEGIN, END = "<!-- sweep: begin -->", "<!-- sweep: end -->"
REASON = 200  # characters


def verdict(row: Row) -> str:
    """Of a whole row, by its worst cell that is not dense."""
    bounded = [cell.outcome for policy, cell in row.cells.items() if policy != "dense"]
    bad = [outcome for outcome in row.outcomes if outcome in BAD]
    return (bad or [o for o in (NOT_BUILT, REFUSED, LIBRARY) if o in bounded] or [EXACT])[0]


def counts(rows: Sequence[Row]) -> Counter[str]:
    """How many rows came to which verdict."""
    return Counter(verdict(row) for row in rows)


def said(rows: Sequence[Row]) -> str:
    """The counts in words, best first."""
    found = counts(rows)
    return " · ".join(
        f"{found[one]} {one}" for one in (EXACT, LIBRARY, REFUSED, NOT_BUILT, *BAD) if found[one]
    )


def markdown(rows: Sequence[Row]) -> str:
    """The generated part of the page, with its markers."""
    plain = [row for row in rows if not row.own_windows]
    own = [row for row in rows if row.own_windows]
    lines = [
        BEGIN,
        f"Made with transformers {transformers.__version__}, {TOKENS} random tokens, at most "
        f"{TOLERANCE:g} nats on every token.",
        "",
        f"- {len(plain)} architectures: {said(plain)}",
        f"- {len(own)} of them once more with sliding windows of their own: {said(own)}",
        "",
        "| architecture | " + " | ".join(POLICIES) + " | why not exact |",
        "|---" * (len(POLICIES) + 2) + "|",
        *(_line(row) for row in sorted(rows, key=lambda row: (row.kind, row.own_windows))),
        END,
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    reason = row.reason.replace("|", "\\|")
    reason = reason if len(reason) <= REASON else reason[: REASON - 1] + "…"
    return f"| {row.name} | " + " | ".join(row.cells[p].outcome for p in POLICIES) + f" | {reason} |"


def write(rows: Sequence[Row]) -> None:
    """Replace the generated part of the page."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + markdown(rows) + rest.split(END)[1])


def read() -> tuple[str, dict[str, dict[str, str]]]:
    """The version the committed table was made with, and the outcomes of every row by its name."""
    part = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    version = part.split("transformers ")[1].split(",")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:]] for line in part.splitlines() if line[:2] == "| "]
    return version, {row[0]: dict(zip(POLICIES, row[1:], strict=False)) for row in cells[1:]}
