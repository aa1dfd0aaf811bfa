"""Two runs of several trainings: a difference over seeds and samples, beside the rows of single seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import registry
from bench.report import page, side_by_side
from bench.results.environment import fingerprint_id
from bench.stats import two_level_interval
from helpers.grids import VALUES, Tuning, record
from helpers.synthetic import ENV, write_run

MACHINE = {key: ENV[key] for key in ("python", "packages", "cpu", "gpus")}
BETWEEN = (0.4, -0.3, 0.1)  # what seeds differ by, in the run that is compared


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registered, "tuning", f"{Tuning.__module__}:Tuning")


def made(folder: Path, shifts: tuple[float | None, ...], *, samples: bool = True) -> Path:
    """One setting, a seed for each shift (None: it was lost); prompts are those of every seed and run."""
    records: list[dict[str, Any]] = []
    prompts = np.random.default_rng(0).normal(0, 1, 40)
    for seed, shift in enumerate(shifts):
        one = record(folder, {name: found[0] for name, found in VALUES.items()}, 0, seed)
        own = prompts + (shift or 0) + np.random.default_rng(seed).normal(0, 0.1, 40) * (shift != 0)
        effect = {"value": float(own.mean()), "unit": "SD", "samples": own.tolist() if samples else None}
        one |= {"metrics": {"effect": effect}, "artifacts": [], "label": f"red · 4 · seed {seed}"}
        if shift is None:
            one |= {"status": "oom", "reason": "lost", "metrics": {}}
        records.append(one | {"env": fingerprint_id(MACHINE)})
    suite = {"suite": "tuning", "workload": "tuning", "compare": None}
    return write_run(folder, records, suite=suite, env=MACHINE | {"id": fingerprint_id(MACHINE)})


def held(base: Path, head: Path) -> Any:
    return side_by_side.compare_runs([page.read(head), page.read(base)])


def test_the_difference_over_seeds_covers_trainings_and_prompts(tmp_path: Path) -> None:
    base, head = made(tmp_path / "old", (0, 0, 0)), made(tmp_path / "new", BETWEEN)
    found = held(base, head)
    (one,) = found.over_seeds
    gaps = [
        np.subtract(b.metrics["effect"].samples, a.metrics["effect"].samples)
        for a, b in zip(page.read(base).records, page.read(head).records, strict=True)
    ]
    wanted = two_level_interval(gaps)
    assert (one.cell, one.seeds, one.planned, one.shared) == ("red · 4", 3, 3, True)
    assert (one.interval.low, one.interval.high) == pytest.approx((wanted.low, wanted.high))
    assert not one.interval.excludes_zero
    single = [row for row in found.rows if row.interval]
    assert all(row.interval.excludes_zero for row in single), "each training for itself would claim a change"
    assert {row.basis for row in single} == {"40 paired samples of this seed"}
    (row,) = side_by_side.seeds_table(found).rows
    assert row["difference"].note == "over trainings and their prompts"
    text = side_by_side.markdown(found, files=False)
    assert "## Over seeds" in text
    assert "The interval of a row is about that one training: the table over seeds has" in text


def test_a_mean_far_nearer_to_zero_than_its_rounded_samples_is_known_as_theirs(tmp_path: Path) -> None:
    """Such seeds were taken for ones without samples: the interval was over trainings alone."""
    runs = [made(tmp_path / "old", (0, 0, 0)), made(tmp_path / "new", BETWEEN)]
    for folder in runs:
        records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        for one in records:
            effect = one["metrics"]["effect"]
            own = np.array(effect["samples"])
            own += 1e-6 - own.mean()
            effect |= {"value": float(own.mean()), "samples": [float(f"{x:.7g}") for x in own]}
        (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (one,) = held(*runs).over_seeds
    assert one.shared


def test_without_samples_it_is_over_seeds_and_lost_seeds_are_counted(tmp_path: Path) -> None:
    shifts = (*BETWEEN, None)
    found = held(
        made(tmp_path / "old", (0, 0, 0, 0), samples=False), made(tmp_path / "new", shifts, samples=False)
    )
    (one,) = found.over_seeds
    assert (one.seeds, one.planned, one.shared) == (3, 4, False)
    assert one.interval.n == 3
    assert side_by_side.seeds_table(found).rows[0]["seeds"].text == "3 of 4"


def test_one_seed_has_no_row_over_seeds(tmp_path: Path) -> None:
    found = held(made(tmp_path / "old", (0,)), made(tmp_path / "new", (0.4,)))
    assert found.over_seeds == ()
    assert list(side_by_side.tables(found)) == ["comparison"]
    assert "about that one training." in " ".join(side_by_side.sentences(found))
