"""Commands on published runs give the same bytes whether records come from the index or are read."""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from bench import registry
from bench.gate.baseline import read_run
from bench.gate.judge import judge
from bench.gate.rule import Rule
from bench.gate.verdict import Terms, assemble
from bench.report import history, render
from bench.report import session as reports
from bench.results import index
from bench.results.digest import digest
from bench.results.segment import INDEX
from bench.results.store import RECORDS, Store
from helpers.large import PUBLISHED

RUNS = ["sinks", "learned-sinks"]


@pytest.fixture(params=RUNS)
def folder(request, tmp_path):
    """A published run, and the same again with other values: ``results/SUITE/{a,b}``."""
    for name in ("20260101-000000-aaaaaa", "20260102-000000-bbbbbb"):
        run = tmp_path / request.param / name
        shutil.copytree(PUBLISHED / request.param, run, ignore=shutil.ignore_patterns("plots", "tables"))
        lines = [json.loads(text) for text in (run / RECORDS).read_text().splitlines()]
        for number, data in enumerate(lines):
            data["run"] = name
            if name.endswith("b") and number % 2:
                found = data["metrics"].get("nll") or {}
                if found.get("value") is not None and not found["samples"]:
                    found["value"] += 0.5
            data["digest"] = digest(data)
        (run / RECORDS).write_text("".join(json.dumps(data, separators=(",", ":")) + "\n" for data in lines))
    return tmp_path / request.param


def history_of(folder, out):
    history.write(folder, out, [], Console(file=io.StringIO(), width=200))
    return (out / "history.csv").read_bytes()


def comparison_of(folder, out):
    with open(out / "compare.md", "w") as file:
        reports.show(
            [str(run) for run in sorted(folder.glob("2*"))], None, out, Console(file=file), as_markdown=True
        )
    return (out / "compare.md").read_bytes()


def verdict_of(folder, out):
    first = json.loads((folder / "20260101-000000-aaaaaa" / RECORDS).read_text().splitlines()[0])
    sides = [read_run(run, first["suite"], first["workload"]) for run in sorted(folder.glob("2*"))]
    metrics = registry.load(first["workload"]).metrics
    judgements = judge(sides[0].side, sides[1].side, metrics, paired=False, rule=Rule())
    notes = [note for side in sides for note in side.notes]
    found = assemble(
        ("s", "w"), judgements, (sides[0].info, sides[1].info), Terms.of(Rule(), "stored", 1), notes
    )
    return found.model_copy(update={"created": ""}).json_text()


def tables_of(folder, out):
    run, base = sorted(folder.glob("2*"))[::-1]
    render(run, baseline=base, vectors=False)
    files = [run / "README.md", run / "comparison.md", *sorted((run / "tables").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def resumed(folder, out):
    store = Store(sorted(folder.glob("2*"))[0])
    try:
        return {cell: (str(r.status), r.reason, r.model_dump_json()) for cell, r in store.records.items()}
    finally:
        store.close()


@pytest.mark.parametrize("ask", [history_of, comparison_of, verdict_of, tables_of, resumed])
def test_same_bytes_with_and_without_an_index(folder: Path, tmp_path: Path, monkeypatch, ask):
    out = tmp_path / "out"
    out.mkdir()
    plain = ask(folder, out)
    assert not list(folder.glob(f"*/{INDEX}"))
    monkeypatch.setattr(index, "BLOCK", 6_000)  # two lines: next to nothing is read as a tail
    made = ask(folder, out)
    kept = len(list(folder.glob(f"*/{INDEX}/*.parquet")))
    assert kept >= 3
    again = ask(folder, out)
    assert len(list(folder.glob(f"*/{INDEX}/*.parquet"))) == kept
    assert plain == made == again
    assert plain
