"""The workflow and the documentation of the gate: they call what there is, and the workflow may do little."""

import re
from pathlib import Path

import pytest
import typer
import yaml

from bench.cli import app
from bench.export.verdicts import FORMATS

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / ".github" / "workflows" / "bench-gpu.yml"
DOCS = ROOT / "docs" / "explanation" / "gate.md"


def commands():
    return typer.main.get_command(app).commands


@pytest.mark.parametrize("file", [WORKFLOW, DOCS], ids=lambda path: path.name)
def test_commands_and_options_exist(file):
    text = re.sub(r"\n +(?=--)", " ", file.read_text())  # folded YAML lines
    called = re.findall(r"python -m bench (\w+)([^`\n#]*)", text)
    assert {name for name, _ in called} >= {"gate"}
    for name, rest in called:
        options = {option for parameter in commands()[name].params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= options, name
        for kind in re.findall(r'--export "?([a-z-]+)=', rest):
            assert kind in FORMATS


def test_the_documentation_names_every_format_and_option():
    text = DOCS.read_text()
    for kind in FORMATS:
        assert f"`{kind}`" in text or kind == "benchmark-action-bigger"
    named = set(re.findall(r"--[a-z][a-z-]+", text))
    options = {o for p in commands()["gate"].params for o in p.opts if o.startswith("--")}
    assert options - named <= {"--results", "--only", "--set", "--device", "--wait", "--allow-code"}


def test_the_workflow_may_do_little_and_pins_what_it_uses():
    flow = yaml.safe_load(WORKFLOW.read_text())
    assert flow["permissions"] == {}
    assert flow["jobs"]["gate"]["permissions"] == {"contents": "read"}
    assert flow["jobs"]["comment"]["permissions"] == {"pull-requests": "write"}
    assert "head.repo.full_name == github.repository" in flow["jobs"]["gate"]["if"]  # no code of forks
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    for step in steps:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step.get("uses", "actions/x@" + "0" * 40))
        assert "${{" not in step.get("run", "")  # nothing of a request is pasted into a shell
    assert "run" not in str([step.keys() for step in flow["jobs"]["comment"]["steps"]])


def test_the_workflow_has_the_history_in_which_the_merge_base_is_looked_for():
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["gate"]["steps"]
    (checkout,) = (step for step in steps if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["with"]["fetch-depth"] == 0
    assert any('--against "$BASE"' in step.get("run", "") for step in steps)
    assert 'GIT_DEPTH: "0"' in DOCS.read_text()


def test_the_simulation_table_is_in_its_place():
    text = DOCS.read_text()
    table = text.partition("<!-- simulation: begin -->")[2].partition("<!-- simulation: end -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 3 * 5
    against = [row.split("|") for row in rows if "--against" in row]
    assert all(float(row[3].strip(" %")) <= 1.0 for row in against)  # false alarms


@pytest.mark.parametrize("file", sorted(WORKFLOW.parent.glob("*.yml")), ids=lambda path: path.name)
def test_every_workflow_begins_without_permissions_and_pins_its_actions(file):
    flow = yaml.safe_load(file.read_text())
    assert flow["permissions"] == {}
    for job in flow["jobs"].values():
        assert job["timeout-minutes"] <= 180
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step.get("uses", "actions/x@" + "0" * 40))
            assert "${{" not in step.get("run", "")


def test_ci_runs_the_command_of_the_readme():
    """`.ci/run` takes it from there; nothing is written twice."""
    steps = yaml.safe_load((WORKFLOW.parent / "ci.yml").read_text())["jobs"]["tests"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
