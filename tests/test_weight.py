"""The checkout stays light enough to carry: what is tracked, what is published, and any one page."""

from __future__ import annotations

import json
import posixpath
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIB = 2**20


@pytest.fixture(scope="module")
def tracked() -> dict[str, int]:
    """Bytes of every tracked file that is there."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout: nobody can tell what is tracked")
    names = [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    return {name: (ROOT / name).stat().st_size for name in names}


def test_the_tree(tracked: dict[str, int]) -> None:
    """Where it is too heavy, look for a picture stored twice, or weights that could be packed."""
    assert sum(tracked.values()) <= 32 * MIB, sorted(tracked.items(), key=lambda item: -item[1])[:20]


def test_no_picture_is_stored_twice(tracked: dict[str, int]) -> None:
    pictures = [name for name in tracked if name.endswith((".png", ".webp", ".jpg"))]
    seen: dict[bytes, str] = {}
    for name in pictures:
        # Checkpoints of a run may have drawn the same: its artifacts are what the run left.
        if "/artifacts/" not in name:
            first = seen.setdefault((ROOT / name).read_bytes(), name)
            assert first == name, f"{name} is {first} again: link to that"


def test_published_runs(tracked: dict[str, int]) -> None:
    published = {name: size for name, size in tracked.items() if name.startswith("results/published/")}
    assert published
    assert sum(published.values()) <= 6 * MIB
    assert max((size for name, size in published.items() if name.endswith(".html")), default=0) <= 1.5e6


LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)|`([\w./-]+\.(?:md|csv|jsonl?|parquet|npz|html|webp|png))`")


def test_pages_point_only_at_what_is_carried(tracked: dict[str, int]) -> None:
    """Not at a file that is there for whoever made the page, and ignored."""
    carried = {*tracked, *(str(above) for name in tracked for above in Path(name).parents)}
    pages = [name for name in tracked if name.startswith("results/") and name.endswith("README.md")]
    assert len(pages) > 5
    missing = []
    for page in pages:
        for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
            found = [link or name for link, name in LINK.findall(line)]
            # A line of an overview names files of the run whose page it points at.
            folders = [posixpath.dirname(posixpath.join(posixpath.dirname(page), x)) for x in ("", *found)]
            for name in found:
                places = {posixpath.normpath(posixpath.join(folder, name)) for folder in folders}
                if "://" not in name and not places & carried:
                    missing.append(f"{page}: {name}")
    assert missing == []


def test_no_bitmap_inside_a_vector_picture(tracked: dict[str, int]) -> None:
    drawn = [name for name in tracked if name.endswith(".svg")]
    assert drawn
    assert not [name for name in drawn if "data:image" in (ROOT / name).read_text(encoding="utf-8")]


def test_what_is_shipped_names_no_folder_of_the_machine_that_made_it(tracked: dict[str, int]) -> None:
    shipped = [name for name in tracked if name.startswith("ddposink/data/") and name.endswith(".json")]
    assert shipped
    for name in shipped:
        settings = json.loads((ROOT / name).read_text(encoding="utf-8"))
        assert not isinstance(settings, dict) or not settings.get("_name_or_path"), name
