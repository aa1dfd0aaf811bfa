"""Runs side by side: what may be compared, how sure it is, and what is only shown."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.gate.compare import ComparedRun, Comparison, compare, differing
from bench.gate.match import Side
from bench.gate.rule import Verdict
from bench.report import page, side_by_side
from bench.results.environment import fingerprint_id
from bench.results.record import Record
from helpers.synthetic import ENV, METRICS, Synthetic, measured, nll_series, record, value, write_run

BASE_ENV = {key: ENV[key] for key in ("python", "packages", "cpu", "gpus")}
OTHER = BASE_ENV | {"packages": {"torch": "2.11.0", "transformers": "5.23.0"}}


PLAIN = Synthetic(views=())  # no pictures: they take time and are tested elsewhere


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The invented workload under its name, as a run folder names it."""
    monkeypatch.setitem(registry._registered, "synthetic", f"{__name__}:PLAIN")


def run(
    name: str, records: list[Mapping[str, Any]], env: Mapping[str, Any] = BASE_ENV, **series: Any
) -> ComparedRun:
    id_ = fingerprint_id(env)
    made = tuple(Record.model_validate({**r, "env": id_}) for r in records)
    kept = {r.cell: series.get(r.label.split()[0]) for r in made}
    return ComparedRun(
        Side(name, made, {id_: env}), lambda r, metric: kept[r.cell] if metric == "nll" else None
    )


def two(change: float = 0.0, noise: float = 0.0, **options: Any) -> Comparison:
    """A run and one whose NLLs are ``change`` higher at every token, ± ``noise``."""
    text = nll_series("dense", 2048).astype(np.float64)
    other = text + change + np.random.default_rng(3).normal(0, noise, len(text)) if noise else text + change
    base = run("old", [measured("dense", 2048, text)], dense=text)
    head = run("new", [measured("dense", 2048, other)], dense=other, **options)
    return compare(base, [head], METRICS)


def row(comparison: Comparison, metric: str) -> Any:
    return next(row for row in comparison.rows if row.judgement.metric == metric)


def test_a_run_is_equal_to_itself() -> None:
    found = two()
    assert row(found, "nll").judgement.verdict is Verdict.PASS
    assert row(found, "nll").interval.estimate == row(found, "nll").interval.high == 0
    assert row(found, "cache").judgement.verdict is Verdict.PASS
    assert found.decided
    assert not found.fields


def test_one_process_each_decides_nothing_noisy() -> None:
    noisy = row(two(), "latency").judgement
    assert noisy.verdict is Verdict.INCONCLUSIVE
    assert "processes" in noisy.reason


@pytest.mark.parametrize("change", [0.02, -0.02])
def test_the_interval_of_a_paired_difference_holds_it(change: float) -> None:
    found = row(two(change, noise=0.1), "nll")
    assert found.judgement.verdict is (Verdict.REGRESSED if change > 0 else Verdict.IMPROVED)
    assert found.interval.low < change < found.interval.high
    assert found.interval.excludes_zero
    assert "2,048 entries" in found.basis
    plain = np.mean(nll_series("dense", 2048))
    assert found.interval.high - found.interval.low < 0.05 * plain  # pairing removes what both found hard


def test_repetitions_make_an_interval_too() -> None:
    def repeated(shift: float) -> list[dict[str, Any]]:
        values = (3.0, 3.1, 3.2)
        return [
            measured("dense", 512, repeat=i, metrics={"nll": value(v + shift + i * 0.001, "nats")})
            | {"cell": f"c{i}"}
            for i, v in enumerate(values)
        ]

    found = row(compare(run("old", repeated(0)), [run("new", repeated(0.05))], METRICS), "nll")
    assert found.basis == "3 repetitions"
    assert found.interval.low == pytest.approx(0.05, abs=1e-9)


