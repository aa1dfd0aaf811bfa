"""Real children that end in every way a child can end."""

import dataclasses
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial

import pytest

from bench.results.record import Status, Value
from bench.run.context import as_value
from bench.run.launch import LocalLauncher
from bench.run.worker import outcome
from bench.workload import Missing, Samples, Skip
from helpers import toyruns
from helpers.passes import finish, make_job, make_pass
from helpers.toy import gone


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    return LocalLauncher(("json",), tmp_path_factory.mktemp("server") / "server.log")


def play(launcher, tmp_path, mode="ok", *, job=None, **params):
    """Run a pass to its end; its events by name, how it ended, and its log."""
    running = launcher.launch(
        make_job(tmp_path, make_pass(mode, **({"lengths": (4, 8)} | params)), **(job or {}))
    )
    events = finish(running)
    kinds = {kind: [e for e in events if e["event"] == kind] for kind in ("ready", "cell", "progress")}
    return kinds, running.end, (tmp_path / "logs" / "pass.log").read_text()


eventually = partial(toyruns.eventually, seconds=10)


def test_a_pass_reports_readiness_cells_and_its_end(launcher, tmp_path):
    events, end, log = play(launcher, tmp_path)
    assert (end.status, end.reason) == (None, None)
    (ready,) = events["ready"]
    assert ready["startup_s"] > 0
    assert ready["not_preloaded"] == []
    four, eight = events["cell"]
    assert four["metrics"]["total"] == {"value": 6, "unit": "units", "reason": None, "samples": None}
    assert eight["metrics"]["total"]["value"] == 28
    assert eight["metrics"]["ms"]["samples"] == [1.0, 2.0]
    assert eight["metrics"]["vram"]["reason"] == "no GPU"
    assert eight["facts"] == {"seen": 8}
    (artifact,) = eight["artifacts"]
    assert artifact["path"] == "artifacts/0-ok/series.txt"
    assert artifact["bytes"] == len("6\n28\n")
    assert "toy begins" in log


def test_a_child_measures_only_what_was_planned(launcher, tmp_path):
    work = make_pass(lengths=(4, 8))
    running = launcher.launch(make_job(tmp_path, dataclasses.replace(work, identity={"data": "toy"})))
    assert [event["event"] for event in finish(running)].count("cell") == 2
    running = launcher.launch(make_job(tmp_path, dataclasses.replace(work, identity={"data": "older"})))
    assert not [event for event in finish(running) if event["event"] == "cell"]
    assert running.end.status is Status.ERROR
    assert running.end.reason.startswith(
        "OtherDataError: the data has changed since the run was planned: data was older and is toy; run the"
    )


def test_a_child_is_a_fresh_process_each_time(launcher, tmp_path):
    pids = set()
    for _ in range(2):
        play(launcher, tmp_path, scratch=str(tmp_path))
        pids |= {line.split()[0] for line in (tmp_path / "trace.txt").read_text().splitlines()}
    assert len(pids) == 2
    assert str(os.getpid()) not in pids


