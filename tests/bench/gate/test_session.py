"""``bench gate`` as CI calls it: exit codes, the files it leaves, and one clear line for everything wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jsonschema
import psutil
import pytest
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.gate.verdict import GateReport
from bench.results.digest import with_digest
from bench.results.record import Record
from bench.results.store import read_records
from helpers.gateplace import HERE, ROOT, plug_in, verdicts, write_suite

SMALL = {"grid": {"kind": ["a"], "tokens": [8]}, "repeat": 3}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, the toy registered here and in every process that is started."""
    plugs = plug_in(tmp_path / "plugs")
    monkeypatch.setitem(registry._registered, "gatetoy", "helpers.gatetoy:GateToy")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (plugs, ROOT, HERE))))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "noise.json").write_text('{"SCATTER": 0.01}')  # no verdict hangs on how busy this machine is
    monkeypatch.setenv("GATETOY_SETTINGS", str(tmp_path / "noise.json"))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def render(folder, workload):
        (folder / "README.md").write_text("drawn")
        return folder / "README.md"

    monkeypatch.setattr("bench.report.render", render)
    return folder


@pytest.fixture
def repository(place):
    """A git checkout of a project whose code is the toy, one commit behind."""
    (place / "helpers").mkdir()
    for name in ("__init__.py", "gatetoy.py"):
        shutil.copy(HERE / "helpers" / name, place / "helpers")
    git(place, "init", "--quiet", "--initial-branch", "main")
    (place / ".gitignore").write_text("/results/\n__pycache__/\n")
    commit(place, "toy")
    return place


def git(folder, *words):
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def commit(folder, message):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


def bench(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def verdict(folder, suite="toys"):
    (path,) = sorted((folder / "results" / suite / "gates").glob("*/verdict.json"))[-1:]
    return GateReport.model_validate_json(path.read_text())


def edit(folder, old, new, file="helpers/gatetoy.py"):
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


def test_a_ref_is_measured_beside_the_working_tree(repository, tmp_path):
    suite = write_suite(repository, **SMALL)
    edit(repository, "took *= ", "took *= 3 * ")
    edit(repository, "nll = 3.0 +", "nll = 3.01 +")
    out = tmp_path / "out"
    done = bench(
        "gate", suite, "--against", "main", "--pairs", 5, "--export", f"junit={out}/gate.xml",
        "--export", f"bencher={out}/bmf.json", "--export", f"markdown={out}/gate.md",
    )  # fmt: skip
    assert done.exit_code == 4, done.output
    assert "base: main (" in done.stdout
    assert "packages installed here" in done.stdout
    report = verdict(repository)
    found = {j.metric: j for j in report.judgements}
    assert found["nll"].verdict == "regressed"
    assert found["latency"].verdict == "regressed"
    assert found["latency"].ratio == pytest.approx(3, rel=0.05)
    assert (report.terms.mode, report.terms.pairs, report.exit_code) == ("interleaved", 5, 4)
    assert report.base.name.startswith("main (")
    assert {path.name for path in out.iterdir()} == {"gate.xml", "bmf.json", "gate.md"}
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True)
    assert len(worktrees.stdout.splitlines()) == 1  # nothing of the ref is left behind


def test_a_branch_is_not_blamed_for_what_its_target_gained_meanwhile(repository):
    """The gate of a branch that changes no code ended with a regression when the target had improved."""
    suite = write_suite(repository, **SMALL)
    commit(repository, "suite")
    git(repository, "checkout", "--quiet", "-b", "docs")
    (repository / "page.md").write_text("A page.")
    commit(repository, "a page")
    git(repository, "checkout", "--quiet", "main")
    edit(repository, "nll = 3.0 +", "nll = 2.9 +")
    commit(repository, "better")
    git(repository, "checkout", "--quiet", "docs")
    done = bench("gate", suite, "--against", "main", "--pairs", 1)
    assert done.exit_code == 0, done.output
    assert re.search(r"base: merge base of main and HEAD \([0-9a-f]{10}\), on", done.stdout)
    assert verdict(repository).base.name.startswith("merge base of main and HEAD (")
    done = bench("gate", suite, "--against-tip", "main", "--pairs", 1)
    assert done.exit_code == 4, done.output
    assert "base: main (" in done.stdout


