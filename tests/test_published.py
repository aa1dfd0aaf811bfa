"""What is published stays readable: records parse, were measured, and artifacts are what they were."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest

from bench.results.record import Status
from bench.results.store import RECORDS, read_records
from bench.stats import Interval, t_interval, two_level_interval

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
WITHOUT_SERIES = ("learned-sinks",)  # of per-token NLLs, as results/published/README.md says


@pytest.mark.parametrize("name", ["sinks", "book10146", "learned-sinks", "gpu-headline"])
def test_published_records_and_artifacts(name: str) -> None:
    folder = PUBLISHED / name
    records, damaged = read_records(folder / RECORDS)
    assert not damaged
    assert records
    for record in records:
        assert record.status is Status.OK, record.label
        assert record.metrics["kv_bytes"].value == record.metrics["kv_bytes_analytic"].value
        for artifact in record.artifacts if name not in WITHOUT_SERIES else ():
            data = (folder / artifact.path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == artifact.sha256
    page = (folder / "README.md").read_text()
    for picture in (folder / "plots").glob("*.png"):
        assert picture.stat().st_size > 1000
        assert f"plots/{picture.name}" in page


def test_the_effect_is_in_the_published_default_run() -> None:
    """Dense breaks past its training length, the window at once, sinks stay within a few percent of dense."""
    records, _ = read_records(PUBLISHED / "sinks" / RECORDS)
    value = {(r.columns["policy"], r.columns["length"]): r.metrics["perplexity"].value for r in records}
    dense, window, sink = (value[policy, 8192] for policy in ("dense", "window 1024", "sink 4+1020"))
    assert dense is not None
    assert window is not None
    assert sink is not None
    assert window > 1.3 * dense
    assert sink < 1.15 * dense
    assert value["dense", 16384] > 1.5 * value["sink 4+1020", 16384]


def claims(folder: Path) -> str:
    """The table of README on what a reward buys, from the records of a run alone.

    Mean effect on the reward itself at the last step count, and beyond that of training on noise, over
    trainings (seeds) and held-out prompts; bold where the interval excludes zero.
    """
    records, _ = read_records(folder / RECORDS)
    last = max(int(str(r.columns["steps"])) for r in records if r.columns["engine"] == "native")
    kept = [r for r in records if r.columns["engine"] == "native" and r.columns["steps"] == last]
    seeds = sorted({r.seed for r in kept})
    found = {(r.columns["reward"], r.seed): r.metrics for r in kept}
    lines = [
        "| trained on | effect on itself | beyond noise | effect on alignment beyond noise |",
        "|:---|---:|---:|---:|",
    ]
    for reward in dict.fromkeys(r.columns["reward"] for r in kept):
        if reward == "noise":
            continue
        own = [np.array(found[reward, seed][f"effect_{reward}"].samples) for seed in seeds]
        gone = [np.array(found["noise", seed][f"effect_{reward}"].samples) for seed in seeds]
        words = [np.array(found[reward, seed]["effect_alignment"].samples) for seed in seeds]
        drift = [np.array(found["noise", seed]["effect_alignment"].samples) for seed in seeds]
        entries = [own, np.subtract(own, gone), np.subtract(words, drift)]
        lines.append(f"| {reward} | " + " | ".join(_written(two_level_interval(e)) for e in entries) + " |")
    return "\n".join(lines)


def _written(found: Interval, places: int = 2) -> str:
    values = [f"{v:+.{places}f}" for v in (found.estimate, found.low, found.high)]
    text = f"{values[0]} [{values[1]}, {values[2]}]".replace("-", "−")
    return f"**{text}**" if found.excludes_zero else text


def test_what_readme_says_of_rewards_is_what_the_records_say() -> None:
    readme = (PUBLISHED.parents[1] / "README.md").read_text()
    table = claims(PUBLISHED / "ddpo")
    assert table in readme, f"README's table is another one; of the records it is\n\n{table}\n"


def test_what_readme_says_of_single_trainings_is_what_the_records_say() -> None:
    """Preference is hacked from the first steps on in all three; eight of nine claim what three do not."""
    records, _ = read_records(PUBLISHED / "ddpo" / RECORDS)
    last = [r for r in records if r.columns["engine"] == "native" and r.columns["steps"] == 28]
    hacked = [r.columns["over_optimised_at"] for r in last if r.columns["reward"] == "preference"]
    assert hacked == [0, 0, 0]
    unsure = ("jpeg_compressibility", "alignment", "brisque")
    alone = [t_interval(r.metrics["effect"].samples or []) for r in last if r.columns["reward"] in unsure]
    assert (len(alone), sum(found.low > 0 for found in alone)) == (9, 8)


def test_every_sentence_about_a_reward_rests_on_three_trainings() -> None:
    records, _ = read_records(PUBLISHED / "ddpo" / RECORDS)
    seeds: dict[object, set[int]] = {}
    for record in records:
        assert record.status is Status.OK, record.label
        seeds.setdefault((record.columns["reward"], record.columns["steps"]), set()).add(record.seed)
    assert min(map(len, seeds.values())) >= 3


POLICIES = "h2o snapkv pyramidkv random keydiff lagkv expected-attention sink knorm window".split()

BUDGETS = (256, 512)


def policy_claims(folder: Path) -> str:
    """README's table of cache policies: KL from dense, and that less the control's, by blocks of tokens."""
    records, _ = read_records(folder / RECORDS)
    plain = [r for r in records if r.columns["bits"] is None and "average" not in str(r.columns["policy"])]
    known = {(r.columns["kind"], r.columns["budget"]): r.metrics["kl_dense"] for r in plain}
    with (folder / "recall.csv").open(encoding="utf-8") as file:
        recall = {(r["kind"], int(r["budget"] or 0), int(r["distance"])): r for r in csv.DictReader(file)
                  if "average" not in r["policy"]}  # fmt: skip
    head = [f"KL, {budget} tokens | beyond `random` | recall" for budget in BUDGETS]
    lines = [f"| policy | {' | '.join(head)} |", f"|:---|{'---:|' * 6}"]
    for kind in POLICIES:
        fields = []
        for budget in BUDGETS:
            own, control = known[kind, budget], known["random", budget]
            gap = t_interval(np.subtract(own.samples or [], control.samples or []))
            asked = recall[kind, budget, 640]
            right = f"{float(asked['accuracy']) * float(asked['questions']):.0f}/{asked['questions']}"
            fields += [f"{own.value:.3f}", "" if kind == "random" else _written(gap, 3), right]
        lines.append(f"| {kind} | {' | '.join(fields)} |")
    return "\n".join(lines)


def test_readmes_table_of_policies_is_told_from_the_records() -> None:
    table = policy_claims(PUBLISHED / "policies")
    assert table in (PUBLISHED.parents[1] / "README.md").read_text(encoding="utf-8"), table


@pytest.mark.parametrize(
    ("reward", "values"),
    [
        ("jpeg_compressibility", ("+6.12 [+5.56, +6.67]", "−2.34 [−2.92, −1.75]")),
        ("preference", ("+2.81 [+2.36, +3.26]", "−1.98 [−2.42, −1.54]")),
        ("brisque", ("+0.96 [+0.69, +1.22]",)),
        ("alignment", ("+0.09 [−0.01, +0.19]",)),
    ],
)
def test_what_readme_says_of_the_flow_model_stands_in_the_published_table(
    reward: str, values: tuple[str, ...]
) -> None:
    said = " ".join((PUBLISHED.parents[1] / "README.md").read_text(encoding="utf-8").split())
    page = (PUBLISHED / "ddpo-flow" / "README.md").read_text(encoding="utf-8")
    table = page[page.index("## What training on a reward does to all of them") :]
    row = next(line for line in table.splitlines() if line.startswith(f"| {reward} | 16 |"))
    for value in values:
        assert value in said
        assert value in row
