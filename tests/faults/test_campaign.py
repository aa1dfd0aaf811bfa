"""Nothing is lost: faults of every kind at random moments, and after each the run goes on and is right.

The short form has one of each kind, always the same ones; ``--faults N`` draws N of them (``--fault-seed``
repeats a campaign). The seed is part of every test's name; a table of counts stands at the end.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.faults import raylets  # noqa: F401  (adds its kind)
from helpers.faults.kinds import KINDS, LONG_ONLY, WEIGHTS
from helpers.faults.place import Place


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    count, seed = metafunc.config.getoption("--faults"), metafunc.config.getoption("--fault-seed")
    if not count:
        drawn = [(name, 1) for name in KINDS if name not in LONG_ONLY]
    else:
        chance = random.Random(seed)
        names = chance.choices([*KINDS], [WEIGHTS[name] for name in KINDS], k=count)
        drawn = [(name, seed * 100_000 + number) for number, name in enumerate(names)]
    metafunc.parametrize(("kind", "seed"), drawn, ids=[f"{name}-{number}" for name, number in drawn])


@pytest.mark.timeout(300)
def test_a_fault(kind: str, seed: int, tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    place = Place(tmp_path)
    record_property("fault", kind)
    try:
        KINDS[kind](place, random.Random(seed))
        place.check()
    finally:
        record_property("kills", place.kills)
        for process in place.family():
            process.kill()
        shutil.rmtree(place.temporary, ignore_errors=True)
