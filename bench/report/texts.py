"""Texts that cells have kept, side by side: what was written, not what it scores.

A text is anybody's: it leaves here as plain lines of visible characters, never as markup.
"""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from dataclasses import dataclass

from bench.report.frames import RunData
from bench.report.names import hue_label
from bench.report.panels import NothingToDraw, view_rows
from bench.report.select import longest, split, varying
from bench.results.record import Status
from bench.text import Md, clean, number
from bench.workload import View

HEADING, ALARM = "───", "━━━"  # begin the lines that are the workload's own: what follows, what is wrong
BEGIN, END = 12_000, 24_000  # characters shown of the two ends of a long text
_MOST = 8  # texts of a view in the report of a run of which not all cells are drawn
_EXCERPT, _WIDTH = 14, 160  # lines at the end of a text, and characters of each, that a README shows
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, direction marks, lone surrogates, breaks


@dataclass(frozen=True)
class KeptText:
    """One cell's text by its name: lines, and what each is: ``heading``, ``alarm`` or nothing."""

    name: str
    lines: list[tuple[str, str]]

    def excerpt(self) -> Md:
        """The end of the text as an indented block of Markdown, in which nothing is markup."""
        last = [t if len(t) <= _WIDTH else t[: _WIDTH - 1] + "…" for _, t in self.lines[-_EXCERPT:]]
        return Md("\n".join(f"    {line}".rstrip() for line in last))


def all_texts(data: RunData) -> list[tuple[str, list[KeptText]]]:
    """Texts that cells have kept, by the title of their view."""
    found = []
    for view in (view for view in data.words.views if view.kind == "texts"):
        with suppress(NothingToDraw):
            kept, title = kept_texts(view, data), view.title
            if data.chosen and len(kept) > _MOST:
                kept, title = kept[:_MOST], f"{title} (the first {_MOST} of {len(kept):,} of the cells drawn)"
            found.append((title, kept))
    return found


def kept_texts(view: View, data: RunData) -> list[KeptText]:
    """The texts of a view of kind ``texts``, in the order of the table; raises NothingToDraw."""
    frame = view_rows(data, view)
    rows = longest(data, frame[frame["status"].isin([Status.OK, Status.NAN])])
    others = [c for c in data.parameters if c not in (view.x, view.hue)] + ["seed", "repeat"]
    named = varying(rows, others)
    found = []
    for key, cells in split(rows, [view.hue, *others]):
        for index in cells.index:
            path = data.text(int(index), str(view.series))
            if path is not None:
                name = [hue_label(data, view, key[view.hue]), *(f"{c} {number(key[c])}" for c in named)]
                text = path.read_text(encoding="utf-8", errors="replace")
                found.append(KeptText(clean(" · ".join(name), 200), _lines(text)))
    if not found:
        raise NothingToDraw(f"no cell has kept {view.series}")
    return found


def _lines(text: str) -> list[tuple[str, str]]:
    """Lines of both ends of ``text``, which are whole if it is short."""
    if len(text) > BEGIN + END:
        left_out = f"{HEADING} {len(text) - BEGIN - END:,} characters left out {HEADING}"
        text = f"{text[:BEGIN]}\n{left_out}\n{text[-END:]}"
    return [(_kind(line), clean_line(line)) for line in text.rstrip("\n").split("\n")]


def _kind(line: str) -> str:
    return "heading" if line.startswith(HEADING) else "alarm" if line.startswith(ALARM) else ""


def clean_line(line: str) -> str:
    """Visible characters only: no control characters, no marks that turn the direction of what follows."""
    if line.isprintable():
        return line
    return "".join("\ufffd" if c != "\t" and unicodedata.category(c) in _INVISIBLE else c for c in line)
