"""Exports of a gate: read by the parsers and checked against the schemas of the tools they are for."""

import json
import re
from xml.etree import ElementTree

import jsonschema
import pytest
from junitparser import Error, Failure, JUnitXml, Skipped
from markdown_it import MarkdownIt

from bench.errors import UserError
from bench.export import bencher, benchmark_action, github, junit, verdicts
from bench.gate.judge import judge
from bench.gate.match import Side
from bench.gate.show import markdown
from bench.gate.verdict import SideInfo, Terms, assemble
from helpers.gateplace import record
from helpers.gatetoy import GateToy

# As documented at bencher.dev/docs/reference/bencher-metric-format.
BENCHER = {
    "type": "object",
    "patternProperties": {
        ".+": {
            "type": "object",
            "patternProperties": {
                ".+": {
                    "type": "object",
                    "properties": {
                        "value": {"type": "number"},
                        "lower_value": {"type": "number"},
                        "upper_value": {"type": "number"},
                    },
                    "required": ["value"],
                    "additionalProperties": False,
                }
            },
        }
    },
}
# What github-action-benchmark reads of an entry of its custom tools.
ACTION = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "unit": {"type": "string", "minLength": 1},
            "value": {"type": "number"},
            "range": {"type": "string"},
            "extra": {"type": "string"},
        },
        "required": ["name", "unit", "value"],
        "additionalProperties": False,
    },
}
HOSTILE = [
    "<script>alert(1)</script>\"'&]]>",
    "::error title=owned::x%0A::set-output name=a::b",
    "line one\nline two\r\x00\x1b[31m \ud800 \u202eevil\u202c",
    "| a | b | `code` [link](http://x) ![i](x) @everyone <img onerror=x>",
    "x" * 10_000,
    "=cmd|' /C calc'!A0",
    "../../etc/passwd",
]
TERMS = Terms(mode="interleaved", alpha=0.02, miss=0.05, effect=0.05, allowance=0.25, looks=1, pairs=4)
ENV = {"e1": {"id": "e1"}}


def report(label="a 8", reason="it broke"):
    """One metric of every class and verdict, and a cell that fails now."""
    base, head = [], []
    for i, value in enumerate([10.0, 10.1, 9.9, 10.05]):
        common = {"fed": 8, "slots": 32, "vram": 5.0 + i}
        base.append(record(common | {"nll": 3.0, "latency": value, "speed": value}, repeat=i, label=label))
        now = {"nll": 3.5, "latency": value * 2, "speed": value * 2, "rss": 1.0}
        head.append(record(common | now | {"vram": 9.0 - i}, repeat=i, label=label))
    base.append(record({"nll": 3.0}, tokens=16, label=f"{label} 16"))
    head.append(record(status="oom", reason=reason, tokens=16, label=f"{label} 16"))
    found = judge(Side("b", tuple(base), ENV), Side("h", tuple(head), ENV), GateToy.metrics, paired=True)
    sides = SideInfo(name=label), SideInfo(name="head", failed_cells=1)
    return assemble(("toys", "gatetoy"), found, sides, TERMS, [f"a note on {label}"])


def nothing():
    return assemble(("toys", "gatetoy"), [], (SideInfo(name="b"), SideInfo(name="h")), TERMS, [])


def test_every_verdict_is_there_to_be_exported():
    assert {str(j.verdict) for j in report().judgements} == {
        *("pass", "regressed", "improved", "inconclusive", "incomparable"),
    }


def read(text, tmp_path):
    path = tmp_path / "gate.xml"
    path.write_text(text, encoding="utf-8")
    return JUnitXml.fromfile(str(path))


