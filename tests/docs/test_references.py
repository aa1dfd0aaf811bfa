"""What the pages name of the code is there: a guard against a fault that nobody can find is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
ROOMS = ("bench", "ddposink", "tests", "tools", "results/published")
_TEST = re.compile(r"(\w+/)*test_\w+")
_MODULE = re.compile(r"([a-z_]+(?:/[a-z_]+)+)/?(?:\.\w+)?")  # streaming/proof, report/select.facets


def known() -> set[str]:
    """Every file and folder of the code by its path without suffix, and by all ends of that path."""
    found = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found |= {"/".join(parts[i:]) for i in range(len(parts))}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tests_and_modules_that_a_page_names_are_there(page: Path) -> None:
    code = known()
    rooms = {name for name in code if "/" not in name}
    words = re.findall(r"`([^`\s]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    named = {word for word in words if _TEST.fullmatch(word)}
    modules = {match[1] for word in words if (match := _MODULE.fullmatch(word))}
    named |= {name for name in modules if name.split("/")[0] in rooms}
    assert not named - code, f"{page.relative_to(ROOT)} names what is not there: {sorted(named - code)}"
