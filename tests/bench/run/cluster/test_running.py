"""What becomes of a pass whose agent gives no answer."""

from types import SimpleNamespace

import pytest

from bench.results.record import Status

pytest.importorskip("ray", reason="ray is not installed (pip install 'ddposink[ray]')")
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RaySystemError,
    RayTaskError,
)

from bench.run.cluster.agent import Report
from bench.run.cluster.files import ChangedError
from bench.run.cluster.launcher import RayLauncher
from bench.run.cluster.running import RayRunning, end_of
from bench.run.cluster.scratch import Copy, Kept, Snapshot
from bench.run.context import SCRATCH
from helpers.passes import make_job, make_pass
from helpers.toy import Toy


def raised(error):
    """An exception of the agent's own, as it arrives."""
    return RayTaskError("report", f"Traceback\n{error!r}", error)


@pytest.mark.parametrize(
    ("error", "status", "lost", "words"),
    [
        (ActorDiedError(), Status.ERROR, True, "the worker on node n1 went away"),
        (NodeDiedError("node 10.0.0.2 is dead"), Status.ERROR, True, "the worker on node n1 went away"),
        (RaySystemError("gcs"), Status.ERROR, True, "the worker on node n1 went away"),
        (OutOfMemoryError("killed"), Status.OOM, False, "killed by Ray: node n1 ran out of memory"),
        (
            RayActorError(None, "The node was running low on memory: 1 worker killed"),
            Status.OOM,
            False,
            "killed by Ray: node n1 ran out of memory",
        ),
        (raised(MemoryError()), Status.OOM, False, "MemoryError (on node n1)"),
        (
            raised(OSError(28, "No space left on device")),
            Status.ERROR,
            False,
            "the disk is full: OSError: [Errno 28] No space left on device (on node n1)",
        ),
        (
            ActorDiedError.from_task_error(raised(ValueError("no server"))),
            Status.ERROR,
            False,
            "node n1 cannot start passes: ",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_only_what_went_away_unasked_is_lost(error, status, lost, words):
    end = end_of(error, "n1")
    assert (end.status, end.lost) == (status, lost)
    assert end.reason.startswith(words)


def running_of(root, said):
    """A pass whose node sends other bytes than it has announced."""
    (root / SCRATCH / "p").mkdir(parents=True)
    (root / SCRATCH / "p" / "a").write_text("old")
    made = RayRunning.__new__(RayRunning)
    made.end, made._taken, made._kept, made._copy = None, 0, 0, Copy(root, "p")
    made._job = SimpleNamespace(root=root, work=SimpleNamespace(id="p"), log=root / "log")
    made._contact = SimpleNamespace(say=said.append)
    made._read = lambda path, start, size: b"new"[start : start + size]
    made._ask = lambda: None
    return made


KEPT = Snapshot(1, ".kept/1", (Kept("a", 3, "0" * 64),))


def test_an_answer_is_not_taken_without_what_it_depends_on(tmp_path):
    made, events = running_of(tmp_path, []), []
    with pytest.raises(ChangedError, match="its answers would be ahead of it: a changed on its way"):
        made._take(Report([{"event": "progress"}, {"event": "cell"}], kept=KEPT), events)
    assert events == []
    assert (tmp_path / SCRATCH / "p" / "a").read_text() == "old"


def test_what_a_pass_keeps_may_stay_behind_while_it_has_no_answer(tmp_path):
    said, events = [], []
    made = running_of(tmp_path, said)
    made._take(Report([{"event": "progress"}], kept=KEPT), events)
    assert events == [{"event": "progress"}]
    assert said == ["what pass p keeps was not brought here: a changed on its way from the node"]
    assert made._kept == 1


def test_a_pass_of_which_a_file_has_gone_here_is_refused(tmp_path):
    class Gone(Toy):
        def identity(self, params):
            raise FileNotFoundError(2, "No such file", "t.txt")

    made = RayLauncher.__new__(RayLauncher)
    made._workload = Gone()
    end = made.launch(make_job(tmp_path, make_pass())).end
    assert (end.status, end.reason) == (Status.ERROR, "[Errno 2] No such file: 't.txt'")