def test_junit_has_one_case_per_judged_metric(tmp_path):
    made = report()
    xml = read(junit.render(made), tmp_path)
    cases = [case for suite in xml for case in suite]
    assert len(cases) == len(made.judgements) == xml.tests
    results = {"regressed": Failure, "inconclusive": Skipped, "incomparable": Skipped}
    for case, found in zip(cases, made.judgements, strict=True):
        assert case.name == found.label
        wanted = results.get(str(found.verdict))
        assert [type(r) for r in case.result if not isinstance(r, str)] == ([wanted] if wanted else [])
    assert xml.failures == sum(suite.failures for suite in xml) == made.counts["regressed"]
    assert [(suite.tests, suite.skipped) for suite in xml] == [(7, 2), (1, 0)]
    failed = [case for case in cases if case.name == "status"]
    assert failed[0].result[0].message.endswith("was ok, now oom: it broke")


def test_junit_obeys_the_schema_that_jenkins_checks():
    """Element order, required attributes and the pattern of times, as in the xUnit plug-in's junit-10.xsd."""
    allowed = {
        "testsuites": {"name", "time", "tests", "failures", "errors"},
        "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
        "testcase": {"name", "classname", "time"},
        "failure": {"message", "type"},
        "error": {"message", "type"},
        "skipped": {"message", "type"},
        "system-out": set(),
    }
    children = {
        "testsuites": {"testsuite"},
        "testsuite": {"testcase"},
        "testcase": {"failure", "skipped", "error", "system-out"},
    }
    for made in (report(), nothing()):
        for element in ElementTree.fromstring(junit.render(made)).iter():
            assert set(element.attrib) <= allowed[element.tag]
            assert {child.tag for child in element} <= children.get(element.tag, set())
            if element.tag in ("testsuites", "testsuite"):
                assert {"name", "tests", "failures", "errors"} <= set(element.attrib)
                assert re.fullmatch(r"[0-9]{0,3}(\.[0-9]*)?", element.get("time", ""))
            if element.tag == "testcase":
                assert element.get("name")


def test_a_gate_that_compared_nothing_is_an_error_in_junit(tmp_path):
    (suite,) = read(junit.render(nothing()), tmp_path)
    (case,) = suite
    assert isinstance(case.result[0], Error)
    assert suite.errors == 1


def test_bencher_metric_format():
    data = json.loads(bencher.render(report()))
    jsonschema.validate(data, BENCHER)
    assert set(data) == {"toys / a 8"}  # the other cell has no numbers
    latency = data["toys / a 8"]["latency"]
    assert latency["lower_value"] <= latency["value"] <= latency["upper_value"]
    assert latency["value"] == pytest.approx(20.0, rel=0.01)
    assert data["toys / a 8"]["slots"] == {"value": 32}


def test_github_action_benchmark():
    smaller = json.loads(benchmark_action.render_smaller(report()))
    bigger = json.loads(benchmark_action.render_bigger(report()))
    for entries in (smaller, bigger):
        jsonschema.validate(entries, ACTION)
    assert [e["name"] for e in bigger] == ["a 8 / speed"]
    assert {e["name"] for e in smaller} >= {"a 8 / NLL", "a 8 / quickest token"}
    assert next(e for e in smaller if e["name"] == "a 8 / slots")["unit"] == "1"