def test_a_regression_that_does_not_recur_in_a_second_session_is_none(repository):
    """Twice as slow, and a hundredth of a nat worse, for as long as the first session lasts."""
    suite = write_suite(repository, grid={"kind": ["a", "b"], "tokens": [8]})
    slower = 'took *= (1 if "again" in ctx.out.parts or cell.params["kind"] == "b" else 2) * '
    edit(repository, "took *= ", slower)
    edit(repository, "nll = 3.0 +", 'nll = 3.0 + ("again" not in ctx.out.parts) * 0.01 +')
    done = bench("gate", suite, "--against", "main", "--pairs", 5)
    assert done.exit_code == 0, done.output
    assert "measured again in a second session: 4 regressions" in done.stdout
    report = verdict(repository)
    found = {(j.cell, j.metric): j for j in report.judgements}
    doubted = {key for key, j in found.items() if j.verdict == "inconclusive"}
    assert doubted == {("a 8", "latency"), ("a 8", "speed"), ("a 8", "nll"), ("b 8", "nll")}
    once = "regressed in one session, but not in a second one (pass, "
    assert found["a 8", "latency"].reason.startswith(f"{once}× ")
    assert found["b 8", "nll"].reason == f"{once}equal)"
    assert "4 regressions measured again in a second session: 0 recurred" in report.notes


def test_a_regression_is_confirmed_in_other_processes_at_another_path(repository):
    suite = write_suite(repository, grid={"kind": ["a", "b"], "tokens": [8]})
    edit(repository, 'series.write_text(f"{nll}\\n")', "series.write_text(__file__)")
    commit(repository, "says where it is")
    edit(repository, "nll = 3.0 +", 'nll = 3.0 + (cell.params["kind"] == "b") * 0.01 +')
    done = bench("gate", suite, "--against", "main", "--pairs", 1)
    assert done.exit_code == 4, done.output
    report = verdict(repository)
    assert "1 regression measured again in a second session: 1 recurred" in report.notes
    (folder,) = (repository / "results/toys/gates").iterdir()
    runs = [folder / "base", folder / "head", folder / "again/base", folder / "again/head"]
    found = [read_records(run / "records.jsonl")[0] for run in runs]
    assert [[r.label for r in records] for records in found] == [["a 8", "b 8"]] * 2 + [["b 8"]] * 2
    places = {
        (run / records[-1].artifacts[0].path).read_text() for run, records in zip(runs, found, strict=True)
    }
    assert len(places) == 3  # two worktrees of the base, and the working tree


def test_an_unchanged_tree_passes_and_says_that_it_is_unchanged(repository):
    suite = write_suite(repository, **SMALL)
    done = bench("gate", suite, "--against", "HEAD", "--pairs", 3)
    assert done.exit_code == 0, done.output
    assert "both sides run the same code" in done.stdout
    (summary,) = (repository / "results/toys/gates").glob("*/summary.md")
    assert re.match(r"### [✅❔] toys: (passed|no regression found)", summary.read_text())


def test_cells_of_a_new_parameter_are_new_and_all_others_are_judged(repository):
    edit(repository, "    tokens: int = 12", "    tokens: int = 12\n    level: int = 0")
    given = {"tokens": 8, "level": 0}  # its default: what the base does, too
    new = [{"kind": "a", "level": 5}, {"kind": "b"}]
    suite = write_suite(repository, defaults=given, grid={"kind": ["a"], "tokens": [8, 4]}, include=new)
    words = [sys.executable, "-m", "bench", "gate", suite, "--against", "main", "--pairs", "1"]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {(j.cell, j.metric): j for j in verdict(repository).judgements}
    level = found["a 8 (level=5)", "status"]
    assert level.verdict == "incomparable"
    assert re.match(r"new: .*toys.yaml:1:\d+: .*no parameter 'level'", level.reason)
    judged = [cell for (cell, metric), j in found.items() if metric == "nll" and j.verdict == "pass"]
    assert judged == ["a 4", "a 8 (level=0)", "b 8"]
    assert "1 cell of the suite is new and not judged" in done.stdout
    assert "as a whole" not in done.stdout  # the others are still measured in turn, pass by pass
    words += ["--only", "a 8 (level=5)"]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True)
    assert (done.returncode, "base cannot be measured" in done.stderr) == (2, False)
    assert re.search(r"error: main .* cannot be measured: .*no parameter 'level'", done.stderr)