def test_another_machine_is_shown_and_never_divided() -> None:
    text = nll_series("dense", 512)
    base = run("old", [measured("dense", 512, text)], dense=text)
    head = run("new", [measured("dense", 512, text)], OTHER, dense=text)
    found = compare(base, [head], METRICS)
    nll = row(found, "nll")
    assert nll.judgement.verdict is Verdict.INCOMPARABLE
    assert "packages.torch" in nll.judgement.reason
    assert nll.interval is None
    (field,) = found.fields
    assert (field.name, field.baseline, field.value) == ("packages.torch", "2.13.0", "2.11.0")
    shown = next(
        r
        for r in side_by_side.table(found).rows
        if r["metric"].value == "mean NLL" or r["metric"].value == nll.judgement.label
    )
    assert shown["change"].text == "–"
    assert "ratio" not in shown
    assert not found.decided
    assert "No two numbers may stand beside each other" in " ".join(side_by_side.sentences(found))


def test_a_cell_that_fails_now_has_regressed_and_stands_first() -> None:
    base = run("old", [measured("dense", 512), measured("dense", 1024)])
    head = run("new", [measured("dense", 512), record("dense", 1024, status="oom", reason="9 GiB")])
    first = compare(base, [head], METRICS).rows[0].judgement
    assert first.klass == "status"
    assert first.verdict is Verdict.REGRESSED
    assert "9 GiB" in first.reason


def test_what_only_one_run_has_is_incomparable() -> None:
    base = run("old", [measured("dense", 512)])
    head = run("new", [measured("dense", 512), measured("window 512", 512)])
    alone = [r.judgement for r in compare(base, [head], METRICS).rows if "window" in r.judgement.cell]
    assert [j.verdict for j in alone] == [Verdict.INCOMPARABLE]
    assert alone[0].reason == "not measured in the base"


def test_several_runs_are_each_held_against_the_baseline() -> None:
    base = run("old", [measured("dense", 512)])
    heads = [run(name, [measured("dense", 512)]) for name in ("a", "b")]
    found = compare(base, heads, METRICS)
    assert found.runs == ("a", "b")
    assert {r.run for r in found.rows} == {"a", "b"}
    assert side_by_side.table(found).columns[0].key == "run"


def test_an_environment_that_was_not_recorded_is_a_difference() -> None:
    base, head = run("old", [measured("dense", 512)]), run("new", [measured("dense", 512)])
    (field,) = differing(Side("old", base.side.records, {}), head.side)
    assert (field.baseline, field.value) == ("not recorded", "recorded")


