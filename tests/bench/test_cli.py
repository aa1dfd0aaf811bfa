"""The command line as a user meets it: real processes, real signals, real files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.results.store import read_records
from helpers.toy import gone

HERE = Path(__file__).parents[1]
ROOT = HERE.parent
# Registers the toy; draws no pictures unless a test is about them.
TOY = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(ROOT)!r}]
from bench import registry
registry.register("toy", "helpers.toy:Toy")
if "REAL_REPORT" not in __import__("os").environ:
    import bench.report
    def render(folder, workload):
        (folder / "README.md").write_text("drawn")
        return folder / "README.md"
    bench.report.render = render
from bench.cli import main
main()
"""


class Place:
    """A folder with a suite in it, and the command line to use there."""

    def __init__(self, folder):
        self.folder = folder
        self.env = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def suite(self, name="toys", **keys):
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({"suite": name, "workload": "toy", **keys}))  # JSON is YAML
        return path.name

    def start(self, *words, **env):
        command = [sys.executable, "-c", TOY, *map(str, words)]
        pipes = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "start_new_session": True,
        }
        return subprocess.Popen(command, cwd=self.folder, env=self.env | env, **pipes)

    def bench(self, *words, **env):
        process = self.start(*words, **env)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def runs(self, suite="toys"):
        return sorted(path.parent for path in (self.folder / "results" / suite).glob("*/env.json"))

    def statuses(self, suite="toys"):
        records, damaged = read_records(self.runs(suite)[-1] / "records.jsonl")
        assert not damaged
        return {record.label: str(record.status) for record in records}

    def trace(self):
        path = self.folder / "trace.txt"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def inside(place, monkeypatch):
    """The command line within this process (its children are real ones): quicker by far."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setitem(registry._registered, "toy", "helpers.toy:Toy")
    monkeypatch.setenv("COLUMNS", "200")

    def render(folder, workload):
        (folder / "README.md").write_text("drawn")
        return folder / "README.md"

    monkeypatch.setattr("bench.report.render", render)

    def inside(*words, **env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        done = CliRunner().invoke(app, list(map(str, words)))
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    return inside


def await_trace(place, count, seconds=30):
    deadline = time.monotonic() + seconds
    while len(place.trace()) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(place.trace()) >= count


SLOW = {"grid": {"length": [2, 1000]}, "defaults": {"speed": 0.05}}


def test_a_suite_is_measured_reported_and_then_finished(place):
    suite = place.suite(grid={"mode": ["ok"], "length": [4, 8]})
    first = place.bench(suite)
    assert first.returncode == 0, first.stderr
    assert "2 cells in 1 pass" in first.stdout
    assert "ok 8  total 28 units" in first.stdout
    (run,) = place.runs()
    assert {path.name for path in run.iterdir()} >= {
        *("records.jsonl", "records.parquet", "env.json", "suite.yaml", "plan.json"),
        *("artifacts", "logs", "README.md"),
    }
    assert (run / "suite.yaml").read_text() == (place.folder / suite).read_text()
    before = (run / "records.jsonl").read_bytes()
    second = place.bench("run", suite)
    assert second.returncode == 0
    assert "is finished: nothing to do" in second.stdout
    assert place.runs() == [run]
    assert (run / "records.jsonl").read_bytes() == before


def test_a_finished_suite_needs_no_child_and_nothing_heavy(place):
    suite = place.suite(grid={"length": [4, 8]})
    assert place.bench(suite).returncode == 0
    watched = TOY.replace("main()\n", "") + (
        "import atexit\n"
        "heavy = {'torch', 'pandas', 'numpy', 'pyarrow', 'matplotlib', 'ray'}\n"
        "heavy |= {'multiprocessing.popen_forkserver'}\n"
        "atexit.register(lambda: print('heavy:', sorted(heavy & set(sys.modules))))\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", watched, suite],
        cwd=place.folder,
        env=place.env,
        capture_output=True,
        text=True,
    )
    assert "heavy: []" in done.stdout, done.stdout + done.stderr


def test_the_real_report_is_drawn(place):
    suite = place.suite(grid={"mode": ["ok", "raise"], "length": [4, 8]})
    done = place.bench(suite, REAL_REPORT="1")
    assert done.returncode == 3, done.stderr
    page = (place.runs()[0] / "README.md").read_text()
    assert "2 of 4 cells measured" in page
    assert "something went wrong" in page
    assert "python -m bench toys.yaml --new" in page, "it lies in no folder suites/"
    again = place.bench("report", "toys", REAL_REPORT="1")
    assert again.returncode == 0, again.stderr
    assert str(place.runs()[0].relative_to(place.folder)) in again.stdout


def test_failures_are_rows_and_exit_code_3(place, inside):
    modes = ["ok", "raise", "segfault", "sigkill", "nan", "skip", "exit"]
    done = inside(place.suite(grid={"mode": modes, "length": [4, 8]}, defaults={"at": 8}))
    assert done.returncode == 3, done.stderr
    found = place.statuses()
    assert {label: status for label, status in found.items() if label.endswith(" 4")} == {
        f"{m} 4": "ok" for m in modes
    }
    expected = {"ok": "ok", "nan": "nan", "skip": "skipped"}
    assert all(found[f"{mode} 8"] == expected.get(mode, "error") for mode in modes)
    assert "crashed with SIGSEGV" in done.stdout
    assert "5 of them can be measured again" in done.stdout
    assert "--retry-failed" in done.stdout


def test_failed_cells_stay_answered_until_asked_for(place, inside):
    suite = place.suite(grid={"mode": ["raise"], "length": [4, 8]}, defaults={"scratch": str(place.folder)})
    assert inside(suite).returncode == 3
    tried = len(place.trace())
    assert inside(suite).returncode == 3
    assert len(place.trace()) == tried
    assert inside(suite, "--retry-failed").returncode == 3
    assert len(place.trace()) > tried


def test_nothing_but_skipped_cells_is_not_a_success(place, inside):
    done = inside(place.suite(grid={"mode": ["skip"], "length": [4]}))
    assert done.returncode == 3
    assert "nothing was measured: weights not available offline" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_keeps_what_is_answered_and_says_how_to_go_on(place, number, code):
    suite = place.suite(**SLOW | {"defaults": {"speed": 0.05, "scratch": str(place.folder)}})
    process = place.start(suite, "--set", "at=3")
    await_trace(place, 2)  # the second cell has begun, so the first is answered
    os.killpg(process.pid, number)  # as a terminal does it: to the fork server, too
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "interrupted; 1 of 2 cells are answered" in out
    assert f"python -m bench {suite} --set at=3" in out
    assert "Traceback" not in err
    assert place.statuses() == {"ok 2": "ok"}
    child = int(place.trace()[-1].split()[0])
    assert gone(child)


def test_a_killed_run_is_resumed_and_loses_at_most_the_running_pass(place):
    def suite(speed):
        """Quick and slow cells: one pass each, because scratch differs."""
        shared = {"scratch": str(place.folder)}
        return place.suite(include=[{**shared, "length": 4}, {**shared, "length": 1000, "speed": speed}])

    process = place.start(suite(0.05))
    await_trace(place, 2)
    process.kill()
    process.wait()
    child = int(place.trace()[-1].split()[0])
    deadline = time.monotonic() + 10
    while not gone(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(child)
    assert place.statuses() == {"ok 4": "ok"}
    # The same run goes on, with the slow cell replaced: a suite edited between run and resume.
    done = place.bench(suite(0.0001))
    assert done.returncode == 0, done.stderr
    assert "1 cell in 1 pass (1 answered before)" in done.stdout
    assert place.statuses() == {"ok 4": "ok", "ok 1000": "ok"}
    assert len(place.runs()) == 1


def test_an_edited_suite_measures_what_changed_and_keeps_the_rest(place, inside):
    scratch = {"scratch": str(place.folder)}
    assert inside(place.suite(grid={"length": [4, 8]}, defaults=scratch)).returncode == 0
    assert [line.split()[1:] for line in place.trace()] == [["ok", "4"], ["ok", "8"]]
    done = inside(place.suite(grid={"length": [8, 16]}, defaults=scratch))
    assert done.returncode == 0, done.stderr
    assert "1 record kept of cells that the suite (or its code) no longer has" in done.stdout
    assert [line.split()[1:] for line in place.trace()[2:]] == [["ok", "16"]]
    assert (
        json.loads((place.runs()[0] / "plan.json").read_text())["passes"][0]["cells"][-1]["label"] == "ok 16"
    )


def test_records_of_an_older_code_version_answer_nothing(place, inside):
    suite = place.suite(grid={"length": [4]}, defaults={"scratch": str(place.folder)})
    assert inside(suite, TOY_VERSION="1").returncode == 0
    assert inside(suite, TOY_VERSION="2").returncode == 0
    assert len(place.trace()) == 2
    assert inside(suite, TOY_VERSION="1").returncode == 0
    assert len(place.trace()) == 2


def test_a_torn_record_is_set_aside_and_its_cell_measured_again(place, inside):
    suite = place.suite(grid={"length": [4, 8]})
    assert inside(suite).returncode == 0
    path = place.runs()[0] / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    done = inside(suite)
    assert done.returncode == 0, done.stderr
    assert "1 damaged line set aside" in done.stdout
    assert "1 cell in 1 pass (1 answered before)" in done.stdout
    assert place.statuses() == {"ok 4": "ok", "ok 8": "ok"}


def test_a_report_older_than_the_records_is_drawn_again(place, inside):
    """A run killed while it drew its report has all its records."""
    suite = place.suite(grid={"length": [4]})
    assert inside(suite).returncode == 0
    readme = place.runs()[0] / "README.md"
    readme.write_text("from before")
    assert inside(suite).returncode == 0
    assert readme.read_text() == "from before"
    os.utime(readme, (1, 1))
    assert inside(suite).returncode == 0
    assert readme.read_text() == "drawn"


def test_a_second_run_is_refused_and_one_that_waits_finds_it_finished(place):
    suite = place.suite(grid={"length": [2, 60]}, defaults={"speed": 0.05, "scratch": str(place.folder)})
    first = place.start(suite)
    await_trace(place, 1)
    refused = place.bench(suite)
    assert refused.returncode == 2
    assert f"in use by process {first.pid}" in refused.stderr
    assert "--wait" in refused.stderr
    waited = place.bench(suite, "--wait")
    assert waited.returncode == 0, waited.stderr
    assert f"waiting for process {first.pid}" in waited.stdout
    assert "is finished" in waited.stdout
    assert first.wait(30) == 0
    assert len(place.runs()) == 1


def test_new_starts_a_run_of_its_own(place, inside):
    suite = place.suite(grid={"length": [4]})
    assert inside(suite).returncode == 0
    assert inside(suite, "--new").returncode == 0
    assert len(place.runs()) == 2


def test_another_environment_starts_a_new_run_and_says_why(place, inside):
    suite = place.suite(grid={"length": [4]})
    assert inside(suite).returncode == 0
    done = inside(suite, OMP_NUM_THREADS="7")
    assert done.returncode == 0
    assert "starting a new run: the newest run" in done.stdout
    assert "threads.OMP_NUM_THREADS" in done.stdout
    assert len(place.runs()) == 2


def test_only_measures_a_part_and_a_later_run_the_rest(place, inside):
    suite = place.suite(grid={"mode": ["ok", "slow"], "length": [4, 8]})
    assert inside(suite, "--only", "OK*").returncode == 0
    assert set(place.statuses()) == {"ok 4", "ok 8"}
    assert inside(suite).returncode == 0
    assert set(place.statuses()) == {"ok 4", "ok 8", "slow 4", "slow 8"}
    nothing = inside(suite, "--only", "sink*")
    assert nothing.returncode == 2
    assert "matches no cell" in nothing.stderr
    assert "ok 4" in nothing.stderr


def test_set_changes_a_default_in_a_run_of_its_own(place, inside):
    suite = place.suite(grid={"length": [4]})
    assert inside(suite).returncode == 0
    assert inside(suite, "--set", "mode=slow").returncode == 0
    assert place.statuses() == {"slow 4": "ok"}
    assert "is finished" in inside(suite, "--set", "mode=slow").stdout
    assert "is finished" in inside(suite).stdout
    assert len(place.runs()) == 2


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("mdoe=ok", "--set mdoe: workload 'toy' has no such parameter", "did you mean 'mode'?"),
        ("length=8", "toys.yaml:1:47: --set length: the suite varies it in its grid here", "--only"),
        ("speed=1", "toys.yaml:1:76: --set speed: the suite sets it to 0.5 in an included cell", "--only"),
        ("mode=okay", "mode", "ok"),
        ("mode=no", "--set: mode: 'no' is not one of its values", "valid"),
        ("timeout=-1", "--set timeout: should be greater than 0", ""),
        ("repeat=no", "--set repeat: should be a valid integer, got 'no'", ""),
        ("mode", "not of the form key=value", "--set dtype=float32"),
        ("mode={", "--set mode={", "quotes"),
    ],
)
def test_a_wrong_set_is_a_clear_error(place, inside, setting, message, hint):
    done = inside(place.suite(grid={"length": [4]}, include=[{"speed": 0.5}]), "--set", setting)
    assert done.returncode == 2
    assert message in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place.folder / "results").exists()


def test_set_reaches_seed_repeat_and_timeout(place, inside):
    suite = place.suite(defaults={"mode": "hang", "length": 4})
    done = inside(suite, "--set", "seed=[1, 2]", "--set", "repeat=2", "--set", "timeout=0.5")
    assert done.returncode == 3, done.stderr
    records, _ = read_records(place.runs()[-1] / "records.jsonl")
    assert {(r.seed, r.repeat, str(r.status)) for r in records} == {
        (seed, repeat, "timeout") for seed in (1, 2) for repeat in (0, 1)
    }


def test_device_is_a_set_like_any_other(place, inside):
    suite = place.suite(grid={"length": [4]})
    assert "--set device: workload 'toy' has no such parameter" in inside(suite, "--device", "cpu").stderr
    twice = inside(suite, "--device", "cpu", "--set", "device=cuda")
    assert "--set device is given twice" in twice.stderr


def test_plan_prints_cost_and_saving_and_runs_nothing(place, inside):
    done = inside("plan", place.suite(grid={"mode": ["ok", "raise"], "length": [8, 16]}))
    assert done.returncode == 0, done.output
    assert "toys: 4 cells in 2 passes, 32 numbers" in done.stdout
    assert "48 numbers: sharing saves 33%" in done.stdout
    assert not (place.folder / "results").exists()


def test_a_misspelt_suite_or_command_finds_the_nearest(place, inside):
    place.suite()
    done = inside("toy.yaml")
    assert done.returncode == 2
    assert "did you mean toys.yaml" in done.stderr
    assert "Traceback" not in done.stderr
    done = inside("reprot")
    assert done.returncode == 2
    assert "Did you mean 'report'?" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--results", "a", "--results", "b"), "--results is given twice"),
        (("--jobs", "1", "--jobs=2"), "--jobs is given twice"),
        (("--results", ""), "--results is empty"),
        (("--results=",), "--results is empty"),
    ],
)
def test_a_word_that_would_be_lost_or_mean_another_folder_is_refused(place, inside, words, said):
    """Of two the last one counted; an unset variable meant the folder one was in."""
    done = inside(place.suite(grid={"length": [4]}), *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert [path.name for path in place.folder.iterdir()] == ["toys.yaml"]


def test_a_suite_in_suites_is_found_by_its_name(place, inside):
    (place.folder / "suites").mkdir()
    place.suite("suites/inner")
    (place.folder / "suites/inner.yaml").write_text(
        '{"suite": "inner", "workload": "toy", "defaults": {"length": 4}}'
    )
    assert inside("inner").returncode == 0
    assert place.statuses("inner") == {"ok 4": "ok"}


def test_report_of_a_suite_without_a_run_is_a_clear_error(inside):
    done = inside("report", "toys")
    assert done.returncode == 2
    assert "no run of 'toys' in results" in done.stderr


def test_a_results_folder_that_cannot_be_written_is_a_clear_error(place, inside):
    """Root may write to read-only folders, so a file stands where the folder should be."""
    (place.folder / "results").write_text("a file")
    done = inside(place.suite(grid={"length": [4]}))
    assert done.returncode == 2
    assert "cannot use results/toys for results: Not a directory" in done.stderr
    assert "--results" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("this test mounts a small tmpfs, which needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(place, inside, small_disk):
    """The disk fills while the suite runs; with room again the same command goes on."""
    suite = place.suite(
        grid={"mode": ["ok", "big"], "length": [4, 8]}, defaults={"scratch": str(place.folder)}
    )
    done = inside(suite, "--results", small_disk)  # a big answer is 2 MiB
    assert done.returncode == 2, done.stdout
    assert "cannot write to" in done.stderr
    assert "No space left on device" in done.stderr
    assert "2 records are kept" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = (path.parent for path in (small_disk / "toys").glob("*/records.jsonl"))
    records, damaged = read_records(run / "records.jsonl")
    assert [record.label for record in records] == ["ok 4", "ok 8"]
    assert not damaged
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    done = inside(suite, "--results", small_disk)
    assert done.returncode == 3
    assert "(2 answered before)" in done.stdout
    assert len(read_records(run / "records.jsonl")[0]) == 4


def test_help_imports_nothing_heavy(place):
    code = """
