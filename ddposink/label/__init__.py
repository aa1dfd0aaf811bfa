"""A local page on which a person picks the better of two pictures: ``python -m bench label DIR``.

What it writes is what ``python -m ddposink.rewards.preference train`` reads. Nothing here needs torch.
"""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from pathlib import Path

from ddposink.label.choices import Choices
from ddposink.label.pictures import read_pictures
from ddposink.label.server import LabelServer
from ddposink.label.session import LabelSession


def main(
    folder: Path,
    out: Path | None = None,
    judge: str = "",
    seed: int = 0,
    per_prompt: int | None = None,
    browser: bool = True,
    tell: Callable[[str], None] = print,
) -> Path:
    """Serve the page until Ctrl-C or until all pairs are judged; returns the CSV file.

    Raises ValueError for a folder without pairs, for a damaged CSV and for one of other pictures.
    """
    out = out or folder / "choices.csv"
    session = LabelSession(read_pictures(folder), Choices(out, folder), seed, judge, per_prompt)
    with LabelServer(session) as server:
        tell(f"{session.left} of {session.total} pairs to judge: {server.url}")
        tell("← left is better · → right is better · ↓ alike · u undo · Ctrl-C ends, nothing is lost")
        if browser:
            webbrowser.open(server.url)
        try:
            server.serve_until_done()
        except KeyboardInterrupt:
            tell("")
    tell(f"{session.total - session.left} of {session.total} pairs judged: {out}")
    return out


__all__ = ["Choices", "LabelServer", "LabelSession", "main", "read_pictures"]
