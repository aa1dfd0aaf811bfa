"""A job of Slurm as the driver sees it: what it says, and that it is lost."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench.results.record import Status
from bench.run.slurm import running
from bench.run.slurm.batch import LINES
from bench.run.slurm.running import SlurmRunning
from helpers.passes import make_job, make_pass
from helpers.toy import Toy


class Submitted:
    job_id = "7"

    def __init__(self, state):
        self.state = state

    def done(self):
        return self.state != "RUNNING"

    def cancel(self, check=True):
        self.state = "CANCELLED"

    def stderr(self):
        return None


def running_of(tmp_path, state="RUNNING", lines=b""):
    folder = tmp_path / "slurm" / "job"
    folder.mkdir(parents=True)
    (folder / LINES).write_bytes(lines)
    return SlurmRunning(Submitted(state), folder, SimpleNamespace(root=tmp_path), lambda hello: hello)


@pytest.mark.parametrize("torn", [b'{"event":"progress","val{"event":"end"}', b"3", b"{}", b"\xff"])
def test_a_line_that_cannot_be_read_ends_its_pass(tmp_path, torn):
    whole = {"event": "progress", "done": 1}
    made = running_of(tmp_path, lines=json.dumps(whole).encode() + b"\n" + torn + b"\n")
    assert made.poll(0.1) == [whole]
    assert made.end is not None
    assert (made.end.status, made.end.lost) == (Status.ERROR, False)
    assert made.end.reason == "what the job says cannot be read: a line of it is damaged (a full disk?)"
    assert not (tmp_path / "slurm" / "job").exists()


def test_a_pass_of_which_a_file_has_gone_here_is_not_submitted(tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed (pip install 'ddposink[slurm]')")
    from bench.run.slurm import site

    there = site.SlurmSite.__new__(site.SlurmSite)
    there._workload, there._variables = Gone(), {}
    refused = site.SlurmLauncher(there, tmp_path).launch(make_job(tmp_path, make_pass()))
    assert (refused.end.status, refused.end.reason) == (Status.ERROR, "[Errno 2] No such file: 't.txt'")
    assert refused.poll(0) == []
    assert list(tmp_path.iterdir()) == []


class Gone(Toy):
    """A file that its cells are of is not there any more."""

    def identity(self, params):
        raise FileNotFoundError(2, "No such file", "t.txt")


TELL = """
import resource, signal, sys
from pathlib import Path
from types import SimpleNamespace
from bench.run.slurm import batch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
batch.take_over = batch.be_a_plain_parent = lambda *rest: None
batch._here = lambda: {"x": "y" * 200}
def load(target):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    return SimpleNamespace(version=lambda: "1")
batch.load_target = load
batch.check_meaning = lambda *rest: Path(sys.argv[1], "went on").touch()
job = SimpleNamespace(target="", work=SimpleNamespace(cells=[None]))
batch.measure(batch.Order(job, {}, {}, Path(sys.argv[1]), "."))
"""


def test_a_line_that_the_disk_takes_half_of_is_no_line_that_was_told(tmp_path):
    done = subprocess.run([sys.executable, "-c", TELL, tmp_path], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert not (tmp_path / "went on").exists()  # in silence
    assert (tmp_path / LINES).stat().st_size == 100


@pytest.mark.parametrize(
    ("state", "lost"), [("NODE_FAIL", True), ("PREEMPTED", True), ("BOOT_FAIL", True), ("FAILED", False)]
)
def test_a_job_whose_node_fails_before_its_first_line_is_lost(tmp_path, monkeypatch, state, lost):
    monkeypatch.setattr(running, "LATE_SECONDS", 0.0)
    made = running_of(tmp_path, state)
    made.poll(0.1)
    made.poll(0.1)
    assert made.end is not None
    assert (made.end.status, made.end.lost, made.end.counts) == (Status.ERROR, lost, lost)
    assert made.end.reason == f"Slurm job 7 ended before it began ({state})"
