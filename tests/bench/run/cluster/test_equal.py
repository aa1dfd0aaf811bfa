"""Runs on a real cluster of real workloads: the numbers of a local run, of the same code only."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry
from bench.results.record import Status

pytest.importorskip("ray", reason="ray is not installed (pip install 'ddposink[ray]')")

ROOT = Path(__file__).parents[4]
pytestmark = pytest.mark.timeout(900)


def copy_of_the_code(folder, change):
    """The project in another folder, with a line put at the end of a module that children run."""
    for name in ("bench", "ddposink"):
        shutil.copytree(ROOT / name, folder / name, copy_function=os.link, dirs_exist_ok=True)
    module = folder / "ddposink" / "streaming" / "blocks.py"
    text = module.read_text()
    module.unlink()
    module.write_text(text + change)
    return os.pathsep.join([str(folder), str(ROOT / "tests")])


def test_code_is_compared_by_what_it_does_and_never_mixed(runs, tmp_path):
    """A node with the same code in other words is used; one on which a line differs stops the run."""
    (runs.folder / "text.txt").write_text("The storm passed the harbour. " * 40)
    defaults = {"model": "bundled:sink-llama/vanilla", "corpus": "file:text.txt", "threads": 1}
    runs.write(
        workload="stream",
        defaults=defaults | {"measure": ["quality"], "policy": "dense"},
        grid={"length": [40]},
        resources={"custom": {"copied": 1}},
    )
    for change in ("# in other words", "OTHER = 1"):
        folder = copy_of_the_code(tmp_path / change[:1], f"\n{change}\n")
        added = runs.cluster.add("--resources", '{"copied": 1}', PYTHONPATH=folder)
        try:
            said = runs.run(code=0 if change[0] == "#" else 2)
        finally:
            runs.cluster.end(added)
    assert "the code of the workload on node" in said
    (record,) = runs.records()  # of the first node
    assert record.status is Status.OK


@pytest.mark.assets
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("name", "part"), [("smoke", "*256"), ("ddpo-smoke", "*brisque*")])
def test_a_suite_gives_the_table_of_a_local_run(runs, name, part, request):
    """With --whole-suites of every cell of it, which takes minutes."""
    only = [] if request.config.getoption("--whole-suites") else ["--only", part]
    for where in ([], ["--launcher", "ray", "--address", runs.cluster.address, "--new"]):
        command = [sys.executable, "-m", "bench", str(ROOT / "suites" / f"{name}.yaml"), *only, *where]
        env = runs.cluster.environment() | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=runs.folder, env=env, capture_output=True, text=True, timeout=700)
        assert done.returncode == 0, done.stdout + done.stderr
    folders = sorted({record.run for record in runs.records()})
    here, there = ({r.cell: r for r in runs.records() if r.run == folder} for folder in folders)
    assert here.keys() == there.keys()
    declared = registry.load(next(iter(here.values())).workload).metrics
    judged = {metric.name: metric for metric in declared if metric.klass in ("exact", "near")}
    for cell, one in here.items():
        other = there[cell]
        assert other.columns.keys() == one.columns.keys()
        assert other.metrics.keys() == one.metrics.keys()
        for name in one.metrics.keys() & judged.keys():
            a, b = one.metrics[name].value, other.metrics[name].value
            same = a == b if a is None or b is None else abs(a - b) <= judged[name].tolerance
            assert same, (one.label, name, a, b)