def folder(path: Path, change: float = 0.0, **options: Any) -> Path:
    """A run folder with series, hashes and a true fingerprint, as a real run leaves it."""
    text = nll_series("dense", 1024).astype(np.float64) + change
    env = {"id": fingerprint_id(BASE_ENV), **BASE_ENV} | options.pop("env", {})
    made = measured("dense", 1024, text) | {"env": env["id"]} | options
    write_run(path, [made], series={made["pass_id"]: {"nll": text}}, env=env)
    lines = [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]
    for line in lines:
        for artifact in line["artifacts"]:
            raw = (path / artifact["path"]).read_bytes()
            artifact |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (path / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def bench(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_prints_and_says_by_its_exit_code(tmp_path: Path) -> None:
    old, new = folder(tmp_path / "old"), folder(tmp_path / "new", 0.5)
    done = bench("compare", old, new)
    assert done.exit_code == 0, done.output
    assert "regressed" in done.output
    assert "new against old" in done.output
    text = bench("compare", old, new, "--markdown").output
    assert text.startswith("# new against old")
    assert "## ❌ worse" in text
    env = OTHER | {"id": fingerprint_id(OTHER)}
    other = folder(tmp_path / "other", env=env)
    done = bench("compare", old, other)
    assert done.exit_code == 5
    assert "packages.torch" in done.output


def test_where_the_rest_of_a_cut_table_is_said_to_be_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "_MARKDOWN_ROWS", 0)
    env = OTHER | {"id": fingerprint_id(OTHER)}
    old, new = folder(tmp_path / "old"), folder(tmp_path / "new", 0.5, env=env)
    printed = bench("compare", old, new, "--markdown").output
    assert "all are in what `python -m bench report` draws of these runs." in printed
    assert ".csv" not in printed
    bench("report", new, "--baseline", old)
    named = set(re.findall(r"all are in (\S+)\.", (new / "comparison.md").read_text()))
    assert {"tables/comparison.csv", "tables/machines.csv"} <= named
    assert all((new / name).is_file() for name in named)


def test_a_run_beside_its_baseline_is_one_page(tmp_path: Path) -> None:
    old, new = folder(tmp_path / "old"), folder(tmp_path / "new", 0.5)
    done = bench("report", new, "--baseline", old)
    assert done.exit_code == 0, done.output
    text = (new / "index.html").read_text()
    assert 'id="comparison"' in text
    assert "numbers worse" in text
    assert (new / "comparison.md").read_text().startswith("# new against old")
    assert (new / "tables" / "comparison.csv").exists()
    bench("report", new)
    assert not (new / "comparison.md").exists()
    assert 'id="comparison"' not in (new / "index.html").read_text()


def test_several_runs_share_a_page_of_their_own(tmp_path: Path) -> None:
    names = [folder(tmp_path / name, i / 10) for i, name in enumerate(("old", "new", "newer"))]
    done = bench("report", *names, "--results", tmp_path)
    assert done.exit_code == 0, done.output
    made = tmp_path / "compare" / "new-newer-old"
    assert "new, newer against old" in (made / "index.html").read_text()
    assert (made / "comparison.md").exists()
    assert not (names[0] / "index.html").exists()


def test_pages_of_many_runs_are_told_apart_and_replace_no_runs_own(tmp_path: Path) -> None:
    names = [folder(tmp_path / (letter * 60)) for letter in "abcd"]
    pages = set()
    for baseline in names[2:]:
        done = bench("report", *names[:2], "--baseline", baseline, "--results", tmp_path)
        pages.add(re.sub(r"\s", "", done.output).partition("report:")[2])
    assert len(pages) == 2
    done = bench("report", *names[:2], "--out", names[0])
    assert done.exit_code == 2
    assert "its own page would be replaced" in done.output
    assert not (names[0] / "index.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "{old}"], "one run alone"),
        (["compare", "{old}", "{foreign}"], "run of suite 'another'"),
        (["report", "{old}", "--baseline", "{old}"], "both the run and its baseline"),
        (["report", "{old}", "--baseline", "{edited}"], "edited"),
        (["report", "{empty}"], "empty"),
        (["report", "{newer}"], "newer version"),
        (["report", "{old}", "--out", "x"], "--out is for several runs"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, words: list[str], said: str) -> None:
    places = {"old": folder(tmp_path / "old"), "empty": tmp_path / "empty"}
    places["empty"].mkdir()
    places["foreign"] = folder(tmp_path / "foreign", suite="another")
    places["newer"] = folder(tmp_path / "newer", schema_version=9)
    places["edited"] = folder(tmp_path / "edited")
    next(places["edited"].rglob("*.npz")).write_bytes(b"something else")
    done = bench(*(word.format(**places) for word in words))
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Traceback" not in done.output


def test_nothing_measured_is_no_success(tmp_path: Path) -> None:
    failed = write_run(tmp_path / "failed", [record("dense", 512, status="error", reason="RuntimeError: no")])
    done = bench("report", failed)
    assert done.exit_code == 3
    assert "nothing was measured" in done.output
    assert "No cell was measured" in (failed / "index.html").read_text()
    empty = write_run(tmp_path / "none", [])
    assert bench("report", empty).exit_code == 3
    assert "There are no records yet" in (empty / "index.html").read_text()


def test_markdown_of_hostile_names_has_no_markup(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)> | `x` [a](javascript:b)"
    found = compare(
        run(bad, [measured("dense", 512, label=bad)]),
        [run("new", [measured("dense", 512, label=bad)])],
        METRICS,
    )
    text = side_by_side.markdown(found, files=False)
    assert "<img" not in text
    kinds = {t.type for block in MarkdownIt().enable("table").parse(text) for t in block.children or [block]}
    assert not kinds & {"link_open", "image", "html_inline"}
    assert page.COMPARISON == "comparison.md"