def test_set_and_only_reach_both_sides_whatever_their_version(repository):
    suite = write_suite(repository, grid={"kind": ["a", "b"]}, defaults={"tokens": 8})
    asked = ("--set", "tokens=4", "--set", "seed=[1, 2]", "--only", "a 4 · seed 2")
    done = bench("gate", suite, "--against", "main", "--pairs", 1, *asked)
    assert done.exit_code == 0, done.output
    found = {(j.params["tokens"], j.seed, j.cell) for j in verdict(repository).judgements}
    assert found == {(4, 2, "a 4 · seed 2")}


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_an_interruption_leaves_no_process_and_no_worktree(repository, number, to_all):
    """A terminal signals all processes, a runner that cancels a job only the first."""
    suite = write_suite(repository, grid={"kind": ["a"], "tokens": [8]})
    settings = repository / "slow.json"
    settings.write_text('{"SLEEP": 0.05}')
    words = [sys.executable, "-m", "bench", "gate", str(suite), "--against", "main", "--pairs", "200"]
    env = os.environ | {"GATETOY_SETTINGS": str(settings)}
    process = subprocess.Popen(
        words, cwd=repository, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline().startswith("base: main")
    assert process.stdout.readline().startswith("pair 1/200")
    drivers = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if to_all else os.kill)(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    _, alive = psutil.wait_procs(drivers, timeout=10)
    assert alive == []
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True)
    assert len(worktrees.stdout.splitlines()) == 1
    assert not list((repository / "results").rglob("verdict.json"))


@pytest.mark.parametrize("ref", ["nowhere", "-h", "main:x"])
def test_a_ref_that_git_does_not_know(repository, ref):
    done = bench("gate", write_suite(repository, **SMALL), f"--against={ref}")
    assert done.exit_code == 2
    assert done.stderr.count("\n") <= 2
    assert "git knows no commit" in done.stderr


def test_a_ref_whose_code_does_not_import(repository):
    edit(repository, "WORK = 3000", "WORK = (")
    commit(repository, "broken")
    git(repository, "checkout", "--quiet", "HEAD~1", "--", "helpers/gatetoy.py")
    done = bench("gate", write_suite(repository, **SMALL), "--against", "main")
    assert done.exit_code == 2
    assert "cannot be measured: " in done.stderr
    assert "gatetoy.py" in done.stderr