def commands(text):
    """Workflow commands as the runner parses them: (kind, properties, message)."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"::(\w+)( [^:]*)?::(.*)", line)
        assert match, line
        plain = match[3].replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%")
        found.append((match[1], match[2].strip(), plain))
    return found


def test_github_annotations():
    found = commands(github.render(report()))
    assert [kind for kind, _, _ in found] == ["error", "error", "error", "warning", "warning", "error"]
    assert found[0][1] == "title=regressed%3A NLL of a 8"
    assert "+0.5000 nats" in found[0][2]
    assert found[-1][2].startswith("regressed: 3 metrics in 2 cells")
    assert commands(github.render(nothing()))[0][0] == "error"


def test_no_more_annotations_than_the_runner_shows():
    made = report()
    many = made.model_copy(update={"judgements": made.judgements * 10})
    found = commands(github.render(many))
    assert [kind for kind, _, _ in found].count("warning") == 10
    assert "and 21 more; see the summary" in found[9][2]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text_everywhere(name, tmp_path):
    made = report(label=name, reason=name)
    xml = read(junit.render(made), tmp_path)
    assert sum(len(list(suite)) for suite in xml) == len(made.judgements)
    jsonschema.validate(json.loads(bencher.render(made)), BENCHER)
    assert all(len(key) <= 1024 for key in json.loads(bencher.render(made)))
    for render in (benchmark_action.render_smaller, benchmark_action.render_bigger):
        jsonschema.validate(json.loads(render(made)), ACTION)
    kinds = [kind for kind, _, _ in commands(github.render(made))]
    assert kinds == ["error", "error", "error", "warning", "warning", "error"]
    for kind in verdicts.FORMATS:
        text = verdicts.render(kind, made)
        text.encode()
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\u202e]", text), kind


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_no_markup_in_the_summary(name):
    text = markdown(report(label=name, reason=name))
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text)
    tags = set(re.findall(r"<\s*/?\s*([a-z0-9]+)", html, re.IGNORECASE))
    plain = {"h3", "h4", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "sub"}
    assert tags <= plain | {"details", "summary", "br"}
    assert "@everyone" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 7 for row in rows)


def test_the_summary_says_what_counts_first():
    lines = markdown(report()).splitlines()
    assert lines[0] == "### ❌ toys: regressed: 3 metrics in 2 cells"
    assert r"| a 8 | NLL | 3 nats | 3.500 nats | \+0.5000 nats (+16.67 %) | ± 0.001, n = 4 |" in lines
    assert markdown(nothing()).splitlines()[0].startswith("### ⚠️ toys: nothing was decided")
    calm = report()
    kept = [j for j in calm.judgements if j.verdict in ("pass", "inconclusive")]
    calm = assemble(("toys", "gatetoy"), kept, (calm.base, SideInfo(name="head")), TERMS, [])
    assert markdown(calm).splitlines()[0] == "### ❔ toys: no regression found, 1 metric undecided"


def test_a_metric_that_is_not_measured_any_more_is_no_plain_success():
    """A head that had stopped measuring its headline metric "passed"."""
    base = Side("base", (record({"nll": 3.0, "slots": 4}),), ENV)
    found = judge(base, Side("head", (record({"slots": 4}),), ENV), GateToy.metrics, paired=True)
    one = assemble(("toys", "gatetoy"), found, (SideInfo(name="base"), SideInfo(name="head")), TERMS, [])
    assert one.exit_code == 0
    assert markdown(one).splitlines()[0] == "### ❔ toys: no regression found, 1 metric no longer measured"


def test_long_lists_are_cut_and_counted():
    made = report()
    many = [made.judgements[2].model_copy(update={"cell": f"c{i}"}) for i in range(500)]
    text = markdown(made.model_copy(update={"judgements": many}))
    assert "… and 440 more" in text
    assert len(text) < 60_000  # a comment takes 65,536 characters


def test_formats_are_named_and_misspelt_ones_told():
    assert set(verdicts.parse(["junit=a.xml", "json=b.json"])) == {"junit", "json"}
    for text, told in (
        ("xml=a", "unknown format 'xml'"),
        ("junit", "FORMAT=FILE"),
        ("junit=", "FORMAT=FILE"),
    ):
        with pytest.raises(UserError, match=told):
            verdicts.parse([text])
    with pytest.raises(UserError, match="--export junit was given twice"):
        verdicts.parse(["junit=a", "junit=b"])


def test_files_that_cannot_be_written_are_told_of_beforehand(tmp_path):
    verdicts.make_room({"junit": tmp_path / "deep" / "gate.xml"})
    assert (tmp_path / "deep").is_dir()
    (tmp_path / "file").write_text("")
    for path, told in ((tmp_path, "is a folder"), (tmp_path / "file" / "x", "cannot make its folder")):
        with pytest.raises(UserError, match=told):
            verdicts.make_room({"json": path})