@pytest.mark.parametrize(
    ("mode", "status", "reason"),
    [
        ("raise", Status.ERROR, "ValueError: something went wrong"),
        ("abort", Status.ERROR, "crashed with SIGABRT"),
        ("segfault", Status.ERROR, "crashed with SIGSEGV"),
        ("sigkill", Status.ERROR, "killed by SIGKILL"),
        ("skip", Status.SKIPPED, "weights not available offline"),
        ("exit", Status.ERROR, "the process ended without a word (exit code 7)"),
        ("wordless_exit", Status.ERROR, "the process ended without a word (exit code 0)"),
        ("sys_exit", Status.ERROR, "SystemExit: enough"),
        ("alloc_error", Status.OOM, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("undeclared", Status.ERROR, "ValueError: metrics not declared by the workload: surprise"),
        ("foreign", Status.ERROR, "ValueError: cell foreign is not part of this pass"),
    ],
)
def test_every_end_after_a_first_answer(launcher, tmp_path, mode, status, reason):
    events, end, log = play(launcher, tmp_path, mode, at=8)
    assert end.status is status
    assert end.reason.startswith(reason)
    assert [event["cell"] for event in events["cell"]] == [f"0-{mode}-4"]
    if mode == "raise":
        assert "Traceback" in log
        assert "in _misbehave" in log
    if mode in ("segfault", "abort"):
        assert "Fatal Python error" in log
        assert "in _misbehave" in log


def test_a_hang_is_a_timeout_and_the_log_shows_where(launcher, tmp_path):
    events, end, log = play(launcher, tmp_path, "hang", at=8, job={"timeout": 1.0})
    assert (end.status, end.reason) == (Status.TIMEOUT, "timed out after 1 s")
    assert len(events["cell"]) == 1
    assert "in _misbehave" in log


def test_memory_beyond_the_limit_is_out_of_memory(launcher, tmp_path):
    events, end, _ = play(launcher, tmp_path, "memory", at=8, job={"memory_limit": 512 * 2**20})
    assert end.status is Status.OOM
    assert end.reason == "MemoryError"
    assert len(events["cell"]) == 1


def test_a_kill_under_a_memory_limit_counts_as_out_of_memory(launcher, tmp_path):
    _, end, _ = play(launcher, tmp_path, "sigkill", job={"memory_limit": 4 * 2**30})
    assert end.status is Status.OOM
    assert "SIGKILL" in end.reason


def test_a_nan_becomes_null_with_its_reason(launcher, tmp_path):
    events, end, _ = play(launcher, tmp_path, "nan", lengths=(4,))
    (cell,) = events["cell"]
    assert end.status is None
    assert (cell["status"], cell["reason"]) == ("nan", "nll is nan, ms is inf")
    assert cell["metrics"]["nll"] == {
        "value": None,
        "unit": "nats",
        "reason": "measured nan",
        "samples": None,
    }
    assert cell["metrics"]["ms"]["samples"] == [1.0]


def test_a_flood_of_output_neither_blocks_nor_fills_the_disk(launcher, tmp_path):
    events, end, log = play(launcher, tmp_path, "shout", at=8)
    assert end.status is None
    assert len(events["cell"]) == 2
    assert "beginning of this log was cut" in log
    assert len(log) < 33 * 2**20


def test_grandchildren_that_hold_the_pipe_neither_delay_the_end_nor_survive_it(launcher, tmp_path):
    started = time.monotonic()
    _, end, _ = play(launcher, tmp_path, "fork", lengths=(4,), scratch=str(tmp_path))
    assert end.status is None
    assert time.monotonic() - started < 30  # they sleep for ten minutes
    lines = (tmp_path / "trace.txt").read_text().splitlines()
    pids = [int(line.split()[1]) for line in lines if line.startswith("grandchild")]
    assert len(pids) == 2
    assert eventually(lambda: all(gone(pid) for pid in pids))


def test_a_thread_that_never_ends_does_not_keep_the_child(launcher, tmp_path):
    started = time.monotonic()
    _, end, _ = play(launcher, tmp_path, "linger", lengths=(4,))
    assert end.status is None
    assert time.monotonic() - started < 30


def test_a_big_answer_passes_through_the_pipe_whole(launcher, tmp_path):
    events, end, _ = play(launcher, tmp_path, "big", lengths=(4,))
    (cell,) = events["cell"]
    assert len(cell["metrics"]["ms"]["samples"]) == 200_000
    assert end.reason == "RuntimeError: after a big answer"


def test_progress_is_rate_limited_but_the_last_step_arrives(launcher, tmp_path):
    events, _, _ = play(launcher, tmp_path, lengths=(200_000,))
    assert 1 <= len(events["progress"]) < 1000
    assert events["progress"][-1]["done"] == 200_000


def test_stop_ends_a_running_pass(launcher, tmp_path):
    running = launcher.launch(make_job(tmp_path, make_pass("hang", scratch=str(tmp_path))))
    trace = tmp_path / "trace.txt"
    assert eventually(lambda: trace.exists() and trace.read_text().endswith("\n"))
    assert running.usage()["rss_bytes"] > 0
    running.stop()
    pid = int(trace.read_text().split()[0])
    assert eventually(lambda: gone(pid))
    assert running.poll(0) == []


def test_a_workload_that_cannot_be_imported_is_an_error_of_the_pass(launcher, tmp_path):
    _, end, log = play(launcher, tmp_path, job={"target": "no_such_module:Toy"})
    assert end.status is Status.ERROR
    assert end.reason == "ModuleNotFoundError: No module named 'no_such_module'"
    assert "Traceback" in log


def test_a_server_that_dies_of_its_imports_is_replaced_by_one_without(tmp_path):
    """In a process of its own: the fork server of this one is running already."""
    (tmp_path / "poison.py").write_text("raise SystemExit('poisoned')\n")
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from bench.run.launch import LocalLauncher
from helpers.passes import make_job, make_pass, finish
if __name__ == "__main__":
    root = Path({str(tmp_path)!r})
    launcher = LocalLauncher(("poison",), root / "server.log")
    running = launcher.launch(make_job(root, make_pass(), preload=("poison",)))
    events = finish(running)
    print(running.end, events[0]["not_preloaded"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "End(status=None, reason=None, lost=False, counts=False) ['poison']\n", done.stderr
    assert "poisoned" in (tmp_path / "server.log").read_text()


def run_in_a_process_of_its_own(tmp_path, preload):
    """How a pass ended and what its child had to import itself: the fork server of this process runs."""
    code = f"""
import sys
sys.path[:0] = {[str(tmp_path), *sys.path]!r}
from pathlib import Path
from bench.run.launch import LocalLauncher
from helpers.passes import make_job, make_pass, finish
root = Path({str(tmp_path)!r})
launcher = LocalLauncher({preload!r}, root / "server.log")
running = launcher.launch(make_job(root, make_pass(), preload={preload!r}))
print(finish(running)[0]["not_preloaded"], running.end.status)
"""
    temp = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))  # a short one, for sockets
    env = os.environ | {"TMPDIR": str(temp)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    temp.rmdir()  # nothing is left in it
    return done.stdout.strip() or done.stderr


def test_a_server_killed_while_it_imports_is_replaced_by_one_that_imports(tmp_path):
    (tmp_path / "dies.py").write_text(
        "import os, pathlib\n"
        "first = pathlib.Path(__file__).with_name('first')\n"
        "if not first.exists():\n"
        "    first.touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert run_in_a_process_of_its_own(tmp_path, ("dies",)) == "[] None"
    assert (tmp_path / "first").exists()


def test_a_server_that_is_killed_whenever_it_imports_is_replaced_by_one_that_does_not(tmp_path):
    (tmp_path / "dies.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    assert run_in_a_process_of_its_own(tmp_path, ("dies",)) == "['dies'] None"


def test_a_child_whose_log_finds_the_disk_full_says_so(launcher, tmp_path):
    running = launcher.launch(make_job(tmp_path, make_pass(), log=pathlib.Path("/dev/full")))
    finish(running)
    assert running.end.status is Status.ERROR
    assert running.end.reason == "the disk is full: OSError: [Errno 28] No space left on device"


def test_a_server_killed_in_the_middle_ends_the_pass_and_is_replaced(launcher, tmp_path):
    from multiprocessing.forkserver import _forkserver

    work = make_pass("hang", scratch=str(tmp_path))
    running = launcher.launch(make_job(tmp_path, work))
    trace = tmp_path / "trace.txt"
    assert eventually(lambda: trace.exists() and trace.read_text().endswith("\n"))
    os.kill(_forkserver._forkserver_pid, signal.SIGKILL)
    finish(running)
    assert running.end.status is Status.ERROR
    assert eventually(lambda: gone(int(trace.read_text().split()[0])))
    events, end, _ = play(launcher, tmp_path)
    assert end.status is None
    assert events["ready"][0]["not_preloaded"] == []


def test_children_die_with_their_parent(tmp_path):
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from bench.run.launch import LocalLauncher
from helpers.passes import make_job, make_pass
root = Path({str(tmp_path)!r})
running = LocalLauncher((), root / "server.log").launch(make_job(root, make_pass("hang", scratch=str(root))))
while True:
    running.poll(1.0)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    trace = tmp_path / "trace.txt"
    assert eventually(lambda: trace.exists() and trace.read_text())
    pid = int(trace.read_text().split()[0])
    parent.kill()
    parent.wait()
    assert eventually(lambda: gone(pid))


def test_the_server_imports_ahead_and_stays_clear_of_devices(tmp_path):
    """The child finds torch imported and CUDA untouched: it may initialise the device itself."""
    (tmp_path / "looks.py").write_text(
        "import sys\n"
        "class Looks:\n"
        "    metrics = ()\n"
        "    def run(self, work, ctx):\n"
        "        torch = sys.modules['torch']\n"
        "        print('bad fork:', torch.cuda._is_in_bad_fork(), torch.cuda.is_initialized())\n"
    )
    code = f"""
import sys
sys.path[:0] = {[str(tmp_path), *sys.path]!r}
from pathlib import Path
from bench.run.launch import LocalLauncher
from helpers.passes import make_job, make_pass, finish
root = Path({str(tmp_path)!r})
launcher = LocalLauncher(("torch",), root / "server.log")
for _ in range(2):
    running = launcher.launch(make_job(root, make_pass(), target="looks:Looks", preload=("torch",)))
    ready = finish(running)[0]
    quick = launcher.server_s > ready["startup_s"]
    print(running.end.status, ready["not_preloaded"], "torch" in sys.modules, quick)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "None [] False True\n" * 2, done.stderr
    assert (tmp_path / "logs" / "pass.log").read_text().count("bad fork: False False") == 2


class NoNumberError(RuntimeError):
    nan = True


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), Status.OOM),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            Status.OOM,
        ),
        (RuntimeError("CUDA error: out of memory"), Status.OOM),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), Status.OOM),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Status.OOM),
        (OSError(errno.ENOENT, "No such file"), Status.ERROR),
        (RuntimeError("shape mismatch"), Status.ERROR),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Status.ERROR),
        (KeyError("x"), Status.ERROR),
        (Skip(""), Status.SKIPPED),
        (KeyboardInterrupt(), Status.ERROR),
        (NoNumberError(), Status.NAN),
    ],
)
def test_outcomes_of_exceptions(error, status):
    found, reason = outcome(error)
    assert found is status
    assert reason
    assert "\n" not in reason


class Numpyish:
    def item(self):
        return 3


@pytest.mark.parametrize(
    ("value", "number", "reason", "samples", "odd"),
    [
        (2, 2, None, None, None),
        (Numpyish(), 3, None, None, None),
        (None, None, "not reported by the workload", None, None),
        (Missing("why"), None, "why", None, None),
        (float("-inf"), None, "measured -inf", None, "-inf"),
        (Samples(2.0, (1.0, 3.0)), 2.0, None, [1.0, 3.0], None),
        (Samples(float("nan"), (1.0, float("nan"))), None, "measured nan", [1.0], "nan"),
    ],
)
def test_metrics_as_json(value, number, reason, samples, odd):
    data, found = as_value(value, "s")
    json.dumps(data, allow_nan=False)
    valid = Value.model_validate(data)
    assert (valid.value, valid.unit, valid.reason, valid.samples, found) == (
        number,
        "s",
        reason,
        samples,
        odd,
    )


@pytest.mark.parametrize("value", [True, "1.0", [1.0]])
def test_what_is_no_number_is_no_metric(value):
    with pytest.raises(TypeError, match="a metric must be a number"):
        as_value(value, "s")