def test_a_ref_that_cannot_be_built(repository, monkeypatch):
    (repository / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["no-such-thing>=1"]\n')
    commit(repository, "asks for what there is not")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    done = bench("gate", write_suite(repository, **SMALL), "--against", "main")
    assert done.exit_code == 2
    assert "cannot be built: No matching distribution found for no-such-thing>=1" in done.stderr


def test_outside_of_a_checkout(place, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(place.parent))
    done = bench("gate", write_suite(place, **SMALL), "--against", "main")
    assert done.exit_code == 2
    assert "is not in a git checkout" in done.stderr


def test_a_stored_run_is_compared_with_a_new_one(place):
    suite = write_suite(place, **SMALL)
    assert bench("run", suite).exit_code == 0
    (base,) = (place / "results/toys").glob("*/env.json")
    done = bench("gate", suite, "--baseline", base.parent)
    assert done.exit_code == 0, done.output
    report = verdict(place)
    assert report.terms.mode == "stored"
    assert report.head.name != report.base.name == base.parent.name
    settings = place / "worse.json"
    settings.write_text('{"SLOTS": 1, "LOSS": 0.01, "SCATTER": 0.01}')
    words = [sys.executable, "-m", "bench", "gate", str(suite), "--baseline", "toys", "--github"]
    env = os.environ | {"GATETOY_SETTINGS": str(settings)}
    done = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    assert "::error title=regressed%3A NLL of a 8::" in done.stdout
    worse = [j for j in verdict(place).judgements if j.verdict == "regressed"]
    assert {j.metric for j in worse if j.klass != "noisy"} == {"nll", "slots"}  # times are this machine's
    assert re.search(r"\d regressions? measured again in a second session: \d recurred", done.stdout)
    assert len(list((place / "results/toys").glob("*/env.json"))) == 4  # base, head, worse, and worse again


def test_two_stored_runs_are_compared_without_measuring(place):
    suite = write_suite(place, **SMALL)
    for _ in range(2):
        assert bench("run", suite, "--new").exit_code == 0
    base, head = sorted(path.parent for path in (place / "results/toys").glob("*/env.json"))
    done = bench("gate", suite, "--baseline", base, "--head", head)
    assert done.exit_code == 0, done.output
    assert len(list((place / "results/toys").glob("*/env.json"))) == 2
    done = bench("gate", suite, "--baseline", base, "--head", head, "--set", "seed=7")
    assert done.exit_code == 5, "neither run has such a cell"
    done = bench("gate", suite, "--baseline", base, "--head", base)
    assert done.exit_code == 2
    assert "the same run" in done.stderr


def test_another_machine_is_nothing_to_compare_with(place):
    from bench.results.environment import fingerprint_id

    suite = write_suite(place, **SMALL)
    assert bench("run", suite).exit_code == 0
    assert bench("run", suite, "--new").exit_code == 0
    base, head = sorted(path.parent for path in (place / "results/toys").glob("*/env.json"))
    env = json.loads((base / "env.json").read_text())
    env["cpu"]["model"] = "Another CPU"
    text = (base / "records.jsonl").read_text().replace(env["id"], fingerprint_id(env))
    env["id"] = fingerprint_id(env)
    (base / "env.json").write_text(json.dumps(env))
    records = [with_digest(Record.model_validate_json(line)) for line in text.splitlines()]
    (base / "records.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records))
    done = bench("gate", suite, "--baseline", base, "--head", head)
    assert done.exit_code == 5, done.output
    assert "the fingerprints differ in cpu.model" in done.stdout
    assert bench("gate", suite, "--baseline", base, "--head", head, "--accept", "cpu.model").exit_code == 0


def test_a_run_edited_by_hand_is_refused_on_either_side_with_its_line(place):
    suite = write_suite(place, **SMALL)
    assert bench("run", suite).exit_code == 0
    assert bench("run", suite, "--new").exit_code == 0
    base, head = sorted(path.parent for path in (place / "results/toys").glob("*/env.json"))
    lines = (base / "records.jsonl").read_text().splitlines(keepends=True)
    data = json.loads(lines[1])
    data["metrics"]["slots"]["value"] += 1
    (base / "records.jsonl").write_text("".join([lines[0], json.dumps(data) + "\n", *lines[2:]]))
    for words in (("--baseline", base, "--head", head), ("--baseline", head, "--head", base)):
        done = bench("gate", suite, *words)
        assert done.exit_code == 2, done.output
        assert f"records.jsonl:2: {data['label']!r} (cell {data['cell']}) was edited after" in done.stderr
        assert "verdict" not in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "nothing to compare with"),
        (("--baseline", "a", "--baseline", "b"), "2 baselines were given"),
        (("--baseline", "a", "--against", "b"), "exclude each other"),
        (("--against", "b", "--head", "c"), "--head is for stored runs"),
        (("--against", "b", "--against-tip", "c"), "--against and --against-tip exclude each other"),
        (("--baseline", "a", "--head", ""), "--head is empty"),
        (("--baseline", "a", "--allowance", "inf"), "--allowance inf: should be a share"),
        (("--baseline", "a", "--export", "junit=."), "--export junit=.: is a folder"),
        (("--baseline", "a", "--until-decided"), "--until-decided adds pairs"),
        (("--against", "a", "--alpha", "2"), "--alpha 2: should lie between 0 and 0.5"),
        (("--against", "a", "--until-decided", "--max-pairs", "2"), "--max-pairs 2 is less than --pairs 6"),
        (("--baseline", "a", "--pairs", "3"), "--pairs does nothing with --baseline"),
        (("--baseline", "a", "--max-pairs", "30"), "--max-pairs does nothing with --baseline"),
        (("--baseline", "a", "--extras", "ddpo"), "--extras does nothing with --baseline"),
        (("--against", "a", "--allowance", "0.1"), "--allowance does nothing with --against"),
        (("--against", "a", "--accept", "packages.*"), "--accept does nothing with --against"),
        (("--against", "a", "--max-pairs", "30"), "--max-pairs is the limit of --until-decided"),
        (("--baseline", "a", "--head", "b", "--wait"), "--wait does nothing with --head"),
        (("--baseline", "a", "--export", "junit=x", "--export", "json=./x"), "x is the file of junit, too"),
        (("--baseline", "nowhere"), "no run of 'nowhere'"),
        (
            ("--baseline", "a", "--export", "junitt=x"),
            "unknown format 'junitt'\n  hint: did you mean 'junit'?",
        ),
        (("--baseline", "a", "--export", "junit"), "not of the form FORMAT=FILE"),
    ],
)
def test_senseless_requests_get_one_clear_line(place, words, told):
    done = bench("gate", write_suite(place, **SMALL), *words)
    assert done.exit_code == 2
    assert told in done.stderr
    assert not list((place / "results").rglob("verdict.json"))
    assert not list((place / "results").glob("toys/gates/*"))