import sys
sys.argv = ["bench", "--help"]
try:
    from bench.__main__ import main
    main()
finally:
    heavy = {"torch", "numpy", "pandas", "scipy", "pyarrow", "matplotlib", "pydantic", "jinja2", "ray"}
    print("heavy:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=place.env, capture_output=True, text=True
    )
    assert done.stdout.endswith("heavy: []\n"), done.stdout + done.stderr
    assert "doctor" in done.stdout


@pytest.mark.parametrize("command", ["run", "plan", "report", "doctor", "schema", "verify"])
def test_every_command_teaches_by_example(inside, command):
    done = inside(command, "--help")
    assert done.returncode == 0
    assert f"Example: python -m bench {command}" in done.stdout


def test_doctor_looks_at_everything(place):
    done = place.bench("doctor", DDPOSINK_CACHE=str(place.folder / "cache"))
    assert done.returncode == 0, done.stderr
    for word in ("processor", "memory", "disk", "GPU", "torch", "transformers", "trl", "ray", "asset"):
        assert word in done.stdout
    assert "switched off by HF_HUB_OFFLINE" in done.stdout
    assert "is not in the cache" in done.stdout


def test_schema_is_printed_and_written(place):
    printed = place.bench("schema")
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout)["title"] == "ddposink suite"
    assert place.bench("schema", "--write").returncode == 2  # no suites folder here
    (place.folder / "suites").mkdir()
    assert place.bench("schema", "--write").returncode == 0
    assert (place.folder / "suites/schema.json").read_text() == printed.stdout


def test_a_terminal_gets_moving_bars(place):
    """Under a pseudo-terminal the live view moves; the answers are printed above it."""
    import pty

    suite = place.suite(grid={"length": [4, 60]}, defaults={"speed": 0.03})
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place.folder)
        os.execve(sys.executable, [sys.executable, "-c", TOY, suite], place.env | {"TERM": "xterm"})
    text = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        text += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    shown = text.decode()
    assert "━" in shown
    assert "1 pass" in shown
    assert "sum " in shown
    assert "total 1,770 units" in shown


def test_a_page_is_drawn_of_what_was_measured_also_when_the_clock_was_set_back(place):
    suite = place.suite(grid={"length": [4, 8]})
    assert place.bench(suite, "--only", "ok 4").returncode == 0
    (folder,) = place.runs()
    page = folder / "README.md"
    page.write_text("of one cell")
    os.utime(page, (time.time() + 7200,) * 2)
    assert place.bench(suite).returncode == 0
    assert page.read_text() == "drawn"