def test_a_calibration_at_an_impossible_level_measures_nothing(place):
    done = bench("calibrate", write_suite(place, **SMALL), "--alpha", "0.7")
    assert done.exit_code == 2
    assert "--alpha 0.7: should lie between 0 and 0.5" in done.stderr
    assert not list((place / "results").glob("toys/calibrations/*"))


def test_too_few_pairs_are_warned_of_before_anything_is_measured(repository):
    """At two pairs a latency ten times as long ends with exit code 0: nobody may take that for an answer."""
    suite = write_suite(repository, **SMALL)
    edit(repository, "took *= ", "took *= 10 * ")
    done = bench("gate", suite, "--against", "main", "--pairs", 2)
    assert done.exit_code == 0, done.output
    warning = "2 pairs cannot decide any noisy metric (quickest token, speed, peak RSS and 1 more)"
    assert done.stdout.startswith(f"warning: {warning}")
    assert any(note.startswith(warning) for note in verdict(repository).notes)


def test_a_calibration_raises_the_thresholds_of_a_gate(repository, monkeypatch):
    settings = repository / "loud.json"
    settings.write_text('{"SCATTER": 0.1}')
    monkeypatch.setenv("GATETOY_SETTINGS", str(settings))
    suite = write_suite(repository, **SMALL)
    assert bench("calibrate", suite, "--pairs", 6).exit_code == 0
    (noise,) = (repository / "results/toys/calibrations").glob("*/calibration.json")
    done = bench("gate", suite, "--against", "HEAD", "--pairs", 6, "--noise", noise)
    assert done.exit_code == 0, done.output
    report = verdict(repository)
    assert (
        "warning: thresholds raised to what this machine can resolve: quickest token 10 % → " in done.stdout
    )
    found = {j.metric: j for j in report.judgements}
    assert found["latency"].tolerance == pytest.approx(0.19, abs=0.01)
    assert (found["slots"].tolerance, found["nll"].tolerance) == (0, 0.001)
    refused = bench("gate", suite, "--baseline", "toys", "--noise", noise)
    assert "--noise is that of pairs in one session" in refused.stderr


def test_runs_of_other_suites_are_refused(place):
    other = write_suite(place, suite="others", grid={"kind": ["a"], "tokens": [4]})
    assert bench("run", other).exit_code == 0
    done = bench("gate", write_suite(place, **SMALL), "--baseline", "others")
    assert done.exit_code == 2
    assert "is a run of suite 'others', not of 'toys'" in done.stderr
    assert not list((place / "results").rglob("verdict.json"))


def test_a_job_summary_is_appended_to(place, monkeypatch):
    suite = write_suite(place, **SMALL)
    assert bench("run", suite).exit_code == 0
    summary = place / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert bench("gate", suite, "--baseline", "toys", "--github").exit_code == 0
    assert re.match(r"before\n### [✅❔] toys: (passed|no regression found)", summary.read_text())


def test_the_verdict_file_has_a_schema(place):
    suite = write_suite(place, **SMALL)
    assert bench("run", suite).exit_code == 0
    assert bench("gate", suite, "--baseline", "toys").exit_code == 0
    (path,) = (place / "results").rglob("verdict.json")
    jsonschema.validate(json.loads(path.read_text()), GateReport.model_json_schema())


def test_calibration_prints_noise_and_warns_of_thresholds_below_it(repository):
    suite = write_suite(repository, **SMALL, tolerances={"latency": 0.0001, "rss": 0.5})
    done = bench("calibrate", suite, "--pairs", 4)
    assert done.exit_code == 0, done.output
    assert "the threshold of 0.01 % is below the" in done.stdout
    (path,) = (repository / "results/toys/calibrations").glob("*/calibration.json")
    data = json.loads(path.read_text())
    assert data["pairs"] == 4
    assert {one["metric"] for one in data["metrics"]} == {"slots", "fed", "nll", "latency", "speed", "rss"}


def test_only_finds_a_cell_whose_label_the_base_does_not_know(place, monkeypatch):
    from helpers.gatetoy import GateToy

    monkeypatch.setattr(GateToy, "label", lambda self, params: params.kind)
    assert bench("run", write_suite(place, grid={"kind": ["a", "b"], "tokens": [8]})).exit_code == 0
    suite = write_suite(place, grid={"kind": ["a", "b"], "tokens": [8, 16]})
    assert bench("run", suite, "--new").exit_code == 0
    base, head = sorted(path.parent for path in (place / "results/toys").glob("*/env.json"))
    records = [record.model_copy(deep=True) for record in read_records(head / "records.jsonl")[0]]
    for record in records:
        record.metrics["slots"] = record.metrics["slots"].model_copy(update={"value": 99})
    text = "".join(with_digest(record).model_dump_json() + "\n" for record in records)
    (head / "records.jsonl").write_text(text)
    done = bench("gate", suite, "--baseline", base, "--head", head, "--only", "a (tokens=8)")
    assert done.exit_code == 4, done.output
    judged = verdict(place).judgements
    assert {found.cell for found in judged} == {"a (tokens=8)"}
    assert verdicts(judged, "slots") == ["regressed"]


def test_a_hook_of_git_has_no_say_in_what_a_gate_asks_git(repository, monkeypatch):
    """Within a hook git's variables name the repository and the index of the commit that is being made."""
    suite = write_suite(repository, **SMALL)
    commit(repository, "suite")
    before = subprocess.check_output(["git", "status", "--porcelain"], cwd=repository)
    index = repository / ".git" / "index"
    monkeypatch.setenv("GIT_INDEX_FILE", str(index))
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    kept = index.read_bytes()
    done = bench("gate", suite, "--against", "HEAD~1", "--pairs", "3")
    assert done.exit_code in (0, 4, 5), done.output
    assert index.read_bytes() == kept
    monkeypatch.undo()
    assert subprocess.check_output(["git", "status", "--porcelain"], cwd=repository) == before
